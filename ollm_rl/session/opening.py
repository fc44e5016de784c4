"""A configuration made real: the session that it describes, with the cheap checks before the expensive steps."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ollm_rl.common.locate import locate
from ollm_rl.common.run_dir import PLUGIN, Run
from ollm_rl.config.compose import MATH_VERIFY, Settings, to_dict
from ollm_rl.models.adapters import FITTED, adapter_dir
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.conversion import convert
from ollm_rl.options.modules import PlugIn
from ollm_rl.rollout.engine import check_room, slots_within
from ollm_rl.rollout.judge import Judge, make_judge
from ollm_rl.session.loading import build_agent
from ollm_rl.session.local import Session, session_with, shared_backbone
from ollm_rl.session.saving import ADAPTER
from ollm_rl.session.solutions import with_solutions
from ollm_rl.session.transport import SerializedSettings, make_current
from ollm_rl.tasks import Task, make_task
from ollm_rl.tasks.base import SPLITS
from ollm_rl.tasks.prompts import Prompter
from ollm_rl.tasks.records import told_of_boxes

log = logging.getLogger(__name__)
SFT_AGENT = "agents.lora.LoRASFT"  # by name: agents are above sessions


def task_of(config: DictConfig) -> Task:
    return told_of_boxes(make_task(**to_dict(config.task)), _reads_boxes(to_dict(config.reward)))


def _reads_boxes(reward: dict[str, Any]) -> bool:
    """Whether it is `MathVerify`, or one of several that are added is."""
    if reward["_target_"] == MATH_VERIFY:
        return True
    parts = reward.get("functions")
    named = [f for f in parts if isinstance(f, str)] if isinstance(parts, list) else []
    return any(locate(f, "reward.functions") is locate(MATH_VERIFY, "reward") for f in named)


def say_splits(task: Task) -> None:
    """Where the rows of files went, before anything long begins."""
    for line in getattr(task, "table", ()):
        log.info("task '%s': %s", task.name, line)


def judge_of(config: DictConfig) -> Judge:
    settings = to_dict(config.reward)
    return make_judge(locate(settings.pop("_target_"), "reward._target_"), settings)


def conversion_config(config: DictConfig) -> ConversionConfig:
    sizes = {k: v for k, v in to_dict(config.plugin).items() if k != "path"}
    return ConversionConfig(**to_dict(config.convert), plugin=PlugInConfig(**sizes))


def open_session(
    settings: Settings,
    seed: int | None = None,
    run: Run | None = None,
    plugin: PlugIn | PlugInConfig | str | None = None,
) -> Session:
    """The session of a configuration that passed `preflight`, with the model in this process.

    Args:
        run: a conversion that is needed logs its metrics there.
        plugin: use this one instead, or a new one of these sizes; without the task's sampled solutions.
    """
    config = settings.config
    task = task_of(config)
    judge = judge_of(config)
    conversion = conversion_config(config)
    chosen = backbone_settings(config)
    if config.backbone.adapter == FITTED:
        chosen["adapter"] = fitted_adapter(settings, run)
    backbone = shared_backbone(**chosen)
    _check_cache_budget(backbone, task, to_dict(config.engine), conversion.plugin.reader_depth)
    engine = to_dict(config.engine)
    if plugin is None:  # a worker that is given one needs no solutions
        say_splits(task)
        problem = next((p for split in SPLITS for p in task.problems(split, 1)), None)
        if plugin_path(config) is None and problem is not None:
            judge.try_out(problem, Prompter.for_task(backbone, task))
        if wants_samples(config):
            task, _ = with_solutions(
                partial(session_with, backbone, task, judge, engine, config.seed), task, conversion
            )
        plugin = plugin_path(config) or convert(backbone, task, conversion, run)
    session = session_with(backbone, task, judge, engine, config.seed if seed is None else seed, plugin)
    session.serialized_settings, session.chunk = serialize_settings(settings), config.rollout.chunk
    return session


def plugin_path(config: DictConfig) -> str | None:
    """Where the plug-in is: as it was given, or else beside the policy that was given, which chooses among its options."""
    beside = None if config.policy is None else Path(config.policy) / PLUGIN
    if config.plugin.path is None and beside is not None and (beside / "plugin.json").is_file():
        log.info("plug-in of the policy: %s", beside)
        return str(beside)
    return None if config.plugin.path is None else str(config.plugin.path)


def backbone_settings(config: DictConfig) -> dict[str, Any]:
    """What `shared_backbone` is called with; an adapter that is to be fitted first is left out."""
    found = {k: v for k, v in to_dict(config.backbone).items() if k not in ("shape", "sft")}
    return {**found, "adapter": None if found["adapter"] == FITTED else adapter_path(config)}


def adapter_path(config: DictConfig) -> str | None:
    """Where the backbone's adapter is: as it was given, or else beside the policy that was given."""
    beside = None if config.policy is None else Path(config.policy) / ADAPTER
    if config.backbone.adapter is None and beside is not None and beside.is_dir():
        log.info("adapter of the policy's backbone: %s", beside)
        return str(beside)
    return None if config.backbone.adapter is None else str(adapter_dir(config.backbone.adapter))


def fitted_adapter(settings: Settings, run: Run | None = None) -> str:
    """Where the adapter of `backbone.adapter=sft` is: fitted to the task's solutions as lora_sft does it, once, and cached.

    Raises:
        ConfigurationError: lora_sft has no such setting.
    """
    plain = Settings(settings.config.copy(), settings.choices)
    plain.config.backbone.adapter = None
    plain.config.policy = None
    session = open_session(plain, plugin=conversion_config(plain.config).plugin)  # whose size is that of the adapter
    conversion = plain.config.convert
    wanted = {
        "num_solutions": conversion.num_solutions,
        "sft_seed": conversion.seed,
        **to_dict(plain.config.backbone.sft),
    }
    agent: Any = build_agent(locate(SFT_AGENT), session, wanted)
    place = str(agent.fit_solutions(run))
    session.close()
    return place


def wants_samples(config: DictConfig) -> bool:
    """Whether solutions are to be sampled: not for a policy that is there with its plug-in."""
    return config.convert.solutions != "given" and (config.policy is None or plugin_path(config) is None)


def serialize_settings(settings: Settings) -> SerializedSettings:
    """A configuration as plain values, to be sent."""
    return to_dict(settings.config), settings.choices


def open_in_worker(
    serialized_settings: SerializedSettings, seed: int, plugin: PlugIn | PlugInConfig | str | None = None
) -> Session:
    """In another process, the session of a configuration: all that are sent there become this one."""
    config, choices = serialized_settings
    session = open_session(Settings(OmegaConf.create(config), choices), seed, plugin=plugin)
    make_current(session)
    return session


def _check_cache_budget(backbone: Backbone, task: Task, engine: dict[str, Any], reader_depth: int) -> None:
    """Refuse solutions that the backbone cannot read, and a budget that holds no episode, before a conversion is begun; say it if
    it holds fewer than wanted."""
    budget = engine["max_new_tokens"] or task.max_new_tokens
    check_room(backbone, len(Prompter.for_task(backbone, task).prefix) + 1, budget)
    prefix, own = len(Prompter.for_task(backbone, task).prefix), engine["max_prompt_tokens"] + budget
    slots = slots_within(backbone, reader_depth, prefix, own, engine["num_slots"], engine["kv_cache_gib"])
    if slots < engine["num_slots"]:
        log.info("engine.kv_cache_gib=%s holds %d of the longest episodes at once", engine["kv_cache_gib"], slots)
