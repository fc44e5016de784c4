"""PPO with RLlib: it learns, resumes, survives its runners, and leaves a policy that others can load."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ollm_rl as ol
from agents.grpo import GRPO
from agents.ppo import PPO
from agents.prior import Prior
from ollm_rl.common.run_dir import Run
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError, WorkerError
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.opening import open_session
from tests.agents.identity import accuracy, identity
from tests.conftest import QUICK_KEYS

pytestmark = pytest.mark.usefixtures("cluster")
QUICK = dict(total_episodes=96, episodes_per_iteration=32, num_problems=20, minibatch_size=16)


@pytest.mark.parametrize("agent", ["ppo", "grpo"])
def test_the_right_latent_is_learned_where_it_is_readable(tiny, tmp_path, monkeypatch, agent):
    session = identity(tiny, monkeypatch)
    common = dict(learning_rate=3e-3, beta=0.0, min_entropy=0.0, num_problems=1000, save_every=100)
    if agent == "ppo":
        sizes = dict(total_episodes=2560, episodes_per_iteration=256, episodes_per_problem=1)
        learner = PPO(session, **common, **sizes, entropy_coeff=0.01)
    else:
        learner = GRPO(session, **common, total_episodes=12_800, num_generations=8, pass_at_k=1, target_kl=0.0)
    before = accuracy(session, learner.policy)
    learner.learn(Run(tmp_path, agent, ""))
    session.__dict__.pop("engine", None)
    assert before < 0.6
    assert accuracy(session, learner.policy) >= 0.95


def test_metrics_count_whole_episodes(tiny, tmp_path):
    agent, run = PPO(tiny, **QUICK), Run(tmp_path, "ppo", "")
    counts = agent.learn(run)
    assert counts["train_episodes"] == 96
    lines = run.metrics()
    assert [m["train_episodes"] for m in lines] == [32, 64, 96]
    assert all(0 <= m["reward"] <= 1 and m["train_tokens"] > 0 for m in lines)
    path = run.latest_checkpoint()[1]
    other = Prior(tiny)
    other.load(path)
    for a, b in zip(agent.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def even(completions, **columns):
    return [float(len(c) % 2 == 0) for c in completions]


def short(completions, **columns):
    return [None if len(c) % 3 == 0 else 1.0 / (1 + len(c)) for c in completions]


def test_each_of_several_rewards_is_logged(tiny, tmp_path):
    rewards = ol.Weighted([even, short], weights=[1.0, 0.5])
    session = ol.Session(tiny.backbone, tiny.plugin, tiny.task, rewards, tiny.engine_settings)
    run, episodes = Run(tmp_path, "ppo", ""), []
    roll = session.rollout
    session.rollout = lambda *a, **k: episodes.append(roll(*a, **k)) or episodes[-1]
    PPO(session, **{**QUICK, "total_episodes": 32}).learn(run)
    [line], sampled = run.metrics(), episodes[0]
    for name in ("even", "short"):
        values = [e.parts[name] for e in sampled if name in e.parts]
        assert line[f"rewards/{name}/mean"] == pytest.approx(np.mean(values))
        assert line[f"rewards/{name}/std"] == pytest.approx(np.std(values), abs=1e-6)
    assert line["unjudged_rate"] == 0.0 and 0 < sum("short" in e.parts for e in sampled) < len(sampled)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tiny, tmp_path):
    whole, run = PPO(tiny, **QUICK), Run(tmp_path, "whole", "")
    whole.learn(run)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = Run(tmp_path, "cut", "")
    (cut.path / "checkpoints" / "latest").write_text("step_2\n")  # as a kill during the last iteration leaves it
    again = PPO(tiny, **QUICK)
    assert again.learn(cut)["train_episodes"] == 96
    assert [m["step"] for m in cut.metrics()] == [1, 2, 3]
    for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_runner_that_is_killed_is_replaced(own_cache, tmp_path, monkeypatch):
    session = open_session(compose([*QUICK_KEYS, "agent=ppo"]))
    killed, checkpoint = [], PPO._write_checkpoint

    def then_kill_one(self, algorithm, path):
        checkpoint(self, algorithm, path)
        if not killed:
            killed.extend(algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(PPO, "_write_checkpoint", then_kill_one)
    agent, run = PPO(session, **QUICK, num_env_runners=2), Run(tmp_path, "killed", "")
    counts = agent.learn(run)
    session.close()
    assert len(killed) == 2
    assert counts["train_episodes"] >= 96
    so_far = [0, *(m["train_episodes"] for m in run.metrics())]
    new = [b - a for a, b in zip(so_far, so_far[1:], strict=False)]
    assert sum(new) == counts["train_episodes"]
    assert all(n > 0 and n % 16 == 0 for n in new)  # whole samples of 16 from each runner that was there


def test_settings_are_checked(tiny):
    with pytest.raises(ConfigurationError, match="agent.minibatch_size=0; expected an integer from 1"):
        PPO(tiny, minibatch_size=0)
    with pytest.raises(ConfigurationError, match="RLlib has no such algorithm"):
        PPO(tiny, algorithm="PPPO")._config()
    with pytest.raises(ConfigurationError, match="num_env_runners needs a session opened from a configuration"):
        PPO(tiny, num_env_runners=1)._config()
    assert json.dumps(compose(["agent=ppo"]).config.agent.algorithm) == '"PPO"'


class Lost:
    """RLlib's algorithm when every runner fails."""

    iterations = 0
    env_runner_group = SimpleNamespace(foreach_env_runner=lambda _: None)

    def train(self):
        self.iterations += 1
        return {"env_runners": {}}


@pytest.mark.slow
def test_iterations_without_samples_end_with_the_first_error(tiny, tmp_path, monkeypatch):
    import ray

    from agents.rllib import EpisodeRunner, Errors

    monkeypatch.setattr("agents.ppo.PAUSE_S", 0.0)
    agent, algorithm, run = PPO(tiny, **QUICK), Lost(), Run(tmp_path, "lost", "")
    agent.errors = ray.remote(num_cpus=0)(Errors).remote()
    runner = object.__new__(EpisodeRunner)
    runner.config = SimpleNamespace(env_config={"errors": agent.errors})
    for text in ("the model is not there", "later"):
        with pytest.raises(RuntimeError), runner._reported():
            raise RuntimeError(text)
    with pytest.raises(WorkerError, match="(?s)5 iterations in a row without an episode.*the model is not there"):
        agent._train(algorithm, run, Callbacks())
    assert algorithm.iterations == 5 and not run.metrics()
