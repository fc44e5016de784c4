"""Stored hidden states of solutions: what there is of a position and of a whole text, and epochs of them in random order."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from ollm_rl.errors import ConfigurationError

BLOCK = 1024  # positions that are read at a time
WINDOW = 16  # blocks that are shuffled together
EASY_NATS = 0.1  # below this entropy of the backbone, a position teaches little


@dataclass
class HiddenStates:
    """N positions of solutions.

    Attributes:
        hidden: (N, d) in the backbone's dtype, what the head reads; (N, d + r) if a reader has read the text.
        gold: (N,) int64, the next token of the solution.
        ids: (N, S + 1) int32, the shortlist; the last one is the gold token where the shortlist lacks it.
        logits: (N, S + 1) float32, what the head gives for `ids`, before `Backbone.after_head`; -inf marks an unused last place.
        target: (N,) int64, the place of the gold token in `ids`.
        entropy: (N,) float32, the backbone's entropy in nats.
        owner: (N,) int64, the index of the pair.
    """

    hidden: Tensor
    gold: Tensor
    ids: Tensor
    logits: Tensor
    target: Tensor
    entropy: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.gold)

    def select(self, keep: Tensor) -> "HiddenStates":
        return HiddenStates(*(getattr(self, f.name)[keep] for f in fields(self)))

    def block(self, start: int, stop: int) -> "HiddenStates":
        """Positions `start` to `stop - 1`."""
        return HiddenStates(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def shorter(self, size: int) -> "HiddenStates":
        """The same positions on a shortlist of `size`."""
        if size >= self.ids.shape[1] - 1:
            return self
        cut = self.target >= size
        gold = self.logits.gather(1, self.target[:, None]).masked_fill(~cut[:, None], float("-inf"))
        ids = torch.cat([self.ids[:, :size], self.gold[:, None].int()], 1)
        logits = torch.cat([self.logits[:, :size], gold], 1)
        target = self.target.masked_fill(cut, size)
        return HiddenStates(self.hidden, self.gold, ids, logits, target, self.entropy, self.owner)


@dataclass
class Text:
    """One (problem, solution) pair.

    Attributes:
        states: the S positions at which a solution token is predicted: the last S of its tokens.
        taps: (T, m d), what m layers gave at every token of problem and solution; None if nobody wants them.
    """

    states: HiddenStates
    taps: Tensor | None


class Blocks(Protocol):
    """Positions in memory (`HiddenStates`) or on disk (`HiddenStore`)."""

    def __len__(self) -> int: ...

    def block(self, start: int, stop: int) -> HiddenStates: ...


class HiddenStore:
    """Shards of positions on disk; only the blocks that are asked for are in memory.

    Args:
        path: the directory, complete.
        shortlist: candidates of a position that are handed out.
        read: directory of what a reader made of the texts: a file for every shard, whose columns stand behind h.
    """

    def __init__(self, path: Path, shortlist: int, read: Path | None = None):
        self.path, self.shortlist, self.read = path, shortlist, read
        self.shards = sorted(path.glob("shard_*.safetensors"))
        self.sizes, self.texts = [], []
        for shard in self.shards:
            with safe_open(shard, "pt") as file:
                self.sizes.append(file.get_slice("gold").get_shape()[0])
                self.texts.append(int(file.get_slice("owner")[-1]) + 1)
        self.ends = list(accumulate(self.sizes))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def num_texts(self) -> int:
        return self.texts[-1]

    def block(self, start: int, stop: int) -> HiddenStates:
        """Positions `start` to `stop - 1`, copied: the file is closed again, and its pages with it."""
        stop = min(stop, len(self))
        parts = []
        while start < stop:
            i = bisect_right(self.ends, start)
            end, offset = min(stop, self.ends[i]), self.ends[i] - self.sizes[i]
            with safe_open(self.shards[i], "pt") as file:
                part = HiddenStates(**{
                    f.name: file.get_slice(f.name)[start - offset : end - offset].clone() for f in fields(HiddenStates)
                })  # fmt: skip
            if self.read is not None:
                with safe_open(self.read / self.shards[i].name, "pt") as file:
                    part.hidden = torch.cat([part.hidden, file.get_slice("read")[start - offset : end - offset]], 1)
            parts.append(part)
            start = end
        return joined(parts).shorter(self.shortlist)

    def all(self) -> HiddenStates:
        """Everything, in memory."""
        return self.block(0, len(self))

    def some_texts(self, start: int, stop: int) -> list[Text]:
        """Texts `start` to `stop - 1` with what the layers gave, copied."""
        found: list[Text] = []
        for i in range(bisect_right(self.texts, start), len(self.shards)):
            first = self.texts[i - 1] if i else 0
            if first >= stop:
                break
            with safe_open(self.shards[i], "pt") as file:
                lengths = file.get_tensor("lengths").tolist()
                counts = file.get_tensor("owner").sub(first).bincount(minlength=len(lengths)).tolist()
                at, end = max(start - first, 0), min(stop - first, len(lengths))
                row, place = sum(counts[:at]), sum(lengths[:at])
                rows, places = slice(row, row + sum(counts[at:end])), slice(place, place + sum(lengths[at:end]))
                states = HiddenStates(**{f.name: file.get_slice(f.name)[rows].clone() for f in fields(HiddenStates)})
                taps = file.get_slice("taps")[places].clone()
            found += texts_apart(states.shorter(self.shortlist), counts[at:end], taps, lengths[at:end])
        return found


def texts_apart(states: HiddenStates, counts: list[int], taps: Tensor | None, lengths: list[int]) -> list[Text]:
    """Positions and tokens of several texts, taken apart: views."""
    row, place, found = 0, 0, []
    for count, length in zip(counts, lengths, strict=True):
        part = states.block(row, row + count)
        found.append(Text(part, None if taps is None else taps[place : place + length]))
        row, place = row + count, place + length
    return found


def joined(parts: list[HiddenStates]) -> HiddenStates:
    return HiddenStates(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(HiddenStates)))


def blocks(states: Blocks) -> Iterator[HiddenStates]:
    """All positions in order."""
    for start in range(0, len(states), BLOCK):
        yield states.block(start, min(start + BLOCK, len(states)))


def num_batches(states: Blocks, batch_size: int, easy_keep_prob: float) -> int:
    """How many batches `shuffled` gives, on average over generators."""
    easy = sum(int((part.entropy < EASY_NATS).sum()) for part in blocks(states))
    return max(1, int((len(states) - easy + easy_keep_prob * easy) / batch_size))


def shuffled(
    states: Blocks, batch_size: int, generator: torch.Generator, easy_keep_prob: float
) -> Iterator[tuple[Tensor, HiddenStates]]:
    """One epoch: (the positions' numbers, the positions) of every batch.

    Blocks come in random order and are shuffled `WINDOW` at a time. Of positions of which the backbone is sure, a share
    is drawn: which ones are skipped depends on h only, so what a net learns to predict from h stays the same. What does not fill
    a batch is left out, unless it is all that there is.

    Raises:
        ConfigurationError: all positions are skipped.
    """
    left: list[tuple[Tensor, HiddenStates]] = []
    batches = 0
    starts = torch.randperm((len(states) + BLOCK - 1) // BLOCK, generator=generator) * BLOCK
    for group in starts.split(WINDOW):
        spans = [(s, min(s + BLOCK, len(states))) for s in group.tolist()]
        rows = torch.cat([r for r, _ in left] + [torch.arange(*span) for span in spans])
        window = joined([w for _, w in left] + [states.block(*span) for span in spans])
        fresh = torch.arange(len(rows)) >= sum(len(r) for r, _ in left)
        keep = (window.entropy >= EASY_NATS) | (torch.rand(len(rows), generator=generator) < easy_keep_prob) | ~fresh
        order = torch.randperm(len(rows), generator=generator)
        order = order[keep[order]]
        whole = len(order) - len(order) % batch_size
        for part in order[:whole].split(batch_size) if whole else ():
            batches += 1
            yield rows[part], window.select(part)
        left = [(rows[order[whole:]], window.select(order[whole:]))]
    rest = len(left[0][0]) if left else 0
    if rest and (not batches or len(states) < 2 * batch_size):
        yield left[0]
    elif not batches:
        raise ConfigurationError(
            f"convert.easy_keep_prob={easy_keep_prob} skips all {len(states)} positions of the solutions: the backbone is sure of each. "
            "Raise convert.easy_keep_prob, or give more solutions."
        )
