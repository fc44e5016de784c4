"""Settings of a backbone. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import Config, setting

DEVICE = r"auto|balanced|cpu|mps|(cuda|xpu)(:\d+)?"


@dataclass(frozen=True)
class BackboneConfig(Config):
    """Which backbone, and how it is loaded."""

    section: ClassVar[str] = "backbone"

    name: str = setting("smollm2", "`smollm2`, `tiny`, a local directory or a Hugging Face id", path=True)
    revision: str | None = setting(
        None, "branch, tag or commit on the hub; a plug-in names the one that it was made for"
    )
    adapter: str | None = setting(
        None,
        "directory of a PEFT adapter, or of a run of lora_sft or lora_grpo, that is merged into the weights; `sft`: one that is fitted to the task's solutions first, as lora_sft does it",
        path=True,
    )
    sft: dict[str, Any] = setting({}, "adapter=sft: settings of that fit that shall differ from those of lora_sft")
    dtype: str = setting(
        "auto", "precision; auto: bf16 where native and no slower", choices=("auto", "float32", "bfloat16")
    )
    device: str = setting(
        "auto", "auto, cpu, cuda, cuda:N, or balanced: over all GPUs, for models that one does not hold"
    )
    quantization: str | None = setting(None, "of the body's weights, by bitsandbytes", choices=("8bit", "4bit"))
    compiled: bool = setting(
        True, "on a CPU, decode steps by functions that the machine's C compiler makes, and weights packed for them"
    )
    shape: dict[str, Any] | None = setting(
        None, "architecture for --dry-run; null reads it from the model's own configuration"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(DEVICE, self.device):
            raise self.refuse("device", "auto, balanced, cpu, cuda or cuda:N")
        if self.adapter is not None and self.quantization is not None:
            raise self.refuse(
                "adapter", "null where backbone.quantization is set: weights are merged in full precision"
            )
