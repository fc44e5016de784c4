"""From the command line to a checked configuration: Hydra groups, overrides, and errors that help.

Everything wrong with a key or a value is found here, before a model is loaded.
"""

import sys
from dataclasses import dataclass
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ollm_rl.errors import BackboneError, CheckpointError, ConfigurationError, did_you_mean
from ollm_rl.tasks import make_task

OBJECTIVES = ("cover", "expected", "em", "gumbel")
MATH_VERIFY = "ollm_rl.judges.MathVerify"
SEARCHES = ("best_first", "puct", "beam", "exhaustive", "best_of_n", "teacher_forced")
POSITIVE = ("engine.kv_cache_gib", "oracle.width", "oracle.max_tries", "oracle.max_seconds", "rollout.chunk")  # or null
GROUPS = ("backbone", "plugin", "task", "reward", "engine", "agent", "oracle", "rollout", "experiment")
FREE_TEXT = ("inspect.prompt",)  # keys whose value is no YAML: it may hold equals signs, braces and quotes
OPEN_GROUPS = ("agent", "reward")  # a class of the user's can stand there


@dataclass
class Settings:
    """A resolved configuration and the names of the chosen group members."""

    config: DictConfig
    choices: dict[str, str]

    @property
    def agent_name(self) -> str:
        return agent_label(self.choices["agent"], self.config.agent)

    def yaml(self) -> str:
        return OmegaConf.to_yaml(self.config, resolve=True)


def agent_label(choice: str, agent: DictConfig) -> str:
    """What an agent is called in tables: its group's name, or its class's for one from outside."""
    return str(agent._target_).rsplit(".", 1)[-1] if choice == "custom" else choice


def members(group: str) -> list[str]:
    """The names that a group offers; files that begin with an underscore are parts of others."""
    folder = resources.files("configs") / group
    names = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]
    return sorted(name for name in names if not name.startswith("_"))


def compose(overrides: list[str]) -> Settings:
    """Compose and check the configuration.

    Args:
        overrides: `group=choice` and `key=value`, as on the command line.

    Raises:
        ConfigurationError: an override that is not of that form, names nothing, or has a value of the wrong kind.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    groups, values = _split(overrides)
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_module("configs", version_base="1.3"):
        base = hydra_compose("config", overrides=groups, return_hydra_config=True)
        choices = {k: str(v) for k, v in base.hydra.runtime.choices.items()}
        choices = {group: choices[group] for group in GROUPS}
        plain = OmegaConf.to_container(base, resolve=False)
        assert isinstance(plain, dict)
        plain.pop("hydra")
        texts = {key: text for key, _, text in (v.partition("=") for v in values) if key in FREE_TEXT}
        checked = [_check(value, plain, choices) for value in values if value.partition("=")[0] not in FREE_TEXT]
        try:
            config = hydra_compose("config", overrides=groups + checked)
            OmegaConf.resolve(config)
            for key, text in texts.items():
                OmegaConf.update(config, key, text.replace("${", r"\${"))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigurationError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigurationError(f"{missing[0]} has no value; give {missing[0]}=<value>")
    return Settings(config, choices)


def _split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Group choices and value overrides; choices that name something outside a group become `custom`."""
    pairs = []
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigurationError(f"cannot read '{text}'; expected key=value or group=choice, such as agent=grpo")
        pairs.append((key.lstrip("+"), value))
    chosen = {key for key, _ in pairs}
    groups, values = [], []
    for key, value in pairs:
        if key not in GROUPS:
            values.append(f"{key}={value}")
            continue
        if value in members(key):
            groups.append(f"{key}={value}")
        elif key == "backbone":  # a directory or a hub id
            groups.append("backbone=custom")
            values.append(f"backbone.name={value}")
        elif key in OPEN_GROUPS and "." in value:
            groups.append(f"{key}=custom")
            values.append(f"{key}._target_={value}")
        else:
            names = [m for m in members(key) if m != "custom"]
            raise ConfigurationError(
                f"unknown {key} '{value}'; expected one of {', '.join(names)}.{did_you_mean(value, names)}"
            )
    for key in OPEN_GROUPS:
        if f"{key}._target_" in chosen and key not in chosen:  # the user's own: none of the default's settings
            groups.append(f"{key}=custom")
    return groups, values


def _check(override: str, plain: dict, choices: dict[str, str]) -> str:
    """An override whose key exists and whose value is of the kind of the default; Hydra's form of it."""
    key, _, text = override.partition("=")
    node: Any = plain
    parts = key.split(".")
    for i, part in enumerate(parts):
        if isinstance(node, dict) and part in node:
            node = node[part]
            continue
        if parts[0] in OPEN_GROUPS and choices[parts[0]] == "custom":
            return f"++{override}"  # the user's class knows its own settings
        if isinstance(node, dict) and not node and i:
            return f"++{override}"  # settings that belong to somebody else, such as task.params
        known = _keys(plain)
        near = did_you_mean(key, known) or did_you_mean(parts[-1], known)
        if not near:
            tails = {k.rsplit(".", 1)[-1]: k for k in known}
            hit = did_you_mean(parts[-1], tails)
            near = hit.replace(hit.split("'")[1], tails[hit.split("'")[1]]) if hit else ""
        here = ", ".join(sorted(node)) if isinstance(node, dict) and i else "the keys that --dry-run prints"
        raise ConfigurationError(f"unknown key '{key}'; expected one of {here}.{near}")
    value = OmegaConf.create(f"x: {text}").x if text else None
    if isinstance(node, dict):
        raise ConfigurationError(f"'{key}' is a group of settings; set one of {', '.join(node)}")
    if not _same_kind(node, value):
        raise ConfigurationError(f"{key}={text}; expected {_kind(node)} such as {node}")
    return f"{key}={text}"


def _keys(node: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{key}.")
    return found


def _same_kind(default: Any, value: Any) -> bool:
    if default is None or (isinstance(default, str) and default.startswith(("???", "${"))):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, str):
        return isinstance(value, str | int | float)
    return OmegaConf.is_list(value) if isinstance(default, list) else True


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "a value")


def preflight(config: DictConfig) -> None:
    """The checks that need no model and no torch: data, paths and the agent's class.

    Raises:
        OLLMError: the first of them that is not right.
    """
    task = plain(config.task)
    make_task(**task)
    if config.convert.objective not in OBJECTIVES:
        raise ConfigurationError(
            f"convert.objective={config.convert.objective}; expected one of {', '.join(OBJECTIVES)}"
        )
    for name in (config.oracle.search, *config.oracle.also):
        if name not in SEARCHES:
            near = did_you_mean(str(name), SEARCHES)
            raise ConfigurationError(
                f"unknown search '{name}' of the oracle; expected one of {', '.join(SEARCHES)}.{near}"
            )
    for key in POSITIVE:
        value = OmegaConf.select(config, key)
        if value is not None and (isinstance(value, bool | str) or not value > 0):
            raise ConfigurationError(f"{key}={value}; expected null or a positive number")
    _check_rollout(config.rollout)
    if config.resume not in ("auto", "never", "must"):
        raise ConfigurationError(f"resume={config.resume}; expected auto, never or must")
    name = str(config.backbone.name)
    if name.startswith((".", "/", "~")) and not (Path(name).expanduser() / "config.json").is_file():
        raise BackboneError(
            f"backbone '{name}' is not a model directory: expected a config.json in it. "
            "Give a directory written by save_pretrained, a Hugging Face id, 'smollm2' or 'tiny'."
        )
    for key, file in (("plugin.path", "plugin.json"), ("policy", None), ("oracle.critic", "critic.json")):
        path = OmegaConf.select(config, key)
        if path is not None and not (Path(path) / file if file else Path(path)).exists():
            raise CheckpointError(
                f"{key}={path} does not hold {file or 'a policy'}. Give a directory that a run wrote."
            )
    kind = locate(config.agent._target_)
    if getattr(kind, "needs_model", False) and config.rollout.num_workers:
        raise ConfigurationError(
            f"agent._target_={config.agent._target_} needs the model in its own process; use rollout=local"
        )
    if config.reward._target_ != MATH_VERIFY:  # that one is known to be there, and costs its imports
        locate(config.reward._target_, "reward._target_")


def _check_rollout(rollout: DictConfig) -> None:
    for key in ("hang_s", "max_failures", "num_cpus_per_worker"):
        if not rollout[key] > 0:
            raise ConfigurationError(f"rollout.{key}={rollout[key]}; expected a positive number")
    for key in ("num_workers", "num_gpus_per_worker", "max_staleness"):
        if rollout[key] < 0:
            raise ConfigurationError(f"rollout.{key}={rollout[key]}; expected zero or more")
    if rollout.max_staleness and not rollout.num_workers:
        raise ConfigurationError(
            f"rollout.max_staleness={rollout.max_staleness} lets rollouts run beside learning; that needs "
            "rollout.num_workers of at least 1"
        )
    if (rollout.num_workers or rollout.address) and find_spec("ray") is None:
        raise ConfigurationError(
            "rollout.num_workers and rollout.address need Ray. Install it with `pip install 'ollm_rl[rllib]'`."
        )


def plain(node: DictConfig) -> dict[str, Any]:
    """A part of the configuration as plain Python values."""
    value = OmegaConf.to_container(node, resolve=True)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}


def locate(target: str, key: str = "agent._target_") -> Any:
    """The class or function that a dotted name stands for; the working directory is searched too.

    Raises:
        ConfigurationError: there is no such module or class.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module, _, name = str(target).rpartition(".")
    remedy = "Expected <module>.<name>, the module importable from the working directory or installed."
    try:
        found = getattr(import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{key}={target}: {error}. {remedy}") from error
    if found is None:
        raise ConfigurationError(f"{key}={target}: no '{name}' in '{module}'. {remedy}")
    return found
