"""Problems with checkable answers, from generators, files and the hub."""

import inspect
from collections.abc import Callable

from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.tasks.base import SPLITS, Problem, Task, bucket
from ollm_rl.tasks.generated import ChainSum, LegCounting, ReasoningGym
from ollm_rl.tasks.records import GSM8K, HubSolutions, Jsonl, OmniMath

__all__ = [
    "GSM8K", "SPLITS", "TASKS", "ChainSum", "HubSolutions", "Jsonl", "LegCounting", "OmniMath", "Problem", "ReasoningGym", "Task", "bucket",
    "make_task",
]  # fmt: skip

TASKS: dict[str, Callable[..., Task]] = {
    "chain_sum": ChainSum,
    "gsm8k": GSM8K,
    "jsonl": Jsonl,
    "leg_counting": LegCounting,
    "omni_math": OmniMath,
    "open_math_reasoning": HubSolutions,
    "reasoning_gym": ReasoningGym,
}


def make_task(name: str, **settings) -> Task:
    """A task by name.

    Raises:
        ConfigurationError: there is no task of that name, or it has no such setting.
        DataError: its data cannot be read.
    """
    if name not in TASKS:
        raise ConfigurationError(
            f"unknown task '{name}'; expected one of {', '.join(TASKS)}.{did_you_mean(name, TASKS)}"
        )
    try:
        inspect.signature(TASKS[name]).bind(**settings)
    except TypeError as error:
        raise ConfigurationError(f"task '{name}': {error}") from error
    return TASKS[name](**settings)
