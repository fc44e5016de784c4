"""Pages from the templates of `templates/`; a page needs no other file, and texts in it are escaped."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

# Of curves, in plots and on pages.
PALETTE = (
    "#1f5fa8", "#c8553d", "#3a7d44", "#7a4fa3", "#b8860b", "#4a4a4a", "#2a9d9d", "#d81b84", "#8c6d46", "#9aa5b1",
)  # fmt: skip
INTERVAL = re.compile(r" (\[[-+.\d]+, [-+.\d]+\])")


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a template to a file."""
    path.write_text(page(template, **values), encoding="utf-8")
    return path


def page(template: str, **values: Any) -> str:
    """A template filled in."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("ollm_rl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"small_intervals": small_intervals, "visible": visible}
    return made


def small_intervals(cell: str) -> Markup:
    """A cell with its interval in small print."""
    return Markup(INTERVAL.sub(r' <span class="ci">\1</span>', str(escape(cell))))


def visible(text: str) -> str:
    """A token with marks for its spaces and line ends."""
    return text.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥")


def verdict_text(episode: dict[str, Any]) -> str:
    """That a stored episode is solved, or why it failed: what was answered, and the verdict on it."""
    if episode.get("solved", episode["reward"] >= 1.0):
        return "solved"
    given, why = episode.get("answer"), episode.get("verdict", "")
    said = f"it answers {given}" if given else "it gives no answer"
    cut = ", cut off by the token budget" if episode.get("stop") == "length" else ""
    reason = f", {why.replace('_', ' ')}" if why not in ("", "different", "no_answer") else ""
    return f"failed ({said}{reason}{cut}; the answer is {episode['gold']})"
