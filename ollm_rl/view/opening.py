"""`ollm-rl view`: writes the page, says what it holds and what was passed over, and opens it."""

import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from ollm_rl.config.compose import Settings
from ollm_rl.view.config import ViewConfig
from ollm_rl.view.page import write_view

NOTES = 10  # that are printed; the page has all


def view(settings: Settings, say: Callable[[str], None]) -> Path:
    """Write the page of `view.directory`; its path.

    Raises:
        ConfigurationError: see `write_view`.
    """
    wanted = ViewConfig.of(dict(settings.config.view))
    made = write_view(wanted.directory or settings.config.runs_dir, wanted.out, wanted.limit)
    for note in made.notes[:NOTES]:
        say(f"passed over: {note}")
    if len(made.notes) > NOTES:
        say(f"passed over: {len(made.notes) - NOTES} more, which the page lists")
    say(f"runs: {made.runs}, episodes: {made.episodes:,}, new files: {made.written}, {made.seconds:.1f} s")
    say(f"page: {made.page}")
    if wanted.open and _has_screen():
        webbrowser.open(made.page.resolve().as_uri())
    return made.page


def _has_screen() -> bool:
    """Whether a browser with a window can be expected: one in the terminal would take it over."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
