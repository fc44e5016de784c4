"""Several runs at once, each a task of a Ray cluster."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ray
from omegaconf import DictConfig
from ray.exceptions import RayError, RayTaskError

from ollm_rl.cluster.pool import check_resources, start_ray
from ollm_rl.errors import ConfigurationError, OLLMError, WorkerError

log = logging.getLogger(__name__)


def side_by_side(jobs: Mapping[Path, Callable[[], object]], rollout: DictConfig) -> None:
    """Call all `jobs`, each of which writes the directory that it stands under.

    Tasks ask for a worker's resources, or for little if they have workers of their own. They see this process's working
    directory and cache directory, where these exist.

    Raises:
        ConfigurationError: a directory that was written is not to be seen here.
        WorkerError: a task died, three times.
        the first exception of a job; the others are stopped. Each is a run that can be resumed.
    """
    wanted = begin(rollout)
    task = ray.remote(num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], max_retries=2)(_call)
    waiting = {task.remote(job, os.getcwd(), os.environ.get("OLLM_RL_CACHE")): path for path, job in jobs.items()}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            path = waiting.pop(done[0])
            _finish(done[0], path)
            log.info("%s: done, %d to go", path, len(waiting))
    finally:
        for left in waiting:
            ray.cancel(left)


def begin(rollout: DictConfig) -> dict[str, float]:
    """Start or join the cluster; what a task of it asks for: a worker's resources, or little if it has workers of its own.

    Raises:
        ConfigurationError: no cluster answers, or this machine, which is all of it, has less.
    """
    alone = not rollout.num_workers
    wanted = {
        "CPU": rollout.num_cpus_per_worker if alone else 0.1,
        "GPU": rollout.num_gpus_per_worker if alone else 0,
    }
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    start_ray(rollout.address, num_cpus=max(cpus, math.ceil(wanted["CPU"])))
    there = ray.cluster_resources()
    if alone and there.get("GPU") and not wanted["GPU"]:
        log.warning("all runs at once share the GPUs: set rollout.num_gpus_per_worker, 1 for one run a GPU")
    check_resources(wanted)
    return wanted


@contextlib.contextmanager
def at_home(folder: str, cache: str | None) -> Iterator[None]:
    """In a task, the working directory and the cache directory of the process that sent it, where these exist."""
    if cache:
        os.environ["OLLM_RL_CACHE"] = cache
    with contextlib.chdir(folder) if Path(folder).is_dir() else contextlib.nullcontext():
        yield


def _finish(task: ray.ObjectRef, path: Path) -> None:
    """Raise what went wrong."""
    try:
        ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, OLLMError | WorkerError):
            raise error.cause from None
        raise
    except RayError as error:
        raise WorkerError(f"{path}: {error}") from error
    if not path.is_dir():
        raise ConfigurationError(
            f"{path} was written, but is not on this machine. Set runs_dir to a directory that all machines see, and repeat."
        )


def _call(job: Callable[[], object], folder: str, cache: str | None) -> None:
    with at_home(folder, cache):
        job()
