"""Several runs at once, each a task of a Ray cluster."""

import logging
from collections.abc import Callable, Mapping

import ray
from omegaconf import DictConfig

from ollm_rl.cluster.pool import start_ray

log = logging.getLogger(__name__)


def side_by_side(jobs: Mapping[str, Callable[[], object]], rollout: DictConfig) -> None:
    """Call all `jobs` (by name); tasks ask for a worker's resources, or for little if they have workers.

    Raises:
        the first failure of a job; the others are stopped. Each is a run that can be resumed.
    """
    start_ray(rollout.address)
    alone = not rollout.num_workers
    task = ray.remote(
        num_cpus=rollout.num_cpus_per_worker if alone else 0.1, num_gpus=rollout.num_gpus_per_worker if alone else 0,
        max_retries=2,
    )(_call)  # fmt: skip
    waiting = {task.remote(job): name for name, job in jobs.items()}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            ray.get(done[0])
            log.info("%s: done, %d to go", waiting.pop(done[0]), len(waiting))
    finally:
        for left in waiting:
            ray.cancel(left)


def _call(job: Callable[[], object]) -> None:
    job()
