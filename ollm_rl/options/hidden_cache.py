"""Hidden states of (problem, solution) pairs, computed once and kept on disk in shards.

Conversion reads the states at which a solution token is predicted and, if the plug-in has a reader, those of some layers
at every token of problem and solution. The prompt's prefix is computed
once for all pairs, and equal pairs once. A store is keyed by a hash of everything that it depends on. It is written
shard by shard, so that an interrupted run continues, and read block by block, so that it may be larger than memory.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.distributed import processes
from ollm_rl.common.progress import Bar, track
from ollm_rl.common.spent import counted
from ollm_rl.models.attention import KVCache
from ollm_rl.models.backbone import Backbone, StatesReader, prefill_prefix
from ollm_rl.options.hidden_states import HiddenStates, HiddenStore, Text, joined, texts_apart
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter

log = logging.getLogger(__name__)
SHORTLIST = 64  # candidates that are kept at least: other plug-ins, with other shortlists, share them
SHARD = 1000  # pairs of a shard
_announced: set[Path] = set()  # stores that this process made or found: it says of them once where they come from


class Recorder:
    """Stands in a reader's place and gives the states of layers as they are, side by side (n, t, m d)."""

    def __init__(self, layers: Sequence[int]):
        self.layers = layers

    def __call__(self, taps: Tensor, positions: Tensor) -> Tensor:
        return taps


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
        if not missing and path not in _announced:
            log.info("hidden states of %d solutions: from the cache", len(problems))
        _announced.add(path)
        path.mkdir(parents=True, exist_ok=True)
        mine = [i for i in missing if i % us.count == us.index]
        if mine:
            with counted(path):
                _fill(backbone, prompter, problems, names, mine, most, layers, batch_tokens, across=us.count == 1)
        us.wait()
    return HiddenStore(path, shortlist)


def _where(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, layers: Sequence[int]
) -> tuple[Path, list[Path]]:
    """The directory of a store, and its shards."""
    pairs = [(prompter.own(p), p.solution) for p in problems]
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
        firsts.setdefault((prompter.own(p), p.solution, 0 if across else i // SHARD), i) for i, p in enumerate(problems)
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
            texts = texts_apart(shard, counts, taps, lengths)
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
    which = [firsts.setdefault((prompter.own(p), p.solution or ""), i) for i, p in enumerate(problems)]
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
        texts = texts_apart(states, counts, taps, lengths if taps is not None else [0] * len(batch))
        found |= {i: text for (i, *_), text in zip(batch, texts, strict=True)}
        at += len(batch)
        if bar is not None:
            bar.advance(len(batch))
    return [found[i] for i in which]


def _entropy(logits: Tensor) -> Tensor:
    """Entropies (n,) in nats of rows of logits (n, vocab), the same with any number of threads.

    A sum that gives one number alone is split among threads, and rounded otherwise: a row by itself is looked at twice.
    """
    alone = len(logits) == 1
    logp = (logits.expand(2, -1) if alone else logits).float().log_softmax(-1)
    found = -(logp.exp() * logp).sum(-1)
    return found[:1] if alone else found


def _batch_states(
    backbone: Backbone, prefix: KVCache | None, batch: list, shortlist: int, reader: StatesReader | None
) -> tuple[HiddenStates, Tensor | None]:
    """The positions of (number, prompt, solution) triples, one after the other, and what `reader` gives at all their tokens."""
    device = backbone.device
    read = [prompt + solution[:-1] for _, prompt, solution in batch]
    kv = KVCache(len(batch), max(map(len, read)), prefix)
    everywhere = backbone.texts(read, kv, reader=reader)
    d = backbone.hidden_size
    hidden = torch.cat([s[len(prompt) - 1 :, :d] for s, (_, prompt, _) in zip(everywhere, batch, strict=True)])
    taps = None if reader is None else torch.cat(everywhere)[:, d:].cpu()
    gold = [token for *_, solution in batch for token in solution]
    owner = [index for index, _, solution in batch for _ in solution]
    target_ids = torch.tensor(gold, device=device)
    parts = []
    for h, x in zip(hidden.split(512), target_ids.split(512), strict=True):
        logits = backbone.raw_logits(h)
        entropy = torch.cat(
            [_entropy(backbone.after_head(few)) for few in logits.split(16)]
        )  # whole rows in cache: 10 times faster
        top, ids = backbone.likeliest(logits, shortlist)
        found = ids == x[:, None]
        missing = ~found.any(-1)
        extra = logits.gather(1, x[:, None]).float().masked_fill(~missing[:, None], float("-inf"))
        target = torch.where(missing, top.shape[1], found.float().argmax(-1))
        parts.append((torch.cat([ids, x[:, None]], 1).int(), torch.cat([top.float(), extra], 1), target, entropy))
    ids, logits, target, entropy = (torch.cat(p) for p in zip(*parts, strict=True))
    found = HiddenStates(hidden, target_ids, ids, logits, target, entropy, torch.tensor(owner))
    return HiddenStates(*(getattr(found, f.name).cpu() for f in fields(found))), taps
