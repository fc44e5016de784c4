"""The reader: a small causal transformer over the backbone's states, for what the last one has forgotten.

The state that the head reads is made for the next token. What the text said before, a count or a number, is in the keys and
values of the backbone's layers, where a net on the last state does not reach. The reader attends to the text itself: at every
position it takes the states of a few layers, and its blocks look back at those of all earlier positions. Its output g_t stands
beside h_t wherever the plug-in, a policy or an environment reads states.

It looks at the text itself, the problem and its solution so far, and not at the solved examples that all prompts share: with
them it learns worse (docs/log.md).

Keys and values have the shape that the backbone's have, so that each block is one more layer in any cache of the
backbone. Rotary positions (Su et al. 2021, arXiv 2104.09864); blocks are normalised first (RMSNorm; Zhang and Sennrich 2019).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ollm_rl.models.attention import attend
from ollm_rl.models.backbone import Geometry
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.standardize import Standardize

ROTARY_BASE = 10_000.0
IGNORED = -1e4  # what is added to the scores of a key that is not looked at

# (block, query (n, heads, t, e), key, value (n, kv_heads, t, e)) -> (n, t, heads * e): attention to all that came before
Attention = Callable[["Block", Tensor, Tensor, Tensor], Tensor]


def rotary(positions: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (n, t, size) of positions (n, t)."""
    halves = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    angles = positions[..., None].float() * ROTARY_BASE**-halves
    both = torch.cat([angles, angles], -1)
    return both.cos().to(dtype), both.sin().to(dtype)


class Block(nn.Module):
    """Attention and a net with one hidden layer of four times the width, each normalised first and added to what came in."""

    is_causal = True

    def __init__(self, width: int, geometry: Geometry, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.kv_heads, self.head_dim = geometry.kv_heads, geometry.head_dim
        self.num_key_value_groups = max(1, round(width / (self.kv_heads * self.head_dim)))
        self.heads = self.kv_heads * self.num_key_value_groups
        self.dropout = 0.0  # of what is added, in training
        self.before = nn.RMSNorm(width)
        self.asks = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.keys = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.values = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.joins = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.between = nn.RMSNorm(width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], attention: Attention, ignored: Tensor | None = None
    ) -> Tensor:
        n, t, _ = x.shape
        seen = self.before(x)
        query, key, value = (
            layer(seen).view(n, t, -1, self.head_dim).transpose(1, 2) for layer in (self.asks, self.keys, self.values)
        )
        query, key = (each.to(value.dtype) for each in apply_rotary_pos_emb(query, key, *turns))
        # The last number of each key says whether it is looked at: so does any cache that holds it.
        mark = key.new_zeros(n, 1, t, 1) if ignored is None else ignored[:, None, :, None].to(key.dtype) * IGNORED
        query = torch.cat([query[..., :-1], torch.full_like(query[..., :1], self.head_dim**0.5)], -1)
        key = torch.cat([key[..., :-1], mark.expand(-1, self.kv_heads, -1, -1)], -1)
        found = attention(self, query, key, value)
        x = x + F.dropout(self.joins(found), self.dropout, self.training)
        added: Tensor = F.dropout(self.net(self.between(x)), self.dropout, self.training)
        return x + added


class Reader(nn.Module):
    """g_t of width `config.reader_width` from states of `layers`.

    Args:
        hidden_size: d of the backbone. geometry: of its attention.

    Attributes:
        layers: whose states are read: 0 is what enters the first layer, the number of layers what the head reads.
    """

    def __init__(self, hidden_size: int, config: PlugInConfig, geometry: Geometry):
        super().__init__()
        self.layers = reader_layers(config, geometry.num_layers)
        self.geometry, self.width = geometry, config.reader_width
        self.standardize = Standardize(len(self.layers) * hidden_size)
        self.reads = nn.Linear(len(self.layers) * hidden_size, self.width)
        self.blocks = nn.ModuleList(
            Block(self.width, geometry, geometry.num_layers + i) for i in range(config.reader_depth)
        )
        self.norm = nn.RMSNorm(self.width)
        self.input_dropout = 0.0
        self.folded: tuple[Tensor, Tensor] | None = None  # of a frozen one: weight and bias that standardise too

    def forward(
        self,
        taps: Tensor,
        positions: Tensor,
        attention: Attention | None = None,
        ignored: Tensor | None = None,
    ) -> Tensor:
        """g (n, t, r) for states of the m layers side by side (n, t, m d), at positions (n, t) that count from the text's start.

        Args:
            attention: how blocks look back; by default through the engine's cache, inside of `KVCache.call`.
            ignored: (n, t) tokens that no block looks at, now or later; by default none.
        """
        dtype = self.norm.weight.dtype
        x = F.dropout(self._taken_in(taps), self.input_dropout, self.training).to(dtype)
        turns = rotary(positions, self.geometry.head_dim, dtype)
        for block in self.blocks:
            x = block(x, turns, attention or through_cache, ignored)
        g: Tensor = self.norm(x)
        return g

    def _taken_in(self, taps: Tensor) -> Tensor:
        """`reads` of the standardised states, as one product: the states are many and wide, the weights few."""
        if self.folded is None:
            scaled = self.reads.weight / self.standardize.std
            if not torch.is_autocast_enabled(taps.device.type):  # it would take them back to what they are
                taps = taps.to(scaled.dtype)
            return F.linear(taps, scaled, self.reads.bias - scaled @ self.standardize.mean)
        return F.linear(taps.to(self.folded[0].dtype), *self.folded)

    def dropout(self, share: float) -> None:
        """Leave out this share of what is taken in and of what blocks add, in training."""
        self.input_dropout = share
        for block in self.blocks:
            assert isinstance(block, Block)
            block.dropout = share

    def frozen(self, dtype: torch.dtype, device: torch.device) -> "Reader":
        """A copy for use, whose products are in the backbone's precision."""
        own = copy.deepcopy(self).to(device).eval().requires_grad_(False)
        scaled = own.reads.weight / own.standardize.std
        own.folded = scaled.to(dtype), (own.reads.bias - scaled @ own.standardize.mean).to(dtype)
        own.blocks.to(dtype)
        own.norm.to(dtype)
        return own


def reader_layers(config: PlugInConfig, num_layers: int) -> tuple[int, ...]:
    """The layers that are read: as configured, or four at equal distances in the upper part of the backbone.

    Raises:
        ConfigurationError: the backbone has no such layer.
    """
    if config.reader_layers is not None:
        wrong = [layer for layer in config.reader_layers if not 0 <= layer <= num_layers]
        if wrong or len(set(config.reader_layers)) < max(1, len(config.reader_layers)):
            raise config.refuse(
                "reader_layers", f"different numbers from 0 to {num_layers}, the layers of this backbone"
            )
        return tuple(config.reader_layers)
    return tuple(sorted({max(1, round(num_layers * part)) for part in (0.4, 0.6, 0.8, 1.0)}))


def in_prefix(prefix: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
    """Whether each token is the one that all texts of the conversion, which began with `prefix` (p,), had at its position."""
    return (positions < len(prefix)) & (prefix[positions.clamp(0, len(prefix) - 1)] == ids)


def through_cache(block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention to the row's own tokens in the cache of the engine's call."""
    out, _ = attend(block, query, key, value, None)
    return out.flatten(2)
