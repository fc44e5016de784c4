"""Whether something can be written at a place that need not exist yet."""

import os
from pathlib import Path

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes that Linux takes
INSIDE = 300  # bytes of the names of files in a run or in the cache


def obstacle(folder: Path) -> str:
    """Why no files can be written in `folder`, or in the directories that it needs; empty if they can. Leaves nothing behind."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        return f"a name in it is longer than {LONGEST_NAME} bytes"
    if len(os.fsencode(folder)) > LONGEST_PATH - INSIDE:
        return f"it is longer than {LONGEST_PATH - INSIDE} bytes"
    there = next(p for p in (folder, *folder.parents, Path.cwd()) if os.path.lexists(p))
    if not there.is_dir():
        return f"{there} is not a directory"
    probe = there / f".probe-{os.getpid()}"
    try:
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        return f"{there} cannot be written ({error.strerror})"
    return ""
