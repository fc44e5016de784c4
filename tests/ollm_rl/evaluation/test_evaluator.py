"""Intervals, pass@k and degeneration against values worked out by hand."""

import itertools
import json

import pytest

from agents.prior import Prior
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.evaluator import agent_name, evaluate, evaluate_agent
from ollm_rl.evaluation.metrics import (
    breakdown,
    foreign_script,
    majority,
    pass_at_k,
    pool_breakdowns,
    repeats,
    sampled_metrics,
    wilson,
)
from ollm_rl.evaluation.records import Sampled
from ollm_rl.evaluation.results import Results
from ollm_rl.report.html import write_report
from ollm_rl.rollout.episode import Episode
from ollm_rl.tasks import Problem


def test_wilson():
    low, high = wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(8, 0, 8), (8, 1, 8), (8, 3, 4), (5, 2, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n, c, k):
    tries = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(tries, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_misbehaviour():
    assert repeats("one two three four five six " * 3)
    assert not repeats("6 + 0 = 6\n6 - 1 = 5\nThe answer is 5.")
    assert foreign_script("答え 5") and not foreign_script("α + é = 5")


def test_breakdown():
    """A problem counts in each of its domains; a column in which all are alike is left out."""

    def problem(domain, difficulty):
        return Problem("", "", "", None, {"domain": domain, "difficulty": difficulty, "source": "A"})

    judged = [
        (problem(["Mathematics -> Algebra -> X", "Mathematics -> Algebra -> Y"], 1.5), True),
        (problem(["Mathematics -> Algebra -> X", "Mathematics -> Geometry"], 2.0), False),
        (problem("Geometry", 10), True),
    ]
    found = breakdown(judged)
    assert {k: (v.n, v.accuracy) for k, v in found["domain"].items()} == {
        "Algebra": (2, 0.5),
        "Geometry": (2, 0.5),
    }
    assert list(found["difficulty"]) == ["1.5", "2.0", "10"] and "source" not in found
    many = breakdown([(problem("G", i / 4), i % 2 == 0) for i in range(40)])["difficulty"]
    assert list(many)[:2] == ["0 to 1", "1 to 2"] and many["9 to 10"].n == 4
    twice = pool_breakdowns([found, found])
    assert twice["domain"]["Algebra"].n == 4 and twice["domain"]["Algebra"].accuracy == 0.5


def episodes(*answers: str | None, gold: str = "2") -> list[Episode]:
    return [Episode(Problem("", "", gold), answer=a, reward=float(a in (gold, f"{gold}.0", "4/2"))) for a in answers]


def test_majorities():
    assert majority(episodes("2", "3", "2.0", "4/2", "3")) == 1.0  # one answer, however it is written
    assert majority(episodes("3", "3", "2", None, None, None)) == 0.0  # who says nothing does not vote
    assert majority(episodes("3", "2")) == 0.5  # a tie
    assert majority(episodes(None, None)) == 0.0
    assert majority(episodes("9" * 3000, "9" * 3000, "2")) == 0.0


@pytest.mark.parametrize("k", [1, 3, 4, 8, 16])
def test_figures_of_any_number_of_samples(k):
    groups = [["2"] * k, ["3"] * k, ["2"] + ["3"] * (k - 1)]
    [(measured, found)] = sampled_metrics([e for group in groups for e in episodes(*group)], k).items()
    assert measured == k
    assert found.avg == pytest.approx((1 + 0 + 1 / k) / 3)
    assert found.pass_ == pytest.approx(2 / 3)
    assert found.maj == pytest.approx(2 / 3 if k == 1 else 1 / 3)


def test_no_samples_have_no_figures(tiny):
    assert sampled_metrics([], 0) == sampled_metrics(episodes("2"), 0) == {}
    row = evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 3), 0).row
    assert not row.sampled
    assert not [key for key in row.to_dict() if key.startswith(("avg", "pass", "maj"))]
    with pytest.raises(ConfigurationError, match="evaluate.samples=-1; expected an integer from 0"):
        evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 3), -1)


def test_a_reward_that_is_not_about_answers_has_no_majority():
    texts = [Episode(Problem("", "", "2"), reward=1.0)] * 4
    assert sampled_metrics(texts, 4) == {4: Sampled(1.0, 1.0, None)}


def test_an_agent_is_evaluated_in_one_call(tiny, tmp_path):
    results = evaluate_agent(tiny, Prior(tiny), num_problems=5, samples=2, seed=3)
    assert (results.task, results.backbone, results.directory) == ("chain_sum", tiny.backbone.name, None)
    [row] = results.rows
    whole = evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 5, 3), 2, 3)
    assert row == whole.row and row.agent == "prior" and row.seed == 3 and list(row.sampled) == [2]
    with pytest.raises(ConfigurationError, match="num_problems=0; expected an integer from 1"):
        evaluate_agent(tiny, Prior(tiny), num_problems=0)


def test_what_is_evaluated_where_it_was_learned_is_kept_there(tiny, tmp_path):
    agent = Prior(tiny)
    agent.run_dir = tmp_path / "run"
    agent.run_dir.mkdir()
    lines = [{"step": i, "train_episodes": 64 * i, "train_seconds": 2.0 * i, "reward": 0.5} for i in (1, 2)]
    (agent.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = evaluate_agent(tiny, agent, num_problems=3, samples=2)
    [row] = results.rows
    assert (row.train_episodes, row.train_seconds, row.directory) == (128, 4.0, agent.run_dir)
    written = {
        name: (agent.run_dir / "rollouts" / f"{name}.jsonl").read_text().splitlines() for name in ("greedy", "sampled")
    }
    assert [len(lines) for lines in written.values()] == [3, 6]
    assert Results.load(agent.run_dir).rows == results.rows
    page = write_report(agent.run_dir).read_text()
    assert 'class="episode' in page and 'alt="learning_curve"' in page
    evaluate_agent(tiny, agent, num_problems=2, samples=0, directory=tmp_path / "elsewhere")
    assert Results.load(tmp_path / "elsewhere").rows[0].n_problems == 2


def test_an_agent_from_outside_is_called_by_its_class(tiny):
    class Stubborn(Prior):
        pass

    assert agent_name(Stubborn(tiny)) == "Stubborn" and agent_name(Prior(tiny)) == "prior"
