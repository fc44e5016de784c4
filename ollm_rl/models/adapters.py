"""Adapters of PEFT that are merged into a backbone's weights when it is loaded. Imports no torch by itself."""

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ollm_rl.errors import CheckpointError, ConfigurationError

FITTED = "sft"  # in place of a directory: an adapter that is fitted to the task's solutions first
COST = "sft.json"  # seconds and tokens of the fit, where lora_sft made it
FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_dir(place: str | Path) -> Path:
    """Where the adapter's files are: in that directory, or in `policy/` of that run.

    Raises:
        CheckpointError: there are none.
    """
    path = Path(place).expanduser()
    for found in (path, path / "policy"):
        if all((found / file).is_file() for file in FILES):
            return found
    raise CheckpointError(
        f"backbone.adapter={place} holds no adapter: expected {' and '.join(FILES)}, as PEFT's save_pretrained and runs of lora_sft and "
        f"lora_grpo leave them, or '{FITTED}' for one that is fitted to the task's solutions first"
    )


def check_adapter(place: str | Path) -> None:
    """Whether an adapter can be merged, before anything is loaded.

    Raises:
        CheckpointError, ConfigurationError: there is none, or PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigurationError("backbone.adapter needs PEFT: pip install -c constraints.txt -e '.[trl]'")
    if str(place) != FITTED:
        adapter_dir(place)


def merge(model: Any, place: str | Path) -> Any:
    """The model with an adapter added to its weights, in the precision that it has: float32, so that sums are rounded once.

    Raises:
        CheckpointError: the adapter does not fit the model.
    """
    from peft import PeftModel

    path = adapter_dir(place)
    try:
        merged = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the adapter in {path} does not fit this backbone: {first} Set backbone= to the one that it was trained on "
            f"({json.loads((path / FILES[0]).read_text()).get('base_model_name_or_path')})."
        ) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged


def adapter_size(place: str | Path) -> int:
    """How many numbers an adapter has.

    Raises:
        CheckpointError: there is none.
    """
    from safetensors import safe_open

    with safe_open(adapter_dir(place) / FILES[1], "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def keep_adapter(place: str | Path, path: Path) -> None:
    """Copy an adapter's files to a directory of its own, unless they are there."""
    path.mkdir(parents=True, exist_ok=True)
    known = adapter_dir(place)
    for file in (*FILES, *([COST] if (known / COST).is_file() else [])):
        if (source := known / file).resolve() != (path / file).resolve():
            shutil.copyfile(source, path / file)
