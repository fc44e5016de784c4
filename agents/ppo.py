"""PPO on latents with RLlib: its learner and its checkpoints, whole episodes from our rollout engine.

Proximal policy optimisation (Schulman et al. 2017) with a value head on h, gamma 1, and decision points only. Other
algorithms of RLlib for discrete actions take PPO's place by name (`algorithm`), with their own settings under `training`.
"""

import json
import logging
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import PolicyAgent
from agents.config import PPOConfig
from ollm_rl.common.finite import check_finite, check_weights
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run, policy_dir
from ollm_rl.errors import ConfigurationError, WorkerError
from ollm_rl.options.policies import Critic, LatentPolicy
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session
from ollm_rl.session.opening import open_in_worker
from ollm_rl.session.transport import make_current

try:
    import ray
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import get_trainable_cls

    from agents.rllib import EpisodeRunner, Errors, LatentModule, PriorKLLearner, spaces
    from ollm_rl.cluster.pool import start_ray
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"agent=ppo needs RLlib ({error}). Install it with `pip install 'ollm_rl[rllib]'`."
    ) from error

log = logging.getLogger(__name__)
MAX_FAILURES, PAUSE_S = 5, 1.0  # iterations in a row without samples that end training; seconds before the second
FIGURES = (
    "policy_loss", "vf_loss", "vf_explained_var", "entropy", "kl_from_prior", "mean_kl_loss",
    "gradients_default_optimizer_global_norm", "num_module_steps_trained",
)  # fmt: skip


class PPO(PolicyAgent):
    """RLlib's PPO, or another of its algorithms, on pi(z | h). Its settings are those of `PPOConfig`."""

    learns_from_rewards = trains_on = True

    config_class = PPOConfig
    config: PPOConfig

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        self.policy = LatentPolicy.from_prior(session.plugin)
        self.critic = Critic.beside(session.plugin, self.config.value_width)
        if self.config.path is not None:
            self.load(policy_dir(self.config.path))
        self.errors: Any = None  # what went wrong in runners that are other processes
        self.counters: dict[str, Any] = {"iteration": 0, "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}

    def prepare(self, run: Run) -> None:
        """There are problems to train on: said before anything is evaluated."""
        self.session.problems("train", self.config.num_problems, self.session.seed)

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        make_current(self.session)  # what the session in RLlib's configuration becomes when that is copied
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # its warnings are about its own defaults
        start_ray(num_cpus=self.config.num_env_runners + 4)  # its learner and aggregators are actors too
        self.errors = ray.remote(num_cpus=0)(Errors).remote() if self.config.num_env_runners else None
        algorithm = self._config().build_algo()
        try:
            return self._train(algorithm, run, callbacks)
        finally:
            algorithm.stop()
            shutil.rmtree(algorithm.logdir, ignore_errors=True)  # RLlib's own logs, empty: ours are in the run

    def _train(self, algorithm: Any, run: Run, callbacks: Callbacks) -> dict:
        counters = self.counters
        latest = run.latest_checkpoint()
        run.truncate_metrics(latest[0] if latest else 0)
        if latest is not None:
            algorithm.restore_from_path(str((Path(latest[1]) / "rllib").absolute()))
            counters |= json.loads((Path(latest[1]) / "counters.json").read_text())
            self._take(algorithm)
        failed = 0  # iterations in a row
        with track("ppo", self.config.total_episodes, "episodes", counters["train_episodes"]) as bar:
            while counters["train_episodes"] < self.config.total_episodes:
                start, number = time.monotonic(), counters["iteration"] + 1
                self._seed(number)
                algorithm.env_runner_group.foreach_env_runner(lambda runner, n=number: _begin(runner, n))
                result = algorithm.train()
                took = time.monotonic() - start
                sampled = result.get("env_runners", {})
                if not sampled.get("ollm_episodes"):  # all runners were lost; RLlib starts them again
                    self._wait(failed := failed + 1)
                    continue
                failed = 0
                n = int(sampled["ollm_episodes"])
                learned = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
                self._check(algorithm, learned)
                counters["iteration"] += 1
                counters["train_episodes"] += n
                counters["train_tokens"] += int(sampled["ollm_tokens"])
                counters["train_seconds"] += took
                step = counters["iteration"]
                figures = {
                    "reward": sampled["ollm_solved"] / n,
                    "no_answer_rate": sampled["ollm_no_answer"] / n,
                    "unjudged_rate": sampled["ollm_unjudged"] / n,
                    "completions/clipped_ratio": sampled["ollm_truncated"] / n,
                    "completions/mean_length": sampled["ollm_tokens"] / n,
                    "decisions/mean": sampled.get("num_env_steps_sampled", 0) / n,
                    **_parts(sampled),
                    **_metrics(learned),
                    "time/iteration_s": took,
                }
                metrics = {**counters, **figures, **self.session.metrics()}
                wanted = callbacks.on_iteration_end(self, step, metrics)
                run.log_metrics(step, metrics)
                last = counters["train_episodes"] >= self.config.total_episodes
                if step % self.config.save_every == 0 or last or not wanted:
                    run.save_checkpoint(step, partial(self._write_checkpoint, algorithm))
                bar.advance(n, f"reward {figures['reward']:.3f}")
                if not wanted:
                    break
        self._take(algorithm)
        return {k: v for k, v in counters.items() if k != "iteration"}

    def _wait(self, failed: int) -> None:
        """Let runners start again after an iteration without samples, the longer the more there were in a row.

        Raises:
            WorkerError: there were too many.
        """
        first = ray.get(self.errors.first.remote()) if self.errors is not None else None
        if failed >= MAX_FAILURES:
            raise WorkerError(
                f"{failed} iterations in a row without an episode: RLlib's runners fail. The first error of one:\n"
                f"{first or 'none was seen: their processes ended (killed, or out of memory?)'}\n"
                "Mend that, then run the same command again to continue."
            )
        log.warning("an iteration without an episode: all runners were lost; they are started again")
        time.sleep(min(PAUSE_S * 2**failed, 60))

    def _check(self, algorithm: Any, learned: dict) -> None:
        """What the update made of the policy is finite.

        Raises:
            TrainingError: it is not.
        """
        for name in ("policy_loss", "vf_loss", "total_loss"):
            if name in learned:
                check_finite(f"RLlib's {name}", float(learned[name]))
        self._take(algorithm)
        check_weights("the policy", self.policy)
        check_weights("the critic", self.critic)

    def _seed(self, iteration: int) -> None:
        """RLlib shuffles minibatches with the process's random numbers: they start anew in every iteration."""
        seed = int(np.random.default_rng((self.session.seed, iteration)).integers(2**31))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def _config(self) -> Any:
        """RLlib's configuration."""
        session = self.session
        seen, chosen = spaces(session)
        sizes = {k: getattr(self.policy, k) for k in ("hidden_size", "width", "num_options", "depth")}
        weights = {k: v.cpu().numpy() for k, v in self.policy.state_dict().items()}
        module = RLModuleSpec(
            module_class=LatentModule, observation_space=seen, action_space=chosen,
            model_config={"sizes": sizes, "weights": weights, "value_width": self.config.value_width},
        )  # fmt: skip
        try:
            config = get_trainable_cls(self.config.algorithm).get_default_config()
        except Exception as error:
            raise ConfigurationError(
                f"agent.algorithm={self.config.algorithm!r}: RLlib has no such algorithm; expected PPO, APPO or IMPALA"
            ) from error
        mine: dict[str, Any] = {
            "gamma": 1.0, "lr": self.config.learning_rate, "grad_clip": self.config.grad_clip,
            "entropy_coeff": self.config.entropy_coeff, "vf_loss_coeff": self.config.vf_loss_coeff,
            "train_batch_size_per_learner": self.config.minibatch_size,
        }  # fmt: skip
        if self.config.algorithm == "PPO":
            mine |= {
                "lambda_": self.config.gae_lambda, "clip_param": self.config.clip_param, "use_kl_loss": False, "vf_clip_param": 10.0,
                "num_epochs": self.config.num_epochs, "minibatch_size": self.config.minibatch_size,
            }  # fmt: skip
            config.learners(learner_class=PriorKLLearner, learner_config_dict={"beta": self.config.beta})
        runners = max(1, self.config.num_env_runners)
        return (
            config.environment(
                "ollm_rl/LatentReasoning-v0", observation_space=seen, action_space=chosen,
                env_config={
                    "open": self._opener(), "episodes": -(-self.config.episodes_per_iteration // runners), "together": self.config.episodes_per_problem,
                    "problems": self.config.num_problems, "min_entropy": self.config.min_entropy, "seed": session.seed,
                    "errors": self.errors,
                },
            )
            .env_runners(
                env_runner_cls=EpisodeRunner, num_env_runners=self.config.num_env_runners, num_envs_per_env_runner=1,
                create_env_on_local_worker=self.config.num_env_runners == 0, sample_timeout_s=3600.0,
            )
            .reporting(min_time_s_per_iteration=None)
            .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=PAUSE_S)
            .rl_module(rl_module_spec=module)
            .debugging(seed=session.seed, log_level="ERROR")
            .training(**(mine | self.config.training))
        )  # fmt: skip

    def _opener(self) -> Callable[[], Session]:
        """How a runner comes by its session: it is this process's, or one of its own."""
        session = self.session
        if not self.config.num_env_runners:
            return lambda: session
        if session.serialized_settings is None:
            raise ConfigurationError(
                "agent.num_env_runners needs a session opened from a configuration (ollm_rl.session.opening.open_session)"
            )
        return partial(open_in_worker, session.serialized_settings, session.seed)

    def _take(self, algorithm: Any) -> None:
        """The learner's weights as ours."""
        module = algorithm.get_module()
        self.policy.load_state_dict(module.policy.state_dict())
        self.critic.load_state_dict(module.critic.state_dict())

    def save_weights(self, path: Path) -> None:
        """The policy, and the critic beside it (for `oracle.critic`)."""
        super().save_weights(path)
        self.critic.save_pretrained(path, self.session.backbone.fingerprint)

    def _write_checkpoint(self, algorithm: Any, path: Path) -> None:
        """RLlib's own for resuming, our policy beside it for everything else."""
        self._take(algorithm)
        self.save(path, plugin=False)
        algorithm.save_to_path(str((path / "rllib").absolute()))
        (path / "counters.json").write_text(json.dumps(self.counters))


def _begin(runner: EpisodeRunner, iteration: int) -> None:
    if runner.env is not None:
        runner.begin(iteration)


def _parts(sampled: dict) -> dict[str, float]:
    """Mean and deviation of each of several rewards, under the names that GRPO logs them under."""
    found: dict[str, float] = {}
    for name in [key.removeprefix("ollm_part0_") for key in sampled if key.startswith("ollm_part0_")]:
        n, total, squares = (float(sampled[f"ollm_part{moment}_{name}"]) for moment in range(3))
        mean = total / n
        found |= {f"rewards/{name}/mean": mean, f"rewards/{name}/std": max(0.0, squares / n - mean**2) ** 0.5}
    return found


def _metrics(values: dict) -> dict[str, float]:
    """What RLlib's learner says of an update."""
    return {f"rllib/{k}": float(values[k]) for k in FIGURES if k in values and np.isfinite(values[k])}
