"""Having the engine drive a model, and whether it then computes what the model does; if not, the model is refused.

The engine calls a model's body without the model's own cache, through an attention function of ours, and applies the head
itself. That is right for ordinary decoders and wrong, without any error, for others: those whose logits are scaled after the
head in a way that is not known here, whose attention does not go through transformers' interface, or that keep a
state that is not keys and values. So every model is tried when it is loaded: some steps of several rows, with a shared prefix
and without, against its own `model(input_ids).logits`.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from ollm_rl.errors import BackboneError
from ollm_rl.models.attention import IMPLEMENTATION, AttentionNotReached, KVCache, attend, current

log = logging.getLogger(__name__)

PREFIX, PROMPTS, STEPS = 7, (5, 3, 2), 3  # tokens
MARGIN = 4.0  # times the model's own rounding differences
EXACT, COARSE = (
    2e-5,
    8,
)  # of the largest logit, what float32 may differ by in any case, and other precisions in their roundings
MULTIPLIERS = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)  # Cohere, Granite, Falcon-H1, ...


def prepare(model: Any) -> None:
    """Have the model's attention go through ours."""
    if model.config.model_type == "bloom":
        _prepare_bloom(model)
        return
    model.set_attn_implementation(IMPLEMENTATION)


def _prepare_bloom(model: Any) -> None:
    """BLOOM computes its scores itself, with ALiBi."""
    from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

    class Driven(BloomAttention):
        def forward(self, hidden_states: Tensor, residual: Tensor, *args: Any, **kwargs: Any):
            if current() is None:
                return super().forward(hidden_states, residual, *args, **kwargs)
            query, key, value = self._reshape(self.query_key_value(hidden_states))
            two = torch.ones(1, 2, device=query.device)
            alibi = build_alibi_tensor(two, self.num_heads, torch.float32)[:, 0, 1]
            out, _ = attend(self, query, key, value, None, scaling=self.inv_norm_factor, alibi=alibi)
            return self.dense(out.flatten(2)) + residual, None

    for module in model.modules():
        if type(module) is BloomAttention:
            module.__class__ = Driven


def context_limit(config: Any) -> tuple[int | None, str]:
    """Most positions that prompt and solution may take together, None for any number; and the setting that says so.

    Models whose rotary frequencies depend on the longest text of a batch (`longrope`, `dynamic`) are driven up to where those
    change: beyond it, a row would depend on its neighbours, and keys that are stored would be of the other kind.
    """
    config = config.get_text_config()
    limits: list[tuple[int, str]] = []
    trained = getattr(config, "max_position_embeddings", None)
    if trained:
        extended, name = trained, "max_position_embeddings"
        rope = getattr(config, "rope_parameters", None) or {}
        for rules in rope.values() if any(isinstance(v, dict) for v in rope.values()) else [rope]:
            rules = rules or {}
            original = rules.get("original_max_position_embeddings")
            if rules.get("rope_type") in ("longrope", "dynamic"):
                limits.append((original or trained, f"original_max_position_embeddings of {rules['rope_type']}"))
            elif rules.get("factor"):
                extended = max(extended, int((original or trained) * rules["factor"]))
        limits.append((extended, name))
    if chunk := getattr(config, "attention_chunk_size", None):
        limits.append((chunk, "attention_chunk_size"))
    return min(limits, key=lambda found: found[0]) if limits else (None, "")


@torch.inference_mode()
def set_up(backbone: Any) -> None:
    """Prepare the model and try some engine steps; sets `backbone.logit_scale`.

    Raises:
        BackboneError: they differ from the model's own logits by more than rounding, or cannot be done.
    """
    model = backbone.model
    total = PREFIX + max(PROMPTS) + STEPS
    limit = context_limit(model.config)[0]
    if limit is not None and limit < total:
        raise BackboneError(f"backbone '{backbone.name}' has room for {limit} positions; expected at least {total}")
    tokens = _tokens(backbone, total)
    try:
        own, noise = _reference(backbone, tokens)
    except Exception as error:
        raise BackboneError(
            f"backbone '{backbone.name}' does not run: {_first_line(error)} Choose another backbone=."
        ) from error
    if own.shape[-1] != backbone.vocab_size:
        raise _refusal(backbone, f"it gives {own.shape[-1]} logits, and its head {backbone.vocab_size}")
    try:
        prepare(model)
        _find_logit_scale(backbone, tokens, own)
    except Exception as error:
        raise _refusal(backbone, _reason(error)) from error
    if backbone.compiled and (complaint := _complaint(backbone, tokens, own, noise)):
        log.info("decode steps of backbone '%s' are not compiled: %s", backbone.name, complaint)
        backbone.compiled = False
    if not backbone.compiled and (complaint := _complaint(backbone, tokens, own, noise)):
        raise _refusal(backbone, complaint)


def _complaint(backbone: Any, tokens: Tensor, own: Tensor, noise: Tensor) -> str:
    """How the engine's steps differ from the model's `own` logits by more than `noise` explains; empty if they do not."""
    try:
        found = [_driven(backbone, tokens, prefix) for prefix in (0, PREFIX)]
    except Exception as error:
        return _reason(error)
    strict = backbone.dtype == torch.float32 and getattr(backbone.model, "hf_quantizer", None) is None
    floor = float(own.abs().max()) * (EXACT if strict else max(EXACT, COARSE * torch.finfo(backbone.dtype).eps))
    for (logits, reached), how in zip(found, ("", " after a shared prefix"), strict=True):
        off = (logits - own[:, -logits.shape[1] :])[reached].abs().amax(-1)
        # A router of experts may decide otherwise at a single position of lower precision: there, the mean counts.
        size = float(off.max() if strict else off.mean())
        allowed = MARGIN * float(noise.max() if strict else noise.mean()) + floor
        if not size <= allowed:
            return f"the engine's logits{how} are off by {size:.2g}, where rounding explains {allowed:.2g}"
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, AttentionNotReached):
        return "its attention does not go through transformers' attention interface"
    return str(error) if isinstance(error, BackboneError) else f"it ends in {_first_line(error)}"


def _tokens(backbone: Any, total: int) -> Tensor:
    """(rows, total) ordinary tokens, the same every time; rows share their first `PREFIX`."""
    special = set(backbone.tokenizer.all_special_ids)
    upto = min(backbone.vocab_size, len(backbone.tokenizer))
    ordinary = torch.tensor([i for i in range(upto) if i not in special] or [0])
    drawn = torch.randint(len(ordinary), (len(PROMPTS), total), generator=torch.Generator().manual_seed(0))
    tokens = ordinary[drawn]
    tokens[:, :PREFIX] = tokens[:1, :PREFIX]
    return tokens.to(backbone.device)


def _find_logit_scale(backbone: Any, tokens: Tensor, own: Tensor) -> None:
    """Architectures multiply or divide the head's logits by a number of their configuration, under various names."""
    config = backbone.model.config.get_text_config()
    numbers = [getattr(config, name, None) for name in MULTIPLIERS]
    scales = [1.0] + [float(s) for n in numbers if n for s in (n, 1 / n)]
    if len(set(scales)) == 1:
        return
    raw = backbone.head(backbone.body(input_ids=tokens, use_cache=False).last_hidden_state)

    def off(scale: float) -> float:
        backbone.logit_scale = scale
        return float((backbone.after_head(raw).float().to(own.device) - own).abs().mean())

    backbone.logit_scale = min(scales, key=off)


def _driven(backbone: Any, tokens: Tensor, prefix_length: int) -> tuple[Tensor, Tensor]:
    """The engine's logits (rows, positions after the prefix, vocab) float32 of rows whose prompts have unequal lengths, and which
    positions (rows, positions) each row reaches."""
    rows, total = tokens.shape
    device = tokens.device
    prefix = None
    if prefix_length:
        prefix = KVCache(1, prefix_length)
        backbone.hidden(tokens[:1, :prefix_length], torch.arange(prefix_length, device=device)[None], prefix)
    own = tokens[:, prefix_length:]
    prompts = [total - STEPS - max(PROMPTS) - prefix_length + n for n in PROMPTS]
    kv, longest = KVCache(rows, own.shape[1], prefix), max(prompts)
    logits = torch.zeros(rows, own.shape[1], backbone.vocab_size, device=device)
    states = backbone.hidden(own[:, :longest], torch.arange(longest, device=device).expand(rows, -1), kv)
    layers = backbone.model.config.get_text_config().num_hidden_layers
    if len(kv.keys) < layers:
        raise BackboneError(f"{layers - len(kv.keys)} of its {layers} layers keep a state that is not keys and values")
    for row, n in enumerate(prompts):
        logits[row, :n] = backbone.logits(states[row, :n]).float().to(device)
    at = torch.tensor(prompts, device=device)
    everyone = torch.arange(rows, device=device)
    for _ in range(STEPS):
        state = backbone.hidden(own[everyone, at][:, None], at[:, None], kv)[:, 0]
        logits[everyone, at] = backbone.logits(state).float().to(device)
        at = at + 1
    return logits, torch.arange(own.shape[1], device=device) < at[:, None]


def _reference(backbone: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own logits (rows, total, vocab) float32, and how far rounding moves them: the largest difference at each of some
    positions to the same model with its cache, to one row alone, whose products are rounded in another order, and to
    embeddings that are rounded otherwise, which some models amplify.

    With plain attention, for other implementations leave things out (PyTorch's has no soft cap).
    """
    model, split = backbone.model, tokens.shape[1] - STEPS

    def logits_of(some: Tensor) -> Tensor:
        return model(input_ids=some).logits.float().to(tokens.device)  # layers may be spread over several devices

    if model.config.model_type != "bloom":
        model.set_attn_implementation("eager")
    own, one = logits_of(tokens), logits_of(tokens[:1])
    try:
        out = model(input_ids=tokens[:, :split], use_cache=True)
        parts = [out.logits]
        for at in range(split, tokens.shape[1]):
            out = model(input_ids=tokens[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
        cached = torch.cat(parts, 1).float().to(tokens.device)
    except Exception:  # it has no cache of its own to compare with
        cached = own
    signs = torch.Generator().manual_seed(0)

    def rounded(module: Any, given: Any, embedded: Tensor) -> Tensor:
        up = torch.randint(2, embedded.shape, generator=signs).to(embedded) * 2 - 1
        return embedded * (1 + torch.finfo(embedded.dtype).eps * up)

    hook = model.get_input_embeddings().register_forward_hook(rounded)
    try:
        moved = logits_of(tokens)
    finally:
        hook.remove()
    return own, torch.cat([(other - own[: len(other)]).abs().amax(-1).flatten() for other in (cached, one, moved)])


def _refusal(backbone: Any, reason: str) -> BackboneError:
    return BackboneError(
        f"backbone '{backbone.name}' ({backbone.model.config.model_type}) cannot be driven by the rollout engine: {reason}. "
        "Expected a decoder of transformers whose only state is keys and values, with attention and logits of a kind known here; "
        "choose another backbone=."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no reason given'}"[:300]
