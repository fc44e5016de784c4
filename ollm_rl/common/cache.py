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

from ollm_rl.common.distributed import processes
from ollm_rl.common.folders import obstacle
from ollm_rl.errors import ConfigurationError

log = logging.getLogger(__name__)


REMEDY = "Set OLLM_RL_CACHE to a directory that you may write."
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
# What else the system says when nothing can be made at a place, or no more.
USELESS = (
    *UNWRITABLE,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ELOOP,
)


def cache_dir() -> Path:
    """`$OLLM_RL_CACHE`, or `ollm_rl` under the user's cache directory (`$XDG_CACHE_HOME`, `~/.cache`).

    Raises:
        ConfigurationError: neither is set, and there is no home directory.
    """
    try:
        if base := os.environ.get("OLLM_RL_CACHE"):
            return Path(base).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base).expanduser() if base else Path.home() / ".cache") / "ollm_rl"
    except RuntimeError as error:
        raise ConfigurationError(f"there is no place for the cache: {error} {REMEDY}") from error


def check_cache() -> None:
    """Whether there is a cache or one can be made; one that may only be read will do, as long as all is in it.

    Raises:
        ConfigurationError: not so.
    """
    folder = cache_dir()
    if not os.path.isdir(folder) and (wrong := obstacle(folder)):
        raise ConfigurationError(f"the cache cannot be at {str(folder):.200}: {wrong}. {REMEDY}")


def key_of(*parts) -> str:
    """Short hash of JSON-serialisable parts: the name of a cached thing."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def made_by_one(path: Path) -> Iterator[None]:
    """While one process makes what belongs at `path`, others wait here, and then find it.

    Not among the processes of one `accelerate launch`, which make it together, and not in a cache that may only be read.

    Raises:
        ConfigurationError: it has to be made, and the cache cannot be written.
    """
    with _in_cache():
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        if processes().count == 1:
            lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process makes it; waiting", path)
        lock.acquire()
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
    try:
        with _in_cache():
            yield
    finally:
        lock.release()


@contextmanager
def _in_cache() -> Iterator[None]:
    """Says in one sentence that something in the cache could not be written."""
    try:
        yield
    except OSError as error:
        place = str(error.filename or error.filename2 or "")
        if error.errno not in USELESS or not place.startswith(str(cache_dir())):
            raise
        raise ConfigurationError(f"the cache cannot be written: {place:.200} ({error.strerror}). {REMEDY}") from error
