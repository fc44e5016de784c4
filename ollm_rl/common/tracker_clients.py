"""The clients of Trackio, Weights & Biases and MLflow, each as `ollm_rl.common.trackers` wants it, imported when a run is opened. All of them work offline."""

import contextlib
import io
import logging
import netrc
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ollm_rl.common.tracker_config import Client, TrackerConfig, flat

log = logging.getLogger(__name__)
SHOWN = ("problem", "text", "answer", "gold", "reward", "solved", "verdict", "stop", "seed")  # of an episode, in tables
MOST_METRICS, MOST_PARAMETERS, LONGEST_PARAMETER = 1000, 100, 6000  # that MLflow takes at once
INIT_SECONDS = 30  # that Weights & Biases may take to answer before the run is logged offline


class Trackio:
    """A run of Trackio: rollouts are traces, the summary is metrics of the last step."""

    def __init__(
        self, config: TrackerConfig, path: Path, name: str, root: Path, settings: dict[str, Any], known: str | None
    ):
        import trackio
        from trackio import context_vars

        self._trackio, self._current = trackio, context_vars.current_run

        def begin(resume: str) -> Any:
            self._current.set(None)  # else the one begun before would be ended: runs can be open side by side
            with contextlib.redirect_stdout(io.StringIO()):
                return trackio.init(
                    config.project, name, group=_group(name), config={**settings, "tags": list(config.tags)},
                    resume=resume, embed=False,
                )  # fmt: skip

        self._run = begin("never" if known is None else "allow")
        if known is not None and self._run.id != known:  # another run of that name was made since
            self._quietly(self._run.finish)
            self._run = begin("never")
        self.id = str(self._run.id)
        log.info("tracker: run %s of Trackio; trackio show --project %s", name, config.project)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(_plain(values), step=step)

    def rollouts(self, name: str, step: int, episodes: list[dict[str, Any]]) -> None:
        traces = [
            self._trackio.Trace(
                [{"role": "user", "content": _text(e, "problem")}, {"role": "assistant", "content": _text(e, "text")}],
                {key: e.get(key) for key in SHOWN[2:]},
            )
            for e in episodes
        ]
        self._run.log({name: traces}, step=step)

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, completed: bool) -> None:
        self._quietly(self._run.finish)
        if self._current.get() is self._run:
            self._current.set(None)  # else it would be ended again when Python ends

    @staticmethod
    def _quietly(do: Callable[[], object]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            do()


class WandB:
    """A run of Weights & Biases: rollouts are tables. `step` is a column of its own and the axis of all plots, for the steps of a
    conversion, of a training and of one that is resumed are not in order, and those of `wandb.log` have to be."""

    def __init__(
        self, config: TrackerConfig, path: Path, name: str, root: Path, settings: dict[str, Any], known: str | None
    ):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # which advertises itself
        import wandb

        self._wandb, self.id = wandb, known or uuid.uuid4().hex[:12]

        def begin(mode: Any) -> Any:
            return wandb.init(
                project=config.project, name=name, id=self.id, resume="allow", group=_group(name), tags=list(config.tags),
                config=settings, dir=str(path), mode=mode, reinit="create_new", allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True, init_timeout=INIT_SECONDS),
            )  # fmt: skip

        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        try:
            self._run = begin(mode)
        except Exception as error:
            if mode != "online":
                raise
            log.warning("Weights & Biases does not answer (%s): this run is logged offline", str(error).splitlines()[0])
            mode, self._run = "offline", begin("offline")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        how = f"wandb sync {path / 'wandb' / 'offline-run-*'}" if mode == "offline" else self._run.url
        log.info("tracker: run %s of Weights & Biases, %s; %s", self.id, mode, how)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({**_plain(values), "step": step})

    def rollouts(self, name: str, step: int, episodes: list[dict[str, Any]]) -> None:
        rows = [[_cell(e.get(key)) for key in SHOWN] for e in episodes]
        self._run.log({name: self._wandb.Table(columns=list(SHOWN), data=rows), "step": step})

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def finish(self, completed: bool) -> None:
        self._run.finish(exit_code=0 if completed else 1)


class MLflow:
    """A run of MLflow: rollouts are traces, the configuration is parameters and the file `config.yaml`, the summary is metrics of
    the last step."""

    def __init__(
        self, config: TrackerConfig, path: Path, name: str, root: Path, settings: dict[str, Any], known: str | None
    ):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.exceptions import MlflowException

        for noisy in ("mlflow", "alembic"):  # the tables of a new store
            logging.getLogger(noisy).setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        files = None if uri else (root / "mlflow-artifacts").as_uri()
        mlflow.set_tracking_uri(uri or f"sqlite:///{root / 'mlflow.db'}")
        self._mlflow, self._client = mlflow, mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(config.project)
        self._experiment = found.experiment_id if found else self._client.create_experiment(config.project, files)
        before: dict[str, str] = {}
        if known is not None:
            try:
                before = self._client.get_run(known).data.params
                self._client.update_run(known, status="RUNNING")
            except MlflowException:  # deleted there
                known = None
        tags = {"ollm_rl.group": _group(name) or "", **dict.fromkeys(config.tags, "true")}
        self.id = known or str(self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)
        new = {_name(key): str(value)[:LONGEST_PARAMETER] for key, value in flat(settings)}
        parameters = [mlflow.entities.Param(k, v) for k, v in new.items() if k not in before]  # they are never changed
        for i in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self.id, params=parameters[i : i + MOST_PARAMETERS])
        self._client.log_dict(self.id, settings, "config.yaml")
        log.info("tracker: run %s of MLflow; mlflow ui --backend-store-uri %s", self.id, mlflow.get_tracking_uri())

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        numbers = {_name(key): float(v) for key, v in values.items() if isinstance(v, int | float)}
        found = [self._mlflow.entities.Metric(key, value, now, step) for key, value in numbers.items()]
        for i in range(0, len(found), MOST_METRICS):
            self._client.log_batch(self.id, metrics=found[i : i + MOST_METRICS])

    def rollouts(self, name: str, step: int, episodes: list[dict[str, Any]]) -> None:
        for e in episodes:
            span = self._client.start_trace(
                name, inputs={"problem": _text(e, "problem")}, tags={"step": str(step)}, experiment_id=self._experiment,
                run_id=self.id,
            )  # fmt: skip
            attributes = {key: _cell(e.get(key)) for key in SHOWN[2:]}
            self._client.end_trace(span.trace_id, outputs={"text": _text(e, "text")}, attributes=attributes)

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics(step, values)

    def finish(self, completed: bool) -> None:
        self._mlflow.flush_trace_async_logging()
        self._client.set_terminated(self.id, "FINISHED" if completed else "KILLED")


CLIENTS: dict[str, Callable[..., Client]] = {"trackio": Trackio, "wandb": WandB, "mlflow": MLflow}


def _group(name: str) -> str | None:
    """Parts of a comparison, or trials of a tuning, belong together: by what their directories are in."""
    return name.rpartition("/")[0] or None


def _name(key: str) -> str:
    """As MLflow allows names: `avg@8` is `avg_at_8`."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_"))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, int | float | str)}


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _text(episode: Mapping[str, Any], key: str) -> str:
    return str(episode.get(key) or "")


def _has_key() -> bool:
    """Whether somebody has logged in to Weights & Biases here."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
