"""A saved agent made again, with the session that it was made for."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ollm_rl.common.locate import dotted_name, locate
from ollm_rl.common.run_dir import CONFIG, PLUGIN, policy_dir
from ollm_rl.config.compose import check_taken, to_dict
from ollm_rl.errors import CheckpointError, OLLMError
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.conversion import convert
from ollm_rl.options.modules import PlugIn
from ollm_rl.rollout.judge import OUR_REWARDS, Judge, make_judge
from ollm_rl.session.agent import Agent, adapt
from ollm_rl.session.base import BaseSession
from ollm_rl.session.local import Session, shared_backbone
from ollm_rl.session.saving import DESCRIPTION, read_description
from ollm_rl.tasks import Task, make_task
from ollm_rl.tasks.records import told_of_boxes

OURS = "agents."
OF_BACKBONES = ("name", "dtype", "device", "revision", "quantization", "adapter")  # what a description has
# Who can act by what earlier releases left, where nothing says who it was: the files, and the class.
BY_FILE = {
    "policy.json": "agents.prior.Prior",
    "head.json": "agents.shortlist_head.ShortlistHead",
    "lora.json": "agents.lora.LoRASFT",
}


def load_agent(
    path: str | Path,
    session: BaseSession | None = None,
    agent: str | Callable[..., Any] | None = None,
    reward: Callable[..., Any] | Judge | None = None,
) -> Agent:
    """An agent that was saved with `agent.save` or by a run, ready to act, to be evaluated and to learn on.

    >>> agent = ol.load_agent("runs/first/policy")
    >>> ol.evaluate(agent.session, agent, num_problems=50)

    Everything is read from safetensors and JSON; nothing is unpickled. A directory may come from a stranger, so it does not choose
    what code is imported: classes of the toolkit are, one from elsewhere has to be named by `agent`.

    Args:
        path: the directory, or that of the run which wrote it. Of a run of a release without `agent.json`, the `config.yaml` of the run around it is read.
        session: where it shall act; None opens the backbone, plug-in and task that it was made for.
        agent: the class to load it into, or `<module>.<Class>`, in place of the one that was saved.
        reward: of the session that is opened, in place of the one that was saved; needed if that is none of the toolkit's.

    Raises:
        CheckpointError: there is no agent, it is damaged, belongs to another backbone, or cannot be opened without `session`.
    """
    path = policy_dir(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is no directory; expected one that agent.save or a run wrote (runs/<name>/policy)"
        )
    found = read_description(path)
    kind = _class_of(path, found, agent)
    if session is None:
        if found is None:
            raise CheckpointError(
                f"{path} has no {DESCRIPTION}, and there is no run's config.yaml around it, so nothing says which backbone and task "
                "it belongs to. Give session=ol.Session(...)."
            )
        session = _session_of(path, found, reward)
    elif found is not None:
        _check_backbone(path, found, session)
    settings = (
        {} if found is None or agent is not None and not _same(kind, found) else dict(found.get("settings") or {})
    )
    if (path / "lora.json").is_file() and found is None:
        settings["rank"] = json.loads((path / "lora.json").read_text()).get("rank")
    made = build_agent(kind, session, settings, path)
    made.run_dir = path.resolve().parent if (path.resolve().parent / CONFIG).is_file() else None
    return made


def build_agent(
    kind: Callable[..., Any], session: BaseSession, values: dict[str, Any], policy: str | Path | None = None
) -> Agent:
    """Instantiate an agent: its class is called with the session and its settings.

    Raises:
        ConfigurationError: the class does not take one of the settings, or lacks a method.
    """
    check_taken(kind, values)
    made = adapt(kind(session, **values), session, values)
    if policy is not None:
        made.load(policy)
    return made


def agent_of(session: BaseSession, config: DictConfig, policy: str | Path | None = None) -> Agent:
    """The agent of a configuration."""
    values = to_dict(config)
    return build_agent(locate(values.pop("_target_")), session, values, policy)


def _class_of(path: Path, found: dict[str, Any] | None, named: str | Callable[..., Any] | None) -> Any:
    if named is not None:
        return locate(named) if isinstance(named, str) else named
    if found is None:
        target = next((target for file, target in BY_FILE.items() if (path / file).is_file()), None)
        if target is None:
            raise CheckpointError(
                f"{path} holds no agent: expected {DESCRIPTION}, or {', '.join(BY_FILE)} of an earlier release. Give the directory "
                "that agent.save or a run wrote (runs/<name>/policy)."
            )
        return locate(target)
    target = str(found["_target_"])
    kind = None if "agent" in not_ours(found) else locate(target)
    if not (isinstance(kind, type) and issubclass(kind, Agent)):
        raise CheckpointError(
            f"{path} was saved by the class {target}, which is none of the toolkit's agents, and a file does not choose what is "
            f"imported. If you trust it, name it: load_agent(..., agent={target!r})."
        )
    return kind


def not_ours(found: dict[str, Any]) -> dict[str, str | None]:
    """The parts of a description (agent, task, reward) that are no class of the toolkit, and what they are called: a file does not choose
    what code is imported."""
    agent, task, reward = str(found["_target_"]), found.get("task") or {}, found.get("reward") or {}
    own_task = task.get("_target_") or (task.get("name") if "." in str(task.get("name")) else None)
    ours = {dotted_name(kind) for kind in OUR_REWARDS}
    return {
        **({} if agent.startswith(OURS) else {"agent": agent}),
        **({"task": own_task} if own_task or not task else {}),
        **({} if reward.get("_target_") in ours else {"reward": reward.get("_target_")}),
    }


def _same(kind: Any, found: dict[str, Any]) -> bool:
    return dotted_name(kind) == str(found["_target_"])


def _check_backbone(path: Path, found: dict[str, Any], session: BaseSession) -> None:
    mine = found.get("backbone") or {}
    if mine.get("fingerprint") not in (None, session.backbone.fingerprint):
        raise CheckpointError(
            f"{path} was trained on backbone '{mine.get('name')}' ({mine['fingerprint']}), and the session has "
            f"'{session.backbone.name}' ({session.backbone.fingerprint}). Leave session= out, or open one on that backbone."
        )


def _session_of(path: Path, found: dict[str, Any], reward: Callable[..., Any] | Judge | None) -> Session:
    """The session that a description stands for.

    Raises:
        CheckpointError: a part of it is not known, or is not what it was.
    """
    try:
        backbone = shared_backbone(**{
            k: v for k, v in found["backbone"].items() if k in OF_BACKBONES
        })  # fmt: skip
        task = _task_of(path, found)
        plugin = _plugin_of(path, found, backbone, task)
        engine = {k: v for k, v in (found.get("engine") or {}).items() if k == "max_new_tokens" and v is not None}
        judge = _judge_of(path, found) if reward is None else reward
        session = Session(backbone, plugin, task, judge, engine, int(found.get("seed") or 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"what {path} says of its session cannot be used ({type(error).__name__}: {error}). Give session=."
        ) from error
    _check_backbone(path, found, session)
    return session


def _task_of(path: Path, found: dict[str, Any]) -> Task:
    if not found.get("task"):
        raise CheckpointError(
            f"{path} was trained on a task that make_task did not make. Give session=ol.Session(...) on it."
        )
    if (target := not_ours(found).get("task")) is not None:
        raise CheckpointError(
            f"{path} was trained on the task {target}, which is none of the toolkit's. Give "
            "session=ol.Session(...) on it."
        )
    task = make_task(**found["task"])
    return task if found.get("boxed") is None else told_of_boxes(task, bool(found["boxed"]))


def _plugin_of(path: Path, found: dict[str, Any], backbone: Any, task: Task) -> PlugIn:
    """The copy beside the agent, or the plug-in where it was; of a run that made its own, that one from the cache or anew."""
    where = found.get(PLUGIN)
    if where is not None:
        return PlugIn.from_pretrained(where, backbone)
    if "convert" not in found:
        raise CheckpointError(f"{path} does not say where its plug-in is. Give session=ol.Session(...) with it.")
    given = dict(found["convert"])
    sizes = {k: v for k, v in given.pop(PLUGIN).items() if k in {f.name for f in fields(PlugInConfig)}}
    sizes.setdefault("reader_depth", 0)  # of a run that knew of no readers
    known = {k: v for k, v in given.items() if k in {f.name for f in fields(ConversionConfig)}}
    return convert(backbone, task, ConversionConfig(**known, plugin=PlugInConfig(**sizes)))


def _judge_of(path: Path, found: dict[str, Any]) -> Judge:
    reward = dict(found.get("reward") or {})
    target = reward.pop("_target_", None)
    if "reward" in not_ours(found):
        raise CheckpointError(
            f"{path} was trained with the reward {target or 'of a kind that cannot be named'}, which is none of the toolkit's. "
            "Give it: load_agent(..., reward=<function>)."
        )
    try:
        return make_judge(locate(str(target), "reward._target_"), reward)
    except OLLMError as error:
        raise CheckpointError(f"{path}: {error} Give session=.") from error
