"""Pages from the templates of `templates/`; a page needs no other file, and texts in it are escaped."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

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
