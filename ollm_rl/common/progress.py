"""Progress bars with rate and time left; quiet lines instead of bars where there is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ollm_rl.common.cost import count_phase
from ollm_rl.common.heartbeat import beat
from ollm_rl.common.terminal import console as console_of

console = console_of(stderr=True)


class Bar:
    """A running count of `total` units; `advance(n, note)` moves it."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0):
        self.name, self.total, self.unit, self.done, self.first = name, total, unit, done, done
        self.started = self.printed = time.monotonic()
        self.progress: Progress | None = None
        if console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self.row = self.progress.add_task(name, total=total, completed=done, rate="", note="")
            self.progress.start()

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.total = max(self.total, self.done)  # some totals are estimates
        beat()
        now = time.monotonic()
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        if self.progress:
            self.progress.update(
                self.row, completed=self.done, total=self.total, rate=f"{rate:.3g} {self.unit}/s", note=note
            )
        elif now - self.printed > 10:  # a log file wants a line now and then
            self.printed = now
            left = (self.total - self.done) / max(rate, 1e-9)
            line = f"{self.name}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {left:.0f} s left"
            print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.progress:
            self.progress.stop()


@contextmanager
def track(name: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
    """A bar for the length of a `with` block."""
    bar = Bar(name, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()
        count_phase(name, time.monotonic() - bar.started)
