"""What a configuration would take: parameters and memory, without loading a weight."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from ollm_rl.common.cache import cache_dir
from ollm_rl.config.compose import Settings, to_dict
from ollm_rl.errors import BackboneError
from ollm_rl.models.backbone import Geometry
from ollm_rl.models.packed import KNOWN
from ollm_rl.models.precision import prefer_bf16
from ollm_rl.models.smollm2 import SHAPE
from ollm_rl.models.tiny import tiny_model
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.hidden_cache import SHORTLIST
from ollm_rl.options.modules import PlugIn
from ollm_rl.tasks.base import TaskConfig

PASS_TOKENS = 1024  # that conversion runs through the body at a time
QUANTIZED = {"8bit": 1.0, "4bit": 0.5625}  # bytes a weight of the body; 4-bit ones carry a scale for every 64


def print_estimate(settings: Settings, out: Console) -> None:
    """Print the resolved configuration and an estimate of its needs."""
    out.print(settings.yaml(), markup=False, highlight=False)
    for line in estimate(settings.config):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def estimate(config: DictConfig) -> list[str]:
    """Lines that say how many parameters there are and what memory conversion and rollouts need.

    Raises:
        BackboneError: the architecture is not known.
        ConfigurationError: sizes of a plug-in that make no sense.
    """
    model = _shape(config.backbone)
    head = model.get_output_embeddings().weight
    sizes = PlugInConfig(**{k: v for k, v in to_dict(config.plugin).items() if k != "path"})
    with torch.device("meta"):
        plugin = PlugIn(head.shape[1], sizes, geometry=Geometry.of_config(model.config))
    backbone = sum(p.numel() for p in model.parameters())
    share = plugin.num_parameters / (plugin.num_parameters + backbone)
    precision, width = _precision(config.backbone.dtype)
    per_weight = QUANTIZED.get(str(config.backbone.quantization), width)
    weights = (backbone - head.numel()) * per_weight + head.numel() * width
    parts = ("encoder", "decoder", "prior", *(["reader"] if plugin.reader is not None else []))
    split = ", ".join(f"{n} {_count(getattr(plugin, n)):,}" for n in parts)
    return [
        f"backbone parameters: {backbone:,} (frozen, {precision})",
        f"plug-in parameters:  {plugin.num_parameters:,} ({share:.2%} of all): {split}",
        _training_line(config, plugin, model, weights, width),
        _disk_line(config, plugin),
        _rollout_line(config, plugin, model, weights, width),
    ]


def _training_line(config: DictConfig, plugin: PlugIn, model: Any, weights: float, width: int) -> str:
    """Conversion: the backbone runs once to fill the cache; then only the plug-in and the head are needed."""
    sizes, shape, head = plugin.config, model.config, model.get_output_embeddings().weight
    batch, size, k = config.convert.batch_size, plugin.hidden_size, sizes.num_options
    inner = getattr(shape, "intermediate_size", None) or 4 * size
    run = PASS_TOKENS * (4 * inner + 8 * size) * width + 512 * head.shape[0] * (width + 4)
    states = plugin.num_parameters * 16  # weights, gradients and two moments, all float32
    per_row = k * 4 * (sizes.decoder_width * (2 + 2 * sizes.decoder_depth) + 2 * size)  # the decoder, kept for backward
    per_row += (sizes.shortlist + 1) * (size * width + k * 12)  # rows of the head, and the options' logits
    training = states + batch * per_row + head.numel() * width
    return (
        f"memory for training: {_gib(weights + run)} while hidden states are computed (weights {_gib(weights)}), "
        f"then {_gib(training)} (plug-in with gradients and Adam {_gib(states)}, batches of {batch})"
    )


def _disk_line(config: DictConfig, plugin: PlugIn) -> str:
    """Hidden states of a conversion, for texts as long as the engine's settings allow."""
    prompt, solution = config.engine.max_prompt_tokens, config.engine.max_new_tokens or TaskConfig.max_new_tokens
    solutions = config.convert.num_solutions + config.convert.num_heldout
    places = max(plugin.config.shortlist, SHORTLIST) + 1
    per_position = 2 * plugin.state_size + places * 8 + 28  # the state, its shortlist with logits, and five numbers
    stored = solutions * solution * per_position
    if plugin.reader is None:
        return f"disk for hidden states: at most {_gib(stored)} ({solutions:,} solutions of at most {solution} tokens)"
    layers = len(plugin.reader.layers)
    texts = solutions * (prompt + solution) * layers * 2 * plugin.hidden_size
    kept = config.convert.reader_states == "stored"
    other = f"{_gib(stored)} with convert.reader_states=recomputed, which runs the backbone once in each of {config.convert.reader_epochs} epochs"
    if not kept:
        other = f"{_gib(stored + texts)} with convert.reader_states=stored"
    return (
        f"disk for hidden states: at most {_gib(stored + kept * texts)} ({solutions:,} solutions of at most {solution} tokens with "
        f"prompts of at most {prompt}, {layers} layers at every token; {other})"
    )


def _rollout_line(config: DictConfig, plugin: PlugIn, model: Any, weights: float, width: int) -> str:
    head = model.get_output_embeddings().weight
    shape, layers = Geometry.of_config(model.config), model.config.num_hidden_layers + plugin.config.reader_depth
    slots, length = (
        config.engine.num_slots,
        (config.engine.max_new_tokens or TaskConfig.max_new_tokens) + config.engine.max_prompt_tokens,
    )
    per_slot = length * 2 * layers * shape.kv_heads * shape.head_dim * width
    if config.engine.kv_cache_gib is not None:
        slots = min(slots, max(1, int(config.engine.kv_cache_gib * 2**30 // per_slot)))
    cache = slots * per_slot
    sizes = plugin.config
    step = slots * (head.shape[0] * (width + 4) + sizes.shortlist * plugin.hidden_size * width)
    step += slots * sizes.num_options * (plugin.hidden_size + 2 * sizes.decoder_width) * 4
    packed = weights if _packs(config.backbone, model.config) else 0.0
    total = weights + packed + cache + plugin.num_parameters * 4 + step
    again = f", again packed for decoding {_gib(packed)}" if packed else ""
    return (
        f"memory for rollouts: {_gib(total)} (weights {_gib(weights)}{again}, KV cache {_gib(cache)} for {slots} slots of "
        f"{length} tokens, plug-in {_gib(plugin.num_parameters * 4)}, a step's logits and options {_gib(step)})"
    )


def _packs(backbone: DictConfig, shape: Any) -> bool:
    """Whether decode steps hold the weights a second time."""
    device = str(backbone.device)
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return on_cpu and backbone.compiled and not backbone.quantization and shape.model_type in KNOWN


def _precision(dtype: str) -> tuple[str, int]:
    """Its name and its bytes a number."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = dtype == "bfloat16" or (dtype == "auto" and prefer_bf16(device)[0])
    return ("bfloat16", 2) if bf16 else ("float32", 4)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _shape(backbone: DictConfig) -> Any:
    """The architecture of a backbone on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    name, given = str(backbone.name), backbone.shape
    if name == "tiny":
        return tiny_model(torch.float32)
    if given is not None:
        config = AutoConfig.for_model(**to_dict(given))
    elif name == "smollm2":
        stored = cache_dir() / "backbones" / "smollm2-135m-instruct"
        config = AutoConfig.from_pretrained(stored) if stored.exists() else LlamaConfig(**SHAPE)
    else:
        try:
            where = Path(name).expanduser() if name.startswith((".", "/", "~")) else name
            config = AutoConfig.from_pretrained(where, revision=backbone.revision)
        except (OSError, ValueError) as error:
            raise BackboneError(f"backbone '{name}' has no readable config: {str(error).splitlines()[0]}") from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
