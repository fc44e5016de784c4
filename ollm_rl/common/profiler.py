"""Where the time of rollouts goes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

PARTS = ("prefill", "decode", "head", "options", "policy", "verifier", "python")


class Profiler:
    """Wall time by part, each without the parts inside it: `part("python")` around all has what is left.

    Args:
        enabled: measure. A GPU is waited for at the borders of every part then, which costs some speed.
    """

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    def part(self, name: str) -> AbstractContextManager[None]:
        """The time in this block belongs to part `name`."""
        return self._measured(name) if self.enabled else nullcontext()

    def shares(self) -> dict[str, float]:
        """Share of every part in the measured time."""
        total = sum(self.seconds.values())
        return {name: seconds / total if total else 0.0 for name, seconds in self.seconds.items()}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
        return f"{sum(self.seconds.values()):.1f} s of rollouts: {parts}"

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        """Give the time since the last border to the innermost open part."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
