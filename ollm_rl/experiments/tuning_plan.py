"""What a tuning tries: the axes of every agent, checked before anything is loaded, and the trials that they stand for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ollm_rl.common.config_files import members, schema
from ollm_rl.common.locate import locate
from ollm_rl.common.settings import settings_of
from ollm_rl.config.checks import check_values
from ollm_rl.config.compose import Settings, preflight, to_dict
from ollm_rl.config.spaces import Axis, Value, product, read_axis
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.experiments.config import TuneConfig
from ollm_rl.experiments.overrides import agent_settings, shared, trial_settings

EPISODES = "total_episodes"  # the setting of agents that learn from so many
INSTEAD = {f"evaluate.{name}": f"tune.{name}" for name in ("split", "num_problems", "samples")}
TRIES = 1000  # draws until one is new


@dataclass(frozen=True)
class Trial:
    """One agent with one choice of settings.

    Attributes:
        name: of its directory. chosen: the settings that are varied, with their values. overrides: the same as `agent.<setting>=`.
    """

    agent: str
    values: dict[str, Value]
    name: str
    settings: Settings
    chosen: dict[str, Any]
    overrides: list[str]


@dataclass(frozen=True)
class Plan:
    """A tuning.

    Attributes:
        settings: the configuration of all agents, with the whole space in `tune.space`.
        common: overrides that every trial has, those of single agents among them.
        axes: by agent, in the order in which they were given.
    """

    settings: Settings
    common: list[str]
    axes: dict[str, list[Axis]]

    @property
    def config(self) -> TuneConfig:
        return TuneConfig.of(to_dict(self.settings.config.tune))

    def trial(self, agent: str, values: Mapping[str, Value]) -> Trial:
        """The trial of an agent with these values of its axes; axes without one are as the agent has them.

        Raises:
            ConfigurationError: a setting that the agent has not, or a value that it does not allow.
        """
        pairs = {
            key: text
            for axis in self.axes[agent] if axis.name in values
            for key, text in axis.overrides(values[axis.name])
        }  # fmt: skip
        overrides = [f"{agent}.{key}={text}" for key, text in pairs.items()]
        settings = trial_settings([*self.common, *overrides], self.settings, agent)
        own = to_dict(settings.config.agent)
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{settings.agent_name}-{digest}"
        chosen = {key: own[key] for key in pairs}
        return Trial(agent, dict(values), name, settings, chosen, [f"agent.{k}={v}" for k, v in pairs.items()])

    def points(self, agent: str) -> list[dict[str, Value]]:
        """What `grid` and `random` try.

        Raises:
            ConfigurationError: two of a grid are the same, or there are not as many at random as are wanted.
        """
        if self.config.search == "grid":
            points = product(self.axes[agent])
            names = [self.trial(agent, values).name for values in points]
            if again := [v for i, v in enumerate(points) if names[i] in names[:i]]:
                raise ConfigurationError(f"the grid of {agent} has {_said(again[0])} twice; expected each once")
            return points
        random, found = np.random.default_rng(self.settings.config.seed), dict[str, dict[str, Value]]()
        for _ in range(TRIES):
            values = {axis.name: axis.sample(random) for axis in self.axes[agent]}
            found.setdefault(self.trial(agent, values).name, values)
            if len(found) == self.config.num_samples:
                return [*found.values()]
        raise ConfigurationError(
            f"tune.num_samples={self.config.num_samples}, but {agent} has only {len(found)} settings to choose from. Give at most "
            "that, or more values."
        )

    def stage(self, agent: str, number: int, held: Mapping[str, Value]) -> list[dict[str, Value]]:
        """What `coordinate` tries in a stage: the axis of that number, and the others at what they are held at."""
        if number >= len(self.axes[agent]):
            return []
        axis = self.axes[agent][number]
        return [{**held, axis.name: value} for value in axis.values]

    def size(self, agent: str) -> int:
        """How many settings of an agent are tried."""
        config = self.config
        if config.search in ("random", "optuna"):
            return config.num_samples
        if config.search == "grid":
            return len(self.points(agent))
        tried, held = dict[str, dict[str, Value]](), dict[str, Value]()
        for number in range(len(self.axes[agent])):
            # Whichever is the best of a stage, the next has as many that are new.
            for values in self.stage(agent, number, held):
                tried.setdefault(self.trial(agent, values).name, values)
            held = self.stage(agent, number, held)[0]
        return len(tried)


def plan_of(overrides: list[str], settings: Settings) -> Plan:
    """Read and check what is to be tried, without loading anything.

    Args:
        settings: those of the overrides that are no agent's.

    Raises:
        OLLMError: something that is needed is not installed, a setting or a value is not allowed, or budgets differ.
    """
    config = TuneConfig.of(to_dict(settings.config.tune))
    _check_installed(config)
    for override in overrides:
        if instead := INSTEAD.get(override.partition("=")[0]):
            raise ConfigurationError(f"{override}: tune has a setting of its own for that; give {instead}=")
    given = [*config.space, *(o for o in overrides if o not in shared(overrides))]
    base = [o for o in overrides if o in shared(overrides)]
    names = list(settings.config.agents)
    learners = [name for name in names if EPISODES in agent_settings(name)]
    axes, single = dict[str, list[Axis]](), list[str]()
    for override in given:
        owner, key = _owner(override, names)
        if owner != "agent" and owner not in names:
            if override in config.space:
                continue  # for an agent that takes no part this time
            raise ConfigurationError(
                f"{override:.120}: '{owner}' is none of the agents that are tuned, {', '.join(names)}.{did_you_mean(owner, names)}"
            )
        found = _axes(override, owner, key, names)
        if not found:
            single.append(override)
        for name, axis in found.items():
            axes[name] = [*(a for a in axes.get(name, []) if a.name != axis.name), axis]
    for name in names:
        fixed = {_owner(o, names)[1] for o in single if _owner(o, names)[0] in ("agent", name)}
        if name not in axes:
            axes[name] = [axis for axis in _default_axes(name) if not axis.keys & fixed]
        if EPISODES in fixed or any(EPISODES in axis.keys for axis in axes[name]):
            raise ConfigurationError(f"{name}.{EPISODES}: all learn from as many episodes; give tune.episodes=")
        _check_axes(name, axes[name], config.search, bool(fixed))
    evaluated = [f"{key}={getattr(config, instead.removeprefix('tune.'))}" for key, instead in INSTEAD.items()]
    common = [*base, *evaluated, *single]
    common += [f"{name}.{EPISODES}={config.episodes}" for name in learners]
    kept = settings.config.copy()
    kept.tune.space = given
    plan = Plan(Settings(kept, settings.choices), common, {name: axes[name] for name in names})
    _check_trials(plan)
    _check_budgets(plan, learners)
    return plan


def _check_installed(config: TuneConfig) -> None:
    for module, wanted in (("ray", "tune"), ("optuna", "tune.search=optuna" if config.search == "optuna" else "")):
        if wanted and find_spec(module) is None:
            raise ConfigurationError(
                f"{wanted} needs {module.capitalize()}. Install it with `pip install 'ollm_rl[tune]'`."
            )


def _owner(override: str, names: list[str]) -> tuple[str, str]:
    """Whose setting an override is, by the agent's name or `agent`, and which; "" for several that belong together."""
    key = override.partition("=")[0]
    for name in names:
        for said in dict.fromkeys((name, name.rpartition(".")[2])):
            if key == said or key.startswith(f"{said}."):
                return name, key.removeprefix(said).removeprefix(".")
    owner, _, rest = key.partition(".")
    return owner, rest


def _axes(override: str, owner: str, key: str, names: list[str]) -> dict[str, Axis]:
    """The axis that an override stands for, by agent; none if it has one value."""
    text = override.partition("=")[2]
    if text.startswith("[") and key and any(_kind(name, key) in (bool, int, float, str) for name in names):
        raise ConfigurationError(f"{override:.120}; expected several values without brackets, {owner}.{key}=a,b")
    mine = [owner] if owner != "agent" else [name for name in names if not key or key in agent_settings(name)]
    found = {name: read_axis(override, key, text, _kind(name, key) is int) for name in mine}
    return {name: axis for name, axis in found.items() if axis is not None}


def _default_axes(name: str) -> list[Axis]:
    """Those that the agent's class of settings declares."""
    found = []
    for said in getattr(_config_class(name), "default_space", ()):
        key, sign, text = ("", "=", said) if said.startswith("{") else said.partition("=")
        axis = read_axis(f"{name}{'.' if key else ''}{key}{sign}{text}", key, text, _kind(name, key) is int)
        found += [axis] if axis is not None else []
    return found


def _config_class(name: str) -> Any:
    """The dataclass of an agent's settings, if it has one."""
    return schema("agent", name) if name in members("agent") else getattr(locate(name), "config_class", None)


def _kind(name: str, key: str) -> type | None:
    """The type of an agent's setting, as far as it is known."""
    kind = _config_class(name)
    found = settings_of(kind).get(key) if kind else None
    return found.kind if found else None


def _check_axes(name: str, axes: list[Axis], search: str, fixed: bool) -> None:
    if not axes:
        why = (
            "all that it would try by default is given one value"
            if fixed and _default_axes(name)
            else "it has no default space"
        )
        raise ConfigurationError(
            f"nothing of {name} is varied: {why}. Give {name}.<setting>=a,b, or interval(low,high)."
        )
    for i, axis in enumerate(axes):
        if both := [other for other in axes[:i] if other.keys & axis.keys]:
            key = min(both[0].keys & axis.keys)
            raise ConfigurationError(f"{name}.{key} is varied twice, by itself and with others; expected once")
        if not axis.options and search in ("grid", "coordinate"):
            raise ConfigurationError(
                f"{name}.{axis.name} is a range, and tune.search={search} tries lists. Give {name}.{axis.name}=a,b, or tune.search=random "
                "or optuna."
            )


def _check_trials(plan: Plan) -> None:
    """Every value by itself, with the others as the agent has them."""
    for name, axes in plan.axes.items():
        preflight(plan.trial(name, {}).settings)
        for axis in axes:
            for value in axis.values:
                each = plan.trial(name, {axis.name: value}).settings
                check_values(each.config, each.choices)
                if each.config.agent.get("num_env_runners"):
                    raise ConfigurationError(
                        f"{name}.num_env_runners: trials have no room for those; give rollout.num_workers="
                    )


def _check_budgets(plan: Plan, learners: list[str]) -> None:
    names, config = list(plan.axes), plan.config
    if config.early_stopping and (other := [name for name in names if name not in learners]):
        raise ConfigurationError(f"tune.early_stopping=true, but {other[0]} does not learn from a number of episodes")
    if 0 < len(learners) < len(names):
        other = [name for name in names if name not in learners]
        raise ConfigurationError(
            f"{other[0]} does not learn from a number of episodes as {learners[0]} does, so their budgets cannot be equal. Tune them in "
            "separate runs."
        )
    sizes = {name: plan.size(name) for name in names}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {n}" for name, n in sizes.items())
        raise ConfigurationError(
            f"agents have different numbers of settings ({said}); expected as many for each. Give lists of equal lengths, or "
            "tune.search=random tune.num_samples=<n>."
        )


def _said(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
