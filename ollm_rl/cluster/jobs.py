"""Several runs at once, each a task of a Ray cluster."""

import logging
from collections.abc import Sequence
from pathlib import Path

import ray
from omegaconf import DictConfig

from ollm_rl.cluster.pool import start_ray
from ollm_rl.config import compose, preflight

log = logging.getLogger(__name__)


def side_by_side(
    verb: str, jobs: Sequence[list[str]], folders: Sequence[Path], address: str, rollout: DictConfig
) -> None:
    """Run a verb with every list of overrides; tasks ask for a worker's resources, or for little if they have workers."""
    start_ray(address)
    alone = not rollout.num_workers
    task = ray.remote(
        num_cpus=rollout.num_cpus_per_worker if alone else 0.1, num_gpus=rollout.num_gpus_per_worker if alone else 0,
        max_retries=2,
    )(_job)  # fmt: skip
    waiting = {task.remote(verb, job): folder for job, folder in zip(jobs, folders, strict=True)}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        ray.get(done[0])
        log.info("%s: done, %d to go", waiting.pop(done[0]), len(waiting))


def _job(verb: str, overrides: list[str]) -> None:
    from ollm_rl.cli import VERBS

    settings = compose(overrides)
    preflight(settings.config)
    VERBS[verb](settings, overrides)
