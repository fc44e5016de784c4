"""Expert iteration on the tiny model."""

import pytest
import torch

from agents.distill import Distill
from agents.prior import Prior
from ollm_rl.errors import ConfigurationError
from ollm_rl.oracle import Search
from ollm_rl.oracle.search import Frontier
from ollm_rl.runs import Run, whole_lines
from ollm_rl.trajectory import Decisions


def small(tiny, **settings) -> Distill:
    return Distill(tiny, **{"rounds": 2, "problems_per_round": 12, "budget": 120, "width": 4, "epochs": 30} | settings)


def even(episodes):
    for e in episodes:
        e.reward = float(sum(e.tokens) % 4 == 0)


def test_it_makes_the_solved_texts_likelier(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "judge", even)
    agent, run = small(tiny), Run(tmp_path, "distill", "")
    cost = agent.learn(run)
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


def test_interrupted_it_ends_with_the_same_policy(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "judge", even)
    whole, resumed = small(tiny), small(tiny)
    whole.learn(Run(tmp_path, "whole", ""))
    run = Run(tmp_path, "resumed", "")
    short = small(tiny, rounds=1)
    short.learn(run)
    lines = (run.path / "round_1.jsonl").read_text().splitlines(keepends=True)
    (run.path / "round_1.jsonl").write_text("".join(lines[:5]))
    resumed.learn(run)
    for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_settings_that_make_no_sense_are_refused(tiny):
    with pytest.raises(ConfigurationError, match="rounds=0"):
        Distill(tiny, rounds=0)
