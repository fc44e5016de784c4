"""Settings of comparisons and of tuning. Imports no torch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import MOST_SEEDS, Config, setting
from ollm_rl.errors import ConfigurationError
from ollm_rl.tasks.base import SPLITS


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """What `compare` and `demo` compare."""

    agents: list[str] = setting(["prior", "grpo"], "names, <module>.<Class> of your own, or names of `arms`")
    arms: dict[str, Any] = setting(
        {},
        "agents under names of their own: overrides of each, `agent=` among them, such as {fitted_grpo:['agent=grpo','backbone.adapter=sft']}",
    )
    seeds: list[int] = setting([0], "each agent is trained with each")
    tasks: list[str] = setting([], "several tasks; empty: the one of task=")
    task_agents: dict[str, Any] = setting(
        {}, "agents for one of the tasks, where agents= is not given: {shortest_path:[prior,grpo_long]}"
    )
    with_oracle: bool = setting(False, "search on the same problems too")
    agent_overrides: list[str] = setting([], "agent.* for the agents that have that setting; <agent>.* for one")
    task_agent_overrides: dict[str, Any] = setting(
        {}, "the same for one of the tasks, after those: {shortest_path:['grpo.pass_at_k=1']}"
    )
    quick: bool = setting(False, "a reduced run, with quick_overrides")
    quick_overrides: list[str] = setting([], "what makes it smaller")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("agents", "seeds"):
            if not getattr(self, name):
                raise ConfigurationError(f"{name}=[]; expected at least one")
        for name in ("agents", "tasks", "agent_overrides", "quick_overrides"):
            if wrong := [x for x in getattr(self, name) if not x.strip()]:
                raise ConfigurationError(
                    f"{name}: {wrong[0]!r:.80} is not a name; expected a list such as [prior,grpo]"
                )
        for arm, given in self.arms.items():
            fine = isinstance(given, list) and all(isinstance(o, str) and "=" in o for o in given)
            if not (fine and sum(o.startswith("agent=") for o in given) == 1 and arm.isidentifier()):
                raise ConfigurationError(
                    f"arms.{arm}={given!r:.80}; expected a name of letters, digits and _, and a list of overrides with one agent=<name> among "
                    "them, such as ['agent=grpo','backbone.adapter=sft']"
                )
        for task, given in self.task_agents.items():
            if not (isinstance(given, list) and given and all(isinstance(x, str) and x.strip() for x in given)):
                raise ConfigurationError(
                    f"task_agents.{task}={given!r:.80}; expected a list of agents such as [prior,grpo]"
                )
        for task, given in self.task_agent_overrides.items():
            if not (isinstance(given, list) and all(isinstance(o, str) and "=" in o for o in given)):
                raise ConfigurationError(
                    f"task_agent_overrides.{task}={given!r:.80}; expected a list of overrides such as ['grpo.pass_at_k=1']"
                )
        if wrong_seeds := [s for s in self.seeds if not 0 <= s <= MOST_SEEDS]:
            raise ConfigurationError(f"seeds: {wrong_seeds[0]} is no seed; expected integers from 0 to {MOST_SEEDS}")
        for name in ("agents", "seeds", "tasks"):
            values = getattr(self, name)
            if again := [x for i, x in enumerate(values) if x in values[:i]]:
                raise ConfigurationError(
                    f"{name}=[{','.join(map(str, values))}] has {again[0]} twice; expected each once"
                )


@dataclass(frozen=True)
class EstimateConfig(Config):
    """What `--dry-run` measures."""

    section: ClassVar[str] = "estimate"

    measure: bool = setting(True, "measure how long the command would take here; false: sizes alone, at once")
    seconds: float = setting(10.0, "of measuring, about", above=0)


SEARCHES = ("grid", "coordinate", "random", "optuna")
METRICS = ("avg@k", "pass@k", "maj@k", "accuracy", "area")


@dataclass(frozen=True)
class TuneConfig(Config):
    """What `tune` tries, and what for (docs/tuning.md)."""

    section: ClassVar[str] = "tune"

    space: list[str] = setting(
        [], "<agent>.<setting>=a,b and the like, as on the command line; empty: the agents' default spaces"
    )
    search: str = setting(
        "grid",
        "grid: every combination; coordinate: one setting after the other, each at the best of those before; random; optuna",
        choices=SEARCHES,
    )
    num_samples: int = setting(12, "settings of each agent that random and optuna try", at_least=1)
    episodes: int = setting(384, "training episodes of each trial, rounded up to whole iterations", at_least=1)
    split: str = setting("tune", "where the problems come from that count", choices=SPLITS)
    num_problems: int = setting(100, "problems, one greedy answer each", at_least=1)
    samples: int = setting(4, "sampled answers per problem: k of avg@k, pass@k and maj@k", at_least=0)
    metric: str = setting("avg@k", "by which the best is chosen; area: mean training reward", choices=METRICS)
    early_stopping: bool = setting(False, "stop trials by their training reward (Ray's ASHA)")
    grace_episodes: int = setting(128, "training episodes before which none is stopped", at_least=1)
    reduction_factor: int = setting(3, "one in so many goes on from where trials are stopped", at_least=2)
    max_concurrent: int | None = setting(None, "trials at once; null: as many as there is room for", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.samples and "@" in self.metric:
            raise self.refuse("samples", f"at least 1, which tune.metric={self.metric} is of")
        if self.early_stopping and self.grace_episodes >= self.episodes:
            raise self.refuse(
                "grace_episodes", f"fewer than tune.episodes={self.episodes}, if trials are to be stopped early"
            )
