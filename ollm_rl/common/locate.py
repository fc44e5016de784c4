"""Classes and functions by dotted names, and back."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ollm_rl.errors import ConfigurationError, OLLMError, did_you_mean, place_of, with_traceback_of


def dotted_name(target: Any) -> str:
    """What `locate` finds a class or function by."""
    return f"{target.__module__}.{target.__qualname__}"


def locate(target: str, key: str = "agent._target_") -> Any:
    """The class or function that a dotted name stands for; the working directory is searched too.

    Raises:
        ConfigurationError: there is no such module or class, or its module cannot be imported.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module, _, name = str(target).rpartition(".")
    remedy = "Expected <module>.<name>, the module importable from the working directory or installed."
    try:
        found = getattr(import_module(module), name, None) if module.strip(".") else None
    except OLLMError:  # it says what it lacks
        raise
    except Exception as error:  # a module may raise anything
        said = (
            error if isinstance(error, ModuleNotFoundError) else f"importing it raised {type(error).__name__}: {error}"
        )
        told = ConfigurationError(f"{key}={target}: {said}{place_of(error)}. {remedy}")
        raise with_traceback_of(error, told) from error
    if not callable(found):
        what = f"no '{name}'" if found is None else f"'{name}' is no class or function"
        there = vars(import_module(module)) if module.strip(".") else {}
        hint = did_you_mean(name, [n for n, value in there.items() if callable(value) and not n.startswith("_")])
        raise ConfigurationError(f"{key}={target}: {what} in '{module}'.{hint} {remedy}")
    return found
