"""What every learner checks in the same way: its settings before it begins, and the episodes of an iteration."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ollm_rl.errors import ConfigurationError, TrainingError
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.judge import LARGEST

HUGE = 1e30  # settings from here on overflow float32 in an optimiser


def at_least(low: float, **settings: Any) -> None:
    """Refuse settings of an agent that are less than `low`, beyond float32 or no numbers.

    Raises:
        ConfigurationError: naming the first.
    """
    _check(f"at least {low}", lambda value: value >= low, settings)


def above(low: float, **settings: Any) -> None:
    """Refuse settings of an agent that are `low` or less, beyond float32 or no numbers.

    Raises:
        ConfigurationError: naming the first.
    """
    _check(f"a number above {low}", lambda value: value > low, settings)


def within(low: float, high: float, **settings: Any) -> None:
    """Refuse settings of an agent that are not between `low` and `high`, both included.

    Raises:
        ConfigurationError: naming the first.
    """
    _check(f"a number from {low} to {high}", lambda value: low <= value <= high, settings)


def _check(expected: str, right: Any, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE
        if not number or not right(value):
            raise ConfigurationError(f"agent.{name}={value}; expected {expected}")


def check_episodes(episodes: Sequence[Episode]) -> None:
    """There is something to learn from, and its rewards can be calculated with in float32.

    Raises:
        TrainingError: no episode, or a reward that is too large.
    """
    if not episodes:
        raise TrainingError("an iteration gave no episode, so training was stopped. Look at the task's problems.")
    for episode in episodes:
        if not math.isfinite(episode.reward) or abs(episode.reward) > LARGEST:
            raise TrainingError(
                f"a reward of {episode.reward} (problem {episode.problem.id}); expected a number between -{LARGEST:g} and "
                f"{LARGEST:g}. Mend the reward function, and run the same command again to continue."
            )
