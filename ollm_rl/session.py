"""A configuration made real: workspace, agents and searches, with the cheap checks before the expensive steps."""

import inspect
import logging
from pathlib import Path

from omegaconf import DictConfig

from ollm_rl.backbone import Backbone
from ollm_rl.config import Settings, locate, plain
from ollm_rl.conversion import plugin_for
from ollm_rl.engine import slots_within
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.judges import Judge, make_judge
from ollm_rl.oracle import Oracle
from ollm_rl.plugin import PlugIn, PlugInConfig
from ollm_rl.plugin_training import ConversionConfig
from ollm_rl.prompts import Prompter
from ollm_rl.runs import Run
from ollm_rl.tasks import Task, make_task
from ollm_rl.workspace import Workspace, shared_backbone

log = logging.getLogger(__name__)


def task_of(config: DictConfig) -> Task:
    return make_task(**plain(config.task))


def judge_of(config: DictConfig) -> Judge:
    settings = plain(config.reward)
    return make_judge(locate(settings.pop("_target_"), "reward._target_"), settings)


def conversion_config(config: DictConfig) -> ConversionConfig:
    sizes = {k: v for k, v in plain(config.plugin).items() if k != "path"}
    return ConversionConfig(**plain(config.convert), plugin=PlugInConfig(**sizes))


def open_session(settings: Settings, seed: int | None = None, run: Run | None = None) -> tuple[Workspace, dict, Path]:
    """Workspace, conversion report and plug-in directory of a configuration that passed `preflight`.

    A conversion that is needed logs its metrics to `run`.
    """
    config = settings.config
    task = task_of(config)
    judge = judge_of(config)
    conversion = conversion_config(config)
    backbone = shared_backbone(**{k: v for k, v in plain(config.backbone).items() if k != "shape"})
    _check_cache_budget(backbone, task, plain(config.engine))
    if config.plugin.path is not None:
        path = Path(config.plugin.path)
        plugin = PlugIn.from_pretrained(path, backbone)
        report: dict = {}
    else:
        plugin, report, path = plugin_for(backbone, Prompter.for_task(backbone, task), task, conversion, run)
    seed = config.seed if seed is None else seed
    space = Workspace(backbone, plugin, task, plain(config.engine), seed, judge)
    return space, report, path


def _check_cache_budget(backbone: Backbone, task: Task, engine: dict) -> None:
    """Refuse a budget that holds no episode before a conversion is begun; say it if it holds fewer than wanted."""
    prefix, own = len(Prompter.for_task(backbone, task).prefix), engine["max_prompt_tokens"] + engine["max_new_tokens"]
    slots = slots_within(backbone, prefix, own, engine["num_slots"], engine["kv_cache_gib"])
    if slots < engine["num_slots"]:
        log.info("engine.kv_cache_gib=%s holds %d episodes at once", engine["kv_cache_gib"], slots)


def make_agent(workspace: Workspace, agent: DictConfig, policy: str | None = None):
    """Instantiate an agent: its class is called with the workspace and its settings.

    Raises:
        ConfigurationError: the class does not take one of the settings, or lacks a method.
    """
    kind = locate(agent._target_)
    values = {k: v for k, v in plain(agent).items() if k != "_target_"}
    try:
        inspect.signature(kind).bind(workspace, **values)
    except TypeError as error:
        names = list(inspect.signature(kind).parameters)[1:]
        hint = "".join(did_you_mean(k, names) for k in values if k not in names)
        expected = f"It takes {', '.join(names) or 'no settings'}."
        raise ConfigurationError(f"agent._target_={agent._target_}: {error}. {expected}{hint}") from error
    made = kind(workspace, **values)
    for method in ("learn", "predict", "save", "load"):
        if not callable(getattr(made, method, None)):
            raise ConfigurationError(f"agent._target_={agent._target_} has no method '{method}'; see docs/agents.md")
    if policy is not None:
        made.load(policy)
    return made


def make_oracle(workspace: Workspace, config: DictConfig, policy, search: str | None = None) -> Oracle:
    """The configured search over `policy`, or `search` with its settings."""
    values = {k: v for k, v in plain(config.oracle).items() if k not in ("num_problems", "also", "search")}
    return Oracle(workspace, policy, search=search or config.oracle.search, **values)
