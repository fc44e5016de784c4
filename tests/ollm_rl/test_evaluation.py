"""Intervals, pass@k and misbehaviour against values worked out by hand."""

import itertools

import pytest

from ollm_rl.evaluation import breakdown, foreign_script, pass_at_k, pool_breakdowns, repeats, wilson
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
