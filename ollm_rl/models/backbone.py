"""The frozen causal LM and the two halves that everything else uses (body and head). `ollm_rl.models.loading` loads one."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ollm_rl.common.heartbeat import beat
from ollm_rl.errors import BackboneError
from ollm_rl.models import driving
from ollm_rl.models.attention import KVCache
from ollm_rl.models.config import BackboneConfig
from ollm_rl.models.kernels import kernels, why_not
from ollm_rl.models.packed import PackedBody, PackedSteps

log = logging.getLogger(__name__)
_recording = threading.local()  # `found`: states of layers, by layer, of the call that this thread is in


class StatesReader(Protocol):
    """What runs beside the backbone on the states of some of its layers, with keys and values in the same cache."""

    @property
    def layers(self) -> Sequence[int]:
        """Which: 0 is what enters the first layer, 1 its output, the number of layers what the head reads."""

    def __call__(self, taps: Tensor, positions: Tensor) -> Tensor:
        """States (n, t, r) for those of the m layers side by side (n, t, m d), at positions (n, t) from the text's start."""


@dataclass(frozen=True)
class Geometry:
    """What a layer that is added to a backbone has to know of it.

    Attributes:
        num_layers: of the backbone. kv_heads, head_dim: of its attention, so that the layer's keys and values have the
            same shape and any cache of the backbone holds them too.
    """

    num_layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of_config(cls, config: Any) -> "Geometry":
        """From a configuration of transformers."""
        config = config.get_text_config()
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.num_hidden_layers, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads)


@dataclass
class Backbone:
    """A pretrained causal LM in eval mode whose parameters take no gradient, and that the engine is known to drive right.

    Attributes:
        name: what the user called it.
        model: the transformers model.
        tokenizer: its tokenizer.
        fingerprint: hash of architecture and weights; checkpoints made for another backbone are refused by it.
        revision: the commit on the hub that it is, if it comes from there. adapter: directory of the one that was merged into it.
        compiled: decode steps on a CPU may use compiled functions and packed weights.
        logit_scale: what the architecture multiplies the head's logits by.
        context_limit: most positions of a text, None for any number, and the setting of the model that says so.

    Raises:
        BackboneError: the engine would not compute what the model does; see `ollm_rl.models.driving`.
    """

    name: str
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device
    dtype_reason: str
    fingerprint: str = ""
    revision: str | None = None
    compiled: bool = BackboneConfig.compiled
    adapter: str | None = None

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        self.fingerprint = self.fingerprint or _fingerprint(self.model)
        self._rows: dict[int, Tensor] = {}  # by thread
        self._tapped: set[int] = set()  # layers that have a hook
        self._steps = PackedSteps(self.model, self.body, self.head)
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = ids if ids is not None else self.model.config.eos_token_id
        eos = set(ids if isinstance(ids, list) else [ids]) | {self.tokenizer.eos_token_id}
        self.eos_ids = sorted(i for i in eos if i is not None)
        if not self.eos_ids:
            raise BackboneError(f"backbone '{self.name}' has no end-of-text token; expected eos_token_id in its config")
        self.context_limit = driving.context_limit(self.model.config)
        self.logit_scale = 1.0
        driving.set_up(self)

    @property
    def hidden_size(self) -> int:
        return self.head.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.head.weight.shape[0]

    @property
    def head(self) -> nn.Linear:
        head: nn.Linear = self.model.get_output_embeddings()
        return head

    @property
    def body(self) -> nn.Module:
        """What gives the states that the head reads."""
        prefix = self.model.base_model_prefix
        body: nn.Module = getattr(self.model, prefix) if hasattr(self.model, prefix) else self.model.get_decoder()
        return body

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.of_config(self.model.config)

    @contextmanager
    def tap(self, layers: Sequence[int]) -> Iterator[Callable[[Tensor], Tensor]]:
        """Around a call of the body in this thread; what it gives makes, of the states (n, t, d) that the body returned, those of
        these layers side by side (n, t, m d). The last layer's are the body's, normalised.

        Raises:
            BackboneError: its layers cannot be found.
        """
        wanted = {layer for layer in layers if layer < self.geometry.num_layers}
        if wanted - self._tapped:
            self._hook(wanted)
        _recording.found = found = dict[int, Tensor]()
        try:
            yield lambda last: torch.cat([found.get(layer, last).to(last.device) for layer in layers], -1)
        finally:
            _recording.found = None

    def _hook(self, layers: set[int]) -> None:
        count = self.geometry.num_layers
        stacks = [m for m in self.body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        if not stacks:
            raise BackboneError(
                f"backbone '{self.name}': its {count} layers do not stand in one list, so their states cannot be read. "
                "Set plugin.reader_depth=0."
            )
        for layer in layers - self._tapped:
            if layer:
                stacks[0][layer - 1].register_forward_hook(partial(_record_output, layer))
            else:
                stacks[0][0].register_forward_pre_hook(_record_input, with_kwargs=True)
            self._tapped.add(layer)

    @torch.inference_mode()
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        kv: KVCache,
        rows: Tensor | None = None,
        span: int | None = None,
        reader: StatesReader | None = None,
    ) -> Tensor:
        """Run new tokens through the body: the hidden states that the head would read.

        tokens, positions: (n, t) int64; `positions` count from the end of the shared prefix. Explicit
        position ids matter: a model that counts padding itself silently loses accuracy. `rows` (n,) names the
        rows of `kv`, by default the first n; `span` how many of its own keys are looked at.
        Returns (n, t, d) in the backbone's dtype, or (n, t, d + r) with what `reader` makes of the states beside them.
        """
        packed = self._packed()
        if packed is not None:
            return self._hidden_packed(packed, tokens, positions, kv, rows, span, reader)
        if tokens.numel() == 1:  # twice: products of one row have a kernel, and roundings, of their own
            pair = torch.zeros(2, dtype=torch.long, device=tokens.device) if rows is None else rows.expand(2)
            return self.hidden(tokens.expand(2, 1), positions.expand(2, 1), kv, pair, span, reader)[:1]
        beat()
        absolute = positions + kv.prefix_length
        with (
            kv.call(positions, rows, span, self.compiled),
            self.tap(reader.layers if reader is not None else ()) as taps,
        ):
            out = self.body(input_ids=tokens, position_ids=absolute, use_cache=False)
            states: Tensor = out.last_hidden_state
            if reader is not None:
                states = torch.cat([states, reader(taps(states), absolute).to(states.dtype)], -1)
        return states

    @property
    def how_it_decodes(self) -> str:
        """In words: what decode steps are made of, and why of nothing faster."""
        if self.device.type != "cpu":
            return f"decode steps on {self.device.type}"
        if not self.compiled:
            return "decode steps are not compiled"
        if self._packed() is not None:
            return "decode steps are compiled, weights packed"
        if reason := why_not(self.dtype):
            return f"decode steps are not compiled: {reason}"
        return "decode steps have compiled attention; weights of this architecture are not packed"

    def _packed(self) -> PackedBody | None:
        return self._steps.get() if self.compiled else None

    @staticmethod
    def _hidden_packed(
        packed: PackedBody,
        tokens: Tensor,
        positions: Tensor,
        kv: KVCache,
        rows: Tensor | None,
        span: int | None,
        reader: StatesReader | None,
    ) -> Tensor:
        """`hidden`, all tokens side by side, by packed weights."""
        beat()
        n, t = tokens.shape
        if t > 1:
            rows = (torch.arange(n) if rows is None else rows).repeat_interleave(t)
        own = positions.reshape(-1, 1)
        layers = () if reader is None else reader.layers
        with kv.call(own, rows, span, compiled=True):
            states, found = packed.hidden(tokens.reshape(-1), own[:, 0] + kv.prefix_length, kv, set(layers))
            if reader is not None:
                taps = torch.cat([found.get(layer, states) for layer in layers], -1)
                read = reader(taps[:, None], own + kv.prefix_length)[:, 0]
                states = torch.cat([states, read.to(states.dtype)], -1)
        return states.view(n, t, -1)

    def texts(
        self,
        texts: Sequence[Sequence[int]],
        kv: KVCache,
        rows: Tensor | None = None,
        reader: StatesReader | None = None,
    ) -> list[Tensor]:
        """Run whole texts, from their first own token on, into `rows` (n,) of `kv`, by default the first n: each one's states (length, s).

        Texts of unequal lengths are not padded where the body is packed.
        """
        lengths = torch.tensor([len(text) for text in texts])
        longest = int(lengths.max())
        inside = torch.arange(longest) < lengths[:, None]
        tokens = torch.zeros(inside.shape, dtype=torch.long)
        tokens[inside] = torch.tensor([token for text in texts for token in text])
        positions, device = torch.arange(longest).expand_as(tokens), self.device
        packed = self._packed()
        if packed is None:
            states = self.hidden(tokens.to(device), positions.to(device), kv, rows, reader=reader)[inside.to(device)]
        else:
            each = (torch.arange(len(texts)) if rows is None else rows).repeat_interleave(lengths)
            apart = tokens[inside][:, None], positions[inside][:, None]
            states = self._hidden_packed(packed, *apart, kv, each, longest, reader)[:, 0]
        return list(torch.split(states, lengths.tolist()))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (n, vocab) of hidden states (n, d), as the model itself computes them.

        Columns beyond d are a reader's, and not the head's business.
        """
        return self.after_head(self.raw_logits(hidden))

    @torch.inference_mode()
    def raw_logits(self, hidden: Tensor) -> Tensor:
        """What the head gives, before `after_head`."""
        own = hidden[..., : self.hidden_size]
        packed = self._packed() if own.dim() == 2 else None
        return self.head(own) if packed is None else packed.head(own.contiguous())

    def likeliest(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits of each row of (n, vocab), or all if there are fewer, and their tokens, in descending order."""
        k = min(k, logits.shape[-1])
        functions = kernels(logits.dtype) if self.compiled and logits.device.type == "cpu" else None
        if functions is None:
            return logits.topk(k, dim=-1)
        return functions.top(logits.contiguous(), k)

    def head_rows(self, ids: Tensor) -> Tensor:
        """Rows of the head (n, S, d) of token ids (n, S), in memory that this thread's next call overwrites.

        They are 100 MB for a batch of conversion: the pages of fresh memory would cost ten times what copying does.
        """
        weight, n = self.head.weight.detach(), ids.numel()
        thread = threading.get_ident()
        if thread not in self._rows or len(self._rows[thread]) < n:
            with torch.inference_mode(False):  # training saves them for its backward pass
                self._rows[thread] = weight.new_empty(n, weight.shape[1])
        rows = torch.index_select(weight, 0, ids.flatten(), out=self._rows[thread][:n])
        return rows.view(*ids.shape, weight.shape[1])

    @property
    def changes_logits(self) -> bool:
        """`after_head` does something."""
        return self.logit_scale != 1 or bool(self._soft_cap)

    def after_head(self, logits: Tensor) -> Tensor:
        """What the architecture does to logits after the head: a scale (Granite, Cohere), a soft cap (Gemma)."""
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        return torch.tanh(logits / self._soft_cap) * self._soft_cap if self._soft_cap else logits

    @property
    def _soft_cap(self) -> float | None:
        return getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)


def _record_output(layer: int, module: nn.Module, given: Any, output: Any) -> None:
    found = getattr(_recording, "found", None)
    if found is not None:
        found[layer] = output[0] if isinstance(output, tuple) else output


def _record_input(module: nn.Module, given: Any, named: dict[str, Any]) -> None:
    found = getattr(_recording, "found", None)
    if found is not None:
        found[0] = given[0] if given else named["hidden_states"]


def _fingerprint(model: Any) -> str:
    """Hash of shapes and of a sample of every weight, equal for float32 and bf16 copies of one checkpoint."""
    return fingerprint(model.config.model_type, ((n, tuple(p.shape), sample(p)) for n, p in model.named_parameters()))


def fingerprint(model_type: str, weights: Iterable[tuple[str, tuple[int, ...], Tensor]]) -> str:
    """`Backbone.fingerprint` of weights that no model holds: names, shapes and `sample`s, in the order of `named_parameters`."""
    digest = hashlib.sha256(model_type.encode())
    for name, shape, some in weights:
        digest.update(f"{name}{shape}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def sample(weight: Tensor) -> Tensor:
    """The first numbers of a weight, as `fingerprint` takes them."""
    return weight.detach().flatten()[:64].to("cpu", torch.bfloat16).view(torch.int16)


def describe(backbone: Backbone) -> str:
    """One line of facts for logs and `doctor`."""
    facts = {
        "parameters": backbone.num_parameters,
        "hidden_size": backbone.hidden_size,
        "vocabulary": backbone.vocab_size,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "positions": backbone.context_limit[0],
    }
    merged = "" if backbone.adapter is None else f" with the adapter in {backbone.adapter}"
    return f"{backbone.name}{merged} {json.dumps(facts)}, engine steps give its own logits; {backbone.how_it_decodes}"


def prefill_prefix(backbone: Backbone, tokens: list[int], into: KVCache | None = None) -> KVCache | None:
    """Keys and values of the tokens that all prompts share; `into`: those that were computed before, to be overwritten."""
    if not tokens:
        return None
    cache = KVCache(1, len(tokens)) if into is None else into
    ids = torch.tensor([tokens], device=backbone.device)
    backbone.hidden(ids, torch.arange(len(tokens), device=backbone.device)[None], cache)
    return cache
