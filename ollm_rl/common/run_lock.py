"""One process at a time writes into a run's directory. The lock is the kernel's: it ends with the process, however that ends."""

import logging
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ollm_rl.errors import CheckpointError

log = logging.getLogger(__name__)
LOCK, OWNER = ".lock", ".owner"  # the latter says whose the lock is
_held: dict[Path, tuple[FileLock, int]] = {}  # and how many runs of this process are open there
_registry = threading.RLock()


def hold(path: Path) -> Path:
    """Lock a directory for this process, which may do so several times; what `release` takes.

    Raises:
        CheckpointError: another process has it.
    """
    key = path.resolve()
    with _registry:
        if key in _held:
            lock, count = _held[key]
            _held[key] = lock, count + 1
            return key
        lock = FileLock(key / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            owner = ""
            with suppress(OSError):
                owner = (key / OWNER).read_text().strip()
            raise CheckpointError(
                f"{path} is in use by another process ({owner or 'it does not say which'}). Wait until that has ended, "
                "end it, or choose another name=."
            ) from None
        except (OSError, NotImplementedError) as error:
            log.warning("%s cannot be locked (%s): see to it that no other process writes there", path, error)
            return key
        (key / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        _held[key] = lock, 1
    return key


def release(key: Path) -> None:
    """Undo one `hold`; with the last one, other processes may lock the directory."""
    with _registry:
        if key not in _held:
            return
        lock, count = _held.pop(key)
        if count > 1:
            _held[key] = lock, count - 1
            return
        (key / OWNER).unlink(missing_ok=True)
        lock.release()
