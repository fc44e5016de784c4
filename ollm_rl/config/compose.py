"""From the command line to a checked configuration: Hydra groups, overrides, and errors that help.

Everything wrong with a key or a value is found here, before a model is loaded.
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from ollm_rl.common.config_files import (
    GROUPS,
    OPEN_GROUPS,
    known_settings,
    members,
    register_schemas,
    schema,
    suggestion,
)
from ollm_rl.common.locate import dotted_name, locate
from ollm_rl.common.run_dir import CONFIG, PARTS
from ollm_rl.common.settings import Setting, settings_of
from ollm_rl.config.checks import check_folders, check_values
from ollm_rl.config.overrides import pair, value_of
from ollm_rl.errors import BackboneError, CheckpointError, ConfigurationError, close, did_you_mean
from ollm_rl.models.adapters import check_adapter
from ollm_rl.reward.taken import check_settings
from ollm_rl.tasks import make_task

MATH_VERIFY = "ollm_rl.reward.functions.MathVerify"


ARM = "arm"  # among the choices: what a comparison calls this agent with these settings


@dataclass
class Settings:
    """A resolved configuration and the names of the chosen group members."""

    config: DictConfig
    choices: dict[str, str]

    @property
    def agent_name(self) -> str:
        """What the agent is called in tables: the comparison's arm, its group's name, or its class's for one from outside."""
        if (arm := self.choices.get(ARM)) is not None:
            return arm
        custom = self.choices["agent"] == "custom" and "agent" in self.config
        return str(self.config.agent._target_).rpartition(".")[2] if custom else self.choices["agent"]

    def without_agent(self) -> "Settings":
        """The same of a run that has no agent: a comparison's is nobody's, and so is that of a search with the prior."""
        return Settings(OmegaConf.create({k: v for k, v in self.config.items() if k != "agent"}), self.choices)

    def yaml(self) -> str:
        return OmegaConf.to_yaml(self.config, resolve=True)


def _beside(path: str | Path) -> str:
    """A path like one that is not there, where one of its parts is mistyped."""
    parts = Path(path).parts
    for depth, part in enumerate(parts):
        above = Path(*parts[:depth])
        if not (above / part).exists():
            names = [found.name for found in above.iterdir() if found.is_dir()] if above.is_dir() else []
            near = [Path(*parts[:depth], name, *parts[depth + 1 :]) for name in close(part, names)]
            return next((f" Did you mean '{found}'?" for found in near if found.exists()), "")
    return ""


def compose(overrides: list[str]) -> Settings:
    """Compose and check the configuration.

    Args:
        overrides: `group=choice` and `key=value`, as on the command line.

    Raises:
        ConfigurationError: an override that is not of that form, names nothing, or has a value of the wrong kind.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    groups, values = _split(overrides)
    base, choices = _of_groups(tuple(groups))
    config = base.copy()
    known = known_settings(choices)
    open_groups = {group for group in OPEN_GROUPS if schema(group, choices[group]) is None}
    given: dict[str, str] = {}
    for key, text in values:
        value = value_of(key, text, known, open_groups)
        given[key] = text
        try:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigurationError(f"{key}={text:.120} cannot be set: {str(error).splitlines()[0]}") from error
    try:
        OmegaConf.to_container(config, resolve=True)  # not in place: an escaped ${ would be one after it
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise ConfigurationError(
            f"the configuration does not resolve: {str(error).splitlines()[0]}. Write \\${{ for a dollar sign and a brace."
        ) from error
    _after_resolution(config, known, given)
    if choices["task"] == "custom" and config.task.get("name") is None:  # for tables and files
        OmegaConf.update(config, "task.name", str(config.task.get("_target_")).rpartition(".")[2], force_add=True)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigurationError(f"{missing[0]} has no value; give {missing[0]}=<value>")
    return Settings(config, dict(choices))


@cache
def _of_groups(groups: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """What Hydra makes of a choice of members, and the choices in all groups; a comparison asks for the same ones many times."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    register_schemas()
    with initialize_config_module("configs", version_base="1.3"):
        base = hydra_compose("config", overrides=list(groups), return_hydra_config=True)
    choices = {group: str(base.hydra.runtime.choices[group]) for group in GROUPS}
    with open_dict(base):
        del base["hydra"]
    return base, choices


def _after_resolution(config: DictConfig, known: Mapping[str, Setting], given: dict[str, str]) -> None:
    """Values that referred to others, home directories, and runs that stand for what is in them."""
    for key, text in given.items():
        if "${" in text and key in known and not known[key].rules.get("literal"):
            known[key].check(key, OmegaConf.select(config, key), text)
    for key, found in known.items():
        value = OmegaConf.select(config, key) if found.rules.get("path") else None
        if isinstance(value, str) and value.startswith("~"):
            value = os.path.expanduser(value)
            OmegaConf.update(config, key, value)
        part = found.rules.get("of_run")
        if part and isinstance(value, str) and "{" not in value and (Path(value) / CONFIG).is_file():
            OmegaConf.update(config, key, str(PARTS[part](value)))  # a run's directory stands for it


def _split(overrides: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Group choices, and keys with the texts of their values; choices that name something outside a group become `custom`.

    Of several choices in a group the last counts.
    """
    pairs = [pair(override) for override in overrides]
    last = {key: value for key, value in pairs if key in GROUPS}
    chosen, values = dict[str, str](), list[tuple[str, str]]()
    for key, value in last.items():
        if value in members(key):
            chosen[key] = value
        elif key == "backbone" and value:  # a directory or a hub id
            chosen[key] = "custom"
            values.append(("backbone.name", value))
        elif key in OPEN_GROUPS and "." in value and all(part.isidentifier() for part in value.split(".")):
            chosen[key] = "custom"
            values.append((f"{key}._target_", value))
        else:
            names = [m for m in members(key) if m != "custom"]
            raise ConfigurationError(
                f"unknown {key} '{value:.120}'; expected one of {', '.join(names)}.{suggestion(value, names)}"
            )
    values += [(key, value) for key, value in pairs if key not in GROUPS]
    for group in OPEN_GROUPS:
        if any(key == f"{group}._target_" for key, _ in values):
            chosen[group] = "custom"  # the user's own: none of the default's settings
    return [f"{group}={choice}" for group, choice in chosen.items()], values


def preflight(settings: Settings) -> None:
    """The checks that need no model and no torch: values, directories, data, paths and the agent's class.

    Raises:
        OLLMError: the first of them that is not right.
    """
    config = settings.config
    check_values(config, settings.choices)
    check_folders(config)
    kind = check_classes(settings)
    name = str(config.backbone.name)
    if name.startswith((".", "/", "~")) and not os.path.isfile(Path(name) / "config.json"):
        raise BackboneError(
            f"backbone '{name}' is not a model directory: expected a config.json in it. "
            "Give a directory written by save_pretrained, a Hugging Face id, 'smollm2' or 'tiny'."
        )
    if config.backbone.adapter is not None:
        check_adapter(config.backbone.adapter)
    for key, file in (
        ("plugin.path", "plugin.json"),
        ("policy", None),
        ("convert.sampled_by", "agent.json"),
        ("oracle.critic", "critic.json"),
        ("oracle.value", "value.json"),
    ):
        path = OmegaConf.select(config, key)
        if path is not None and not os.path.exists(Path(path) / file if file else path):
            wrong = f"does not hold {file or 'a policy'}" if os.path.exists(path) else "is not there"
            raise CheckpointError(
                f"{key}={path} {wrong}.{_beside(path)} Give a directory that a run wrote, such as runs/<name>/{'plugin' if key == 'plugin.path' else 'policy'}."
            )
    for name in (config.oracle.search, *config.oracle.also):
        if "." in name:
            locate(name.partition("/")[0], "oracle.search")
    oracle = schema("oracle", settings.choices["oracle"])
    asks = "" if oracle is None else getattr(oracle.of(to_dict(config.oracle)), "asks_value", "")
    beside = Path(str(config.policy)) / "value.json"
    if asks and config.oracle.value is None and (config.policy is None or not os.path.exists(beside)):
        raise ConfigurationError(
            f"{asks} needs a learned verifier; expected policy= with the directory of a run that had value.enabled=true "
            "(runs/<name>/policy), or oracle.value= with one that holds value.json"
        )
    if callable(check := getattr(kind, "check_paths", None)):  # of an agent that needs what others left
        check(to_dict(config.agent), config.policy)
    if getattr(kind, "needs_model", False) and config.rollout.num_workers:
        raise ConfigurationError(
            f"agent._target_={config.agent._target_} needs the model in its own process; use rollout=local"
        )


def check_classes(settings: Settings) -> Any:
    """The task can be made, the agent's class takes its settings and can learn from the task's problems, and the reward's takes its own; gives
    the agent's class.

    Raises:
        OLLMError: not so.
    """
    config = settings.config
    reward = to_dict(config.reward)
    if (
        settings.choices["reward"] == "custom"
    ):  # others are known to be there, and their settings are checked by their schemas
        check_settings(locate(reward.pop("_target_"), "reward._target_"), reward)
    task = make_task(**to_dict(config.task))
    values = to_dict(config.agent)
    kind = locate(values.pop("_target_"))
    check_taken(kind, values)
    check = getattr(kind, "check_task", None)  # of an agent that not every task has something for
    if callable(check) and config.policy is None and not getattr(task, "streamed", False):
        check(values, task, config.convert.solutions != "given")
    return kind


def to_dict(node: DictConfig) -> dict[str, Any]:
    """A part of the configuration as plain Python values."""
    value = OmegaConf.to_container(node, resolve=True)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}


def on_cluster(rollout: DictConfig) -> bool:
    """Whether there is a Ray cluster to run on: one that is named, or that of the Ray job which this process is."""
    return bool(rollout.address or os.environ.get("RAY_ADDRESS"))


def settings_taken(kind: Any) -> list[str]:
    """The names of the settings that an agent's class takes: those of its `config_class`, else its constructor's arguments."""
    parameters = inspect.signature(kind).parameters
    own = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)][1:]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    config = getattr(kind, "config_class", None) if takes_all else None
    return own + (list(settings_of(config)) if config is not None else [])


def check_taken(kind: Any, values: Mapping[str, Any]) -> None:
    """Whether an agent's class takes these settings, and allows their values as far as it has a `config_class`.

    Raises:
        ConfigurationError: not so; the message has what it takes, and the nearest name.
    """
    names = settings_taken(kind)
    try:
        inspect.signature(kind).bind(None, **values)
        if names and (wrong := [name for name in values if name not in names]):
            raise TypeError(f"got an unexpected setting '{wrong[0]}'")
    except TypeError as error:
        hint = "".join(did_you_mean(k, names) for k in values if k not in names)
        expected = f"It takes {', '.join(names) or 'no settings'}."
        raise ConfigurationError(f"agent._target_={dotted_name(kind)}: {error}. {expected}{hint}") from error
    if (config := getattr(kind, "config_class", None)) is not None:
        config.among(values)
