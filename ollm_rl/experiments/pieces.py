"""Pieces of work that are timed for some seconds, and what all of it would take in proportion.

On a CPU they are timed by the processor time that they use, which other programs change little; how much longer the clock on the wall
goes meanwhile is measured over all of them together.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ollm_rl.common.cost import Meter

FEWEST = 4  # units of a first piece
LEAST_SLOPE = 0.25  # of a piece's seconds a unit: pieces differ by what is in them, too


@dataclass
class Phase:
    """A part of a run: seconds by the clock and of the processor, generated tokens and texts."""

    name: str
    seconds: float
    cpu_seconds: float
    tokens: float = 0.0
    texts: float = 0.0

    def __mul__(self, factor: float) -> "Phase":
        return Phase(
            self.name, self.seconds * factor, self.cpu_seconds * factor, self.tokens * factor, self.texts * factor
        )


@dataclass
class Estimate:
    """What a command would take.

    Attributes:
        phases: in the order in which they come. rates: what was measured, by name. notes: what is not in it.
        took: seconds of measuring.
    """

    phases: list[Phase] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    took: float = 0.0
    memory_gib: float = 0.0

    @property
    def whole(self) -> Phase:
        return Phase(
            "in all", *(sum(getattr(p, f) for p in self.phases) for f in ("seconds", "cpu_seconds", "tokens", "texts"))
        )


@dataclass
class Piece:
    """One measured: units of work that it stands for, seconds that count, tokens and texts."""

    units: float
    seconds: float
    tokens: int
    texts: int


class Measuring:
    """Measures within about `seconds`, of which every kind of work gets a share."""

    def __init__(self, seconds: float):
        self.seconds, self.begun = seconds, time.monotonic()
        self.wall = self.work = self.spent = 0.0  # of all pieces; `spent` of what counts
        self.on_cpu = True
        self.found = Estimate()

    @property
    def budget(self) -> float:
        """Seconds that count, of all threads: a busy machine is measured as well as one that is not, and takes longer."""
        return self.seconds * (torch.get_num_threads() if self.on_cpu else 1)

    def run(self, do: Callable[[], object], units: int = 1) -> Piece:
        meter, wall, cpu = Meter(), time.perf_counter(), time.process_time()
        try:
            do()
        finally:
            meter.stop()
        if not self.on_cpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.wall, self.work = self.wall + wall, self.work + cpu
        piece = Piece(units, cpu if self.on_cpu else wall, meter.tokens, meter.episodes)
        self.spent += piece.seconds
        return piece

    def grown(
        self,
        name: str,
        do: Callable[[int, int], object],
        total: int,
        share: float,
        first: int = FEWEST,
        least: int = 1,
    ) -> Phase:
        """The phase of `do(0, total)` from pieces `do(at, n)`, n units from one that was not looked at yet, as far as there are some; each
        has twice as many as the one before, until `share` of the time is used up, and there are at least `least` of them. Of what is not
        looked at, every unit takes what a unit more took in the pieces, since what comes once, and a batch that drains, costs a large piece
        no more than a small one."""
        n, at, limit = min(first, total), 0, self.spent + share * self.budget
        pieces: list[Piece] = []
        # Two if they fit, that what comes once is told from what every unit takes.
        while not pieces or (
            pieces[-1].units < total
            and (len(pieces) < least or self.spent + (0 if len(pieces) < 2 else 2 * pieces[-1].seconds) < limit)
        ):
            at = at if at + n <= total else 0
            pieces.append(self.run(lambda at=at, n=n: do(at, n), n))  # type: ignore[misc]
            at, n = at + n, min(2 * n, total)
        last, units = pieces[-1], sum(p.units for p in pieces)
        rate = last.seconds / last.units
        if len(pieces) > 1:
            more = slope([(p.units, p.seconds) for p in pieces])
            rate = min(max(more, LEAST_SLOPE * rate), rate)
        factor = total / units
        tokens, texts = sum(p.tokens for p in pieces) * factor, sum(p.texts for p in pieces) * factor
        return self.phase(name, last.seconds + rate * (total - last.units), tokens, texts)

    def phase(self, name: str, seconds: float, tokens: float = 0.0, texts: float = 0.0) -> Phase:
        """`seconds`: as pieces have them. Those by the clock follow when all is measured."""
        return Phase(name, seconds, seconds, tokens, texts)

    @property
    def stretch(self) -> float:
        """Seconds by the clock for one that counts."""
        return self.wall / self.work if self.on_cpu and self.work > 0 else 1.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through (x, y) with the least squared errors; points that are larger count more, as sums of more do."""
    weights = [x for x, _ in points]
    mean_x, mean_y = (sum(w * p[i] for w, p in zip(weights, points, strict=True)) / sum(weights) for i in (0, 1))
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    return sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / max(spread, 1e-12)
