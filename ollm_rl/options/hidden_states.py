"""Hidden states of (problem, solution) pairs, computed once and kept on disk in shards.

Conversion reads only the states at which a solution token is predicted; the prompt's prefix is computed
once for all pairs, and equal pairs once. A store is keyed by a hash of everything that it depends on. It is written
shard by shard, so that an interrupted run continues, and read block by block, so that it may be larger than memory.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.distributed import processes
from ollm_rl.common.progress import Bar, track
from ollm_rl.errors import ConfigurationError
from ollm_rl.models.attention import KVCache
from ollm_rl.models.backbone import Backbone, prefill_prefix
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter

log = logging.getLogger(__name__)
SHORTLIST = 64  # candidates that are kept at least: other plug-ins, with other shortlists, share them
SHARD = 1000  # pairs of a shard
BLOCK = 1024  # positions that are read at a time
WINDOW = 16  # blocks that are shuffled together
EASY_NATS = 0.1  # below this entropy of the backbone, a position teaches little


@dataclass
class HiddenStates:
    """N positions of solutions.

    Attributes:
        hidden: (N, d) in the backbone's dtype, what the head reads.
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


class Blocks(Protocol):
    """Positions in memory (`HiddenStates`) or on disk (`HiddenStore`)."""

    def __len__(self) -> int: ...

    def block(self, start: int, stop: int) -> HiddenStates: ...


class HiddenStore:
    """Shards of positions on disk; only the blocks that are asked for are in memory.

    Args:
        path: the directory, complete.
        shortlist: candidates of a position that are handed out.
    """

    def __init__(self, path: Path, shortlist: int):
        self.path, self.shortlist = path, shortlist
        self.shards = sorted(path.glob("shard_*.safetensors"))
        self.sizes = []
        for shard in self.shards:
            with safe_open(shard, "pt") as file:
                self.sizes.append(file.get_slice("gold").get_shape()[0])
        self.ends = list(accumulate(self.sizes))

    def __len__(self) -> int:
        return self.ends[-1]

    def block(self, start: int, stop: int) -> HiddenStates:
        """Positions `start` to `stop - 1`, copied: the file is closed again, and its pages with it."""
        stop = min(stop, len(self))
        parts = []
        while start < stop:
            i = bisect_right(self.ends, start)
            end, offset = min(stop, self.ends[i]), self.ends[i] - self.sizes[i]
            with safe_open(self.shards[i], "pt") as file:
                parts.append(HiddenStates(**{
                    f.name: file.get_slice(f.name)[start - offset : end - offset].clone() for f in fields(HiddenStates)
                }))  # fmt: skip
            start = end
        return _joined(parts).shorter(self.shortlist)

    def all(self) -> HiddenStates:
        """Everything, in memory."""
        return self.block(0, len(self))


def _joined(parts: list[HiddenStates]) -> HiddenStates:
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
        window = _joined([w for _, w in left] + [states.block(*span) for span in spans])
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


def cached_hidden_states(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, batch_tokens: int = 1024
) -> HiddenStore:
    """`compute_hidden_states`, kept in the cache directory under a hash of what made it.

    States are stored in bfloat16. Shards that an interrupted run has written are not computed again. Several processes
    (`accelerate launch`) share the shards; then equal pairs are run once a shard, for no process waits for another's.
    """
    us = processes()
    pairs = [(p.problem, p.solution) for p in problems]
    most = max(shortlist, SHORTLIST)
    key = key_of(backbone.fingerprint, str(backbone.dtype), prompter.prefix, pairs, most, "v3")
    path = cache_dir() / "hidden" / key
    names = [path / f"shard_{i // SHARD:05}.safetensors" for i in range(0, len(problems), SHARD)]
    with made_by_one(path):
        missing = [i for i, name in enumerate(names) if not name.exists()]
        if not missing:
            log.info("hidden states of %d solutions: from the cache", len(problems))
        path.mkdir(parents=True, exist_ok=True)
        mine = [i for i in missing if i % us.count == us.index]
        if mine:
            _fill(backbone, prompter, problems, names, mine, most, batch_tokens, across=us.count == 1)
        us.wait()
    return HiddenStore(path, shortlist)


def _fill(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], names: list[Path], missing: list[int],
    shortlist: int, batch_tokens: int, across: bool,
) -> None:  # fmt: skip
    """Compute and write the missing shards; `across`: pairs that earlier shards hold are copied from there."""
    prefix = prefill_prefix(backbone, prompter.prefix)
    firsts: dict[tuple, int] = {}
    first_of = [
        firsts.setdefault((p.problem, p.solution, 0 if across else i // SHARD), i) for i, p in enumerate(problems)
    ]
    total = sum(min(SHARD, len(problems) - i * SHARD) for i in missing)
    with track("hidden states", total, "solutions") as bar:
        for i in missing:
            part = range(i * SHARD, min((i + 1) * SHARD, len(problems)))
            old = _states_of(names, {first_of[j] for j in part if first_of[j] < part.start})
            new = [problems[j] for j in part if first_of[j] >= part.start]
            states = _computed(backbone, prompter, prefix, new, shortlist, batch_tokens, bar) if new else None
            _write_shard(names[i], part, [first_of[j] for j in part], old, states)
            bar.advance(len(part) - len(new))


def _states_of(names: list[Path], wanted: set[int]) -> dict[int, HiddenStates]:
    """The positions of pairs that earlier shards hold."""
    found = {}
    for number in sorted({i // SHARD for i in wanted}):
        with safe_open(names[number], "pt") as file:
            shard = HiddenStates(**{f.name: file.get_tensor(f.name) for f in fields(HiddenStates)})
            counts = shard.owner.bincount(minlength=(number + 1) * SHARD).tolist()
            ends = list(accumulate(counts))
            for i in wanted:
                if i // SHARD == number:
                    part = shard.block(ends[i] - counts[i], ends[i])
                    found[i] = HiddenStates(*(getattr(part, f.name).clone() for f in fields(part)))
    return found


def _write_shard(
    path: Path, part: range, firsts: list[int], old: dict[int, HiddenStates], new: HiddenStates | None
) -> None:
    """A shard of the pairs `part`; those whose first equal stands in an earlier shard are copied from `old`."""
    counts = new.owner.bincount().tolist() if new is not None else []
    ends, at, parts = list(accumulate(counts)), 0, []
    for i, first in zip(part, firsts, strict=True):
        if first < part.start:
            states = old[first].block(0, len(old[first]))
        else:
            assert new is not None
            states = new.block(ends[at] - counts[at], ends[at])
            at += 1
        states.owner = torch.full((len(states),), i)
        parts.append(states)
    states = _joined(parts)
    states.hidden = states.hidden.bfloat16()
    scratch = path.with_suffix(f".{os.getpid()}")
    save_file({f.name: getattr(states, f.name).contiguous() for f in fields(states)}, scratch)
    scratch.replace(path)


@torch.inference_mode()
def compute_hidden_states(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, batch_tokens: int = 1024
) -> HiddenStates:
    """Run all pairs through the body: the shared prefix once, and equal pairs once. In the backbone's precision."""
    prefix = prefill_prefix(backbone, prompter.prefix)
    with track("hidden states", total=len(problems), unit="solutions") as bar:
        return _computed(backbone, prompter, prefix, problems, shortlist, batch_tokens, bar)


@torch.inference_mode()
def _computed(
    backbone: Backbone, prompter: Prompter, prefix: KVCache | None, problems: list[Problem], shortlist: int,
    batch_tokens: int, bar: Bar,
) -> HiddenStates:  # fmt: skip
    firsts: dict[tuple[str, str], int] = {}
    which = torch.tensor([firsts.setdefault((p.problem, p.solution or ""), i) for i, p in enumerate(problems)])
    pairs = [
        (i, prompter.encode(problems[i]), prompter.encode_solution(problems[i].solution or "")) for i in firsts.values()
    ]
    pairs.sort(key=lambda pair: len(pair[1]) + len(pair[2]))
    out: dict[str, list[Tensor]] = {f.name: [] for f in fields(HiddenStates)}
    at = 0
    bar.advance(len(problems) - len(pairs))
    while at < len(pairs):
        longest = len(pairs[min(at + 64, len(pairs) - 1)][1]) + len(pairs[min(at + 64, len(pairs) - 1)][2])
        batch = pairs[at : at + max(1, batch_tokens // longest)]
        for name, value in _batch_states(backbone, prefix, batch, shortlist).items():
            out[name].append(value.cpu())
        at += len(batch)
        bar.advance(len(batch))
    distinct = HiddenStates(**{name: torch.cat(parts) for name, parts in out.items()})
    counts = distinct.owner.bincount(minlength=len(problems))
    rows = distinct.owner.argsort(stable=True).split(counts.tolist())
    states = distinct.select(torch.cat([rows[i] for i in which.tolist()]))
    states.owner = torch.arange(len(problems)).repeat_interleave(counts[which])
    return states


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def _batch_states(backbone: Backbone, prefix: KVCache | None, batch: list, shortlist: int) -> dict[str, Tensor]:
    device = backbone.device
    longest = max(len(prompt) + len(solution) - 1 for _, prompt, solution in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    gold: list[int] = []
    owner: list[int] = []
    for row, (index, prompt, solution) in enumerate(batch):
        ids = prompt + solution[:-1]
        tokens[row, : len(ids)] = torch.tensor(ids)
        rows += [row] * len(solution)
        columns += range(len(prompt) - 1, len(ids))
        gold += solution
        owner += [index] * len(solution)
    positions = torch.arange(longest, device=device).expand(len(batch), -1)
    everywhere = backbone.hidden(tokens.to(device), positions, KVCache(len(batch), longest, prefix))
    hidden = everywhere[rows, columns]
    target_ids = torch.tensor(gold, device=device)
    parts = []
    for h, x in zip(hidden.split(512), target_ids.split(512), strict=True):
        logits = backbone.head(h)
        entropy = torch.cat(
            [_entropy(backbone.after_head(few)) for few in logits.split(16)]
        )  # whole rows in cache: 10 times faster
        top, ids = logits.topk(min(shortlist, logits.shape[-1]), dim=-1)
        found = ids == x[:, None]
        missing = ~found.any(-1)
        extra = logits.gather(1, x[:, None]).float().masked_fill(~missing[:, None], float("-inf"))
        target = torch.where(missing, top.shape[1], found.float().argmax(-1))
        parts.append((torch.cat([ids, x[:, None]], 1).int(), torch.cat([top.float(), extra], 1), target, entropy))
    ids, logits, target, entropy = (torch.cat(p) for p in zip(*parts, strict=True))
    return dict(
        hidden=hidden,
        gold=target_ids,
        ids=ids,
        logits=logits,
        target=target,
        entropy=entropy,
        owner=torch.tensor(owner),
    )
