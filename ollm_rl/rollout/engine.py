"""The rollout engine: many texts at once through one KV cache. The only decode path of the project.

`RolloutEngine` keeps a compact batch of active rows. `admit` prefills prompts (each distinct one once) into
free rows, `advance` feeds one token per row and recomputes hidden states and options, `release` frees rows,
`select` and `fork` copy them. `ollm_rl.rollout.sampler` drives these for whole episodes with a policy; the environments and
the oracle drive them themselves.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ollm_rl.common.heartbeat import beat
from ollm_rl.common.profiler import Profiler
from ollm_rl.errors import ConfigurationError
from ollm_rl.models.attention import KVCache
from ollm_rl.models.backbone import Backbone, prefill_prefix
from ollm_rl.models.blocks import Blocks
from ollm_rl.models.cuda_graphs import GraphedSteps
from ollm_rl.options.enumeration import Options
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.config import EngineConfig
from ollm_rl.tasks.prompts import Prompter

BLOCK = 64  # tokens of a block of the cache, where rows share it: if texts may have
FEW = 8  # of them; of shorter ones all that the budget holds have room for the longest
PREFILL_TOKENS = 2048  # that go through the body at a time: its activations are not part of the cache's budget


def slots_within(
    backbone: Backbone,
    reader_depth: int,
    prefix_tokens: int,
    own_tokens: int,
    num_slots: int,
    kv_cache_gib: float | None,
) -> int:
    """How many of `num_slots` episodes of `own_tokens` the cache budget holds beside the shared prefix.

    Raises:
        ConfigurationError: not one; the message has the budget that would do.
    """
    if kv_cache_gib is None:
        return num_slots
    shared, per_token = cache_bytes(backbone, reader_depth, prefix_tokens)
    per_slot = own_tokens * per_token
    fitting = int((kv_cache_gib * 2**30 - shared) // per_slot)
    if fitting < 1:
        raise ConfigurationError(
            f"engine.kv_cache_gib={kv_cache_gib} does not hold one episode: {prefix_tokens} tokens of shared prefix and "
            f"{own_tokens} of prompt and solution take {_gib(shared + per_slot)} GiB, and engine.num_slots={num_slots} "
            f"of them {_gib(shared + num_slots * per_slot)}. Raise it, or lower engine.max_new_tokens."
        )
    return min(num_slots, fitting)


def cache_bytes(backbone: Backbone, reader_depth: int, prefix_tokens: int) -> tuple[int, int]:
    """Memory of the shared prefix's keys and values, and of those of one own token."""
    one, shape = prefill_prefix(backbone, backbone.eos_ids[:1]), backbone.geometry
    assert one is not None
    read = reader_depth * 2 * shape.kv_heads * shape.head_dim * backbone.dtype.itemsize  # of own tokens only
    return prefix_tokens * one.num_bytes, one.num_bytes + read


def _gib(size: int) -> str:
    """GiB in two digits, rounded up."""
    digits = 1 - math.floor(math.log10(size / 2**30))
    return f"{math.ceil(size / 2**30 * 10**digits) / 10**digits:.{max(digits, 0)}f}"


def check_room(backbone: Backbone, prompt_tokens: int, new_tokens: int, whose: str = "a prompt") -> None:
    """Whether prompts, shared prefix included, and solutions of so many tokens are texts that the backbone can read.

    Raises:
        ConfigurationError: they are longer than its positions, with the settings that would make them fit.
    """
    limit, setting = backbone.context_limit
    if limit is not None and prompt_tokens + new_tokens > limit:
        fewer = (
            f"Lower engine.max_new_tokens to {limit - prompt_tokens}, shorten" if prompt_tokens < limit else "Shorten"
        )
        raise ConfigurationError(
            f"{whose} of {prompt_tokens} tokens and {new_tokens} new ones are more than the {limit} positions of backbone "
            f"'{backbone.name}' ({setting}). {fewer} the prompts (task.num_examples=), or choose another backbone."
        )


def stay_in_place(sources: Sequence[int]) -> list[int]:
    """An order of rows that come from `sources` in which as many as possible stay where they are, and are not copied.

    Returns:
        indices into `sources`, one for every new row.
    """
    first: dict[int, int] = {}
    for i, source in enumerate(sources):
        if source < len(sources):
            first.setdefault(source, i)
    settled = set(first.values())
    others = iter([i for i in range(len(sources)) if i not in settled])
    return [first[row] if row in first else next(others) for row in range(len(sources))]


class RolloutEngine:
    """Steps up to `num_slots` episodes at once.

    Args:
        settings: those of `EngineConfig`.

    Attributes:
        num_slots: rows that may all become as long as texts may.
        max_rows: rows at once: more than `num_slots` where the budget of the cache does not hold so many of the longest. Whoever has
            more than `num_slots` asks `holds` before rows are admitted, and `lacking` before they are forked or advanced.
        hidden: (n, s), what plug-in and policies read of the n active rows: first the d columns that the head reads, then what
            the plug-in's reader adds.
        logits: (n, vocab), the backbone's own next-token logits.
        options: their K options.
        num_tokens: tokens run through decode steps since the engine was made, not counting prompts; those that
            several episodes share count once.
    """

    def __init__(self, lm: OptionLM, prompter: Prompter, **settings: Any):
        config = EngineConfig.of(settings)
        if config.max_new_tokens is None:
            raise ConfigurationError(
                "engine.max_new_tokens=null; expected the token budget of an episode, or a task that has one"
            )
        self.lm, self.prompter, self.backbone = lm, prompter, lm.backbone
        self.most_slots, self.max_new_tokens, self.kv_cache_gib = (
            config.num_slots,
            config.max_new_tokens,
            config.kv_cache_gib,
        )
        self.cuda_graphs, self.kept_decisions = config.cuda_graphs, config.kept_decisions
        self.eos_ids = self.backbone.eos_ids
        self.profiler = Profiler(config.profile)
        self.check_room(1)
        self.prefix = prefill_prefix(self.backbone, prompter.prefix)
        self._allocate(config.max_prompt_tokens)
        self.num_tokens = 0
        self.clear()

    def refresh(self) -> None:
        """Forget everything that was computed with the weights that the backbone had before; active rows are lost.

        The cache stays where it is, and so do CUDA graphs, unless weights lie elsewhere now.
        """
        self.clear()
        prefill_prefix(self.backbone, self.prompter.prefix, self.prefix)
        if self.graphs.stale:
            self._make_graphs()

    def _allocate(self, max_prompt_tokens: int) -> None:
        own = max_prompt_tokens + self.max_new_tokens
        depth, prefix = self.lm.plugin.config.reader_depth, len(self.prompter.prefix)
        self.num_slots = slots_within(self.backbone, depth, prefix, own, self.most_slots, self.kv_cache_gib)
        self.max_rows, blocks = self.num_slots, None
        if (
            self.num_slots < self.most_slots
            and own >= FEW * BLOCK
            and (count := self._blocks_within(own)) >= -(-own // BLOCK)
        ):
            self.num_slots, self.max_rows = count // -(-own // BLOCK), self.most_slots
            blocks = Blocks(self.max_rows, count, BLOCK, own)
        self.kv = KVCache(self.max_rows, own, self.prefix, blocks)
        self._make_graphs()

    def _make_graphs(self) -> None:
        modules = [self.backbone.model] if self.lm.reader is None else [self.backbone.model, self.lm.reader]
        self.graphs = GraphedSteps(self.lm.states, self.kv, self.device, modules)
        self.graphs.enabled &= self.cuda_graphs

    def _blocks_within(self, own_tokens: int) -> int:
        """How many blocks the cache budget holds beside the shared prefix."""
        assert self.kv_cache_gib is not None
        shared, per_token = cache_bytes(self.backbone, self.lm.plugin.config.reader_depth, len(self.prompter.prefix))
        return int((self.kv_cache_gib * 2**30 - shared) // (per_token * BLOCK)) - 1  # one is nobody's

    def holds(self, lengths: Iterable[int]) -> int:
        """How many more texts of so many tokens, in this order, can be begun: each active row may get a block more before."""
        blocks, n = self.kv.blocks, 0
        left = 0 if blocks is None else blocks.free - len(self.lengths)
        for length in itertools.islice(lengths, self.max_rows - len(self.lengths)):
            if blocks is not None:
                left -= blocks.of(length) + 1
                if left < 0 and (n or len(self.lengths)):  # one alone always has room
                    break
            n += 1
        return n

    def lacking(self, rows: Sequence[int]) -> int:
        """How many blocks the cache is short of to `fork` these rows; never any if they are at most `num_slots`."""
        if (blocks := self.kv.blocks) is None:
            return 0
        return blocks.lacking(np.array(rows), self.lengths.cpu().numpy()[rows])

    def check_room(self, prompt_tokens: int, room: int | None = None) -> None:
        """As the function of that name, for prompts of so many tokens after the shared prefix; `room` as in `admit`."""
        new_tokens = self.max_new_tokens if room is None else room
        check_room(self.backbone, len(self.prompter.prefix) + prompt_tokens, new_tokens)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def free(self) -> int:
        return self.num_slots - len(self.lengths)

    def clear(self) -> None:
        """Drop all active rows."""
        self.kv.clear()
        s, v, k = self.lm.plugin.state_size, self.backbone.vocab_size, self.lm.num_options
        empty = torch.zeros(0, dtype=torch.long, device=self.device)
        self.lengths = empty  # own tokens written per row
        self.hidden = torch.zeros(0, s, dtype=self.backbone.dtype, device=self.device)
        self.logits = torch.zeros(0, v, dtype=self.backbone.dtype, device=self.device)
        self.options = Options(empty.new_zeros(0, k), torch.zeros(0, k, dtype=torch.bool, device=self.device))

    def make_room(self, max_prompt_tokens: int) -> None:
        """Grow the cache if it is too small for such prompts; active rows are lost then.

        Raises:
            ConfigurationError: the backbone cannot read texts of that length.
        """
        self.check_room(max_prompt_tokens)
        if max_prompt_tokens > self.kv.capacity - self.max_new_tokens:
            self.clear()
            self._allocate(max_prompt_tokens)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[list[int]], room: int | None = None) -> None:
        """Append one row per prompt (tokens after the shared prefix); equal prompts are prefilled once.

        Args:
            room: new tokens that they may get, by default `max_new_tokens`.
        """
        free = self.max_rows - len(self.lengths)
        if len(prompts) > free:
            raise ConfigurationError(f"{len(prompts)} prompts for {free} free slots; raise engine.num_slots")
        self.replace(self._extend(len(prompts)), prompts, room)

    @torch.inference_mode()
    def restore(self, kept: KVCache, rows: Tensor, lengths: Tensor) -> Tensor:
        """Append one row per kept one, the first `lengths` (m,) own tokens of `kept`'s `rows` (m,); their numbers.

        What they say next is not known before they are advanced.
        """
        new = self._extend(len(rows))
        self.kv.copy_rows(kept, rows, new, lengths)
        self.lengths[new] = lengths
        return new

    def _extend(self, n: int) -> Tensor:
        """Append n blank rows; their numbers."""
        first = len(self.lengths)
        self.lengths = torch.cat([self.lengths, self.lengths.new_zeros(n)])
        self.hidden = torch.cat([self.hidden, self.hidden.new_zeros(n, self.hidden.shape[1])])
        self.logits = torch.cat([self.logits, self.logits.new_zeros(n, self.logits.shape[1])])
        old, k = self.options, self.lm.num_options
        self.options = Options(
            torch.cat([old.tokens, old.tokens.new_zeros(n, k)]), torch.cat([old.mask, old.mask.new_zeros(n, k)])
        )
        return torch.arange(first, first + n, device=self.device)

    @torch.inference_mode()
    def replace(self, rows: Tensor, prompts: Sequence[list[int]], room: int | None = None) -> None:
        """Start active `rows` (m,) anew with these prompts; `room` as in `admit`."""
        place: dict[tuple[int, ...], int] = {}
        for i, prompt in enumerate(prompts):
            place.setdefault(tuple(prompt), i)
        longest = max(map(len, place))
        self.check_room(longest, room)
        if longest + (self.max_new_tokens if room is None else room) > self.kv.capacity:
            if len(rows) < len(self.lengths):
                raise ConfigurationError(
                    f"a prompt of {longest} tokens does not fit; set engine.max_prompt_tokens to at least {longest}"
                )
            self._allocate(longest)
            if len(rows) > self.num_slots:
                raise ConfigurationError(f"{len(rows)} prompts of {longest} tokens; engine.kv_cache_gib holds fewer")
        first = rows[torch.tensor(list(place.values()), device=self.device)]
        self.kv.drop(rows)
        self.kv.reserve(first, torch.tensor([len(prompt) for prompt in place]))
        with self.profiler.part("prefill"):
            hidden = self._prefill(first, list(place))
        order = {prompt: i for i, prompt in enumerate(place)}
        source = torch.tensor([order[tuple(p)] for p in prompts], device=self.device)
        again = (first[source] != rows).nonzero()[:, 0]
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        if len(again):
            self.kv.copy_rows(self.kv, first[source[again]], rows[again], lengths[again])
        self._look(rows, hidden, lengths, source)

    def _prefill(self, rows: Tensor, prompts: list[tuple[int, ...]]) -> Tensor:
        """Write prompts into rows (n,), some thousand tokens at a time; the last states (n, s)."""
        hidden = torch.empty(len(rows), self.lm.plugin.state_size, dtype=self.backbone.dtype, device=self.device)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        while by_length:
            longest = len(prompts[by_length[-1]])
            few = max(1, PREFILL_TOKENS // longest)
            part, by_length = by_length[-few:], by_length[:-few]
            where = torch.tensor(part, device=self.device)
            hidden[where] = self.lm.last_states([prompts[at] for at in part], self.kv, rows[where])
        return hidden

    @torch.inference_mode()
    def advance(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Append one token (m,) to each of `rows` (m,), by default (in order) to all, and look at the new states."""
        at = torch.arange(len(self.lengths), device=self.device) if rows is None else rows
        self.kv.reserve(at, self.lengths[at] + 1)
        with self.profiler.part("decode"):
            if rows is None and self.graphs.enabled:
                hidden = self.graphs.hidden(tokens, self.lengths)
            else:
                hidden = self.lm.states(tokens[:, None], self.lengths[at, None], self.kv, rows)[:, 0]
        self._look(at, hidden, self.lengths[at] + 1)
        self.num_tokens += len(tokens)
        beat()  # a replayed graph passes through no Backbone.hidden

    def _look(self, rows: Tensor, hidden: Tensor, lengths: Tensor, source: Tensor | None = None) -> None:
        """Compute logits and options of `hidden` (m, s), and store its states (those named by `source`) in `rows`."""
        with self.profiler.part("head"):
            logits = self.backbone.logits(hidden)
        with self.profiler.part("options"):
            options = self.lm.options(hidden, logits)
        new = [hidden, logits, options.tokens, options.mask]
        if source is not None:
            new = [tensor[source] for tensor in new]
        if source is None and len(rows) == len(self.lengths):  # every row advanced: nothing to keep, nothing to copy
            self.hidden, self.logits, self.options, self.lengths = hidden, logits, options, lengths
            return
        for mine, theirs in zip(
            (self.lengths, self.hidden, self.logits, self.options.tokens, self.options.mask),
            [lengths, *new],
            strict=True,
        ):
            mine[rows] = theirs

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Keep these active rows, in this order; a row named twice is forked. Only moved rows are copied."""
        self._move(rows)
        self.hidden, self.logits = self.hidden[rows], self.logits[rows]
        self.options = Options(self.options.tokens[rows], self.options.mask[rows])

    @torch.inference_mode()
    def fork(self, rows: Tensor, tokens: Tensor) -> None:
        """`select` these rows and `advance` them by `tokens`."""
        self._move(rows)  # keys and values are enough: `advance` overwrites the rest
        self.advance(tokens)

    def _move(self, rows: Tensor) -> None:
        self.kv.select(rows, self.lengths[rows])
        self.lengths = self.lengths[rows]

    def release(self, done: Tensor) -> Tensor:
        """Free the rows where `done` (n,) is True by moving the last rows into the holes; return the new order."""
        keep = (~done).nonzero()[:, 0]
        order = keep.clone()
        holes = done[: len(keep)].nonzero()[:, 0]
        if len(holes):
            order = torch.arange(len(keep), device=self.device)
            order[holes] = keep[keep >= len(keep)]
        self.select(order)
        return order
