"""Trials of a tuning with Ray Tune: side by side on a cluster, resumed where they were interrupted, stopped early if that is wanted.

What a trial is, is its caller's affair: a function that reports while it learns, and in the end gives its score.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from ollm_rl.cluster.jobs import at_home, begin
from ollm_rl.config.spaces import Axis
from ollm_rl.errors import OLLMError, WorkerError

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
Job = Callable[[dict[str, Any], Report], dict[str, Any]]
SCORE, REWARD, EPISODES = "score", "reward", "train_episodes"  # what jobs give in the end, and report before
ERROR = "error"
ENVIRONMENT = {
    # Our runs have logs, and there is a bar.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0",
    # A trial that was stopped has no score.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Seconds between writes of its state: what ends in between and is no run of ours would be repeated after a kill.
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
}  # fmt: skip


@dataclass(frozen=True)
class EarlyStopping:
    """Ray's asynchronous successive halving (ASHA, Li et al. 2020) on the training reward.

    At `grace_episodes`, and at `reduction_factor` times as many and so on up to `episodes`, a trial ends that is not among the
    best `1 / reduction_factor` of those that got there before it.
    """

    grace_episodes: int
    episodes: int
    reduction_factor: int


@dataclass(frozen=True)
class Ended:
    """A trial: what was tried, and what it reported last."""

    config: dict[str, Any]
    metrics: dict[str, Any]


class Watcher(tune.Callback):
    """Passes on what trials report, and ends it all with the first that fails.

    Args:
        on_report: called with a trial's configuration and figures; on_end: the same, of a trial that ended.
    """

    def __init__(self, on_report: Callable[[dict, dict], None], on_end: Callable[[dict, dict], None]):
        self.on_report, self.on_end = on_report, on_end
        self.error: BaseException | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps its callbacks with its state; those of a resumed tuning are of the process that resumes it."""
        return _watching, ()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if (error := result.get(ERROR)) is not None:
            self._fail(error)
        self.on_report(_point(trial.config), result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.on_end(_point(trial.config), trial.last_result)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error()
        self._fail(error.cause if isinstance(error, RayTaskError) else error)

    def _fail(self, error: BaseException) -> None:
        """What a callback raises ends Tune at once; trials that run are resumed when the command is repeated."""
        self.error = error
        raise error


@dataclass(frozen=True)
class Setup:
    """How trials are run: `rollout` is the cluster, and what a trial asks of it; `most_at_once` limits them."""

    rollout: DictConfig
    watcher: Watcher
    early_stopping: EarlyStopping | None = None
    most_at_once: int | None = None


class ByScore(OptunaSearch):
    """Optuna by the scores of trials alone: what they report before has none."""

    def on_trial_result(self, trial_id: str, result: dict) -> None: ...


_watcher: list[Watcher] = []  # of this process


def _watching() -> Watcher:
    return _watcher[-1]


def run_trials(
    folder: Path,
    job: Job,
    points: Sequence[dict[str, Any]],
    setup: Setup,
) -> list[Ended]:
    """Call the job with every point; those of an earlier call with this folder that have ended are not run again.

    Args:
        folder: of Ray Tune's state. points: the same in every call with it.
        job: called with a point and with what it reports by: `reward` and `train_episodes` of each iteration.

    Returns:
        what the job gave for each, in any order; a trial that was stopped early has no `score`.

    Raises:
        KeyboardInterrupt: interrupted; the state is kept.
        the first exception of a trial; the others are stopped. Repeating the call resumes them.
    """
    return _fit(folder, job, {"point": tune.grid_search([*points])}, len(points), setup)


def run_optuna(
    folder: Path,
    job: Job,
    fixed: Mapping[str, Any],
    axes: Sequence[Axis],
    num_samples: int,
    seed: int,
    setup: Setup,
) -> list[Ended]:
    """As `run_trials`, with points that Optuna's sampler (TPE) chooses by the scores of those before.

    Args:
        fixed: what every point has; the values of axes come beside it under `values`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {**fixed, "values": {axis.name: _domain(axis) for axis in axes}}
    search = ByScore(metric=SCORE, mode="max", seed=seed)
    return _fit(folder, job, space, num_samples, setup, num_samples=num_samples, search_alg=search)


def _domain(axis: Axis) -> Any:
    if axis.options:
        return tune.choice([*axis.options])
    if axis.integer:
        return (tune.lograndint if axis.log else tune.randint)(int(axis.low), int(axis.high) + 1)
    return (tune.loguniform if axis.log else tune.uniform)(axis.low, axis.high)


def _scheduler(wanted: EarlyStopping | None) -> ASHAScheduler | None:
    if wanted is None:
        return None
    return ASHAScheduler(
        EPISODES, REWARD, "max", max_t=wanted.episodes, grace_period=wanted.grace_episodes,
        reduction_factor=wanted.reduction_factor, stop_last_trials=False,
    )  # fmt: skip


def _fit(folder: Path, job: Job, space: dict, wanted: int, setup: Setup, **settings: Any) -> list[Ended]:
    """`settings`: of Ray's TuneConfig, beside those that `setup` stands for."""
    rollout, watcher = setup.rollout, setup.watcher
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    _watcher[:] = [watcher]
    # Workers that a trial starts are placed within what the trial asked for.
    each = {"CPU": rollout.num_cpus_per_worker, "GPU": rollout.num_gpus_per_worker}
    bundles = [begin(rollout), *[each] * rollout.num_workers]
    trial = tune.with_parameters(_trial, job=job, folder=os.getcwd(), cache=os.environ.get("OLLM_RL_CACHE"))
    trainable = tune.with_resources(trial, tune.PlacementGroupFactory(bundles))
    if tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(str(folder), trainable, resume_errored=True, param_space=space)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_config = tune.RunConfig(
            name=folder.name, storage_path=str(folder.parent), verbose=0, callbacks=[watcher],
            failure_config=tune.FailureConfig(max_failures=2),
        )  # fmt: skip
        config = tune.TuneConfig(
            scheduler=_scheduler(setup.early_stopping), max_concurrent_trials=setup.most_at_once,
            trial_dirname_creator=_name, **settings,
        )  # fmt: skip
        tuner = tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run_config)
    try:
        found = tuner.fit()
    except Exception:
        if watcher.error is not None:
            raise watcher.error from None
        raise
    ended = [found[i] for i in range(len(found))]
    if len(ended) < wanted or not all((each.metrics or {}).get("done") for each in ended):
        raise KeyboardInterrupt  # Tune has kept its state, and returns
    return [Ended(_point(each.config or {}), each.metrics or {}) for each in ended]


def _trial(config: dict[str, Any], job: Job, folder: str, cache: str | None) -> None:
    with at_home(folder, cache):
        try:
            tune.report(job(_point(config), tune.report))
        except (OLLMError, WorkerError) as error:  # raised, it would be tried again
            tune.report({ERROR: error})


def _point(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("point", config)


def _name(trial: Any) -> str:
    return str(trial.trial_id)
