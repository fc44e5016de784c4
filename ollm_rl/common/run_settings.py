"""Settings of a run itself: its directory, its seed, and how it is resumed. Imports no torch."""

import os
from dataclasses import dataclass

from ollm_rl.common.folders import LONGEST_NAME
from ollm_rl.common.settings import MOST_SEEDS, Config, setting
from ollm_rl.errors import ConfigurationError


@dataclass(frozen=True)
class RunConfig(Config):
    """What every command takes."""

    name: str | None = setting(None, "directory of the run under runs_dir; null: the command's name")
    seed: int = setting(
        0,
        "of training, of sampling, and of which problems are drawn; comparisons use `seeds`",
        at_least=0,
        at_most=MOST_SEEDS,
    )
    runs_dir: str = setting("runs", "where runs are", path=True)
    resume: str = setting("auto", "whether an existing run is continued", choices=("auto", "never", "must"))
    policy: str | None = setting(
        None, "directory of a saved policy, or of its run, to start from, evaluate or search with", of_run="policy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_name(self.name)


def _check_name(name: str | None) -> None:
    """Whether a run can be called so: parts of letters with slashes between them, which become directories."""
    if name is None:
        return
    wrong = ""
    parts = name.split("/")
    if not name.strip():
        wrong = "is empty"
    elif not name.isprintable():
        wrong = "has characters that do not print"
    elif any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        wrong = f"is longer than {LONGEST_NAME} bytes"
    elif any(part in (".", "..") for part in parts):
        wrong = "leads out of runs_dir"
    elif any(not part or part != part.strip() or part.startswith("-") for part in parts):
        wrong = "begins or ends with a slash, a space or a dash"
    if wrong:
        raise ConfigurationError(
            f"name={name!r:.80} {wrong}; expected the name of a directory under runs_dir, such as name=first or name=sweep/first"
        )
