"""Which settings a reward of the user's takes: what `reward.<key>=` may be, before it is made or called."""

import inspect
from collections.abc import Mapping
from typing import Any

from ollm_rl.common.locate import dotted_name
from ollm_rl.common.settings import settings_of
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.reward.config import RewardConfig

CONVERSATIONAL = "conversational"
OF_JUDGE = (CONVERSATIONAL, *settings_of(RewardConfig))  # settings that every reward has
# Arguments that the judge hands over at each call.
HANDED = (
    "prompts", "completions", "completion_ids", "log_extra", "log_metric", "id", "problem", "answer", "solution",
)  # fmt: skip
UNNAMED = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)


def check_settings(target: Any, given: Mapping[str, Any]) -> None:
    """Whether a class, a factory or a reward function has all of these settings, each under a name of its own.

    What only `**columns` or `**kwargs` would take is a misspelt setting that nobody reads.

    Raises:
        ConfigurationError: not so; the message has its settings, and the nearest name.
    """
    name = dotted_name(target if hasattr(target, "__qualname__") else type(target))
    own = {key: value for key, value in given.items() if key not in OF_JUDGE}
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:  # of some that are written in C
        raise ConfigurationError(f"reward {name}: {error}. Expected a function or a class in Python.") from error
    taken = settings_taken(target)
    if wrong := next((key for key in own if key not in taken), None):
        handed = ", which it is handed with each call" if wrong in HANDED and wrong in signature.parameters else ""
        raise ConfigurationError(
            f"reward {name} has no setting '{wrong}'{handed}; it takes {_said(taken)}, and every reward has {', '.join(OF_JUDGE)}."
            f"{did_you_mean(wrong, [*taken, *OF_JUDGE])}"
        )
    try:
        (signature.bind_partial if judges_itself(target) else signature.bind)(**own)
    except TypeError as error:
        raise ConfigurationError(f"reward {name}: {error}. It takes {_said(taken)}.") from error


def judges_itself(target: Any) -> bool:
    """Whether it is the reward, and not a class or a factory that makes one."""
    return not inspect.isclass(target) and "completions" in inspect.signature(target).parameters


def settings_taken(target: Any) -> dict[str, bool]:
    """The names of its settings, and whether each has a default: its named arguments, but for what it is handed with each call.

    Of a class whose constructor takes `**settings`: also those of its `config_class`, and of the constructors that it inherits.
    """
    found = _parameters(target)
    if judges_itself(target):
        return {name: has_default for name, has_default in found.items() if name not in HANDED}
    if not inspect.isclass(target) or not _takes_all(target):
        return found
    if (config := getattr(target, "config_class", None)) is not None:
        found |= {name: True for name in settings_of(config) if name not in found}
    for base in target.__mro__[1:-1]:
        if "__init__" in vars(base):
            found = {**found, **_parameters(base), **found}
            if not _takes_all(base):
                break
    return found


def _parameters(target: Any) -> dict[str, bool]:
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p.default is not p.empty for p in parameters if p.kind not in UNNAMED}


def _takes_all(target: Any) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())


def _said(taken: Mapping[str, bool]) -> str:
    """The settings in words. What has no default may as well be a column of the data, and comes last."""
    optional, others = ([n for n, has_default in taken.items() if has_default is wanted] for wanted in (True, False))
    parts = [*optional, *(f"{name} (which has no default)" for name in others)]
    return ", ".join(part for part in parts if part not in OF_JUDGE) or "no settings of its own"
