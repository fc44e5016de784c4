"""Overrides of comparisons: which are for all agents, for one, for a task, for a quick run."""

from functools import cache

from ollm_rl.common.config_files import GROUPS, members, suggestion
from ollm_rl.common.locate import locate
from ollm_rl.config.compose import Settings, compose, settings_taken
from ollm_rl.config.overrides import pair, parsed
from ollm_rl.errors import ConfigurationError, did_you_mean


def of_tasks(overrides: list[str], settings: Settings) -> dict[str, tuple[Settings, list[str]]]:
    """What `tasks` and `quick` of a comparison stand for: settings and overrides of each task, under its name.

    Without `tasks`, or with `task=`, it is one task, under no name. `task.*` overrides go to all of them.
    """
    one = any(o.startswith("task=") for o in overrides)
    if one and any(o.startswith("tasks=") for o in overrides):
        raise ConfigurationError("give task= or tasks=[...], not both")
    if settings.config.quick:
        overrides = [*settings.config.quick_overrides, *overrides]
        settings = compose(shared(overrides))
    if one or not settings.config.tasks:  # task= takes the place of an experiment's tasks
        return {"": (settings, overrides)}
    found = {}
    for task in settings.config.tasks:
        mine = [*overrides, f"task={task}", "tasks=[]"]
        found[task] = compose(shared(mine)), mine
    return found


def shared(overrides: list[str]) -> list[str]:
    """The overrides that are not for agents: `agent.<setting>=` is for all that have it, `<agent>.<setting>=` for one.

    An agent from outside goes by `<module>.<Class>` or by `<Class>`.
    """
    agents = {"agent", *members("agent")} - ({*GROUPS} - {"agent"})  # `backbone` is a group first
    listed = next((o for o in reversed(overrides) if o.startswith("agents=")), None)
    named = None if listed is None else parsed(*pair(listed))
    own = [name for name in named if isinstance(name, str) and "." in name] if isinstance(named, list) else []
    agents |= {name.rpartition(".")[2] for name in own}
    return [
        o
        for o in overrides
        if o.partition("=")[0].partition(".")[0] not in agents and not o.startswith(tuple(f"{name}." for name in own))
    ]


def _owner(override: str, names: list[str]) -> tuple[str, str]:
    """Whose setting an override is, by the agent's name in the comparison, and the rest of it."""
    for name in names:
        for said in dict.fromkeys((name, name.rpartition(".")[2])):
            if override.startswith(f"{said}."):
                return name, override.removeprefix(f"{said}.")
    owner, _, rest = override.partition(".")
    return owner, rest


def with_overrides(settings: Settings, overrides: list[str]) -> Settings:
    """A comparison's configuration as it is kept: with what was given for its agents, and without `agent`, which is nobody's."""
    kept = settings.without_agent()
    given = [o for o in overrides if o not in shared(overrides)]
    kept.config.agent_overrides = list(dict.fromkeys([*kept.config.agent_overrides, *given]))
    return kept


def trial_settings(overrides: list[str], settings: Settings, name: str) -> Settings:
    """The configuration of one agent of a comparison: the experiment's `agent_overrides`, then those of the command line.

    `agent.<setting>=` goes to the agents that have that setting, `<agent>.<setting>=` to one.

    Raises:
        ConfigurationError: an override that no agent of the comparison has.
    """
    names = list(settings.config.agents)
    common = shared(overrides)
    given = [o for o in overrides if o not in common and not o.startswith(("agent=", "agent._target_"))]
    mine = []
    for override in [*settings.config.agent_overrides, *given]:
        owner, rest = _owner(str(override), names)
        key = rest.partition("=")[0]
        if owner != "agent" and owner not in names:
            if override in given:
                raise ConfigurationError(f"{override}: the comparison has no agent '{owner}', only {', '.join(names)}")
            continue  # of the experiment, for an agent that takes no part this time
        known = {n: agent_settings(n) for n in (names if owner == "agent" else [owner])}
        if key not in (k for keys in known.values() for k in keys):
            if override not in given and any(key in agent_settings(n) for n in members("agent") if n != "custom"):
                continue  # of the experiment, for agents that take no part this time
            raise ConfigurationError(
                f"unknown key '{owner}.{key}': none of the agents {', '.join(known)} has it."
                f"{did_you_mean(key, [k for keys in known.values() for k in keys])}"
            )
        if key in known.get(name, []):
            mine.append(f"agent.{rest}")
    return compose([*common, f"agent={name}", *mine])


@cache
def agent_settings(name: str) -> list[str]:
    """The settings that an agent has.

    Raises:
        ConfigurationError: there is no such agent.
    """
    if name in members("agent"):
        return [k for k in compose([f"agent={name}"]).config.agent if k != "_target_"]
    if "." in name:
        return settings_taken(locate(name))
    names = [m for m in members("agent") if m != "custom"]
    raise ConfigurationError(f"unknown agent '{name}'; expected one of {', '.join(names)}.{suggestion(name, names)}")
