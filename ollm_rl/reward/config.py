"""Settings of rewards, and of how they are judged by."""

from dataclasses import dataclass
from typing import ClassVar

from ollm_rl.common.settings import Config, setting

SOLVED_AT = 1.0


@dataclass(frozen=True)
class RewardConfig(Config):
    """What every reward has."""

    section: ClassVar[str] = "reward"

    solved_at: float = setting(SOLVED_AT, "from which reward on an episode counts as solved", above=0)
    limit_s: float | None = setting(
        None, "of one call, in seconds; null: 300 for a reward of one's own, and none for ours", above=0
    )


@dataclass(frozen=True)
class PerCompletionConfig(RewardConfig):
    """Of `ollm_rl.reward.per_completion.PerCompletion`."""

    function: str | None = setting(None, "<module>.<name>, which has to be given; it may be asynchronous")
    concurrency: int = setting(16, "completions at a time", at_least=1)
    timeout_s: float = setting(30.0, "of one try, in seconds", above=0)
    retries: int = setting(2, "further tries of a completion", at_least=0)
    wait_s: float = setting(0.5, "before the first of them, in seconds; each waits twice as long", at_least=0)


@dataclass(frozen=True)
class WeightedConfig(RewardConfig):
    """Of `ollm_rl.rollout.judge.Weighted`."""

    functions: list[str] = setting([], "<module>.<name> of rewards with TRL's signature")
    weights: list[float] | None = setting(None, "of each; null: all 1")
