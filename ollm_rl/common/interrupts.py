"""Ctrl-C that waits for the end of what must not be torn."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupt_waits() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block; a second one at once.

    A `KeyboardInterrupt` can be raised while a `queue.Queue` or a `threading.Condition` has just taken its lock. The lock is never
    released then, and whoever needs it next waits for ever: TensorBoard's writer when it is closed, for example. Outside
    the main thread, where no interrupt is raised, this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[Any] = []

    def keep(number: int, frame: Any) -> None:
        if came:
            signal.signal(signal.SIGINT, before)
            before(number, frame)
        came.append((number, frame))

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])
