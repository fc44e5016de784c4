"""The cache directory: what is made once and found again, by the hash of what it was made from."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ollm_rl.processes import processes

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """`$OLLM_RL_CACHE`, or `ollm_rl` under the user's cache directory (`$XDG_CACHE_HOME`, `~/.cache`)."""
    base = os.environ.get("OLLM_RL_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ollm_rl"


def key_of(*parts) -> str:
    """Short hash of JSON-serialisable parts: the name of a cached thing."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def made_by_one(path: Path) -> Iterator[None]:
    """While one process makes what belongs at `path`, others wait here, and then find it.

    Not among the processes of one `accelerate launch`, which make it together, and not in a cache that may only be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        if processes().count == 1:
            lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process makes it; waiting", path)
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        yield
    finally:
        lock.release()
