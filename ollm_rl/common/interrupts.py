"""Ctrl-C and SIGTERM: what must not be torn is finished first, and both end a command in the same way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Terminations:
    """While it is entered SIGTERM, by which `ray job stop` and batch systems end a command, is an interrupt like Ctrl-C: runs are closed, and
    what they cost is written down.

    Attributes:
        came: whether one came.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __enter__(self) -> "Terminations":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _interrupt(self, *_: Any) -> None:
        self.came = True
        raise KeyboardInterrupt


@contextmanager
def interrupt_waits() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at the end of the block; a second one at once.

    A `KeyboardInterrupt` can be raised while a `queue.Queue` or a `threading.Condition` has just taken its lock. The lock is never
    released then, and whoever needs it next waits for ever: TensorBoard's writer when it is closed, for example. Outside
    the main thread, where no interrupt is raised, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before: dict[int, Callable[..., Any]] = {number: found for number, found in handlers.items() if callable(found)}
    came: list[Any] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def keep(number: int, frame: Any) -> None:
        if came:
            restore()
            before[number](number, frame)
        came.append((number, frame))

    for number in before:
        signal.signal(number, keep)
    try:
        yield
    finally:
        restore()
    for number, frame in came[:1]:
        before[number](number, frame)
