"""How good a learned verifier is on texts that it has not learned from, and what it is worth: weighted votes and best of n.

Within problems: whether it tells a problem's right texts from its wrong ones. That it tells easy problems from hard ones chooses no text.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ollm_rl.evaluation.metrics import bootstrap
from ollm_rl.evaluation.records import Difference, Rival, Verification
from ollm_rl.evaluation.votes import Ballot, Voter

BINS = 10  # of the reliability diagram


class Text(Voter, Protocol):
    """A judged text with a value: an `Episode` has it."""

    tokens: Any
    value: float | None


class Group:
    """The sampled texts of one problem, with what a verifier says of them.

    Attributes:
        name: of the problem. greedy: whether the greedy text is right. values, solved, log_probs, lengths: (n,) of the texts.
    """

    def __init__(self, name: str, greedy: bool, texts: Sequence[Text]):
        self.name, self.greedy, self.ballot = name, float(greedy), Ballot(texts)
        self.values = np.array([t.value for t in texts], float)
        self.solved, self.log_probs = self.ballot.solved, self.ballot.log_probs
        self.lengths = np.array([len(t.tokens) for t in texts], float)

    def best(self, k: int | None = None) -> float:
        """How right the text of the largest value is, a mean over all subsets of k texts (by default, all of them)."""
        n = len(self.values)
        k = n if k is None else k
        order = np.argsort(-self.values, kind="stable")
        chances = np.array([math.comb(n - 1 - i, k - 1) / math.comb(n, k) for i in range(n)])
        return float((self.solved[order] * chances).sum())

    def weighted(self, k: int | None = None) -> float:
        """How right the answer is that has the largest sum of values, a mean over subsets of k texts."""
        return self.ballot.majority(k, self.values)

    def auroc(self, scores: np.ndarray) -> float | None:
        """The share of pairs of a right and a wrong text in which the right one scores higher; None where all are right or wrong."""
        right, wrong = scores[self.solved > 0], scores[self.solved == 0]
        if not len(right) or not len(wrong):
            return None
        above = right[:, None] - wrong[None]
        return float(np.mean((above > 0) + 0.5 * (above == 0)))


def verify(groups: Sequence[Group], ks: Sequence[int] = ()) -> Verification | None:
    """The figures over problems, with intervals from a bootstrap over them; None without problems that have right and wrong texts.

    Args:
        ks: numbers of texts for `weighted_at` and `best_at`.
    """
    both = [g for g in groups if 0 < g.solved.sum() < len(g.solved)]
    if not both:
        return None
    names = [g.name for g in both]
    auroc = np.array([g.auroc(g.values) for g in both], float)
    rivals = {}
    for rival, scores in {
        "log-probability": [g.log_probs for g in both],
        "length": _signed([g.lengths for g in both], both),
        "vote share": [g.ballot.shares() for g in both],
    }.items():
        theirs = np.array([g.auroc(s) for g, s in zip(both, scores, strict=True)], float)
        rivals[rival] = Rival(auroc=float(theirs.mean()), above=bootstrap(auroc - theirs, names))
    whole = bootstrap(auroc, names)
    values, solved = np.concatenate([g.values for g in groups]), np.concatenate([g.solved for g in groups])
    weighted, best = np.array([g.weighted() for g in groups]), np.array([g.best() for g in groups])
    maj, greedy = np.array([g.ballot.majority() for g in groups]), np.array([g.greedy for g in groups])
    everybody = [g.name for g in groups]

    def above(mine: np.ndarray, theirs: np.ndarray) -> Difference:
        return bootstrap(mine - theirs, everybody)

    return Verification(
        n_problems=len(groups),
        n_mixed=len(both),
        samples=len(groups[0].solved),
        auroc=whole.mean,
        auroc_ci95=whole.ci95,
        rivals=rivals,
        brier=float(np.mean((values - solved) ** 2)),
        brier_of_mean=float(solved.mean() * (1 - solved.mean())),
        reliability=reliability(values, solved),
        greedy=float(greedy.mean()),
        maj=float(maj.mean()),
        weighted_maj=float(weighted.mean()),
        best_of=float(best.mean()),
        any_of=float(np.mean([g.solved.max() for g in groups])),
        weighted_at={k: float(np.mean([g.weighted(k) for g in groups])) for k in sorted({*ks})},
        best_at={k: float(np.mean([g.best(k) for g in groups])) for k in sorted({*ks})},
        weighted_over_maj=above(weighted, maj),
        weighted_over_greedy=above(weighted, greedy),
        best_over_maj=above(best, maj),
        best_over_greedy=above(best, greedy),
    )


def _signed(scores: list[np.ndarray], groups: Sequence[Group]) -> list[np.ndarray]:
    """Scores, or their negatives if those tell right from wrong better here: what knows which way it goes."""
    mean = np.mean([g.auroc(s) for g, s in zip(groups, scores, strict=True)])
    return scores if mean >= 0.5 else [-s for s in scores]


def reliability(values: np.ndarray, solved: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean value, share of right texts and number of texts, in bins of equal width that hold any (DeGroot and Fienberg 1983)."""
    at = np.minimum((values * BINS).astype(int), BINS - 1)
    return [
        (float(values[at == i].mean()), float(solved[at == i].mean()), int((at == i).sum()))
        for i in range(BINS)
        if (at == i).any()
    ]


def groups_of(greedy: Sequence[Text], sampled: Sequence[Text], names: Sequence[str]) -> list[Group]:
    """The problems' texts, `sampled` one problem's after another's; none where some text has no value."""
    if not sampled or any(t.value is None for t in sampled):
        return []
    k = len(sampled) // len(greedy)
    return [
        Group(name, text.solved, sampled[i * k : (i + 1) * k])
        for i, (name, text) in enumerate(zip(names, greedy, strict=True))
    ]


class Stored:
    """A text from `rollouts/*.jsonl`."""

    def __init__(self, line: Mapping[str, Any]):
        self.answer, self.tokens = line["answer"], line["tokens"]
        self.solved, self.log_prob, self.value = line["solved"], line.get("log_prob"), line.get("value")
