"""Reinforcement learning of a LoRA adapter with TRL's `GRPOTrainer`; texts are sampled by our rollout engine, through TRL's `rollout_func`."""

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from agents.checks import check_episodes
from agents.config import LoRAGRPOConfig
from agents.grpo import describe
from agents.lora import LoRASFT
from agents.trainers import COUNTERS, common_settings, last_checkpoint, reporting, run_trainer, score_few
from ollm_rl.common.progress import Bar, track
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.options.policies import sample_tokens
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session


class LoRAGRPO(LoRASFT):
    """TRL's `GRPOTrainer` on an adapter; names and defaults of the objective are TRL's.

    Args:
        total_episodes, num_generations, problems_per_iteration, minibatches, num_iterations, num_problems: as in `GRPO`.
        begin: `sft` (the adapter of `lora_sft`) or `base` (a new one: set num_examples too).
        micro_batch_size: episodes of a forward and backward pass.
        learning_rate, beta, epsilon, epsilon_high, loss_type, scale_rewards: TRL's.
    """

    learns_from_rewards = trains_on = True

    config_class = LoRAGRPOConfig
    config: LoRAGRPOConfig

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        if len(session.problems("train", self.config.num_problems, session.seed)) < self.config.problems_per_iteration:
            raise ConfigurationError(
                f"agent.problems_per_iteration={self.config.problems_per_iteration}, but there are fewer training problems; "
                "lower it, or raise agent.num_problems"
            )
        self.counters: dict[str, Any] = {"iteration": 0, "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}

    def prepare(self, run: Run) -> None:
        if self.config.begin == "sft" and not self.is_loaded:
            self.fit_solutions()

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        with ExitStack() as stack:
            kept = run.file("trainer")
            path = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))  # the trainer wants some directory
            return self._train_in(path, kept is not None, run, callbacks)

    def _train_in(self, path: Path, save: bool, run: Run, callbacks: Callbacks) -> dict:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        session = self.acting_session
        session.seed = self.session.seed
        problems = session.problems("train", self.config.num_problems, session.seed)
        self.problems = problems  # easy ones come several times, for all learners
        per_iteration = self.config.minibatches * self.config.num_iterations  # optimiser steps
        steps = -(-self.config.total_episodes // self.config.per_iteration) * per_iteration
        config = GRPOConfig(
            **common_settings(path, self.backbone, session.seed),
            per_device_train_batch_size=self.config.micro,
            gradient_accumulation_steps=self.config.per_iteration // self.config.minibatches // self.config.micro,
            steps_per_generation=self.config.per_iteration // self.config.micro,
            num_generations=self.config.num_generations,
            num_iterations=self.config.num_iterations,
            max_steps=steps,
            max_completion_length=session.engine.max_new_tokens,
            lr_scheduler_type="constant",
            epsilon_high=self.config.epsilon if self.config.epsilon_high is None else self.config.epsilon_high,
            logging_steps=per_iteration,
            save_steps=per_iteration,
            save_strategy="steps" if save else "no",
            **{k: getattr(self.config, k) for k in ("learning_rate", "beta", "epsilon", "loss_type", "scale_rewards")},
        )
        done = last_checkpoint(path)
        run.truncate_metrics(done[0] // per_iteration if done else 0)
        if done:
            self.counters |= self._counted(done[1], run)
        if done and done[0] >= steps:  # killed after its last step
            self.set_weights(load_file(done[1] / "adapter_model.safetensors"))
            return self._costs()
        self.started = time.monotonic()
        self.episodes: list[Episode] = []
        with track("lora_grpo", self.config.total_episodes, "episodes", self.counters["train_episodes"]) as bar:
            trainer = GRPOTrainer(
                self.model, _given_reward, args=config,
                train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(problems))]}),  # texts may be equal
                processing_class=self.backbone.tokenizer, rollout_func=self._sampled,
                callbacks=[
                    reporting(
                        bar, lambda _, figures: self._report(run, bar, figures, callbacks), self.weights, self.counters
                    )
                ],
            )  # fmt: skip
            score_few(self.backbone)
            self.started = time.monotonic()
            run_trainer(trainer, done)
        self.changed()
        return self._costs()

    def _counted(self, checkpoint: Path, run: Run) -> dict:
        """The counters of a checkpoint; those of an earlier release are in the metrics only."""
        if (checkpoint / COUNTERS).exists():
            return json.loads((checkpoint / COUNTERS).read_text())
        if not (lines := run.metrics()):
            raise CheckpointError(
                f"{checkpoint} is to be continued, but {run.path} has no metrics that say how far it got. Restore metrics.jsonl, "
                f"or delete {checkpoint.parent} to train from the beginning."
            )
        return {key: lines[-1][key] for key in self.counters}

    def _costs(self) -> dict:
        costs = {k: v for k, v in self.counters.items() if k.startswith("train_")}
        return {**costs, "setup_seconds": self.sft["seconds"], "trainable_parameters": self.num_parameters}

    def _sampled(self, prompts: list[str], trainer: Any) -> dict:
        """TRL's `RolloutFunc`: one iteration's episodes, with our engine; their rewards go along.

        Args:
            prompts: the problems' places among those that are trained on.
        """
        self.changed()
        number = self.counters["iteration"] + 1
        seeds = np.random.default_rng((self.session.seed, number)).integers(2**31, size=len(prompts))
        requests = [Request(self.problems[int(at)], int(seed)) for at, seed in zip(prompts, seeds, strict=True)]
        start = time.monotonic()
        self.episodes = self.acting_session.rollout(requests, _sample, keep_hidden=False, from_logits=True)
        check_episodes(self.episodes)
        self.rollout_s = time.monotonic() - start
        self.model.train()
        return {
            "prompt_ids": [self.prompt(r.problem) for r in requests],
            "completion_ids": [e.tokens for e in self.episodes],
            "logprobs": [e.log_probs.tolist() for e in self.episodes if e.log_probs is not None],
            "judged": [e.reward for e in self.episodes],
        }

    def _report(self, run: Run, bar: Bar, figures: dict, callbacks: Callbacks) -> bool:
        """After an iteration: its episodes, what it cost, and TRL's figures of the update. Whether to go on."""
        if not self.episodes:  # TRL's summary at the end
            return True
        counters, now = self.counters, time.monotonic()
        counters["iteration"] += 1
        counters["train_episodes"] += len(self.episodes)
        counters["train_tokens"] += sum(len(e.tokens) for e in self.episodes)
        counters["train_seconds"] += now - self.started
        times = {"time/rollout_s": self.rollout_s, "time/update_s": now - self.started - self.rollout_s}
        kept = {
            k: v
            for k, v in figures.items()
            if k in ("loss", "grad_norm", "entropy", "kl") or k.startswith("clip_ratio")
        }
        step = counters["iteration"]
        metrics = {**counters, **kept, **describe(self.episodes, self.config.num_generations), **times}
        self.changed()  # for callbacks that act
        wanted = callbacks.on_iteration_end(self, step, metrics)
        run.log_metrics(step, metrics)
        run.save_rollouts(f"train_{step}", self.episodes)
        bar.advance(len(self.episodes), f"reward {np.mean([e.reward for e in self.episodes]):.3f}")
        self.episodes = []
        self.started = time.monotonic()  # what callbacks took is not training
        return wanted


@torch.inference_mode()
def _sample(hidden: Tensor, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    return sample_tokens(logits, uniforms)


def _given_reward(judged: list[float], **_: Any) -> list[float | None]:
    """TRL's reward function: the judge's rewards, which came with the episodes."""
    return list(judged)
