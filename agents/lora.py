"""Baselines over the whole vocabulary: LoRA adapters that TRL's own trainers fit to solutions and to rewards.

Here: the adapter, and fitting it to solutions with TRL's `SFTTrainer`; `agents.lora_grpo` learns from rewards. Both get what
latents get: the same solutions, rewards, judge and decode path, and about as many parameters. What would make them slow for
reasons that have nothing to do with LoRA is replaced: on a CPU the head scores completions only (`score_few`).
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agents.backbone import PlainBackbone
from agents.base import check_worked, model_of
from agents.config import LoRASFTConfig
from agents.trainers import common_settings, last_checkpoint, reporting, run_trainer, score_few
from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.finite import check_weights
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run
from ollm_rl.common.spent import counted, spent
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.modules import digest
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem, Task
from ollm_rl.tasks.base import worked

log = logging.getLogger(__name__)
SAMPLING = "random"  # of solutions, by `SFTTrainer`


class LoRA(PlainBackbone):
    """A copy of the backbone with an adapter on every linear layer of its body (Hu et al. 2021).

    Args:
        rank: of the adapter; None for the one whose number of parameters is nearest to the plug-in's.
        num_examples: solved problems in the prompt. Fitted to solutions, the model needs none, and is faster without.

    Attributes:
        acting_session: where it acts and is evaluated: its own model and prompts, the task and judge of `session`.
    """

    needs_model = True

    config_class = LoRASFTConfig
    config: LoRASFTConfig

    def __init__(self, session: Session, **settings: Any):
        from peft import get_peft_model

        super().__init__(session, **settings)
        model_of(session, "lora_sft or lora_grpo")
        base = session.backbone
        if (
            getattr(base.model.config, "quantization_config", None)
            or len(getattr(base.model, "hf_device_map", "1")) > 1
        ):
            raise ConfigurationError(
                "the LoRA agents need the whole backbone in full precision on one device; leave backbone.quantization and "
                "backbone.device=balanced out"
            )
        dtype = str(base.dtype).removeprefix("torch.")
        self.backbone = load_backbone(base.name, dtype, str(base.device), base.revision, adapter=base.adapter)
        self.rank, adapter = self._peft_config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the adapter's initial weights
            self.model = get_peft_model(self.backbone.model, adapter)
        task = copy.copy(session.task)
        task.examples = task.examples[: self.config.num_examples]
        self.acting_session = Session(
            self.backbone, session.plugin, task, session.judge, session.engine_settings, session.seed
        )
        self.acting_session.chunk = session.chunk
        self.begun_with, self.is_loaded = self.weights(), False

    def _peft_config(self) -> tuple[int, Any]:
        """The adapter's rank, and what PEFT has to know of it.

        Raises:
            ConfigurationError: PEFT's configuration has no such setting.
        """
        from peft import LoraConfig, TinyLoraConfig

        config = self.config
        if config.adapter == "lora":
            kind: Any = LoraConfig
            rank = config.rank or matched_rank(self.backbone, self.session.plugin.num_parameters)
            sizes = {"r": rank, "lora_alpha": 2 * rank}
        else:
            # A seed's projections are the same in every process, and large.
            kind, rank = TinyLoraConfig, config.rank or TinyLoraConfig.r
            sizes = {"r": rank, "save_projection": False}
        try:
            return rank, kind(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **sizes, **config.peft})
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"agent.peft={config.peft}: {error}; expected settings of peft.{kind.__name__}"
            ) from error

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the adapter's weights."""
        from peft import get_peft_model_state_dict

        return {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(self.model).items()}

    def identity(self) -> str:
        return f"LoRA {len(self.acting_session.task.examples)} {digest(self.weights())}"

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, weights)
        self.changed()

    def changed(self) -> None:
        """The weights are others: nothing that the engine keeps is valid."""
        self.model.eval()
        self.acting_session.backbone_changed()

    def save_weights(self, path: Path) -> None:
        weights = self.weights()
        check_weights("the adapter", weights)
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in weights.items()}, path / "adapter_model.safetensors")
        facts = {"fingerprint": self.backbone.fingerprint, "rank": self.rank, **self._other_kind()}
        (path / "lora.json").write_text(json.dumps(facts) + "\n")
        self.model.peft_config["default"].save_pretrained(str(path))  # so that PEFT can load it as well

    def load(self, path: str | Path) -> None:
        path = Path(path)
        if not (path / "lora.json").is_file() or not (path / "adapter_model.safetensors").is_file():
            raise CheckpointError(
                f"no adapter in {path}: expected lora.json and adapter_model.safetensors. "
                "Train one with `ollm-rl train agent=lora_grpo`."
            )
        facts, mine = json.loads((path / "lora.json").read_text()), self.backbone
        if facts != {"fingerprint": mine.fingerprint, "rank": self.rank, **self._other_kind()}:
            raise CheckpointError(
                f"the adapter in {path} is of kind {facts.get('adapter', 'lora')}, has rank {facts.get('rank')} and belongs to backbone "
                f"{facts.get('fingerprint')}; expected {self.config.adapter}, rank {self.rank} and '{mine.name}' ({mine.fingerprint}). Set "
                "agent.adapter and agent.rank, or train again."
            )
        self.set_weights(load_file(path / "adapter_model.safetensors"))
        self.begun_with, self.is_loaded = self.weights(), True

    def _other_kind(self) -> dict[str, Any]:
        """What tells it from a plain LoRA adapter; nothing of that one, which earlier releases wrote."""
        found = {"adapter": self.config.adapter, "peft": self.config.peft}
        return {} if found == {"adapter": "lora", "peft": {}} else found

    @torch.inference_mode()
    def divergence(self, episodes: Sequence[Episode]) -> list[float]:
        """KL in nats from the model that this run began with, summed over each episode's positions."""
        now, found = self.weights(), []
        for at in range(0, len(episodes), 8):  # few at a time: an episode's scores are (t, vocab)
            few = episodes[at : at + 8]
            later = [self._scores(episode) for episode in few]
            self.set_weights(self.begun_with)
            found += [float((p.exp() * (p - self._scores(e))).sum()) for p, e in zip(later, few, strict=True)]
            self.set_weights(now)
        return found

    def scores(self, tokens: list[int]) -> Tensor:
        """Log-probabilities (t, vocab) float32 after each token of a text."""
        logits: Tensor = self.model(input_ids=torch.tensor([tokens], device=self.backbone.device)).logits
        return logits[0].float().log_softmax(-1)

    def _scores(self, episode: Episode) -> Tensor:
        """Log-probabilities (t, vocab) before each token of an episode."""
        prompt = self.prompt(episode.problem)
        tokens = torch.tensor([[*prompt, *episode.tokens]], device=self.backbone.device)
        logits = self.model(input_ids=tokens, logits_to_keep=len(episode.tokens) + 1).logits
        return logits[0, :-1].float().log_softmax(-1)

    def prompt(self, problem: Problem) -> list[int]:
        prompter = self.acting_session.prompter
        return [*prompter.prefix, *prompter.encode(problem)]


def matched_rank(backbone: Backbone, num_parameters: int) -> int:
    """The rank whose adapter has about `num_parameters`: rank times inputs plus outputs of every adapted layer."""
    layers = (m for m in backbone.model.modules() if isinstance(m, nn.Linear) and m is not backbone.head)
    return max(1, round(num_parameters / sum(m.in_features + m.out_features for m in layers)))


class LoRASFT(LoRA):
    """Fitted to the task's solutions by TRL's `SFTTrainer`; all seeds share it, as they share a plug-in.

    Args:
        num_solutions, sft_seed: as in the conversion, so that both learn from the same ones.
        sft_epochs, sft_learning_rate, sft_batch_size: of the optimiser (AdamW, linear decay).
    """

    long_setup = True  # shared by all seeds: parts of a comparison that run side by side begin with one of them

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        self.sft = {"seconds": 0.0, "tokens": 0}

    def prepare(self, run: Run) -> None:
        """Fit to the solutions, unless an adapter was loaded: what comes before learning from rewards."""
        if not self.is_loaded:
            self.fit_solutions(run)

    @classmethod
    def check_task(cls, settings: Mapping[str, Any], task: Task, sampled: bool) -> None:
        config = cls.config_class.among(settings)
        if not sampled and getattr(config, "begin", "sft") == "sft":
            check_worked(task, config.num_solutions, config.sft_seed, "lora_sft")

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        return {
            "train_episodes": 0, "train_tokens": self.sft["tokens"], "train_seconds": 0.0,
            "setup_seconds": self.sft["seconds"], "trainable_parameters": self.num_parameters,
        }  # fmt: skip

    def fit_solutions(self, run: Run | None = None) -> Path:
        """Load the adapter from the cache, or train it now; an interrupted training goes on from its last checkpoint. Where it is."""
        session = self.acting_session
        drawn = session.problems("sft", self.config.num_solutions, self.config.sft_seed)
        problems = worked(drawn, session.task.name, "agent=lora_sft (split 'sft')")
        text = [(session.prompter.own(p), p.solution) for p in problems]
        settings = (
            self.config.sft_epochs,
            self.config.sft_learning_rate,
            self.config.sft_batch_size,
            self.config.sft_seed,
            self.rank,
            SAMPLING,
            *self._other_kind().items(),
        )
        key = key_of(self.backbone.fingerprint, str(self.backbone.dtype), session.prompter.prefix, text, settings)
        path = cache_dir() / "adapters" / key
        with made_by_one(path):
            if not (path / "sft.json").exists():
                log.info("fitting a LoRA adapter of rank %d to %d solutions", self.rank, len(problems))
                self.sft = self._train(problems, path.with_suffix(".training"), run)
                self.save_weights(path)
                (path / "sft.json").write_text(json.dumps(self.sft) + "\n")
        self.sft = json.loads((path / "sft.json").read_text())
        self.load(path)
        return path

    def _train(self, problems: list[Problem], path: Path, run: Run | None) -> dict:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows: dict[str, list] = {"input_ids": [], "completion_mask": []}
        for problem in problems:
            assert problem.solution is not None
            prompt = self.prompt(problem)
            solution = self.acting_session.prompter.encode_solution(problem.solution)
            rows["input_ids"].append([*prompt, *solution])
            rows["completion_mask"].append([0] * len(prompt) + [1] * len(solution))
        steps = self.config.sft_epochs * -(-len(problems) // self.config.sft_batch_size)
        config = SFTConfig(
            **common_settings(path, self.backbone, self.config.sft_seed),
            per_device_train_batch_size=self.config.sft_batch_size,
            num_train_epochs=self.config.sft_epochs,
            learning_rate=self.config.sft_learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, steps // 30),
            completion_only_loss=True,
            max_length=None,
            # Not by length: a token's weight is one over those of its batch, so that short solutions would count for more.
            train_sampling_strategy=SAMPLING,
            logging_steps=5,
            save_steps=50,
        )
        done = last_checkpoint(path)
        if run is not None:
            run.truncate_metrics(done[0] if done else 0)
        log_metrics = run.log_metrics if run is not None else None
        with track("lora_sft", steps, "steps", done[0] if done else 0) as bar:
            trainer = SFTTrainer(
                self.model, config, train_dataset=Dataset.from_dict(rows), processing_class=self.backbone.tokenizer,
                callbacks=[reporting(bar, log_metrics, self.weights)],
            )  # fmt: skip
            score_few(self.backbone)
            with counted(path):
                run_trainer(trainer, done)
        self.changed()
        return {
            "seconds": spent(path),
            "tokens": self.config.sft_epochs * sum(map(len, rows["input_ids"])),
        }
