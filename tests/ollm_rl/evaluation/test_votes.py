"""Votes against enumeration of all subsets."""

import itertools
from collections import Counter

import numpy as np
import pytest

from ollm_rl.evaluation.votes import DRAWS, EXACT, Ballot, subsets
from ollm_rl.rollout.episode import Episode
from ollm_rl.tasks import Problem


def texts(*answers, gold="2", log_probs=()):
    found = [Episode(Problem("", "", gold), answer=a, reward=float(a in (gold, f"{gold}.0", "4/2"))) for a in answers]
    for text, log_prob in zip(found, log_probs, strict=False):
        text.log_prob = log_prob
    return found


def majority(*answers, **more):
    return Ballot(texts(*answers, **more)).majority()


def test_majorities():
    assert majority("2", "3", "2.0", "4/2", "3") == 1.0  # one answer, however it is written
    assert majority("3", "3", "2", None, None, None) == 0.0  # who says nothing does not vote
    assert majority(None, None) == 0.0
    assert majority("9" * 3000, "9" * 3000, "2") == 0.0
    one, other = (
        "def f(a):\n  for x in a:\n    s += x\n  return s",
        "def f(a):\n  for x in a:\n    s += x\n    return s",
    )
    assert Ballot(texts(one, other)).num_answers == 2  # code is compared as it stands


def test_a_tie_goes_to_the_likelier_texts():
    assert majority("3", "2") == 0.5  # nothing is known of them
    assert majority("3", "2", log_probs=(-4.0, -3.0)) == 1.0
    assert majority("3", "2", log_probs=(-2.0, -3.0)) == 0.0
    assert majority("3", "2", "2", "3", log_probs=(-1.0, -3.0, -1.0, -2.0)) == 0.0  # -3 against -4


def _by_hand(answers, log_probs, right, k):
    """The mean over all subsets of k texts, without anything of the module."""
    found = []
    for some in itertools.combinations(range(len(answers)), k):
        votes = Counter(answers[i] for i in some if answers[i] is not None)
        if not votes:
            found.append(0.0)
            continue
        tied = [a for a, n in votes.items() if n == max(votes.values())]
        sums = {a: sum(log_probs[i] for i in some if answers[i] == a) for a in tied}
        winners = [a for a in tied if sums[a] >= max(sums.values()) - 1e-6]
        found.append(sum(a == right for a in winners) / len(winners))
    return sum(found) / len(found)


@pytest.mark.parametrize("k", range(1, 10))
def test_maj_at_k_is_the_mean_over_all_subsets(k):
    draw = np.random.default_rng(k)
    for _ in range(5):
        answers = [[None, "1", "2", "3", "5"][i] for i in draw.integers(5, size=9)]
        log_probs = draw.integers(-3, 0, size=9).astype(float).tolist()
        ballot = Ballot(texts(*answers, log_probs=log_probs))
        assert ballot.majority(k) == pytest.approx(_by_hand(answers, log_probs, "2", k))


def test_random_subsets_estimate_it():
    answers = ["2"] * 8 + ["3"] * 7 + ["5"] * 3
    ballot = Ballot(texts(*answers))
    assert len(subsets(18, 9)) == DRAWS < EXACT < 48620
    assert (subsets(18, 9).sum(1) == 9).all()
    exact = _by_hand(answers, [0.0] * 18, "2", 9)
    assert ballot.majority(9) == pytest.approx(exact, abs=4 * 0.5 / DRAWS**0.5)
    assert ballot.majority(9) == ballot.majority(9)  # the same every time


def test_weights_change_who_wins():
    ballot = Ballot(texts("3", "3", "2", None))
    assert ballot.majority(weights=np.array([0.1, 0.1, 0.9, 1.0])) == 1.0
    assert ballot.majority(weights=np.array([0.5, 0.5, 0.9, 1.0])) == 0.0
    assert ballot.shares().tolist() == [0.5, 0.5, 0.25, 0.0]
    assert ballot.num_answers == 2
