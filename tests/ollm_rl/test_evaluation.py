"""Intervals, pass@k and misbehaviour against values worked out by hand."""

import itertools

import pytest

from ollm_rl.evaluation import foreign_script, pass_at_k, repeats, wilson


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
