"""Whether a run may be continued with a configuration: what has to be as it was, and what may differ.

Values are compared, not lines. How a run is resumed, where it lies, on which cluster and by what it is tracked makes no difference, and a
comparison may get more agents and seeds: each of its parts has a configuration of its own. A limit of training may be
larger than it was.

Releases add settings and take some away. A setting that the stored configuration lacks has the value of today's files (or
that of `BEFORE`), or it was given now, which is refused. One that today's configuration lacks is ignored if it was off (null, false or zero);
else the run was made with something that this release does not do, and is refused. What is the user's own (settings of a
class from outside, or of `task.params`) is in no release: it has to be as it was.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from ollm_rl.common.config_files import (
    GROUPS,
    OPEN_GROUPS,
    RENAMED_TARGETS,
    config_file,
    group_file,
    members,
    new_name,
    root_file,
)
from ollm_rl.errors import CheckpointError

# What a comparison is made of (configs/experiment/default.yaml).
COMPARISON = ("agents", "seeds", "tasks", "with_oracle", "agent_overrides", "quick", "quick_overrides")
FREE = (
    *COMPARISON, "task_agents", "task_agent_overrides", "resume", "name", "runs_dir", "backbone.compiled", "rollout.address", "tune.max_concurrent",
    "tracker.client", "tracker.project", "tracker.tags", "tracker.rollouts", "estimate.measure", "estimate.seconds",
)  # fmt: skip
# What runs did that know nothing of a setting, where its default is another now.
BEFORE = {"plugin.reader_depth": 0}
# Defaults of `agent=grpo` that were others.
AGENT_BEFORE = {
    "agent.problems_per_iteration": 32,
    "agent.learning_rate": 1e-4,
    "agent.minibatches": 4,
    "agent.pass_at_k": 3,
}
# Settings that end training, and the figure of `metrics.jsonl` that says how far it got.
LIMITS = {"agent.total_episodes": "train_episodes", "agent.rounds": "step"}


@dataclass
class Changes:
    """What differs between the stored configuration and the one of now.

    Attributes:
        refused: why the run is not continued: one text per setting.
        limits: limits of training that differ, as (stored, now).
        comparison: agents, seeds or whatever else a comparison is made of are others.
    """

    refused: list[str] = field(default_factory=list)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    comparison: bool = False


def read(text: str, where: str) -> dict[str, Any]:
    """A configuration as dotted keys with their values, under today's names.

    Raises:
        CheckpointError: it is no YAML.
    """
    try:
        nested = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (YAMLError, ValueError) as error:
        raise CheckpointError(
            f"{where} cannot be read as YAML ({str(error).splitlines()[0]}). Restore it, or delete the run's directory."
        ) from error
    flat = _flat(nested) if isinstance(nested, dict) else ()
    found = {
        new_name(key): RENAMED_TARGETS.get(value, value) if isinstance(value, str) else value for key, value in flat
    }
    for key, value in BEFORE.items():
        if any(name.startswith(key.split(".")[0] + ".") for name in found):
            found.setdefault(key, value)
    return found


def today(text: str, where: str) -> DictConfig:
    """A stored configuration under today's names.

    Raises:
        CheckpointError: it is no YAML.
    """
    found = OmegaConf.create()
    for key, value in read(text, where).items():
        OmegaConf.update(found, key, value, force_add=True)
    return found


def changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compare two configurations, as `read` gives them."""
    found = Changes(comparison=any(stored.get(key) != now.get(key) for key in COMPARISON))
    if _agent(stored) and not _agent(now) and _is_nobodys(_agent(stored)):
        stored = {key: value for key, value in stored.items() if not key.startswith("agent.")}
    if _agent(now) and not _agent(stored):
        found.refused.append(f"there no 'agent', now 'agent._target_: {now.get('agent._target_')}'")
    for key in dict.fromkeys([*stored, *now]):
        if key in FREE or key.partition(".")[0] in FREE or (key in stored and key in now and stored[key] == now[key]):
            continue
        if key not in stored:
            if now[key] not in _shipped(key, now):
                found.refused.append(f"there no '{key}', now '{key}: {now[key]}'")
        elif key not in now:
            if stored[key] not in (None, False, {}) or _is_own(key, now):
                found.refused.append(f"there '{key}: {stored[key]}', now no '{key}'")
        elif key in LIMITS and _number(stored[key]) and _number(now[key]):
            found.limits[key] = (stored[key], now[key])
        else:
            found.refused.append(f"there '{key}: {stored[key]}', now '{key}: {now[key]}'")
    return found


def _agent(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key.startswith("agent.")}


def _is_nobodys(agent: Mapping[str, Any]) -> bool:
    """Whether these are the defaults, of now or of before, that earlier releases kept for comparisons and searches, which have no agent."""
    defaults = dict(_flat({"agent": OmegaConf.to_container(group_file("agent", "grpo"), resolve=False)}))
    return all(value in (defaults.get(key), AGENT_BEFORE.get(key)) for key, value in agent.items())


def _flat(node: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_own(key: str, now: Mapping[str, Any]) -> bool:
    """Whether a setting belongs to the user: no release has it or takes it away."""
    group, *parts = key.split(".")
    targets = [group_file(group, name).get("_target_") for name in members(group)] if group in OPEN_GROUPS else []
    if targets and now.get(f"{group}._target_") not in targets:
        return True
    above = [".".join([group, *parts[:i]]) for i in range(1, len(parts))]
    return any({} in _shipped(name, now) for name in above)


def _shipped(key: str, now: Mapping[str, Any]) -> list[Any]:
    """The values that today's files give `key` where nobody sets it; those of a class's settings, if it is this class."""
    group, _, rest = key.partition(".")
    files = [
        (key, root_file()),
        *((key, config_file(f"experiment/{name}.yaml")) for name in members("experiment")),
    ]
    if group in GROUPS:
        files += [(rest, group_file(group, name)) for name in members(group)]
    if group in OPEN_GROUPS:
        files = [(rest, found) for rest, found in files if found.get("_target_") == now.get(f"{group}._target_")]
    given = []
    for name, found in files:
        values = dict(_flat(OmegaConf.to_container(found, resolve=False)))  # type: ignore[arg-type]
        if name in values:  # what refers to another setting is that setting's affair
            refers = isinstance(values[name], str) and "${" in values[name]
            given.append(now.get(key) if refers else values[name])
    return given
