"""Attention over [shared prefix | own tokens], for any transformers model that has an attention interface.

The few-shot examples are the same for every episode. Their keys and values are stored once, and all
rows attend to them in one dense product instead of one small product per row. Each row's own tokens
(prompt and solution) live in a preallocated slot that is written in place: nothing is concatenated.

The model is called without its own cache, inside ``KVCache.call``, which tells the attention function of this thread
where keys and values are. (As a keyword argument of the forward call it would not arrive: some architectures hand none
down to their attention.) Outside of such a call attention is the ordinary one, so ``model.generate`` still works.
"""

import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ollm_rl.errors import BackboneError
from ollm_rl.models.blocks import Blocks
from ollm_rl.models.kernels import LANES, Kernels, kernels

IMPLEMENTATION = "ollm_rl"
_current = threading.local()  # `kv`: the cache of the forward call that this thread is in


class AttentionNotReached(BackboneError):
    """The model ran without our attention function."""


class KVCache:
    """Keys and values of `slots` rows of at most `capacity` own tokens after an optional shared prefix.

    Layers are allocated when they are first written, with the shapes that the model produces:
    ``(slots, kv_heads, capacity, head_dim)``; or, where rows share `blocks`, ``(blocks + 1, kv_heads, size, head_dim)``. Rows
    that share blocks have to `reserve` what is to be written.
    """

    def __init__(self, slots: int, capacity: int, prefix: "KVCache | None" = None, blocks: Blocks | None = None):
        self.slots, self.capacity, self.blocks = slots, capacity, blocks
        self.prefix = prefix
        self.compiled = False  # the call may use compiled functions
        self.prefix_length = prefix.capacity if prefix is not None else 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.positions = torch.zeros(0, 0, dtype=torch.long)  # (n, t): own position of each query of the call
        self.rows: Tensor | None = None  # (n,): the rows of the call; None for rows 0 to n - 1
        self.span = 0  # keys [0, span) are looked at
        self.spread = 0  # rows [0, spread) take part in products, those of the call among them; 0: only those
        self._tables: dict[torch.device, Tensor] = {}  # of blocks, where layers are; as they were at the last `reserve`
        self._visible: Tensor | None = None  # (n, 1, 1, t, span) additive mask
        self._steps: tuple[Tensor, Tensor] | None = None  # of a step on a CPU: blocks (n, m) and own positions (n,)
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}  # of a prefix: layers as `Kernels.attend` reads them

    @property
    def num_bytes(self) -> int:
        """Memory of the layers that have been written."""
        return sum(t.numel() * t.element_size() for side in (self.keys, self.values) for t in side.values())

    @property
    def row_bytes(self) -> int:
        """Memory of a row of `capacity` tokens, of the layers that have been written."""
        return (
            sum(t[0, :, 0].numel() * t.element_size() for side in (self.keys, self.values) for t in side.values())
            * self.capacity
        )

    def clear(self) -> None:
        """No row has any tokens."""
        if self.blocks is not None:
            self.blocks.clear()

    def drop(self, rows: Tensor) -> None:
        """These rows have no tokens any more."""
        if self.blocks is not None:
            self.blocks.drop(rows.cpu().numpy())

    def reserve(self, rows: Tensor, lengths: Tensor) -> None:
        """Room for so many tokens (n,) in the rows (n,).

        Raises:
            CacheFullError: there is not enough.
        """
        if self.blocks is not None:
            self.blocks.reserve(rows.cpu().numpy(), lengths.cpu().numpy())
            for device, table in self._tables.items():
                if device.type != "cpu":
                    table.copy_(torch.from_numpy(self.blocks.table))

    @contextmanager
    def call(
        self, positions: Tensor, rows: Tensor | None = None, span: int | None = None, compiled: bool = False
    ) -> Iterator[None]:
        """Around one forward call whose i-th row holds tokens at own `positions[i]`: (n, t) int64.

        `rows` (n,) names the rows of the call; without it they are the first n, which costs no copy. `span`: how many
        own keys are looked at, if it is known. `compiled`: attention may be a compiled function, where there is one.
        """
        self.positions, self.rows, self.compiled = positions, rows, compiled
        self.span = int(positions.max()) + 1 if span is None else span
        # Copying the keys of a call's rows moves three times what reading them does: for most of the rows, all are read.
        upto = 0 if rows is None else int(rows.max()) + 1
        self.spread = upto if rows is not None and upto < 3 * len(rows) else 0
        self._visible = self._steps = None
        self._written = False
        _current.kv = self
        try:
            yield
        finally:
            _current.kv = None
        if not self._written:
            raise AttentionNotReached(
                "no layer's attention came to the engine's cache. If the model's attention implementation was changed, set it "
                f"back: model.set_attn_implementation('{IMPLEMENTATION}')."
            )

    @property
    def visible(self) -> Tensor:
        """What is added to the scores (n, 1, 1, t, span) of the call: minus infinity where a key comes later."""
        if self._visible is None:
            hidden = torch.arange(self.span, device=self.positions.device) > self.positions[..., None]
            self._visible = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._visible = self._visible[:, None, None]
        return self._visible

    def _layer(self, layer: int, heads: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, allocated now if the call is the first to write it."""
        self._written = True
        self._shared.pop(layer, None)
        if layer not in self.keys:
            self._allocate(layer, heads, key, value)
        return self.keys[layer], self.values[layer]

    def _allocate(self, layer: int, heads: int, key: Tensor, value: Tensor) -> None:
        """Memory of a layer, for numbers like those of `key` and `value`."""
        shape = (self.slots, heads, self.capacity)
        if self.blocks is not None:
            shape = (self.blocks.count + 1, heads, self.blocks.size)
        self.keys[layer], self.values[layer] = (_zeros(each, *shape, each.shape[-1]) for each in (key, value))

    def _table(self, rows: Tensor | None, n: int, device: torch.device) -> Tensor:
        """The blocks (n, m) of rows (n,), of the first n if None, as far as `span` reaches; a row is a block where none are shared."""
        if self.blocks is None:
            return (torch.arange(n, device=device) if rows is None else rows.to(device))[:, None]
        if device not in self._tables:
            # On a CPU the very same memory; elsewhere a copy that stays in its place, for a CUDA graph reads it there.
            self._tables[device] = torch.from_numpy(self.blocks.table).to(device)
        table = self._tables[device][:, : self.blocks.of(max(1, self.span))]
        return table[:n] if rows is None else table[rows.to(device)]

    def step(
        self,
        functions: Kernels,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        turns: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attention of a call of one token a row, in one compiled function that stores the new pair as well.

        Arguments as in `Kernels.attend`; a layer of which the prefix has nothing looks at the own tokens only.
        """
        keys, values = self._layer(layer, key.shape[1], key, value)
        if self._steps is None:
            self._steps = self._table(self.rows, len(key), key.device), self.positions[:, 0].contiguous()
        shared = None if self.prefix is None else self.prefix.as_shared(layer, functions)
        return functions.attend(query, key, value, turns, keys, values, *self._steps, shared, scaling)

    def as_shared(self, layer: int, functions: Kernels) -> tuple[Tensor, Tensor] | None:
        """This cache's only row as the prefix of others, see `Kernels.attend`; None if nothing of the layer was written."""
        if layer not in self._shared and layer in self.keys:
            keys, values = self.keys[layer][0], self.values[layer][0]
            self._shared[layer] = functions.prefix_keys(keys), values
        return self._shared.get(layer)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new (n, kv_heads, t, head_dim) pair; what of all slots is visible, for `product`, or of the call's rows if
        rows share blocks."""
        n, heads, t, _ = key.shape
        keys, values = self._layer(layer, heads, key, value)
        if self.blocks is not None:
            table, at = self._table(self.rows, n, key.device), self.positions.to(key.device)
            block, place = table.gather(1, at // self.blocks.size), at % self.blocks.size
            keys[block, :, place], values[block, :, place] = key.transpose(1, 2), value.transpose(1, 2)
            found = (side[table].transpose(1, 2).flatten(2, 3)[:, :, : self.span] for side in (keys, values))
            return next(found), next(found)
        if t == 1:
            rows = torch.arange(n, device=key.device) if self.rows is None else self.rows.to(key.device)
            at = self.positions[:, 0].to(key.device)  # layers of a model spread over GPUs have devices of their own
            keys[rows, :, at] = key[:, :, 0]
            values[rows, :, at] = value[:, :, 0]
        else:  # a prefill: all rows start at the same own position
            start = int(self.positions[0, 0])
            to = slice(n) if self.rows is None else self.rows.to(key.device)
            keys[to, :, start : start + t] = key
            values[to, :, start : start + t] = value
        return keys[:, :, : self.span], values[:, :, : self.span]

    def product(self, x: Tensor, stored: Tensor) -> Tensor:
        """x (n, kv_heads, a, b) of the call's rows times what the cache has of them: stored (slots, kv_heads, b, c)."""
        if self.rows is None or self.blocks is not None:
            return torch.matmul(x, stored[: len(x)])
        rows = self.rows.to(x.device)
        if not self.spread:
            return torch.matmul(x, stored[rows])
        among = x.new_zeros(self.spread, *x.shape[1:])
        among[rows] = x
        return torch.matmul(among, stored[: self.spread])[rows]

    def select(self, rows: Tensor, lengths: Tensor) -> None:
        """Row i becomes what row `rows[i]` was, which has `lengths[i]` tokens; only rows that move are copied, or of those that
        share blocks the last block of rows that are named again."""
        if self.blocks is not None:
            self._copy_blocks(self.blocks.select(rows.cpu().numpy(), lengths.cpu().numpy()))
            return
        target = torch.arange(len(rows), device=rows.device)
        moved = rows != target
        if moved.any():
            self.copy_rows(self, rows[moved], target[moved], lengths[moved])

    def _copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            source, target = torch.tensor(pairs).unbind(1)
            for side in (self.keys, self.values):
                for tensor in side.values():
                    tensor[target.to(tensor.device)] = tensor[source.to(tensor.device)]

    def copy_rows(self, source: "KVCache", from_rows: Tensor, to_rows: Tensor, lengths: Tensor) -> None:
        """Copy the first `lengths` (m,) own tokens of `source`'s rows (m,) into rows (m,) of this cache."""
        if source is self and self.blocks is not None:
            each = zip(from_rows.tolist(), to_rows.tolist(), lengths.tolist(), strict=True)
            self._copy_blocks([pair for pair in itertools.starmap(self.blocks.share, each) if pair is not None])
            return
        longest = int(lengths.max())
        if self.blocks is not None:
            self.drop(to_rows)
            self.reserve(to_rows, lengths)
        for mine, theirs in ((self.keys, source.keys), (self.values, source.values)):
            for layer in theirs:
                if layer not in mine:
                    self._allocate(layer, theirs[layer].shape[1], source.keys[layer], source.values[layer])
                mine_rows, tensor = mine[layer], theirs[layer]
                if self.blocks is None and source.blocks is None:
                    mine_rows[to_rows, :, :longest] = tensor[from_rows, :, :longest]
                    continue
                block, place = source._places(from_rows, lengths, longest, tensor.device)
                to_block, to_place = self._places(to_rows, lengths, longest, tensor.device)
                mine_rows[to_block, :, to_place] = tensor[block, :, place]

    def _places(self, rows: Tensor, lengths: Tensor, longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Block and place in it (m, longest) of the rows' tokens; beyond a row's own some place where no harm is done."""
        at = torch.arange(longest, device=device).expand(len(rows), -1)
        if self.blocks is None:
            return rows.to(device)[:, None].expand(-1, longest), at
        table = torch.from_numpy(self.blocks.table)[rows.cpu()].to(device)
        block = table.gather(1, (at // self.blocks.size).clamp(max=table.shape[1] - 1))
        return block.masked_fill(at >= lengths.to(device)[:, None], 0), at % self.blocks.size


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros of the device and precision of `like`; on a CPU memory that is only taken where it is written.

    They have to be zeros: a masked key has weight 0, but 0 times what unwritten memory holds may not be a number.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    raw = np.zeros(math.prod(shape) * like.element_size() + 64, dtype=np.uint8)  # from calloc, unlike torch's
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : len(raw) - 64 + start]).view(like.dtype).view(shape)


def current() -> KVCache | None:
    """The cache of the forward call that this thread is in."""
    return getattr(_current, "kv", None)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    alibi: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """Attention function for transformers' interface.

    query: (n, heads, t, head_dim); key, value: (n, kv_heads, t, head_dim), the new tokens only. `alibi` (heads,): what a
    score grows by with every position of its key (Press et al. 2022, "Train Short, Test Long").
    Returns (n, t, heads, head_dim).
    """
    kv = current()
    if kv is None and softcap is not None:
        if (paged := kwargs.pop("cache", None)) is not None:  # of continuous batching
            key, value = paged.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
        return _capped(query, key, value, attention_mask, scaling, softcap), None
    if kv is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("s_aux") is not None:
        raise BackboneError("it uses attention sinks, which the engine does not have")
    layer = module.layer_idx
    n, heads, t, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    scaling = dim**-0.5 if scaling is None else scaling
    narrow = sliding_window is not None and kv.prefix_length + kv.span > sliding_window
    if t == 1 and softcap is None and alibi is None and not narrow and kv.compiled:
        functions = _functions(query, value)
        if functions is not None:
            q, k, v = (each[:, :, 0].contiguous() for each in (query, key, value))
            return kv.step(functions, layer, q, k, v, scaling)[:, None], None
    keys, values = kv.write(layer, key, value)
    # A reader's blocks look at the row's own tokens only: the prefix has no keys for them.
    span, prefix = kv.span, kv.prefix_length if kv.prefix is not None and layer in kv.prefix.keys else 0

    # All query heads of one key head stand together, so that each product is one batched matrix product. Queries are
    # scaled, for there are fewer than scores; scores keep the products' precision up to the softmax.
    q = (query * scaling).reshape(n, kv_heads, group * t, dim)
    scores = kv.product(q, keys.transpose(-1, -2)).view(n, kv_heads, group, t, span)
    if prefix:
        assert kv.prefix is not None
        prefix_keys, prefix_values = kv.prefix.keys[layer][0], kv.prefix.values[layer][0]
        q_by_head = q.transpose(0, 1).reshape(kv_heads, n * group * t, dim)
        shared = torch.matmul(q_by_head, prefix_keys.transpose(-1, -2)).view(kv_heads, n, group, t, prefix)
        scores = torch.cat([shared.transpose(0, 1), scores], dim=-1)
    if softcap is not None:
        scores = torch.tanh(scores.float() / softcap) * softcap
    if alibi is not None:
        by_key = alibi[:, None] * torch.arange(prefix + span, device=alibi.device)
        scores = scores + by_key.to(scores.dtype).view(kv_heads, group, 1, -1)
    scores[..., prefix:] += kv.visible.to(scores.device)
    if sliding_window is not None and prefix + span > sliding_window:
        at = torch.arange(prefix + span, device=query.device)
        too_old = at <= (kv.positions.to(at.device)[..., None] + prefix - sliding_window)
        scores = scores.masked_fill(too_old[:, None, None], float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    out = kv.product(weights[..., prefix:].reshape(n, kv_heads, group * t, span), values)
    if prefix:
        by_head = weights[..., :prefix].transpose(0, 1).reshape(kv_heads, n * group * t, prefix)
        out = out + torch.matmul(by_head, prefix_values).view(kv_heads, n, group * t, -1).transpose(0, 1)
    return out.reshape(n, heads, t, -1).transpose(1, 2).contiguous(), None


def _functions(query: Tensor, value: Tensor) -> Kernels | None:
    """The compiled functions, where they can be used."""
    size = query.shape[-1]
    if query.device.type != "cpu" or size % (2 * LANES) or value.shape[-1] != size:
        return None
    return kernels(query.dtype)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    """Ordinary attention with soft-capped scores (Gemma 2), which SDPA does not have; shapes as for `attend`."""
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.matmul(query, keys.transpose(-1, -2)).float() * (
        query.shape[-1] ** -0.5 if scaling is None else scaling
    )
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        t, span = scores.shape[-2:]
        mask = torch.ones(t, span, dtype=torch.bool, device=query.device).tril(span - t)
    if (
        mask.dtype is torch.bool
    ):  # a padding token may look at nothing; minus infinity would make it NaN, and then all others
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    return torch.matmul(scores.softmax(-1).to(values.dtype), values).transpose(1, 2)


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
