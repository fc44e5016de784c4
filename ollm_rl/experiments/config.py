"""Settings of comparisons. Imports no torch."""

from dataclasses import dataclass

from ollm_rl.common.settings import MOST_SEEDS, Config, setting
from ollm_rl.errors import ConfigurationError


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """What `compare` and `demo` compare."""

    agents: list[str] = setting(["prior", "grpo"], "names, or <module>.<Class> of your own")
    seeds: list[int] = setting([0], "each agent is trained with each")
    tasks: list[str] = setting([], "several tasks; empty: the one of task=")
    with_oracle: bool = setting(False, "search on the same problems too")
    agent_overrides: list[str] = setting([], "agent.* for the agents that have that setting; <agent>.* for one")
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
        if wrong_seeds := [s for s in self.seeds if not 0 <= s <= MOST_SEEDS]:
            raise ConfigurationError(f"seeds: {wrong_seeds[0]} is no seed; expected integers from 0 to {MOST_SEEDS}")
        for name in ("agents", "seeds", "tasks"):
            values = getattr(self, name)
            if again := [x for i, x in enumerate(values) if x in values[:i]]:
                raise ConfigurationError(
                    f"{name}=[{','.join(map(str, values))}] has {again[0]} twice; expected each once"
                )
