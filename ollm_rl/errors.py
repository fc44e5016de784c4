"""Errors that a user can act on: each says what was wrong, what was expected and what to do next.

Every class also inherits from the standard error that it refines, so `except ValueError` keeps working.
The command line turns any of them into one message and exit code 2.
"""

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

HOME = Path(__file__).parent.parent
OURS = tuple(str(HOME / name) + os.sep for name in ("ollm_rl", "agents", "envs"))
STANDARD = sysconfig.get_paths()["stdlib"] + os.sep


class OLLMError(Exception):
    """Root of all errors caused by what the user gave us.

    Attributes:
        traceback: of the user's own code, where that raised; kept as a text, for an error that comes from another process has no cause.
    """

    traceback: str = ""


class ConfigurationError(OLLMError, ValueError):
    """A configuration key or value that cannot be used."""


class DataError(OLLMError, ValueError):
    """A data file that is missing, or a line of it that cannot be read."""


class BackboneError(OLLMError, ValueError):
    """A backbone that cannot be found, loaded or driven."""


class CheckpointError(OLLMError, ValueError):
    """A saved plug-in, policy or run that does not fit what it is loaded into."""


class TrainingError(OLLMError, ArithmeticError):
    """Rewards or settings with which training has left the finite numbers, or has nothing to learn from."""


class RewardError(OLLMError, RuntimeError):
    """A reward function raised an error, which is the cause of this one. It may do better the next time, so workers ask it again."""


class WorkerError(RuntimeError):
    """Workers failed too often in a row. No user error, as far as we can tell: exit code 1."""


def place_of(error: BaseException) -> str:
    """The user's line that raised an error, in parentheses: the innermost of their frames."""
    frames = _of_user(traceback.extract_tb(error.__traceback__))
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


Told = TypeVar("Told", bound=OLLMError)


def with_traceback_of(error: BaseException, told: Told) -> Told:
    """`told`, with the traceback of the user's code that raised `error`: their frames only, and those of its causes."""
    found = traceback.TracebackException.from_exception(error)
    each: traceback.TracebackException | None = found
    any_frame = isinstance(error, SyntaxError)  # which says itself where
    while each is not None:
        each.stack = traceback.StackSummary.from_list(_of_user(each.stack))
        any_frame |= bool(each.stack)
        each = each.__cause__ or each.__context__
    told.traceback = "".join(found.format()).rstrip() if any_frame else ""
    return told


def _of_user(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames of the user's own files; where there is none, of packages that were installed."""
    theirs = [f for f in frames if not f.filename.startswith((*OURS, "<frozen "))]
    installed = [f for f in theirs if "site-packages" in f.filename or "dist-packages" in f.filename]
    return [f for f in theirs if f not in installed and not f.filename.startswith(STANDARD)] or installed


def close(word: str, choices: Iterable[str], n: int = 3, alike: float = 0.5) -> list[str]:
    """The choices that are most like a word, at most n of them, and at least so much alike (1: the same)."""
    return difflib.get_close_matches(word, list(choices), n=n, cutoff=alike)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause such as ``" Did you mean 'seed'?"``, or an empty string if nothing is near."""
    near = close(word, choices, 1)
    return f" Did you mean '{near[0]}'?" if near else ""
