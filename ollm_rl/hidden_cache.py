"""Hidden states of (problem, solution) pairs, computed once and kept on disk.

Conversion reads only the states at which a solution token is predicted; the prompt's prefix is computed
once for all pairs. A cache is keyed by a hash of everything that it depends on.
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass, fields

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ollm_rl.attention import KVCache
from ollm_rl.backbone import Backbone
from ollm_rl.progress import track
from ollm_rl.prompts import Prompter
from ollm_rl.smollm2 import cache_dir
from ollm_rl.tasks import Problem

log = logging.getLogger(__name__)


@dataclass
class HiddenStates:
    """N positions of solutions.

    Attributes:
        hidden: (N, d) in the backbone's dtype, what the head reads.
        gold: (N,) int64, the next token of the solution.
        ids: (N, S + 1) int32, the shortlist; the last one is the gold token where the shortlist lacks it.
        logits: (N, S + 1) float32, what the head gives for `ids`, before any soft cap; -inf marks an unused last place.
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


def key_of(*parts) -> str:
    """Short hash of JSON-serialisable parts: the name of a cached thing."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cached_hidden_states(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, batch_tokens: int = 1024
) -> HiddenStates:
    """`compute_hidden_states`, kept in the cache directory under a hash of what made it."""
    pairs = [(p.problem, p.solution) for p in problems]
    key = key_of(backbone.fingerprint, str(backbone.dtype), prompter.prefix, pairs, shortlist, "v1")
    path = cache_dir() / "hidden" / f"{key}.safetensors"
    if path.exists():
        log.info("hidden states of %d solutions: from the cache", len(problems))
        return HiddenStates(**load_file(path))
    states = compute_hidden_states(backbone, prompter, problems, shortlist, batch_tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    save_file({f.name: getattr(states, f.name).contiguous() for f in fields(states)}, scratch)
    scratch.replace(path)
    return states


@torch.inference_mode()
def compute_hidden_states(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, batch_tokens: int = 1024
) -> HiddenStates:
    """Run all pairs through the body: the shared prefix once, and equal pairs once."""
    firsts: dict[tuple[str, str], int] = {}
    which = torch.tensor([firsts.setdefault((p.problem, p.solution or ""), i) for i, p in enumerate(problems)])
    pairs = [
        (i, prompter.encode(problems[i]), prompter.encode_solution(problems[i].solution or "")) for i in firsts.values()
    ]
    pairs.sort(key=lambda pair: len(pair[1]) + len(pair[2]))
    prefix = prefill_prefix(backbone, prompter.prefix)
    out: dict[str, list[Tensor]] = {f.name: [] for f in fields(HiddenStates)}
    at = 0
    with track("hidden states", total=len(pairs), unit="solutions") as bar:
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


def prefill_prefix(backbone: Backbone, tokens: list[int]) -> KVCache | None:
    """Keys and values of the tokens that all prompts share."""
    if not tokens:
        return None
    cache = KVCache(1, len(tokens))
    ids = torch.tensor([tokens], device=backbone.device)
    backbone.hidden(ids, torch.arange(len(tokens), device=backbone.device)[None], cache)
    return cache


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
            [_entropy(backbone.cap(few)) for few in logits.split(16)]
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
