"""What is shown in a terminal, or in the file or pipe that stands for one."""

import sys

from rich.console import Console

WIDTH = 150  # of lines in a file or a pipe


def console(stderr: bool = False) -> Console:
    """Standard output, or standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDTH)


def plain(text: str) -> str:
    """A text whose only control characters are line ends: a terminal would obey the others."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
