"""What a task is, and the disjoint splits that its problems are drawn from.

Splits: `sft` (conversion), `train` (reinforcement learning), `tune` (settings), `test` (reported numbers).
A problem's split follows from a hash of its text, so that no seed and no size makes two splits overlap.
"""

import hashlib
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ollm_rl.common.settings import Config, setting
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.reward.functions import MathVerify

SPLITS = ("sft", "train", "tune", "test")
ALL = sys.maxsize  # problems of a split that has an end
# Cumulative percentages of the hash; the last 3% hold the examples that stand in every prompt.
BOUNDS = {"sft": (0, 42), "train": (42, 67), "tune": (67, 77), "test": (77, 97), "examples": (97, 100)}


@dataclass(frozen=True)
class Problem:
    """One problem. `solution` is needed for conversion only; `extra` carries columns such as `domain`, `turns` what was said before, as (role, text).

    >>> ol.Problem(id="1", problem="1 + 1", answer="2", solution="1 + 1 = 2\n...", extra={"domain": "sums"})
    """

    id: str
    problem: str
    answer: str
    solution: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TaskConfig(Config):
    """What every task has."""

    section: ClassVar[str] = "task"

    name: str = setting("task", "which task it is, as `task=` says it; for tables and files")
    num_examples: int = setting(3, "solved problems in every prompt", at_least=0)
    max_new_tokens: int = setting(256, "token budget of an episode", at_least=1)
    system_prompt: str | None = setting(
        None, "the system message that prompts begin with; null: the chat template's own", literal=True
    )
    instruction: str | None = setting(
        None, "what the user says, with {problem} where the problem stands; null: the problem, and a request for a box where nothing shows one",
        literal=True,
    )  # fmt: skip
    prefill: str = setting("", "how all answers begin: the end of every prompt", literal=True)
    chat_template_kwargs: dict[str, Any] = setting(
        {}, "arguments of the chat template, such as {enable_thinking: false}"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instruction is not None and "{problem}" not in self.instruction:
            raise self.refuse("instruction", "a text with {problem} where the problem stands")


class Task(ABC):
    """A source of problems; a task of your own inherits from it and goes to `ol.Session` as it is.

    >>> task = ol.make_task("chain_sum")
    >>> task.problems("train", 2, seed=0)

    Attributes:
        name: for tables and files.
        examples: solved problems that stand in front of every prompt.
        max_new_tokens: token budget that an episode gets where nothing else is said.
        ood_variants: settings of the task that put its problems out of the distribution of training, by name.
        notes: what is odd in its data and was put right.
        table: how many rows went to which split and why, in lines; empty where problems are generated.
        unanswered: of the first problem without an answer, where it stands and what is missing; empty if all have one.
        default_reward: the class of the reward that judges it where no other is given.
        sampled: how its solutions were sampled, for `solutions.json`; None: they were not.
        streamed: problems come over the network, as they are asked for.
        boxed: the reward that was chosen reads boxes; None: as `default_reward` does.
        settings: what `make_task` made it from, with the name under `name`; None of a task that was made otherwise.
    """

    ood_variants: ClassVar[dict[str, dict[str, Any]]] = {}
    notes: Sequence[str] = ()
    table: Sequence[str] = ()
    unanswered: str = ""
    sampled: dict[str, Any] | None = None
    streamed: ClassVar[bool] = False
    boxed: bool | None = None
    default_reward: ClassVar[type[Any]] = MathVerify
    settings: dict[str, Any] | None = None

    config_class: ClassVar[type[TaskConfig]] = TaskConfig  # of the settings of its constructor

    name: str
    examples: list[Problem]
    max_new_tokens: int

    def wants_box(self) -> bool:
        """Whether a text has to state its final answer as `math_verify` reads it."""
        return self.default_reward is MathVerify if self.boxed is None else self.boxed

    @abstractmethod
    def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
        """At most `n` problems of a split; the same ones for the same seed."""


def has_end(task: Task) -> bool:
    """Whether its problems are rows of data, and not generated as many as are wanted."""
    return bool(getattr(task, "table", ()))


def bucket(text: str, bounds: Mapping[str, tuple[float, float]] = BOUNDS) -> str:
    """The split that `text` belongs to by its hash, or `examples`; `bounds`: from and below which percentage."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    percent = number % 100 + (number // 100 % 10_000) / 10_000  # the integers are those of older versions
    return next(split for split, (low, high) in bounds.items() if low <= percent < high)


def shared_out(shares: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Bounds for `bucket` by which splits have these shares; what is left goes to the others in the proportions of `BOUNDS`."""
    sizes = {split: high - low for split, (low, high) in BOUNDS.items() if split not in shares}
    left = 1 - sum(shares.values())
    scale = 100 * left / sum(sizes.values()) if sizes else 0.0
    widths = {split: 100 * shares[split] if split in shares else scale * sizes[split] for split in BOUNDS}
    ends = [0.0, *itertools.accumulate(widths.values())]
    ends[-1] = 100.0
    return {split: (low, high) for split, (low, high) in zip(widths, itertools.pairwise(ends), strict=True)}


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigurationError(f"unknown split '{split}'; expected one of {', '.join(SPLITS)}")


def format_answer(answer: str) -> str:
    """The line that states an answer."""
    return f"The answer is \\boxed{{{answer}}}."


def worked(problems: Sequence[Problem], task: str, who: str) -> list[Problem]:
    """Those that have a worked solution.

    Raises:
        DataError: none has; `who` needs them.
    """
    found = [p for p in problems if p.solution is not None]
    if not found:
        raise DataError(
            f"{who} needs worked solutions, and none of the {len(problems)} problems of task '{task}' in that split has one. Let the backbone "
            "sample them (convert.solutions=sampled; in Python ol.sample_solutions), give them, or give a plug-in that exists (plugin.path=...)."
        )
    return found


def values_of(problem: Problem, field: str) -> list[Any]:
    """The values of a column that may hold one or a list."""
    value = problem.extra.get(field)
    return value if isinstance(value, list) else [] if value is None else [value]
