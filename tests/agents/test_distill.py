"""Expert iteration on the tiny model."""

import pickle

import pytest
import torch

from agents.distill import Distill
from agents.prior import Prior
from ollm_rl.common.run_dir import Run, whole_lines
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.options.policies import Sampling
from ollm_rl.oracle.search import Frontier, Search
from ollm_rl.oracle.teacher import _Following
from ollm_rl.rollout.episode import Decisions
from ollm_rl.rollout.sampler import Request, _Row


def small(tiny, **settings) -> Distill:
    return Distill(tiny, **{"rounds": 2, "problems_per_round": 12, "budget": 120, "width": 4, "epochs": 30} | settings)


def even(episodes, prompter=None):
    for e in episodes:
        e.reward = float(sum(e.tokens) % 4 == 0)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An agent that nobody interrupted, its run and what it took."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny, "judge", even)
        agent, run = small(tiny), Run(tmp_path_factory.mktemp("distill"), "whole", "")
        return agent, run, agent.learn(run)


def test_it_makes_the_solved_texts_likelier(tiny, whole, monkeypatch):
    monkeypatch.setattr(tiny, "judge", even)
    agent, run, cost = whole
    assert cost["train_tokens"] > 0 and cost["train_episodes"] >= 24
    solved = agent._play(list(_solutions(tiny, run)))
    data = Decisions.of([e for e in solved if e.num_decisions])
    with torch.no_grad():
        new = agent.policy(data.hidden, data.mask).gather(1, data.z[:, None]).mean()
        old = Prior(tiny).policy(data.hidden, data.mask).gather(1, data.z[:, None]).mean()
    assert new > old + 0.1
    assert len(list((run.path / "rollouts").glob("round_*.jsonl"))) == 2


def _solutions(tiny, run):
    problems = {p.id: p for p in tiny.problems("train", 24, tiny.seed)}
    for record in whole_lines(run.path / "round_2.jsonl"):
        search = Search(problems[record["problem_id"]], Frontier())
        search.restore(record)
        if search.solution is not None:
            yield search.solution


def test_interrupted_it_ends_with_the_same_policy(tiny, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "judge", even)
    resumed = small(tiny)
    run = Run(tmp_path, "resumed", "")
    short = small(tiny, rounds=1)
    short.learn(run)
    lines = (run.path / "round_1.jsonl").read_text().splitlines(keepends=True)
    (run.path / "round_1.jsonl").write_text("".join(lines[:5]))
    resumed.learn(run)
    for a, b in zip(whole[0].policy.parameters(), resumed.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_settings_that_make_no_sense_are_refused(tiny):
    with pytest.raises(ConfigurationError, match="rounds=0"):
        Distill(tiny, rounds=0)


@pytest.mark.slow
def test_resumed_it_logs_every_round_once(tiny, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "judge", even)
    run = whole[1]
    parts = Run(tmp_path, "parts", "")
    small(tiny, rounds=1).learn(parts)
    again = small(tiny)
    cost = again.learn(parts)
    assert [m["step"] for m in parts.metrics()] == [1, 2]
    assert parts.metrics() == run.metrics()
    for name in ("round_1", "round_2"):
        one, other = (whole_lines(r.path / "rollouts" / f"{name}.jsonl") for r in (run, parts))
        assert one == other
    finished = small(tiny)
    assert finished.learn(parts) == cost  # what it took is kept too
    assert parts.metrics() == run.metrics()
    for a, b in zip(again.policy.parameters(), finished.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_more_rounds_than_problems_are_refused(tiny, tmp_path, monkeypatch):
    problems = tiny.task.problems
    monkeypatch.setattr(tiny, "judge", even)
    monkeypatch.setattr(tiny.task, "problems", lambda split, n, seed=0: problems(split, min(n, 12), seed))
    with pytest.raises(DataError, match="need more problems than the 12"):
        small(tiny).learn(Run(tmp_path, "run", ""))


def test_texts_that_are_played_again_by_a_worker_are_the_same(tiny, monkeypatch):
    """A worker that was lost in the middle leaves nothing behind that its successor goes on with."""
    agent = small(tiny)
    found = tiny.rollout([Request(p, i) for i, p in enumerate(tiny.problems("train", 8))], Sampling(agent.policy))
    assert sum(len([z for z in e.latents if z >= 0]) > 1 for e in found) > 2
    whole = agent._play(found)
    assert [e.tokens for e in whole] == [e.tokens for e in found]

    def lost_once(function, items, *args):
        sent = pickle.loads(pickle.dumps((items, args)))  # as a cluster does, which keeps what it got
        decide, calls = _Row.decide, []

        def fails(self, *given):
            calls.append(1)
            if len(calls) == 5:
                raise RuntimeError("the worker is lost")
            decide(self, *given)

        with monkeypatch.context() as lost:
            lost.setattr(_Row, "decide", fails)
            with pytest.raises(RuntimeError, match="is lost"):
                list(function(tiny, sent[0], *sent[1]))
        yield from function(tiny, sent[0], *sent[1])

    monkeypatch.setattr(tiny, "map", lost_once)
    again = agent._play(found)
    assert [e.to_dict() for e in again] == [e.to_dict() for e in whole]
    assert all(
        torch.equal(a.z, b.z) and torch.equal(a.hidden, b.hidden)
        for a, b in zip(again, whole, strict=True)
        if a.z is not None
    )


def test_a_policy_that_keeps_its_place_is_not_sent(tiny):
    with pytest.raises(TypeError, match="send the latents"):
        pickle.dumps(_Following([1, 2], tiny))
