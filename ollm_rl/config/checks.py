"""What can be said against the values of a configuration without data, model or torch."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ollm_rl.common.cache import check_cache
from ollm_rl.common.folders import LONGEST_NAME, obstacle
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.options.config import OBJECTIVES
from ollm_rl.tasks import SPLITS

CHOICES: dict[str, Sequence[str]] = {
    "convert.objective": OBJECTIVES,
    "convert.prior_target": ("canonical", "encoder"),
    "resume": ("auto", "never", "must"),
    "evaluate.split": SPLITS,
    "inspect.split": SPLITS,
    "backbone.dtype": ("auto", "float32", "bfloat16"),
    "backbone.quantization": ("8bit", "4bit"),  # or null
}
SEARCHES = ("best_first", "puct", "beam", "exhaustive", "best_of_n", "teacher_forced")
# Null or more than zero.
POSITIVE = (
    "engine.kv_cache_gib", "oracle.width", "oracle.max_tries", "oracle.max_seconds", "rollout.chunk", "agent.rank", "agent.width",
    "agent.num_tokens",
)  # fmt: skip
# Numbers of things of which there is at least one; those of agents belong to the agents that come with the toolkit.
COUNTS = (
    "task.max_new_tokens",  # before the engine's, which follows it
    "evaluate.num_problems", "inspect.num_problems", "oracle.num_problems", "oracle.budget", "oracle.slots", "engine.num_slots",
    "engine.max_new_tokens", "engine.max_prompt_tokens",  "task.max_characters", "task.buffer",
    "convert.num_solutions", "convert.num_heldout", "convert.batch_size", "plugin.num_options", "plugin.shortlist",
    "plugin.encoder_width", "plugin.decoder_width", "plugin.prior_width",
    *(f"agent.{key}" for key in (
        "num_generations", "problems_per_iteration", "minibatches", "num_iterations", "num_problems", "pass_at_k", "save_every",
        "max_decisions", "episodes_per_iteration", "episodes_per_problem", "num_epochs", "minibatch_size", "value_width",
        "micro_batch_size", "num_solutions", "sft_epochs", "sft_batch_size", "rounds", "problems_per_round", "budget",
        "texts_per_problem", "epochs", "batch_size",
    )),
)  # fmt: skip
NOT_NEGATIVE = (
    "evaluate.samples", "evaluate.num_ood", "evaluate.num_kl", "task.num_examples", "convert.epochs", "convert.prior_epochs",
    "plugin.encoder_depth", "plugin.decoder_depth", "plugin.prior_depth", "agent.total_episodes", "agent.num_env_runners",
    "agent.num_examples",
)  # fmt: skip
MOST = 2**31 - 1
SEEDS = 2**32  # as many as numpy's oldest generators take
DEVICE = r"auto|balanced|cpu|mps|(cuda|xpu)(:\d+)?"


def check_values(config: DictConfig) -> None:
    """Names, choices, seeds and numbers of things.

    Raises:
        ConfigurationError: the first that cannot be; the message has what was expected.
    """
    check_name(config.name)
    for key, choices in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in choices and not (value is None and key == "backbone.quantization"):
            near = did_you_mean(str(value), choices)
            raise ConfigurationError(f"{key}={value}; expected one of {', '.join(choices)}.{near}")
    for name in (config.oracle.search, *config.oracle.also):
        if name not in SEARCHES:
            near = did_you_mean(str(name), SEARCHES)
            raise ConfigurationError(
                f"unknown search '{name}' of the oracle; expected one of {', '.join(SEARCHES)}.{near}"
            )
    if not re.fullmatch(DEVICE, str(config.backbone.device)):
        raise ConfigurationError(
            f"backbone.device={config.backbone.device}; expected auto, balanced, cpu, cuda or cuda:N"
        )
    if not (config.backbone.shape is None or OmegaConf.is_dict(config.backbone.shape)):
        raise ConfigurationError(
            f"backbone.shape={config.backbone.shape}; expected null or the settings of an architecture"
        )
    _check_lists(config)
    for key, value in (
        ("seed", config.seed),
        ("convert.seed", config.convert.seed),
        *(("seeds", s) for s in config.seeds),
    ):
        if type(value) is not int or not 0 <= value < SEEDS:
            raise ConfigurationError(f"{key}: {value} is no seed; expected an integer from 0 to {SEEDS - 1}")
    _check_numbers(config)


def check_name(name: Any) -> None:
    """Whether a run can be called so: parts of letters with slashes between them, which become directories."""
    if name is None:
        return
    wrong = ""
    parts = str(name).split("/")
    if not str(name).strip():
        wrong = "is empty"
    elif not str(name).isprintable():
        wrong = "has characters that do not print"
    elif any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        wrong = f"is longer than {LONGEST_NAME} bytes"
    elif any(part in (".", "..") for part in parts):
        wrong = "leads out of runs_dir"
    elif any(not part or part != part.strip() or part.startswith("-") for part in parts):
        wrong = "begins or ends with a slash, a space or a dash"
    if wrong:
        raise ConfigurationError(
            f"name={str(name)!r:.80} {wrong}; expected the name of a directory under runs_dir, such as name=first or name=sweep/first"
        )


def check_folders(config: DictConfig) -> None:
    """Whether the run can be written, and the cache used.

    Raises:
        ConfigurationError: not so; the message has the directory.
    """
    root = str(config.runs_dir)
    if not root.strip() or not root.isprintable():
        raise ConfigurationError(f"runs_dir={root!r:.80}; expected a directory")
    if wrong := obstacle(Path(root) / str(config.name or "")):
        raise ConfigurationError(
            f"runs_dir={root:.120}{f', name={config.name:.120}' if config.name else ''}: {wrong}. Expected a directory that you may "
            "write, or the name of a new one."
        )
    if not config.rollout.num_workers:  # else they have it
        check_cache()


def _check_lists(config: DictConfig) -> None:
    for key in ("agents", "seeds"):
        if not config[key]:
            raise ConfigurationError(f"{key}=[]; expected at least one")
    for key in ("agents", "tasks", "agent_overrides", "quick_overrides"):
        if wrong := [x for x in config[key] if not isinstance(x, str) or not x.strip()]:
            raise ConfigurationError(f"{key}: {wrong[0]!r:.80} is not a name; expected a list such as [prior,grpo]")
    for key in ("agents", "seeds", "tasks"):
        values = list(config[key])
        if again := [x for i, x in enumerate(values) if x in values[:i]]:
            raise ConfigurationError(f"{key}=[{','.join(map(str, values))}] has {again[0]} twice; expected each once")


def _check_numbers(config: DictConfig) -> None:
    ours = str(OmegaConf.select(config, "agent._target_")).startswith("agents.")
    for keys, least, expected in (
        (POSITIVE, None, "null or a positive number"),
        (COUNTS, 1, f"an integer from 1 to {MOST}"),
        (NOT_NEGATIVE, 0, f"an integer from 0 to {MOST}"),
    ):
        for key in keys:
            value = OmegaConf.select(config, key)
            if value is None or (key.startswith("agent.") and not ours):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not (value > 0 if least is None else least <= value <= MOST):
                raise ConfigurationError(f"{key}={value}; expected {expected}")
