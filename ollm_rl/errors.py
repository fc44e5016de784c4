"""Errors that a user can act on: each says what was wrong, what was expected and what to do next.

Every class also inherits from the standard error that it refines, so `except ValueError` keeps working.
The command line turns any of them into one message and exit code 2.
"""

import difflib
import traceback
from collections.abc import Iterable


class OLLMError(Exception):
    """Root of all errors caused by what the user gave us."""


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


class RewardError(RuntimeError):
    """A reward function raised an error, which is the cause of this one. It may do better the next time: exit code 1."""


class WorkerError(RuntimeError):
    """Workers failed too often in a row. No user error, as far as we can tell: exit code 1."""


def place_of(error: BaseException, besides: str) -> str:
    """The line that raised an error, in parentheses: the innermost that is not in the file `besides`."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != besides]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause such as ``" Did you mean 'seed'?"``, or an empty string if nothing is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
