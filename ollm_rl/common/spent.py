"""Seconds that were spent on what the cache keeps, over all calls that worked on it: an interrupted one counts, a found one costs nothing.

Where several processes work on it side by side, those of the first count.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ollm_rl.common.distributed import processes

SECONDS = "seconds"  # in the directory of what was made


@contextmanager
def counted(folder: Path) -> Iterator[None]:
    """What is done inside makes `folder`: its seconds are added to those that it has."""
    start = time.monotonic()
    try:
        yield
    finally:
        if processes().is_main:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SECONDS).write_text(repr(spent(folder) + time.monotonic() - start))


def spent(folder: Path) -> float:
    """Seconds that `counted` has added up; 0 of what an earlier release made."""
    path = folder / SECONDS
    return float(path.read_text()) if path.is_file() else 0.0
