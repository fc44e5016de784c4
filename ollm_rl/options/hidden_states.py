"""Hidden states of (problem, solution) pairs, computed once and kept on disk in shards.

Conversion reads the states at which a solution token is predicted and, if the plug-in has a reader, those of some layers
at every token of problem and solution. The prompt's prefix is computed
once for all pairs, and equal pairs once. A store is keyed by a hash of everything that it depends on. It is written
shard by shard, so that an interrupted run continues, and read block by block, so that it may be larger than memory.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
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
from ollm_rl.models.backbone import Backbone, StatesReader, prefill_prefix
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


class Recorder:
    """Stands in a reader's place and gives the states of layers as they are, side by side (n, t, m d)."""

    def __init__(self, layers: Sequence[int]):
        self.layers = layers

    def __call__(self, taps: Tensor, positions: Tensor) -> Tensor:
        return taps


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
            found += _texts(states.shorter(self.shortlist), counts[at:end], taps, lengths[at:end])
        return found


def _texts(states: HiddenStates, counts: list[int], taps: Tensor | None, lengths: list[int]) -> list[Text]:
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


def cached_hidden_states(
    backbone: Backbone,
    prompter: Prompter,
    problems: list[Problem],
    shortlist: int,
    layers: Sequence[int] = (),
    batch_tokens: int = 1024,
) -> HiddenStore:
    """`compute_hidden_states`, kept in the cache directory under a hash of what made it.

    `layers`: whose states are kept at every token, for a reader.

    States are stored in bfloat16. Shards that an interrupted run has written are not computed again. Several processes
    (`accelerate launch`) share the shards; then equal pairs are run once a shard, for no process waits for another's.
    """
    us, most = processes(), max(shortlist, SHORTLIST)
    path, names = _where(backbone, prompter, problems, most, layers)
    with made_by_one(path):
        missing = [i for i, name in enumerate(names) if not name.exists()]
        if not missing:
            log.info("hidden states of %d solutions: from the cache", len(problems))
        path.mkdir(parents=True, exist_ok=True)
        mine = [i for i in missing if i % us.count == us.index]
        if mine:
            _fill(backbone, prompter, problems, names, mine, most, layers, batch_tokens, across=us.count == 1)
        us.wait()
    return HiddenStore(path, shortlist)


def _where(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, layers: Sequence[int]
) -> tuple[Path, list[Path]]:
    """The directory of a store, and its shards."""
    pairs = [(p.problem, p.solution) for p in problems]
    tapped = [list(layers)] if layers else []
    key = key_of(backbone.fingerprint, str(backbone.dtype), prompter.prefix, pairs, shortlist, "v3", *tapped)
    path = cache_dir() / "hidden" / key
    return path, [path / f"shard_{i // SHARD:05}.safetensors" for i in range(0, len(problems), SHARD)]


def are_stored(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, layers: Sequence[int]
) -> bool:
    """Whether the states of these layers are there, whole."""
    return all(p.exists() for p in _where(backbone, prompter, problems, max(shortlist, SHORTLIST), layers)[1])


def _fill(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], names: list[Path], missing: list[int],
    shortlist: int, layers: Sequence[int], batch_tokens: int, across: bool,
) -> None:  # fmt: skip
    """Compute and write the missing shards; `across`: pairs that earlier shards hold are copied from there."""
    prefix = prefill_prefix(backbone, prompter.prefix)
    reader = Recorder(layers) if layers else None
    firsts: dict[tuple, int] = {}
    first_of = [
        firsts.setdefault((p.problem, p.solution, 0 if across else i // SHARD), i) for i, p in enumerate(problems)
    ]
    total = sum(min(SHARD, len(problems) - i * SHARD) for i in missing)
    with track("hidden states", total, "solutions") as bar:
        for i in missing:
            part = range(i * SHARD, min((i + 1) * SHARD, len(problems)))
            texts = _texts_of(names, {first_of[j] for j in part if first_of[j] < part.start})
            new = [j for j in part if first_of[j] >= part.start]
            found = texts_of(
                backbone, prompter, prefix, [problems[j] for j in new], shortlist, reader, batch_tokens, bar
            )
            texts |= dict(zip(new, found, strict=True))
            _write_shard(names[i], part, [texts[first_of[j]] for j in part])
            bar.advance(len(part) - len(new))


def _texts_of(names: list[Path], wanted: set[int]) -> dict[int, Text]:
    """Texts that earlier shards hold."""
    found = {}
    for number in sorted({i // SHARD for i in wanted}):
        with safe_open(names[number], "pt") as file:
            shard = HiddenStates(**{f.name: file.get_tensor(f.name) for f in fields(HiddenStates)})
            counts = shard.owner.sub(number * SHARD).bincount().tolist()
            tapped = "taps" in file.keys()  # noqa: SIM118
            taps = file.get_tensor("taps") if tapped else None
            lengths = file.get_tensor("lengths").tolist() if tapped else [0] * len(counts)
            texts = _texts(shard, counts, taps, lengths)
            for i in wanted:
                if i // SHARD == number:
                    text = texts[i - number * SHARD]
                    states = HiddenStates(*(getattr(text.states, f.name).clone() for f in fields(HiddenStates)))
                    found[i] = Text(states, None if text.taps is None else text.taps.clone())
    return found


def _write_shard(path: Path, part: range, texts: list[Text]) -> None:
    """A shard of the pairs `part`."""
    states = joined([text.states for text in texts])
    states.owner = torch.cat([torch.full((len(t.states),), i) for i, t in zip(part, texts, strict=True)])
    states.hidden = states.hidden.bfloat16()
    stored = {f.name: getattr(states, f.name) for f in fields(states)}
    if texts[0].taps is not None:
        taps = [t.taps for t in texts if t.taps is not None]
        stored |= {"taps": torch.cat(taps).bfloat16(), "lengths": torch.tensor([len(t) for t in taps])}
    scratch = path.with_suffix(f".{os.getpid()}")
    save_file({name: value.contiguous() for name, value in stored.items()}, scratch)
    scratch.replace(path)


@torch.inference_mode()
def compute_hidden_states(
    backbone: Backbone,
    prompter: Prompter,
    problems: list[Problem],
    shortlist: int,
    reader: StatesReader | None = None,
    batch_tokens: int = 1024,
) -> HiddenStates:
    """Run all pairs through the body, and `reader`: the shared prefix once, and equal pairs once. In the backbone's precision."""
    prefix = prefill_prefix(backbone, prompter.prefix)
    with track("hidden states", total=len(problems), unit="solutions") as bar:
        texts = texts_of(backbone, prompter, prefix, problems, shortlist, reader, batch_tokens, bar)
    states = joined([t.states for t in texts])
    if reader is not None:
        read = [t.taps[-len(t.states) :] for t in texts if t.taps is not None]
        states.hidden = torch.cat([states.hidden, torch.cat(read)], 1)
    states.owner = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(t.states) for t in texts]))
    return states


@torch.inference_mode()
def texts_of(
    backbone: Backbone, prompter: Prompter, prefix: KVCache | None, problems: list[Problem], shortlist: int,
    reader: StatesReader | None, batch_tokens: int = 1024, bar: Bar | None = None,
) -> list[Text]:  # fmt: skip
    """The texts of problems in their order; `taps` are what `reader` gives. Equal pairs are run once."""
    firsts: dict[tuple[str, str], int] = {}
    which = [firsts.setdefault((p.problem, p.solution or ""), i) for i, p in enumerate(problems)]
    pairs = [
        (i, prompter.encode(problems[i]), prompter.encode_solution(problems[i].solution or "")) for i in firsts.values()
    ]
    pairs.sort(key=lambda pair: len(pair[1]) + len(pair[2]))
    found: dict[int, Text] = {}
    at = 0
    if bar is not None:
        bar.advance(len(problems) - len(pairs))
    while at < len(pairs):
        longest = len(pairs[min(at + 64, len(pairs) - 1)][1]) + len(pairs[min(at + 64, len(pairs) - 1)][2])
        batch = pairs[at : at + max(1, batch_tokens // longest)]
        states, taps = _batch_states(backbone, prefix, batch, shortlist, reader)
        lengths = [len(prompt) + len(solution) - 1 for _, prompt, solution in batch]
        counts = [len(solution) for *_, solution in batch]
        texts = _texts(states, counts, taps, lengths if taps is not None else [0] * len(batch))
        found |= {i: text for (i, *_), text in zip(batch, texts, strict=True)}
        at += len(batch)
        if bar is not None:
            bar.advance(len(batch))
    return [found[i] for i in which]


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def _batch_states(
    backbone: Backbone, prefix: KVCache | None, batch: list, shortlist: int, reader: StatesReader | None
) -> tuple[HiddenStates, Tensor | None]:
    """The positions of (number, prompt, solution) triples, one after the other, and what `reader` gives at all their tokens."""
    device = backbone.device
    longest = max(len(prompt) + len(solution) - 1 for _, prompt, solution in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    inside = torch.zeros(len(batch), longest, dtype=torch.bool)
    rows: list[int] = []
    columns: list[int] = []
    gold: list[int] = []
    owner: list[int] = []
    for row, (index, prompt, solution) in enumerate(batch):
        ids = prompt + solution[:-1]
        tokens[row, : len(ids)] = torch.tensor(ids)
        inside[row, : len(ids)] = True
        rows += [row] * len(solution)
        columns += range(len(prompt) - 1, len(ids))
        gold += solution
        owner += [index] * len(solution)
    positions = torch.arange(longest, device=device).expand(len(batch), -1)
    kv = KVCache(len(batch), longest, prefix)
    everywhere = backbone.hidden(tokens.to(device), positions, kv, reader=reader)
    hidden = everywhere[rows, columns, : backbone.hidden_size]
    taps = None if reader is None else everywhere[inside.to(device)][:, backbone.hidden_size :].cpu()
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
    found = HiddenStates(hidden, target_ids, ids, logits, target, entropy, torch.tensor(owner))
    return HiddenStates(*(getattr(found, f.name).cpu() for f in fields(found))), taps
