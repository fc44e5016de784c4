"""TRL's GRPOTrainer, as its documentation has it, with our verifier as the reward.

    python examples/trl_grpo.py                     # a random tiny model: 2 steps, mean reward 0.000, some seconds
    python examples/trl_grpo.py --backbone smollm2 --steps 4     # all weights of SmolLM2, in float32

`ol.MathVerify()` has the signature of TRL's rewards and reads the column `answer`: a box is looked for, and compared exactly. Nothing of
options, plug-ins and latents is here; the baselines `agent=lora_sft` and `agent=lora_grpo` are TRL's trainers with our rollout engine.
"""

import argparse
import tempfile

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import ollm_rl as ol
from ollm_rl.tasks.prompts import Prompter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()

    backbone, task = ol.load_backbone(args.backbone, dtype="float32"), ol.make_task("chain_sum")
    prompter = Prompter.for_task(backbone, task)  # three solved examples before every problem
    rows = [{"prompt": prompter.text(p.problem), "answer": p.answer} for p in task.problems("train", 64)]
    backbone.model.requires_grad_(True)  # ours is frozen
    reward = ol.MathVerify()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=backbone.model,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=backbone.tokenizer,
            args=GRPOConfig(
                output_dir=folder, max_steps=args.steps, per_device_train_batch_size=16, num_generations=8, max_completion_length=32,
                learning_rate=1e-6, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            ),
        )  # fmt: skip
        trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    print("mean reward of each step: " + ", ".join(f"{r:.3f}" for r in rewards))
    reward.close()


if __name__ == "__main__":
    main()
