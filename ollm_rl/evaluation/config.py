"""Settings of evaluations and of the inspection of options. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from ollm_rl.common.settings import Config, setting
from ollm_rl.errors import ConfigurationError
from ollm_rl.tasks.base import SPLITS


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """What agents are evaluated on, and how often."""

    section: ClassVar[str] = "evaluate"

    split: str = setting("test", "where the problems come from", choices=SPLITS)
    num_problems: int = setting(200, "problems, one greedy answer each", at_least=1)
    samples: int = setting(8, "sampled answers per problem, for avg@k, pass@k and maj@k; 0: none", at_least=0)
    ks: list[int] = setting(
        [], "numbers of answers up to samples for curves of pass@k and maj@k, such as [1,2,4,8]; empty: samples alone"
    )
    num_ood: int = setting(0, "test problems of each of the task's out-of-distribution variants", at_least=0)
    num_kl: int = setting(0, "problems for the KL from where training started", at_least=0)
    num_general: int = setting(
        0, "general texts, at most 24, on which loss and KL are measured against the untouched backbone", at_least=0
    )
    hand_over: list[float] = setting(
        [],
        "greedy accuracy where the agent chooses at the first decisions only and the prior at all others: a number of decisions, or below 1 a share of those of the agent's own text, such as [1,2,4,8,0.25,0.5]",
    )
    every: int | None = setting(None, "iterations between evaluations while training; null: none", at_least=1)
    every_problems: int = setting(50, "problems of split `tune` for those", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong_k := [k for k in self.ks if not 1 <= k <= self.samples]:
            raise ConfigurationError(
                f"evaluate.ks: {wrong_k[0]} answers of evaluate.samples={self.samples}; expected numbers from 1 to {self.samples}"
            )
        if wrong := [x for x in self.hand_over if not (0 < x < 1 or (x >= 1 and float(x).is_integer()))]:
            raise ConfigurationError(
                f"evaluate.hand_over: {wrong[0]} is no number of decisions and no share; expected 1, 2, ... or a number between 0 and 1"
            )


@dataclass(frozen=True)
class InspectConfig(Config):
    """What `inspect` shows."""

    section: ClassVar[str] = "inspect"

    split: str = setting("tune", "where the problems come from", choices=SPLITS)
    num_problems: int = setting(20, "problems whose solutions are shown", at_least=1)
    prompt: str | None = setting(None, "a text to answer in the terminal, in place of the page", literal=True)
