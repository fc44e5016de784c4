"""Settings of Ray workers. Imports neither Ray nor torch."""

from dataclasses import dataclass
from typing import ClassVar

from ollm_rl.common.settings import Config, setting


@dataclass(frozen=True)
class RolloutConfig(Config):
    """Where rollouts run."""

    section: ClassVar[str] = "rollout"

    num_workers: int = setting(
        0, "processes with a model and an engine of their own; 0: this process, and no Ray", at_least=0
    )
    num_cpus_per_worker: float = setting(1.0, "processors of a worker", above=0)
    num_gpus_per_worker: float = setting(0.0, "GPUs of a worker; 0.5 puts two workers on one", at_least=0)
    address: str | None = setting(
        None,
        "of a Ray cluster; null: $RAY_ADDRESS if it is set (in a Ray job it is), else one on this machine only; local: the latter",
    )
    chunk: int | None = setting(
        None, "episodes in a unit of work; null: a worker's share of what is asked for at once", at_least=1
    )
    max_staleness: int = setting(0, "updates that the policy of a trajectory may be behind the learner's", at_least=0)
    hang_s: float = setting(120.0, "a worker without progress for so many seconds is replaced", above=0)
    max_failures: int = setting(5, "so many failures of workers in a row end the run", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_staleness and not self.num_workers:
            raise self.refuse(
                "max_staleness",
                "0: it lets rollouts run beside learning, which needs rollout.num_workers of at least 1",
            )
