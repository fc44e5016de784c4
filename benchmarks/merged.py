"""A backbone with an adapter of `lora_sft` or `lora_grpo` merged into it, for latents over a model that was fitted to solutions.

    ollm-rl train agent=lora_sft name=sft
    python benchmarks/merged.py runs/sft/policy --out runs/fitted [--backbone smollm2]
    ollm-rl train agent=grpo backbone=custom backbone.name=runs/fitted task.num_examples=0 name=over_fitted

Writes what `save_pretrained` writes, in the precision that the backbone was released in.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import PeftModel

from ollm_rl.models.loading import load_backbone


def merge(adapter: Path, out: Path, backbone: str = "smollm2") -> None:
    """Add the adapter's products to the weights and save the model with its tokenizer.

    Raises:
        SystemExit: there is no adapter, or it belongs to another backbone.
    """
    if not (adapter / "lora.json").is_file():
        raise SystemExit(f"no adapter in {adapter}: expected the policy/ directory of a run of lora_sft or lora_grpo")
    base = load_backbone(backbone, "float32", "cpu")  # rounded once, after the sum
    if (made_for := json.loads((adapter / "lora.json").read_text())["fingerprint"]) != base.fingerprint:
        raise SystemExit(
            f"the adapter in {adapter} belongs to backbone {made_for}, not to '{backbone}'; set --backbone"
        )
    model = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    model.to(torch.bfloat16).save_pretrained(out)
    base.tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="smollm2")
    given = parser.parse_args()
    merge(given.adapter, given.out, given.backbone)
    print(given.out)


if __name__ == "__main__":
    main()
