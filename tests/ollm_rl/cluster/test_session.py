"""The same work on Ray workers as in one process, and on workers that are lost meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from agents.controls import BestPrefix, FirstDecisions, Local, Steer
from agents.grpo import GRPO
from agents.prior import Prior
from ollm_rl.cluster.session import ClusterSession
from ollm_rl.common.run_dir import Run
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.evaluation.replay import replay
from ollm_rl.experiments.oracle_run import search_policy
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.session.opening import open_session, task_of
from tests.conftest import QUICK_KEYS
from tests.ollm_rl.cluster.faulty import Once

pytestmark = pytest.mark.usefixtures("cluster")
QUICK = dict(total_episodes=96, num_generations=4, problems_per_iteration=8, num_problems=20, learning_rate=1e-3)
REWARD = "reward=tests.ollm_rl.cluster.faulty.reward"  # not all zero, as those of a random model are
KEYS = [*QUICK_KEYS, REWARD, "rollout.chunk=8", "rollout.num_cpus_per_worker=1", "rollout.hang_s=10"]


@pytest.fixture(scope="module")
def alone(own_cache):
    (own_cache / "reward-failed").touch()
    session = open_session(compose(KEYS))
    yield session
    session.close()


@pytest.fixture(scope="module")
def alone_trained(alone, tmp_path_factory):
    """Agent, metrics and run without any worker."""
    return trained(alone, tmp_path_factory.mktemp("alone"), "none")


@pytest.fixture(scope="module")
def spread(alone):
    """A driver with two workers, on policy unless a test says otherwise."""
    session = workers(2, "rollout.max_staleness=1")
    assert session.max_staleness == 1
    session.max_staleness = 0
    yield session
    session.close()


def workers(n, *more):
    settings = compose([*KEYS, f"rollout.num_workers={n}", *more])
    return ClusterSession(settings, task_of(settings.config))


def trained(session, folder, name, **settings):
    agent, run = GRPO(session, **QUICK, **settings), Run(folder, name, "")
    agent.learn(run)
    own = [{k: v for k, v in m.items() if not k.startswith(("time/", "ray/", "train_seconds"))} for m in run.metrics()]
    return agent, own, run


@pytest.mark.parametrize("kind", [Steer, FirstDecisions, Local, BestPrefix])
def test_controls_learn_on_workers_too(kind, alone, spread, tmp_path):
    settings = dict(num_problems=6, num_openings=4) if kind is BestPrefix else {**QUICK, "total_episodes": 32}
    said = []
    for name, session in (("alone", alone), ("two", spread)):
        agent, run = kind(session, **settings), Run(tmp_path, name, "")
        agent.learn(run)
        said.append([m["reward"] for m in run.metrics()])
        assert kind is BestPrefix or agent.identity() != Prior(session).identity()
    # Later iterations may differ in the last digit where processes have unequal numbers of threads.
    assert said[0][0] == said[1][0] and len(said[0]) == len(said[1])


def test_grpo_is_the_same_with_no_worker_one_and_two(alone_trained, spread, tmp_path):
    agent, metrics, _ = alone_trained
    assert metrics[0]["reward"] > 0 and metrics[-1]["kl_from_prior"] > 0
    one = workers(1)
    try:
        for name, session in (("one", one), ("two", spread)):
            other, same, run = trained(session, tmp_path, name)
            assert same == metrics
            assert all(
                torch.equal(a, b) for a, b in zip(agent.policy.parameters(), other.policy.parameters(), strict=True)
            )
            assert run.metrics()[0]["ray/bytes_per_episode"] > 100
            assert run.metrics()[0]["ray/broadcast_s"] > 0
    finally:
        one.close()


def test_evaluation_oracle_and_replay_are_the_same(alone, spread):
    problems = alone.problems("test", 6, 1)
    here = evaluate(alone, Prior(alone), "prior", problems, 8)
    there = evaluate(spread, Prior(spread), "prior", problems, 8)
    assert there.row == here.row
    assert [e.to_dict() for e in there.greedy] == [e.to_dict() for e in here.greedy]
    assert spread.run_on_model(replay, there.greedy[:2]) == replay(alone, here.greedy[:2])
    settings = compose(KEYS)
    searches = [Oracle(s, search_policy(s, settings), budget=60).solve(problems) for s in (alone, spread)]
    for one, other in zip(
        *searches, strict=True
    ):  # searched beside others than here: log-probabilities to their last digit
        a, b = one.record(), other.record()
        assert [c.log_prob for c in a.pop("choices")] == pytest.approx([c.log_prob for c in b.pop("choices")], abs=1e-5)
        assert a == b


def test_the_driver_has_no_model(spread):
    with pytest.raises(ConfigurationError, match="is on Ray workers"):
        _ = spread.backbone.model
    with pytest.raises(ConfigurationError, match="engine is on Ray workers"):
        _ = spread.engine


@pytest.mark.slow
def test_a_worker_killed_and_one_stopped_during_training(alone_trained, spread, tmp_path, monkeypatch):
    """None of their episodes is lost, counted twice or different."""
    import ray

    agent, metrics, _ = alone_trained
    update, signals = GRPO._update, [signal.SIGKILL, signal.SIGSTOP]

    def disturbed(self, episodes, iteration):
        if signals:
            place = spread.pool._places[len(signals) % 2]
            os.kill(ray.get(place.actor.pid.remote()), signals.pop())
        return update(self, episodes, iteration)

    monkeypatch.setattr(GRPO, "_update", disturbed)
    before = len(spread.pool.failures)
    other, same, run = trained(spread, tmp_path, "disturbed")
    assert same == metrics
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), other.policy.parameters(), strict=True))
    assert sorted(f.kind for f in spread.pool.failures[before:]) == ["died", "hung"]
    assert sum(len((run.path / "rollouts" / f"train_{i}.jsonl").read_text().splitlines()) for i in (1, 2, 3)) == 96


def test_asynchronous_rollouts_know_their_policy_and_are_never_too_old(spread, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "max_staleness", 1)
    _, metrics, run = trained(spread, tmp_path, "ahead")
    assert [m["train_episodes"] for m in metrics] == [32, 64, 96]
    assert all(0 <= m["staleness"] <= 1 for m in metrics)
    assert metrics[0]["staleness"] == 0
    for step in (1, 2, 3):
        lines = (run.path / "rollouts" / f"train_{step}.jsonl").read_text().splitlines()
        assert {json.loads(line)["policy_version"] for line in lines} <= {step - 1, step - 2}


def test_errors_in_rollout_and_verifier_are_survived_and_reported(
    own_cache, alone_trained, spread, tmp_path, monkeypatch
):
    """The same metrics and weights as without them."""
    agent, metrics, _ = alone_trained
    for name in ("reward-failed", "policy-failed"):
        (own_cache / name).unlink(missing_ok=True)
    monkeypatch.setattr("agents.grpo.Sampling", Once)
    before, raised = len(spread.pool.failures), spread.metrics()["ray/raised"]
    other, same, run = trained(spread, tmp_path, "faulty")
    errors = [f.error for f in spread.pool.failures[before:]]
    assert len(errors) == 2
    assert any("the verifier broke" in e for e in errors) and any("the environment broke" in e for e in errors)
    assert run.metrics()[-1]["ray/raised"] == raised + 2
    assert same == metrics
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), other.policy.parameters(), strict=True))


@pytest.mark.slow  # for its length: it loads no real model
def test_a_driver_that_is_killed_continues_to_the_same_result(own_cache, tmp_path):
    words = ["train", "agent=grpo", *KEYS, *(f"agent.{k}={v}" for k, v in QUICK.items()), f"runs_dir={tmp_path}"]
    more = [f"agent.total_episodes={2 * QUICK['total_episodes']}", "rollout.num_workers=1"]
    command = [sys.executable, "-m", "ollm_rl", *words, *more]
    subprocess.run([*command, "name=whole"], check=True, capture_output=True)
    with subprocess.Popen([*command, "name=cut"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while not (tmp_path / "cut" / "checkpoints" / "latest").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    assert not (tmp_path / "cut" / "results.json").exists()
    subprocess.run([*command, "name=cut"], check=True, capture_output=True)
    whole, cut = (load_file(tmp_path / name / "policy" / "policy.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    steps = [json.loads(x)["train_episodes"] for x in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [32 * i for i in range(1, 7)]


def at_hidden_states(session, seconds):
    """For so long, and no step of an engine."""
    from ollm_rl.options.hidden_cache import compute_hidden_states

    end, problems = time.monotonic() + seconds, session.problems("train", 20)
    while time.monotonic() < end:
        compute_hidden_states(session.backbone, session.prompter, problems, 20)
    return True


@pytest.mark.slow
def test_a_worker_that_computes_hidden_states_does_not_hang(spread, monkeypatch):
    monkeypatch.setattr(spread.pool, "hang_s", 4)
    failures = len(spread.pool.failures)
    assert spread.run_on_model(at_hidden_states, 8)
    assert len(spread.pool.failures) == failures
