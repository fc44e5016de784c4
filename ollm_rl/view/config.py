"""Settings of the page on which runs are looked at. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from ollm_rl.common.settings import Config, setting


@dataclass(frozen=True)
class ViewConfig(Config):
    """What `view` shows, and where it writes its page."""

    section: ClassVar[str] = "view"

    directory: str | None = setting(None, "the directory with the runs, or that of one run; null: runs_dir", path=True)
    out: str | None = setting(None, "where the page is written; null: `view` in that directory", path=True)
    open: bool = setting(True, "open the page in this machine's browser, where there is a screen and a terminal")
    limit: int | None = setting(
        None, "most episodes that are taken from a file of rollouts, its first ones; null: all", at_least=1
    )
