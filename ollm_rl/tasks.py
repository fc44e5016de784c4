"""Problems with checkable answers, and the disjoint splits that they are drawn from.

Splits: `sft` (conversion), `train` (reinforcement learning), `tune` (settings), `test` (reported numbers).
A problem's split follows from a hash of its text, so that no seed and no size makes two splits overlap.
"""

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ollm_rl.errors import ConfigurationError, DataError, did_you_mean

SPLITS = ("sft", "train", "tune", "test")
# Cumulative percentages of the hash; the last 3% hold the examples that stand in every prompt.
BOUNDS = {"sft": (0, 42), "train": (42, 67), "tune": (67, 77), "test": (77, 97), "examples": (97, 100)}


@dataclass(frozen=True)
class Problem:
    """One problem. `solution` is needed for conversion only; `extra` carries columns such as `domain`."""

    id: str
    problem: str
    answer: str
    solution: str | None = None
    extra: dict = field(default_factory=dict)


class Task(ABC):
    """A source of problems.

    Attributes:
        name: for tables and files.
        examples: solved problems that stand in front of every prompt.
    """

    name: str
    examples: list[Problem]

    @abstractmethod
    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        """At most `n` problems of a split; the same ones for the same seed."""


def bucket(text: str) -> str:
    """The split that `text` belongs to."""
    percent = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    return next(split for split, (low, high) in BOUNDS.items() if low <= percent < high)


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigurationError(f"unknown split '{split}'; expected one of {', '.join(SPLITS)}")


class ChainSum(Task):
    """Sums such as `6 + 0 - 1` from reasoning_gym, with solutions of mixed quality.

    Real SFT data mixes careful and hasty solutions; here a share of `direct_share` jumps straight to the
    answer and the rest goes step by step. `Problem.extra["style"]` says which (`direct` or `steps`).
    Problems of `tune` and `test` are unique; `sft` and `train` may repeat (there are only 200 sums of
    two one-digit terms).
    """

    def __init__(
        self,
        min_terms: int = 2,
        max_terms: int = 4,
        min_digits: int = 1,
        max_digits: int = 1,
        direct_share: float = 0.6,
        num_examples: int = 3,
        name: str = "chain_sum",
    ):
        if not 2 <= min_terms <= max_terms:
            raise ConfigurationError(f"task: expected 2 <= min_terms <= max_terms, got {min_terms} and {max_terms}")
        if not 0 <= direct_share <= 1:
            raise ConfigurationError(f"task.direct_share={direct_share}; expected a number from 0 to 1")
        self.name = name
        self.settings = dict(
            min_terms=min_terms, max_terms=max_terms, min_digits=min_digits, max_digits=max_digits
        )  # fmt: skip
        self.direct_share = direct_share
        self.examples = []
        for problem in self._draw("examples", seed=0, share=0.0):
            if len(self.examples) == num_examples:
                break
            self.examples.append(problem)

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        unique = split in ("tune", "test")
        seen: set[str] = set()
        found: list[Problem] = []
        for i, problem in enumerate(self._draw(split, seed, self.direct_share)):
            if len(found) == n or i > 50 * n + 10_000:  # a small space can run out of unique problems
                break
            if not (unique and problem.problem in seen):
                seen.add(problem.problem)
                found.append(problem)
        return found

    def _draw(self, split: str, seed: int, share: float) -> Iterator[Problem]:
        import reasoning_gym

        styles = random.Random(f"{split}/{seed}")
        chunk = 2_000
        for part in range(10_000):
            source = f"{self.settings}/{split}/{seed}/{part}"
            chunk_seed = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") >> 1
            data = reasoning_gym.create_dataset("chain_sum", seed=chunk_seed, size=chunk, **self.settings)
            for item in data:
                expression = item["metadata"]["expression"]
                if bucket(expression) != split:
                    continue
                style = "direct" if styles.random() < share else "steps"
                yield Problem(
                    id=f"{split}-{seed}-{part}-{item['metadata']['source_index']}",
                    problem=f"{expression} = ? Put the final answer in \\boxed{{}}.",
                    answer=item["answer"],
                    solution=solve_chain_sum(expression, steps=style == "steps"),
                    extra={"style": style, "terms": item["metadata"]["num_terms"]},
                )


def solve_chain_sum(expression: str, steps: bool) -> str:
    """A worked solution of a sum, one operation a line, or only its last line."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if operator == "+" else total - int(term)
        lines.append(f"{total} {operator} {term} = {result}")
        total = result
    return "\n".join([*(lines if steps else []), f"The answer is \\boxed{{{total}}}."])


class Jsonl(Task):
    """Problems from a JSON-lines file with the fields `problem`, `answer`, and optionally `id` and `solution`.

    A field `split` (sft, train, tune or test) assigns a line; without it a hash of the problem does. The
    first `num_examples` sft lines with a short solution stand as examples in every prompt.
    """

    def __init__(self, path: str | None = None, num_examples: int = 2, name: str = "jsonl"):
        self.name = name
        if path is None:
            raise ConfigurationError("task=jsonl needs a file; give task.path=<file.jsonl>")
        self.path = Path(path).expanduser()
        self.examples = []
        self.by_split: dict[str, list[Problem]] = {split: [] for split in SPLITS}
        for problem, split in self._read():
            short = problem.solution is not None and len(problem.solution) < 400
            if split == "sft" and short and len(self.examples) < num_examples:
                self.examples.append(problem)
            else:
                self.by_split[split].append(problem)

    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        check_split(split)
        found = list(self.by_split[split])
        random.Random(seed).shuffle(found)
        return found[:n]

    def _read(self) -> Iterator[tuple[Problem, str]]:
        if not self.path.is_file():
            raise DataError(f"no such file: {self.path}. Expected a JSON-lines file; check task.path.")
        with self.path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield self._parse(line, number)

    def _parse(self, line: str, number: int) -> tuple[Problem, str]:
        where = f"{self.path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where} is not JSON ({error.msg} at column {error.colno}). "
                'Expected one object a line: {"problem": ..., "answer": ..., "solution": ...}.'
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {type(row).__name__}, expected an object with 'problem' and 'answer'.")
        for name in ("problem", "answer"):
            if not isinstance(row.get(name), str | int | float) or isinstance(row.get(name), bool):
                hint = did_you_mean(name, [str(k) for k in row]) if name not in row else ""
                raise DataError(f"{where} has no text in the field '{name}'; found fields {sorted(row)}.{hint}")
        problem = str(row["problem"])
        named = row.get("split")
        split = named if named in SPLITS else bucket(problem)
        if split == "examples":
            split = "sft"
        known = ("id", "problem", "answer", "solution", "split")
        extra = {k: v for k, v in row.items() if k not in known}
        solution = str(row["solution"]) if row.get("solution") else None
        return Problem(str(row.get("id", number)), problem, str(row["answer"]), solution, extra), split


class OmniMath(Jsonl):
    """Omni-MATH (arXiv 2410.07985): competition problems with `domain`, `difficulty` and `source`.

    Read from `path`, a JSON-lines copy, or from the hub. Its problems have no short solutions to stand as examples.
    """

    def __init__(self, path: str | None = None, hub_id: str = "KbsdJames/Omni-MATH", name: str = "omni_math"):
        if path is None:
            path = str(_from_hub(hub_id))
        super().__init__(path, num_examples=0, name=name)


def _from_hub(hub_id: str) -> Path:
    """Download a data set once and keep it as JSON lines."""
    from ollm_rl.smollm2 import cache_dir

    target = cache_dir() / "data" / f"{hub_id.replace('/', '--')}.jsonl"
    if not target.exists():
        from datasets import load_dataset

        try:
            data = load_dataset(hub_id, split="test")
        except Exception as error:  # datasets raises many kinds for one cause
            raise DataError(
                f"the data set {hub_id} cannot be had from the hub ({type(error).__name__}). "
                "Give a local copy with task.path=<file.jsonl>."
            ) from error
        target.parent.mkdir(parents=True, exist_ok=True)
        data.to_json(target)
    return target


TASKS: dict[str, Callable[..., Task]] = {"chain_sum": ChainSum, "jsonl": Jsonl, "omni_math": OmniMath}


def make_task(name: str, **settings) -> Task:
    """A task by name.

    Raises:
        ConfigurationError: there is no task of that name, or it has no such setting.
    """
    if name not in TASKS:
        raise ConfigurationError(
            f"unknown task '{name}'; expected one of {', '.join(TASKS)}.{did_you_mean(name, TASKS)}"
        )
    try:
        return TASKS[name](**settings)
    except TypeError as error:
        raise ConfigurationError(f"task '{name}': {error}") from error
