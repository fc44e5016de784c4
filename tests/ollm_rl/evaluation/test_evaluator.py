"""Intervals, pass@k and degeneration against values worked out by hand."""

import itertools

import pytest

from agents.prior import Prior
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.evaluation.metrics import (
    breakdown,
    foreign_script,
    majority,
    pass_at_k,
    pool_breakdowns,
    repeats,
    sampled_metric,
    sampled_metrics,
    samples_of,
    wilson,
)
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
    assert {k: (v["n"], v["accuracy"]) for k, v in found["domain"].items()} == {
        "Algebra": (2, 0.5),
        "Geometry": (2, 0.5),
    }
    assert list(found["difficulty"]) == ["1.5", "2.0", "10"] and "source" not in found
    many = breakdown([(problem("G", i / 4), i % 2 == 0) for i in range(40)])["difficulty"]
    assert list(many)[:2] == ["0 to 1", "1 to 2"] and many["9 to 10"]["n"] == 4
    twice = pool_breakdowns([found, found])
    assert twice["domain"]["Algebra"]["n"] == 4 and twice["domain"]["Algebra"]["accuracy"] == 0.5


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
    found = sampled_metrics([e for group in groups for e in episodes(*group)], k)
    assert found[f"avg@{k}"] == pytest.approx((1 + 0 + 1 / k) / 3)
    assert found[f"pass@{k}"] == pytest.approx(2 / 3)
    assert found[f"maj@{k}"] == pytest.approx(2 / 3 if k == 1 else 1 / 3)
    assert ("avg_at_8" in found and found["pass_at_8"] == found["pass@8"]) == (k == 8)
    assert samples_of([found, {"avg_at_8": None}]) == [k]


def test_no_samples_have_no_figures(tiny):
    assert sampled_metrics([], 0) == sampled_metrics(episodes("2"), 0) == {}
    row = evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 3), 0).row
    assert not [key for key in row if key.startswith(("avg", "pass", "maj"))]
    with pytest.raises(ConfigurationError, match="evaluate.samples=-1; expected 0 or more"):
        evaluate(tiny, Prior(tiny), "prior", tiny.problems("test", 3), -1)


def test_a_reward_that_is_not_about_answers_has_no_majority():
    texts = [Episode(Problem("", "", "2"), reward=1.0)] * 4
    assert sampled_metrics(texts, 4) == {"avg@4": 1.0, "pass@4": 1.0, "maj@4": None}


def test_files_of_earlier_releases_are_read():
    rows = [{"avg_at_4": 0.5, "pass_at_4": 0.75}, {"avg@8": 0.25, "avg_at_8": 0.25, "pass@8": 0.5}, {"avg_at_16": None}]
    assert samples_of(rows) == [4, 8]
    assert sampled_metric(rows[0], "pass", 4) == 0.75 and sampled_metric(rows[0], "pass", 8) is None
