"""Experiment trackers: what a run writes to its directory is also logged to Trackio, Weights & Biases or MLflow."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from omegaconf import OmegaConf

from ollm_rl.common.tracker_clients import CLIENTS
from ollm_rl.common.tracker_config import NONE, Client, TrackerConfig

log = logging.getLogger(__name__)
TRACKER = "tracker.json"  # in a run's directory: which runs of which trackers it is


class Recorded(Protocol):
    """An episode, as far as it is written down."""

    def to_dict(self) -> dict[str, Any]: ...


class Tracker:
    """The tracker of a run's directory. It is opened with the first thing that is logged, so that a run that is done opens none.

    A tracker that fails never ends a run: it is warned of once, and no more is logged.

    Args:
        path: the run's directory, in which `tracker.json` keeps the tracker's id of the run. name: what it is called there.
        settings: the resolved configuration.
    """

    def __init__(self, config: TrackerConfig, path: Path, name: str, root: Path, settings: dict[str, Any]):
        self.config, self.path, self.name, self.root, self.settings = config, path, name, root, settings
        self._client: Client | None = None
        self._failed = config.client == NONE

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._try(lambda client: client.metrics(step, values))

    def rollouts(self, file: str, last_step: int, episodes: Sequence[Recorded]) -> None:
        """Some of the episodes of `rollouts/<file>.jsonl`, evenly spread over them.

        Args:
            last_step: the step that they belong to, if the file's name has none.
        """
        if not episodes or not self.config.rollouts:
            return
        numbered = re.fullmatch(r"(.*)_(\d+)", file)
        name, step = (numbered[1], int(numbered[2])) if numbered else (file, last_step)
        count = min(self.config.rollouts, len(episodes))
        some = [episodes[i * len(episodes) // count] for i in range(count)]
        self._try(lambda client: client.rollouts(f"rollouts/{name}", step, [e.to_dict() for e in some]))

    def summary(self, name: str, last_step: int, values: Any) -> None:
        """The figures of a JSON file that says what came of the run; what was said before is not said again."""
        figures = summary_figures(name, values)
        digest = hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()[:16]
        if self._failed or not figures or self._kept().get(name) == digest:
            return
        self._try(lambda client: client.summary(last_step, figures))
        if not self._failed:
            self._keep({name: digest})

    def finish(self, completed: bool = True) -> None:
        if self._client is not None:
            self._try(lambda client: client.finish(completed))
            self._client = None

    def _try(self, do: Callable[[Client], None]) -> None:
        if self._failed:
            return
        try:
            if self._client is None:
                self._client = self._open()
            do(self._client)
        except Exception as error:  # whatever it is, it is not worth a training
            self._failed = True
            said = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("tracker %s failed, and gets no more of %s: %s", self.config.client, self.path, said)

    def _open(self) -> Client:
        known = self._kept().get("id")
        with FileLock(self.root / f".{self.config.client}.lock"):  # several parts of a comparison may begin at once
            client: Client = CLIENTS[self.config.client](
                self.config, self.path, self.name, self.root, self.settings, None if known is None else str(known)
            )
        self._keep({"id": client.id, "project": self.config.project, "name": self.name})
        return client

    def _kept(self) -> dict[str, Any]:
        found = self._all_kept().get(self.config.client)
        same = isinstance(found, dict) and found.get("project") == self.config.project
        return found if same else {}  # type: ignore[return-value]

    def _all_kept(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / TRACKER).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _keep(self, values: dict[str, Any]) -> None:
        kept = self._all_kept() | {self.config.client: self._kept() | values}
        scratch = self.path / f".{TRACKER}"
        scratch.write_text(json.dumps(kept, indent=2) + "\n")
        scratch.replace(self.path / TRACKER)


def tracker_of(config: str, path: Path) -> Tracker | None:
    """The tracker that a run's configuration names.

    Args:
        config: the resolved configuration as YAML.
        path: the run's directory. Its name for the tracker is its path under `runs_dir`, such as `first` or `three_seeds/grpo-0`.
    """
    if "tracker:" not in config:
        return None
    settings = OmegaConf.to_container(OmegaConf.create(config), resolve=False)
    if not isinstance(settings, dict) or not isinstance(chosen := settings.get("tracker"), dict):
        return None
    wanted = TrackerConfig.of({str(key): value for key, value in chosen.items()})
    if wanted.client == NONE:
        return None
    full = path.resolve()
    runs = Path(str(settings.get("runs_dir") or path.parent)).resolve()
    root = runs if full.is_relative_to(runs) and full != runs else full.parent
    return Tracker(
        wanted, path, full.relative_to(root).as_posix(), root, {str(key): value for key, value in settings.items()}
    )


def summary_figures(name: str, values: Any) -> dict[str, float]:
    """The numbers of `results.json` or `conversion.json`, by names with slashes.

    >>> summary_figures("results", {"rows": [{"agent": "grpo", "seed": 0, "accuracy": 0.5}]})
    {'results/accuracy': 0.5}

    With several rows, each stands under its agent and seed: `results/grpo-0/accuracy`.
    """
    if not isinstance(values, Mapping):
        return {}
    if not isinstance(rows := values.get("rows"), list):
        return dict(_numbers(values, name))
    found: dict[str, float] = {}
    for row in rows:
        whose = [str(row[key]) for key in ("task", "agent") if row.get(key) is not None]
        prefix = name if len(rows) == 1 else f"{name}/{'/'.join(whose)}-{row.get('seed', 0)}"
        found |= _numbers({key: value for key, value in row.items() if key != "seed"}, prefix)
    return found


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}/{key}")
        elif isinstance(value, int | float):
            yield f"{prefix}/{key}", value
