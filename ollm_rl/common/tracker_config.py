"""Settings of trackers, and what a tracker's client has to do. Imports no client."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

from ollm_rl.common.settings import Config, setting
from ollm_rl.errors import ConfigurationError

MODULES = {"trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}
NONE = "none"


@dataclass(frozen=True)
class TrackerConfig(Config):
    """Where a run is logged besides its directory (docs/trackers.md)."""

    section: ClassVar[str] = "tracker"

    client: str = setting(NONE, "whose Python client logs; tracker=<it> sets it", choices=(NONE, *MODULES))
    project: str = setting("ollm_rl", "the tracker's project (of MLflow, the experiment)")
    tags: list[str] = setting([], "tags of the run")
    rollouts: int = setting(
        8, "episodes of an iteration, or of an evaluation, that are logged as traces or tables; 0: none", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.project.strip():
            raise self.refuse("project", "the name of a project")


def check_tracker(config: TrackerConfig) -> None:
    """Whether the tracker's client is installed.

    Raises:
        ConfigurationError: not so; the message has the command that installs it.
    """
    if config.client != NONE and find_spec(MODULES[config.client]) is None:
        raise ConfigurationError(
            f"tracker={config.client} needs a package that is not here. Install it with "
            f"`pip install -c constraints.txt -e '.[{config.client}]'`, or use tracker=none."
        )


class Client(Protocol):
    """A run of a tracker. `ollm_rl.common.tracker_clients` has a class for every tracker.

    Attributes:
        id: by which the tracker knows the run, and finds it again.
    """

    id: str

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Figures of a step. Steps may come twice, and in any order."""

    def rollouts(self, name: str, step: int, episodes: list[dict[str, Any]]) -> None:
        """Some episodes, as `rollouts/*.jsonl` has them."""

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """What came of the run, after `step`."""

    def finish(self, completed: bool) -> None:
        """End the log."""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration as dotted keys with their values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
