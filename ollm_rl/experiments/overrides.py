"""Overrides of comparisons: which are for all agents, for one, for a task, for a quick run."""

from functools import cache

from ollm_rl.common.config_files import GROUPS, members, suggestion
from ollm_rl.common.locate import locate
from ollm_rl.config.compose import ARM, Settings, compose, settings_taken, to_dict
from ollm_rl.config.overrides import pair, parsed
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.experiments.config import ComparisonConfig
from ollm_rl.models.adapters import FITTED

FIT = "lora_sft"  # the agent whose adapter `backbone.adapter=sft` is


def of_tasks(overrides: list[str], settings: Settings) -> dict[str, tuple[Settings, list[str]]]:
    """What `tasks` and `quick` of a comparison stand for: settings and overrides of each task, under its name.

    Without `tasks`, or with `task=`, it is one task, under no name. `task.*` overrides go to all of them.
    """
    one = any(o.startswith("task=") for o in overrides)
    tasks = members("task")
    comparison = ComparisonConfig.among(to_dict(settings.config))
    for name in ("task_agents", "task_agent_overrides"):
        for task in getattr(comparison, name):
            if task not in tasks:
                raise ConfigurationError(
                    f"{name}.{task}: there is no task '{task}'; expected one of {', '.join(tasks)}.{did_you_mean(task, tasks)}"
                )
    if one and any(o.startswith("tasks=") for o in overrides):
        raise ConfigurationError("give task= or tasks=[...], not both")
    if settings.config.quick:
        overrides = [*settings.config.quick_overrides, *overrides]
        settings = compose(shared(overrides))
    if one or not settings.config.tasks:  # task= takes the place of an experiment's tasks
        return {"": _of_its_task(settings.choices["task"], overrides, comparison)}
    found = {
        task: _of_its_task(task, [*overrides, f"task={task}", "tasks=[]"], comparison) for task in settings.config.tasks
    }
    return {task: (mine, _without_others(given, mine, found)) for task, (mine, given) in found.items()}


def _without_others(overrides: list[str], mine: Settings, tasks: dict[str, tuple[Settings, list[str]]]) -> list[str]:
    """The overrides without those for agents that other tasks have and this one has not, which it would refuse."""
    common = shared(overrides)  # backbone.name= is among them, and no setting of the agent of that name

    def takes(settings: Settings, override: str) -> bool:
        names, arms = list(settings.config.agents), to_dict(settings.config.arms)
        owner, _ = _owner(override, names)
        return any(owner in (name, _agent_of(name, arms)[0]) for name in names)

    return [
        o for o in overrides if o in common or takes(mine, o) or not any(takes(each, o) for each, _ in tasks.values())
    ]


def _of_its_task(task: str, overrides: list[str], comparison: ComparisonConfig) -> tuple[Settings, list[str]]:
    """The comparison on one task, with what `task_agents` and `task_agent_overrides` have for it, and its overrides."""
    own = comparison.task_agents.get(task)
    if own and not any(o.startswith("agents=") for o in overrides):
        overrides = [*overrides, f"agents=[{','.join(own)}]"]
    settings = compose(shared(overrides))
    config = settings.config
    config.agent_overrides = [*config.agent_overrides, *comparison.task_agent_overrides.get(task, [])]
    config.task_agents = config.task_agent_overrides = {}
    return settings, overrides


def shared(overrides: list[str]) -> list[str]:
    """The overrides that are not for agents: `agent.<setting>=` is for all that have it, `<agent>.<setting>=` for one.

    An agent from outside goes by `<module>.<Class>` or by `<Class>`.
    """
    agents = {"agent", *members("agent")} - ({*GROUPS} - {"agent"})  # `backbone` is a group first
    listed = next((o for o in reversed(overrides) if o.startswith("agents=")), None)
    named = None if listed is None else parsed(*pair(listed))
    own = [name for name in named if isinstance(name, str) and "." in name] if isinstance(named, list) else []
    agents |= {name.rpartition(".")[2] for name in own} | {*arms_of(overrides)}
    return [
        o
        for o in overrides
        if o.partition("=")[0].partition(".")[0] not in agents and not o.startswith(tuple(f"{name}." for name in own))
    ]


def arms_of(overrides: list[str]) -> dict[str, list[str]]:
    """The arms of a comparison: its experiment's, and those of the overrides."""
    mine = [o for o in overrides if o.partition("=")[0].partition(".")[0] in (*GROUPS, "arms")]
    if not any(o.startswith(("experiment=", "arms")) for o in mine):
        return {}
    try:
        return to_dict(compose(mine).config.arms)
    except ConfigurationError:  # which `compose` of all overrides says again, in their order
        return {}


def _owner(override: str, names: list[str]) -> tuple[str, str]:
    """Whose setting an override is, by the agent's name in the comparison, and the rest of it."""
    for name in names:
        for said in dict.fromkeys((name, name.rpartition(".")[2])):
            if override.startswith(f"{said}."):
                return name, override.removeprefix(f"{said}.")
    owner, _, rest = override.partition(".")
    return owner, rest


def of_experiment(overrides: list[str]) -> list[str]:
    """The overrides of a run of one agent, after what its `experiment=` has for that agent (`agent_overrides`)."""
    if not any(o.startswith("experiment=") for o in overrides):
        return overrides
    settings = compose(overrides)
    name = settings.agent_name
    known = agent_settings(name) if name in members("agent") and name != "custom" else []
    given = [_owner(str(override), [name]) for override in settings.config.agent_overrides]
    return [
        *(f"agent.{rest}" for owner, rest in given if owner in ("agent", name) and rest.partition("=")[0] in known),
        *overrides,
    ]


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
    # The fit of `backbone.adapter=sft` has the comparison's settings of its agent, whether that takes part or not.
    names = list(dict.fromkeys([*settings.config.agents, *([FIT] if name == FIT else [])]))
    arms = to_dict(settings.config.arms)
    base, own = _agent_of(name, arms)
    common = shared(overrides)
    given = [o for o in overrides if o not in common and not o.startswith(("agent=", "agent._target_"))]
    mine, for_arm = list[str](), list[str]()  # what is for the arm alone comes last
    for override in [*settings.config.agent_overrides, *given]:
        owner, rest = _owner(str(override), names)
        key = rest.partition("=")[0]
        targets = names if owner == "agent" else [n for n in names if owner in (n, _agent_of(n, arms)[0])]
        if not targets:
            if override in given:
                raise ConfigurationError(f"{override}: the comparison has no agent '{owner}', only {', '.join(names)}")
            continue  # of the experiment, for an agent that takes no part this time
        known = {n: agent_settings(_agent_of(n, arms)[0]) for n in targets}
        if key not in (k for keys in known.values() for k in keys):
            if override not in given and any(key in agent_settings(n) for n in members("agent") if n != "custom"):
                continue  # of the experiment, for agents that take no part this time
            raise ConfigurationError(
                f"unknown key '{owner}.{key}': none of the agents {', '.join(known)} has it."
                f"{did_you_mean(key, [k for keys in known.values() for k in keys])}"
            )
        if key in known.get(name, []):
            (for_arm if owner == name else mine).append(f"agent.{rest}")
    found = compose([*common, f"agent={base}", *mine, *own, *for_arm])
    if name in arms:
        found.choices[ARM] = name
    wants_fit = found.config.backbone.adapter == FITTED and not found.config.backbone.sft
    if wants_fit and name != FIT:
        fit = to_dict(trial_settings(overrides, settings, FIT).config.agent)
        found.config.backbone.sft = {key: value for key, value in fit.items() if key != "_target_"}
    return found


def _agent_of(name: str, arms: dict[str, list[str]]) -> tuple[str, list[str]]:
    """The agent that an arm is, and the arm's other overrides; of another name, that agent and none."""
    given = arms.get(name)
    if given is None:
        return name, []
    agent = next(o for o in given if o.startswith("agent="))
    return agent.removeprefix("agent="), [o for o in given if o != agent]


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
