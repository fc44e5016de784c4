"""Problems with checkable answers, from generators, files and the hub."""

import inspect
from collections.abc import Callable
from typing import Any

from ollm_rl.common.locate import dotted_name, locate
from ollm_rl.errors import ConfigurationError, OLLMError, did_you_mean, place_of, with_traceback_of
from ollm_rl.tasks.base import SPLITS, Problem, Task, TaskConfig, bucket
from ollm_rl.tasks.code import HumanEval, PythonFunctions
from ollm_rl.tasks.generated import ChainSum, LegCounting, ReasoningGym
from ollm_rl.tasks.planning import Countdown, Jugs, ShortestPath
from ollm_rl.tasks.records import GSM8K, Jsonl, OmniMath
from ollm_rl.tasks.streamed import HubSolutions

__all__ = [
    "GSM8K", "SPLITS", "TASKS", "ChainSum", "Countdown", "HubSolutions", "HumanEval", "Jsonl", "Jugs", "LegCounting", "OmniMath", "Problem", "PythonFunctions", "ReasoningGym",
    "ShortestPath", "Task", "TaskConfig", "bucket", "make_task",
]  # fmt: skip

TASKS: dict[str, Callable[..., Task]] = {
    "chain_sum": ChainSum,
    "countdown": Countdown,
    "gsm8k": GSM8K,
    "human_eval": HumanEval,
    "jsonl": Jsonl,
    "jugs": Jugs,
    "leg_counting": LegCounting,
    "omni_math": OmniMath,
    "open_math_reasoning": HubSolutions,
    "python_functions": PythonFunctions,
    "reasoning_gym": ReasoningGym,
    "shortest_path": ShortestPath,
}


def make_task(name: str | type[Task] | None = None, **settings: Any) -> Task:
    """A task by name: one of ours, or `<module>.<Class>` (also as `_target_`) of one's own, a `Task` whose constructor takes the settings.

    >>> task = ol.make_task("chain_sum", max_terms=5)

    Raises:
        ConfigurationError: there is no task of that name, or it has no such setting.
        DataError: its data cannot be read.
    """
    own = name if isinstance(name, type) else None
    if own is not None:
        target = dotted_name(own)
    else:
        target = settings.pop("_target_", name if isinstance(name, str) and "." in name else None)
    if target is not None:
        task = _own_task(own or locate(str(target), "task._target_"), str(target), settings)
        task.settings = {"_target_": str(target), **settings}
        return task
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigurationError(
            f"unknown task '{name}'; expected one of {', '.join(TASKS)}, or <module>.<Class>.{did_you_mean(str(name), TASKS)}"
        )
    task = TASKS[name](name=name, **settings)
    task.settings = {"name": name, **settings}
    return task


def _own_task(kind: Any, target: str, settings: dict[str, Any]) -> Task:
    parameters = inspect.signature(kind).parameters
    name = settings.get("name") if "name" in parameters else settings.pop("name", None)
    try:
        inspect.signature(kind).bind(**settings)
    except TypeError as error:
        names = list(parameters)
        hint = "".join(did_you_mean(key, names) for key in settings if key not in names)
        raise ConfigurationError(
            f"task._target_={target}: {error}. It takes {', '.join(names) or 'no settings'}.{hint}"
        ) from error
    try:
        task: Task = kind(**settings)
        if missing := [name for name in ("problems", "examples") if not hasattr(task, name)]:
            raise ConfigurationError(f"task._target_={target} has no '{missing[0]}'; see docs/tasks.md")
        first = next((found for split in SPLITS if (found := task.problems(split, 1))), [])
    except OLLMError:
        raise
    except Exception as error:
        told = ConfigurationError(
            f"task._target_={target} raised {type(error).__name__}: {error}{place_of(error)}. Check its settings, "
            f"{', '.join(settings) or 'of which it was given none'}, and docs/tasks.md."
        )
        raise with_traceback_of(error, told) from error
    for problem in (*task.examples, *first):
        if (
            not isinstance(problem, Problem)
            or not isinstance(problem.problem, str)
            or not isinstance(problem.answer, str)
        ):
            raise ConfigurationError(
                f"task._target_={target} gave {problem!r:.120}; expected a Problem, whose problem and answer are texts"
            )
    for attribute, default in (
        ("name", name or kind.__name__), ("max_new_tokens", TaskConfig.max_new_tokens), ("default_reward", Task.default_reward),
    ):  # fmt: skip
        if not hasattr(task, attribute):
            setattr(task, attribute, default)
    return task
