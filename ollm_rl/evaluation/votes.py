"""Votes: how right the answer is that most of a problem's texts give, at any number of texts, plain or weighted.

Of n texts at hand, `maj@k` is the mean over their subsets of k, as the unbiased pass@k is: over all of them where there are few, else over
`DRAWS` random ones. Votes are "self-consistency" (Wang et al. 2022, arXiv 2203.11171).
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np

from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.reward.verifier import MAX_ANSWER

EXACT, DRAWS = (
    13_000,
    2_000,
)  # subsets: all of them up to here (those of 8 of 16), else so many random ones, the same every time
EQUAL = 1e-6  # nats within which summed log-probabilities are equal


class Voter(Protocol):
    """What is needed of a judged text: an `Episode` has it."""

    answer: str | None

    @property
    def solved(self) -> bool: ...

    @property
    def log_prob(self) -> float | None: ...


class Ballot:
    """The texts of one problem, as they vote.

    Answers that the verifier's normal form makes equal are one, and texts without an answer do not vote. Of answers with equally many
    votes, the one wins whose texts have the larger summed log-probability; where that is equal too (or nothing is known of
    it), the result is their mean.

    Attributes:
        members: (n, m) which text gives which answer. solved, log_probs: (n,) of the texts.
    """

    def __init__(self, episodes: Sequence[Voter]):
        keys = [None if e.answer is None else answer_key(e.answer) for e in episodes]
        names = list(dict.fromkeys(key for key in keys if key is not None))
        self.members = np.array([[key == name for name in names] for key in keys], float).reshape(len(keys), len(names))
        self.solved = np.array([e.solved for e in episodes], float)
        self.log_probs = np.array([e.log_prob or 0.0 for e in episodes])

    def __len__(self) -> int:
        return len(self.solved)

    @property
    def num_answers(self) -> int:
        """Different answers."""
        return self.members.shape[1]

    def shares(self) -> np.ndarray:
        """(n,) the share of all texts that give the same answer as each; 0 for texts without an answer."""
        found: np.ndarray = self.members @ self.members.sum(0) / max(len(self), 1)
        return found

    def majority(self, k: int | None = None, weights: np.ndarray | None = None) -> float:
        """How right the winning answer is: the solved share of the texts that give it, a mean over subsets of k texts.

        Args:
            k: None: all of them. weights: (n,) votes of each text, in place of one each.
        """
        n = len(self)
        if not self.num_answers:
            return 0.0
        chosen = subsets(n, n if k is None else k)  # (s, n)
        ones = chosen @ self.members
        votes = ones if weights is None else chosen @ (self.members * weights[:, None])
        solved = chosen @ (self.members * self.solved[:, None]) / np.maximum(ones, 1)
        sums = chosen @ (self.members * self.log_probs[:, None])
        best = (ones > 0) & (votes >= votes.max(1, keepdims=True) - 1e-9)
        sums = np.where(best, sums, -np.inf)
        best &= sums >= sums.max(1, keepdims=True) - EQUAL
        return float(np.mean((best * solved).sum(1) / np.maximum(best.sum(1), 1)))


def subsets(n: int, k: int) -> np.ndarray:
    """(s, n) which of n texts are in each subset of k: all subsets if they are few, else random ones."""
    if math.comb(n, k) <= EXACT:
        rows = np.array(list(itertools.combinations(range(n), k)))
    else:
        rows = np.random.default_rng((n, k)).random((DRAWS, n)).argpartition(k, axis=1)[:, :k]
    chosen = np.zeros((len(rows), n))
    np.put_along_axis(chosen, rows, 1.0, axis=1)
    return chosen


def answer_key(answer: str) -> Hashable:
    """Equal for answers that are one, however they are written."""
    if len(answer) > MAX_ANSWER or "\n" in answer.strip():  # it is compared as it stands: code, or a plan
        return answer.strip()
    number = plain_number(form := normal_form(answer))
    return form if number is None else number
