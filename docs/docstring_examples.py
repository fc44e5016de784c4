"""Examples in docstrings as code, for the reference of the site: lines that begin with `>>> ` and their output."""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^( *)>>> .*\n?(?:^\1\S.*\n?)*", re.MULTILINE)


class Examples(Extension):
    """Fences around examples, which would be running text."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    indent, lines = match[1], match[0].rstrip("\n")
    return f"{indent}```pycon\n{lines}\n{indent}```\n"
