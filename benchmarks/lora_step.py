"""A LoRA step (forward and backward) with what texts share passed through the model once, and without; interleaved.

    OMP_NUM_THREADS=1 python benchmarks/lora_step.py --out benchmarks/results/lora_step.json

32 texts, an adapter of rank 14 on every linear layer. `sft`: 60 to 92 tokens, 25 of them shared by all (a chat template's beginning).
`rl`: eight prompts of 55 tokens, texts of 70 to 100.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import agents.trainers as trainers
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.loading import load_backbone

SHAPES = {"sft": (25, 50, 60, 92), "rl": (55, 55, 70, 100)}  # shared, first scored, shortest, longest
SHARED = {"shared": trainers.LEAST_SHARED, "each": math.inf}


def batch(kind: str, vocabulary: int) -> tuple[Tensor, Tensor, int]:
    shared, begin, shortest, longest = SHAPES[kind]
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (32, longest), generator=draws)
    which = torch.randint(1 if kind == "sft" else 8, (32,), generator=draws)
    ids[:, :shared] = ids[which, :shared]
    lengths = torch.randint(shortest, longest + 1, (32,), generator=draws)
    return ids, (torch.arange(longest) < lengths[:, None]).long(), begin


def step(backbone: Backbone, model: torch.nn.Module, ids: Tensor, mask: Tensor, begin: int) -> float:
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :begin] = -100
    start = time.perf_counter()
    model.zero_grad()
    backbone.model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).loss.backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from trl.trainer.utils import add_fused_lm_head

    backbone = load_backbone(given.backbone)
    model = get_peft_model(backbone.model, LoraConfig(r=14, lora_alpha=28, target_modules="all-linear"))
    add_fused_lm_head(backbone.model, outputs=("log_probs", "entropy", "is_top1"))
    trainers.score_few(backbone)
    found: dict = {"command": "OMP_NUM_THREADS=1 python benchmarks/lora_step.py", "threads": torch.get_num_threads()}
    for kind in SHAPES:
        seconds: dict[str, list[float]] = {name: [] for name in SHARED}
        for _ in range(given.repeat + 1):
            for name, least in SHARED.items():
                trainers.LEAST_SHARED = least  # type: ignore[assignment]
                seconds[name].append(step(backbone, model, *batch(kind, backbone.model.config.vocab_size)))
        medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
        found[kind] = {"seconds": medians, "n": given.repeat, "ratio": medians["shared"] / medians["each"]}
    print(json.dumps(found))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
