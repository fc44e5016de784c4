"""Loading a backbone: by name, in a precision, onto a device."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ollm_rl.errors import BackboneError, ConfigurationError
from ollm_rl.models.adapters import adapter_dir, merge
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.config import BackboneConfig
from ollm_rl.models.precision import prefer_bf16
from ollm_rl.models.smollm2 import smollm2_dir
from ollm_rl.models.tiny import tiny_model, tiny_tokenizer

log = logging.getLogger(__name__)


def load_backbone(
    name: str = BackboneConfig.name,
    dtype: str = BackboneConfig.dtype,
    device: str = BackboneConfig.device,
    revision: str | None = BackboneConfig.revision,
    quantization: str | None = BackboneConfig.quantization,
    compiled: bool = BackboneConfig.compiled,
    adapter: str | None = BackboneConfig.adapter,
) -> Backbone:
    """Load a backbone by name.

    Args:
        name: `tiny`, `smollm2`, a local directory or a Hugging Face id.
        dtype: `auto` (bf16 where native and no slower), `float32` or `bfloat16`.
        device: `auto` (a GPU of its own for each process of `accelerate launch`), `cpu`, `cuda`, `cuda:1`, ..., or `balanced`: spread over all GPUs by accelerate.
        revision: branch, tag or commit on the hub.
        quantization: `8bit` or `4bit` weights of the body, by bitsandbytes.
        compiled: decode steps on a CPU by compiled functions and packed weights, where they can be had.
        adapter: directory of a PEFT adapter that is merged into the weights.

    Raises:
        CheckpointError: there is no such adapter, or it does not fit.
        BackboneError: there is no such model here or on the hub, or the engine cannot drive it.
        ConfigurationError: an unknown dtype or quantization, or one that cannot be had here.
    """
    if quantization not in (None, "8bit", "4bit"):
        raise ConfigurationError(f"backbone.quantization={quantization!r}; expected null, '8bit' or '4bit'")
    if quantization is not None and find_spec("bitsandbytes") is None:
        raise ConfigurationError(f"backbone.quantization={quantization} needs bitsandbytes: pip install bitsandbytes")
    if name in ("tiny", "smollm2") and (revision is not None or quantization is not None):
        raise ConfigurationError(f"backbone={name} is a small model of ours: it has no revision and no quantization")
    kind, place, reason = resolve(dtype, device)
    loaded = kind if adapter is None else torch.float32  # rounded once, after the sum
    if name == "tiny":
        model, tokenizer = tiny_model(loaded).to(place), tiny_tokenizer()
    else:
        source = smollm2_dir() if name == "smollm2" else name
        model, tokenizer = _pretrained(
            source, loaded, "balanced" if device == "balanced" else place, revision, quantization
        )
    if adapter is not None:
        model = merge(model, adapter).to(kind)
        log.info("merged the adapter in %s", adapter_dir(adapter))
    log.info("backbone %s in %s on %s: %s", name, str(kind).removeprefix("torch."), place, reason)
    commit = getattr(model.config, "_commit_hash", None) or revision
    return Backbone(name, model, tokenizer, kind, place, reason, revision=commit, compiled=compiled, adapter=adapter)


def resolve(dtype: str, device: str) -> tuple[torch.dtype, torch.device, str]:
    """What `auto` and the other names of precisions and devices stand for on this machine, and why this precision.

    Raises:
        ConfigurationError: an unknown dtype.
    """
    if device in ("auto", "balanced"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if dtype == "auto":
        better, reason = prefer_bf16(place)
        return torch.bfloat16 if better else torch.float32, place, reason
    if dtype in ("float32", "bfloat16"):
        return getattr(torch, dtype), place, "as configured"
    raise ConfigurationError(f"backbone.dtype={dtype!r}; expected 'auto', 'float32' or 'bfloat16'")


def _pretrained(
    source: str | Path, dtype: torch.dtype, place: str | torch.device, revision: str | None, quantization: str | None
) -> tuple[Any, Any]:
    """Model and tokenizer; accelerate places the weights, so that none is held twice."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    looks_local = str(source).startswith((".", "/", "~"))
    if looks_local and not (Path(source).expanduser() / "config.json").exists():
        raise BackboneError(
            f"backbone '{source}' is not a model directory: expected a config.json in it. "
            "Give a directory written by save_pretrained, a Hugging Face id, 'smollm2' or 'tiny'."
        )
    source = Path(source).expanduser() if looks_local else source
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        settings: dict[str, Any] = {}
        if quantization is not None:
            settings["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_8bit=quantization == "8bit",
                load_in_4bit=quantization == "4bit",
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_quant_type="nf4",
            )
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            revision=revision,
            device_map=place if isinstance(place, str) else {"": place},
            **settings,
        )
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"backbone '{source}' could not be loaded: {first} "
            "Expected 'smollm2', 'tiny', a local directory or a Hugging Face id that this machine can reach."
        ) from error
    return model, tokenizer
