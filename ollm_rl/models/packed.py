"""Decode steps of a Llama-like body on a CPU: few calls, and weights in the layout that their products want.

A step of one token a row is memory traffic and small calls. Here each layer is four products and three compiled
functions (`ollm_rl.models.kernels`): projections that read the same numbers are one, and weights are laid out once as oneDNN wants them,
where `torch.nn.functional.linear` does so in every call. Numbers are rounded where transformers' modules round them.

The weights are held a second time. LoRA adapters (peft) stay apart from them, so that learning does not lay weights out anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ollm_rl.models.attention import KVCache
from ollm_rl.models.kernels import LANES, Kernels, kernels

KNOWN = ("llama", "mistral", "qwen2")  # model types whose layers are: norm, rotary attention, norm, silu-gated net
ATTENTION, NET = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
TOKENS = 32  # of a call that weights are laid out for


@dataclass
class Packed:
    """One product of several projections side by side: of inputs (n, d) to (n, sum of their outputs)."""

    weight: Tensor
    bias: Tensor | None
    adapters: list[
        tuple[Tensor, Tensor, float] | None
    ]  # of each projection: A (r, d), B (outputs, r) and the factor of B A
    sizes: list[int]

    @classmethod
    def of(cls, modules: list[Any]) -> "Packed":
        plain = [_base(module) for module in modules]
        sizes = [len(base.weight) for base in plain]
        weight = torch.cat([base.weight.detach() for base in plain])
        bias = None
        if any(base.bias is not None for base in plain):
            bias = torch.cat([weight.new_zeros(len(b.weight)) if b.bias is None else b.bias.detach() for b in plain])
        packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, TOKENS)
        return cls(packed, bias, [_adapter(module) for module in modules], sizes)

    def __call__(self, x: Tensor) -> Tensor:
        # A single row is run as two: float32 products of one have a kernel, and roundings, of their own.
        given = x if len(x) > 1 else x.expand(2, -1).contiguous()
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(given, self.weight, self.bias, "none", [], "")
        if any(adapter is not None for adapter in self.adapters):
            for part, adapter in zip(out.split(self.sizes, -1), self.adapters, strict=True):
                if adapter is not None:
                    a, b, factor = adapter
                    part += F.linear(F.linear(given.to(a.dtype), a), b) * factor
        return out[: len(x)]


def _adapter(module: Any) -> tuple[Tensor, Tensor, float] | None:
    if _base(module) is module:
        return None
    (name,) = module.active_adapters
    return module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach(), module.scaling[name]


class PackedBody:
    """The body of a backbone, for decode steps."""

    def __init__(self, body: Any, head: nn.Linear, functions: Kernels):
        config = body.config
        self.functions, self.body = functions, body
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = body.layers[0].self_attn.head_dim
        self.layers = []
        for layer in body.layers:
            attention, net = layer.self_attn, layer.mlp
            self.layers.append(
                (
                    _norm(layer.input_layernorm),
                    Packed.of([attention.q_proj, attention.k_proj, attention.v_proj]),
                    Packed.of([attention.o_proj]),
                    _norm(layer.post_attention_layernorm),
                    Packed.of([net.gate_proj, net.up_proj]),
                    Packed.of([net.down_proj]),
                    attention.scaling,
                )
            )
        self.norm = _norm(body.norm)
        self.head = Packed.of([head])

    def hidden(
        self, tokens: Tensor, positions: Tensor, kv: KVCache, taps: set[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """States (n, d) after one token (n,) a row at `positions` (n,) from the text's start, inside of `KVCache.call`; and
        those of the layers `taps`, as `Backbone.tap` counts them."""
        functions, heads, size = self.functions, self.heads, self.size
        h = self.body.embed_tokens(tokens)
        found = {0: h.clone()} if 0 in taps else {}
        turns = self.body.rotary_emb(h[:, None], positions[:, None])
        cosines, sines = (each[:, 0].contiguous() for each in turns)
        n, delta = len(h), None
        for i, (before, asks, joins, between, opens, closes, scaling) in enumerate(self.layers):
            if delta is not None and i in taps:
                found[i] = h + delta
            x = functions.add_norm(h, delta, *before)
            query, key, value = asks(x).view(n, -1, size).split([heads, self.kv_heads, self.kv_heads], 1)
            seen = kv.step(functions, i, query, key, value, scaling, (cosines, sines))
            x = functions.add_norm(h, joins(seen.view(n, -1)), *between)
            delta = closes(functions.gate(opens(x)))
        return functions.add_norm(h, delta, *self.norm), found


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight.detach(), module.variance_epsilon


class PackedSteps:
    """The packed body of a model, made anew when its weights have changed, and None where there can be none.

    A change is noticed where PyTorch counts it, or where a weight lies elsewhere: not what is written through `weight.data`.
    """

    def __init__(self, model: Any, body: Any, head: nn.Linear):
        self.model, self.body, self.head = model, body, head
        self._packed: PackedBody | None = None
        self._watched: list[tuple[Any, str, Any, Any, Tensor, int | None, int, Any]] | None = None

    def get(self) -> PackedBody | None:
        """It, for the weights as they are now: asked at every step, for weights change in place, and adapters come and go."""
        if self._watched is None or not all(
            owner.get(name) is module
            and own.get("weight") is weight
            and (version is None or weight._version == version)
            and weight.data_ptr() == place
            and (own is module._parameters or _state(module) == state)
            for owner, name, module, own, weight, version, place, state in self._watched
        ):
            self._packed = self._watched = None  # the old one goes before the new one is made
            projections = list(self._projections())
            watched = [
                (
                    owner,
                    name,
                    module,
                    base._parameters,
                    base.weight,
                    _version(base.weight),
                    base.weight.data_ptr(),
                    _state(module),
                )
                for owner, name, module in projections
                for base in [_base(module)]
                if isinstance(getattr(base, "weight", None), Tensor)
            ]
            functions = kernels(self.head.weight.dtype) if self._fits([m for _, _, m in projections]) else None
            made = None if functions is None else PackedBody(self.body, self.head, functions)
            self._packed, self._watched = made, watched
        return self._packed

    def _projections(self) -> Iterator[tuple[Any, str, Any]]:
        """Where the modules that are packed stand."""
        for layer in getattr(self.body, "layers", ()):
            for owner, names in (("self_attn", ATTENTION), ("mlp", NET)):
                stands_in = getattr(getattr(layer, owner, None), "_modules", {})
                yield from ((stands_in, name, stands_in.get(name)) for name in names)
        yield {"head": self.head}, "head", self.head

    def _fits(self, modules: list[Any]) -> bool:
        config, dtype = self.model.config, self.head.weight.dtype
        return (
            config.model_type in KNOWN
            and torch.backends.mkldnn.is_available()
            and all(_is_known(module, dtype) for module in modules)
            and getattr(self.body.layers[0].self_attn, "head_dim", 1) % (2 * LANES) == 0
            and config.hidden_size % LANES == 0
            and config.intermediate_size % LANES == 0
            and config.hidden_act == "silu"
            and not getattr(config, "sliding_window", None)
        )


def _base(module: Any) -> Any:
    """A linear module, without its adapter."""
    return getattr(module, "base_layer", module)


def _version(weight: Tensor) -> int | None:
    """Grows when it changes in place; None for one that was made in inference mode, which has none."""
    return None if weight.is_inference() else weight._version


def _state(module: Any) -> Any:
    """What a module does with its adapters, and where the weights of those in use lie."""
    if _base(module) is module:
        return None
    active = list(module.active_adapters)
    sides = (getattr(module, "lora_A", {}), getattr(module, "lora_B", {}))
    places = [side[name].weight.data_ptr() for side in sides for name in active if name in side]
    return module.merged, module.disable_adapters, active, places


def _is_known(module: Any, dtype: torch.dtype) -> bool:
    """Whether `Packed.of` knows what a module computes: a plain one on this machine's CPU, or one with a single plain LoRA."""
    base = _base(module)
    if type(base) is not nn.Linear or base.weight.device.type != "cpu" or base.weight.dtype != dtype:
        return False
    if base is module:
        return True
    return (
        hasattr(module, "lora_A")
        and len(module.active_adapters) == 1
        and module.active_adapters[0] in module.lora_A
        and not getattr(module, "lora_variant", {})
        and not module.merged
        and not module.disable_adapters
    )
