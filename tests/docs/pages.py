"""The pages that people read, and the blocks of code in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.test_layers import ROOT

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line that it begins at, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        indent, language, body = found.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        name = page.relative_to(ROOT).as_posix()
        yield Block(name, text[: found.start()].count("\n") + 1, language, "\n".join(lines) + "\n")


ALL = [block for page in PAGES for block in blocks(page)]


def modules() -> dict[str, str]:
    """The files that blocks of Python say they are, by their first line: `# my_agents.py`, perhaps with more behind it."""
    found = {}
    for block in ALL:
        if block.language == "python" and (name := re.match(r"# (my_\w+)\.py\b", block.text)):
            found[name[1]] = block.text
    return found
