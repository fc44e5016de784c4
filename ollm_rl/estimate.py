"""What a configuration would take: parameters and memory, without loading a weight."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ollm_rl.backbone import _tiny, prefer_bf16
from ollm_rl.config import Settings, plain
from ollm_rl.errors import BackboneError
from ollm_rl.plugin import PlugIn, PlugInConfig
from ollm_rl.smollm2 import SHAPE, cache_dir


def print_estimate(settings: Settings, out: Console) -> None:
    """Print the resolved configuration and an estimate of its needs."""
    out.print(settings.yaml(), markup=False, highlight=False)
    config = settings.config
    model = _shape(config.backbone.name)
    sizes = {k: v for k, v in plain(config.plugin).items() if k != "path"}
    with torch.device("meta"):
        plugin = PlugIn(model.get_output_embeddings().weight.shape[1], PlugInConfig(**sizes))
    backbone = sum(p.numel() for p in model.parameters())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = config.backbone.dtype == "bfloat16" or (config.backbone.dtype == "auto" and prefer_bf16(device)[0])
    width = 2 if bf16 else 4
    shape = model.config
    heads = getattr(shape, "num_key_value_heads", shape.num_attention_heads)
    dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    per_token = 2 * shape.num_hidden_layers * heads * dim * width
    slots = config.env.num_slots * (config.env.max_new_tokens + config.env.max_prompt_tokens)
    share = plugin.num_parameters / (plugin.num_parameters + backbone)
    out.print(f"backbone parameters: {backbone:,} (frozen)", highlight=False)
    out.print(f"plug-in parameters:  {plugin.num_parameters:,} ({share:.2%} of all)", highlight=False)
    weights, cache = backbone * width / 2**30, slots * per_token / 2**30
    trained = plugin.num_parameters * 16 / 2**30  # weights, gradients and two moments in float32
    out.print(
        f"memory: weights {weights:.2f} GiB, KV cache {cache:.2f} GiB ({config.env.num_slots} slots), "
        f"plug-in in training {trained:.2f} GiB",
        highlight=False,
    )


def _shape(name: str) -> Any:
    """The architecture of a backbone on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    if name == "tiny":
        return _tiny(torch.float32)
    if name == "smollm2":
        stored = cache_dir() / "backbones" / "smollm2-135m-instruct"
        config = AutoConfig.from_pretrained(stored) if stored.exists() else LlamaConfig(**SHAPE)
    else:
        try:
            config = AutoConfig.from_pretrained(Path(name).expanduser() if name.startswith((".", "/", "~")) else name)
        except (OSError, ValueError) as error:
            raise BackboneError(f"backbone '{name}' has no readable config: {str(error).splitlines()[0]}") from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
