"""Statistics of judged episodes: intervals, pass@k, majorities, breakdowns, degenerate texts, paired tests. No model runs here."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from ollm_rl.evaluation.records import Breakdown, Difference, Interval, Sampled, Share
from ollm_rl.evaluation.rows import Row
from ollm_rl.evaluation.votes import Ballot
from ollm_rl.rollout.episode import Episode
from ollm_rl.tasks import Problem
from ollm_rl.tasks.base import values_of

BREAKDOWN = ("domain", "difficulty", "source")
COMPARED = 16  # texts of a problem that are compared with one another


def wilson(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z * z
    centre, spread = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)  # which rounding would miss


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of solving a problem in k tries from c successes in n (Chen et al. 2021, eq. 1)."""
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def sampled_metrics(episodes: Sequence[Episode], samples: int, ks: Sequence[int] = ()) -> dict[int, Sampled]:
    """`avg@k`, `pass@k` and `maj@k`, with their intervals over problems, under every k; nothing if there are no samples.

    `maj@k` is None where rewards have nothing to do with stated answers: solved texts, and no answer in any.

    Args:
        episodes: `samples` texts of every problem, one problem's after another's.
        ks: numbers of texts up to `samples`, estimated from all texts (`ollm_rl.evaluation.votes`); by default `samples` alone.
    """
    if not samples or not episodes:
        return {}
    groups = [episodes[at : at + samples] for at in range(0, len(episodes), samples)]
    correct = [sum(e.solved for e in group) for group in groups]
    unstated = any(correct) and all(e.answer is None for e in episodes)
    ballots = [] if unstated else [Ballot(group) for group in groups]
    avg, avg_ci95 = _with_interval([c / samples for c in correct])
    found: dict[int, Sampled] = {}
    for k in sorted({*(ks or [samples])}):
        best, best_ci95 = _with_interval([pass_at_k(samples, c, k) for c in correct])
        maj, maj_ci95 = (None, None) if unstated else _with_interval([b.majority(k) for b in ballots])
        found[k] = Sampled(avg, best, maj, avg_ci95, best_ci95, maj_ci95)
    return found


def _with_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """The mean over problems and its bootstrap interval."""
    found = bootstrap(np.array(values))
    return found.mean, found.ci95


def diversity(episodes: Sequence[Episode], samples: int) -> dict[str, Any]:
    """How different the texts of a problem are: `distinct_answers`, and `text_distance`, a mean over pairs of its first `COMPARED` texts.

    The distance of two texts is the share of their pairs of neighbouring tokens that the other does not have (one minus Dice's coefficient).
    """
    if samples < 2 or not episodes:
        return {}
    answers, distances = [], []
    for at in range(0, len(episodes), samples):
        group = episodes[at : at + samples]
        answers.append(Ballot(group).num_answers)
        texts = Counter(tuple(e.tokens) for e in group[:COMPARED])  # many are the same
        grams = {text: Counter(pairwise((-1, *text))) for text in texts}
        differ = [
            texts[a] * texts[b] * (1 - 2 * (grams[a] & grams[b]).total() / max(len(a) + len(b), 1))
            for a, b in combinations(texts, 2)
        ]
        distances.append(sum(differ) / math.comb(min(samples, COMPARED), 2))
    return {"distinct_answers": float(np.mean(answers)), "text_distance": float(np.mean(distances))}


def breakdown(judged: Sequence[tuple[Problem, bool]]) -> Breakdown:
    """The solved share of every domain, difficulty and source, where problems differ in them.

    Domains such as `Mathematics -> Algebra -> Equations` count under their second part, and a problem counts in each
    of its domains. Many different difficulties are put in steps of 1.
    """
    found: Breakdown = {}
    for field in BREAKDOWN:
        groups: dict[str, list[bool]] = {}
        values = [(values_of(problem, field), solved) for problem, solved in judged]
        steps = field == "difficulty" and len({v for vs, _ in values for v in vs}) > 8
        for vs, solved in values:
            for name in dict.fromkeys(_group(v, steps) for v in vs):
                groups.setdefault(name, []).append(solved)
        if len(groups) > 1:
            found[field] = {name: share(sum(s), len(s)) for name, s in sorted(groups.items(), key=_order)}
    return found


def _group(value: Any, steps: bool) -> str:
    if steps:
        return f"{math.floor(value)} to {math.floor(value) + 1}"
    parts = [part.strip() for part in str(value).split("->")]
    return parts[1] if len(parts) > 1 else parts[0]


def _order(group: tuple[str, Any]) -> tuple[Any, ...]:
    number = group[0].partition(" ")[0]
    return (0, float(number), "") if number.replace(".", "", 1).isdigit() else (1, 0.0, group[0])


def share(solved: float, n: int, different: float = 1.0) -> Share:
    """A share of n answers, with Wilson's interval.

    Args:
        different: the part of the answers whose problems are different: several answers to one problem count as one in the interval.
    """
    return Share(n=n, accuracy=solved / max(n, 1), accuracy_ci95=wilson(solved * different, n * different))


def pool_breakdowns(parts: Sequence[Breakdown], different: float = 1.0) -> Breakdown:
    """Breakdowns of several runs as one; `different` as in `share`."""
    found: Breakdown = {}
    for field in BREAKDOWN:
        names = dict.fromkeys(name for part in parts for name in part.get(field, {}))
        shares = {name: [part[field][name] for part in parts if name in part.get(field, {})] for name in names}
        if shares:
            found[field] = {
                name: share(sum(s.accuracy * s.n for s in some), sum(s.n for s in some), different)
                for name, some in sorted(shares.items(), key=_order)
            }
    return found


def degeneration(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Shares of texts without an answer, with repetition, and with letters of a foreign script."""
    n = max(len(episodes), 1)
    return {
        "no_answer_rate": sum(e.answer is None for e in episodes) / n,
        "repetition_rate": sum(repeats(e.text) for e in episodes) / n,
        "foreign_script_rate": sum(foreign_script(e.text) for e in episodes) / n,
    }


def repeats(text: str, size: int = 6, times: int = 3) -> bool:
    """Some run of `size` words or signs occurs at least `times` times."""
    words = re.findall(r"\w+|\S", text)
    runs = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return bool(runs) and max(runs.values()) >= times


def foreign_script(text: str) -> bool:
    """A letter that is neither Latin nor Greek (mathematics uses both)."""
    names = (unicodedata.name(c, "") for c in text if c.isalpha() and ord(c) > 127)
    return any(
        not name.startswith(("LATIN", "GREEK", "MATHEMATICAL", "MICRO", "SCRIPT", "DOUBLE-STRUCK")) for name in names
    )


def results_row(
    name: str, greedy: list[Episode], sampled: list[Episode], samples: int, seed: int = 0, ks: Sequence[int] = ()
) -> Row:
    """The figures of an evaluation with so many sampled texts a problem; `ks` as in `sampled_metrics`."""
    whole = share(sum(e.solved for e in greedy), len(greedy))
    rewards = np.array([e.reward for e in greedy])
    graded = any(e.reward != e.solved for e in greedy)
    return Row(
        agent=name,
        seed=seed,
        n_problems=whole.n,
        accuracy=whole.accuracy,
        accuracy_ci95=whole.accuracy_ci95,
        sampled=sampled_metrics(sampled, samples, ks),
        **diversity(sampled, samples),
        mean_sampled_length=float(np.mean([len(e.tokens) for e in sampled])) if sampled else None,
        mean_length=float(np.mean([len(e.tokens) for e in greedy])) if greedy else 0.0,
        mean_decisions=float(np.mean([e.num_decisions for e in greedy])) if greedy else 0.0,
        mean_reward=float(rewards.mean()) if greedy else 0.0,
        mean_reward_ci95=bootstrap(rewards).ci95 if graded else None,
        **degeneration(greedy),
        verdicts=dict(Counter(e.verdict for e in greedy if e.verdict).most_common()),
        breakdown=breakdown([(e.problem, e.solved) for e in greedy]),
    )


RESAMPLES = 10_000


def bootstrap(differences: np.ndarray, problems: Sequence[str] | None = None, seed: int = 0) -> Difference:
    """The mean of paired differences, its 95% percentile interval and a two-sided p-value (Efron and Tibshirani 1993, ch. 16).

    Args:
        problems: (n,) what each difference is about: those of one problem, met with several seeds, are drawn together, for they
            are hardly independent.
    """
    draws = np.random.default_rng(seed)
    _, cluster = (
        np.unique(list(problems), return_inverse=True) if problems is not None else (0, np.arange(len(differences)))
    )
    sums, counts = np.bincount(cluster, differences), np.bincount(cluster)
    n = len(sums)
    # In parts: one index for every problem of every resample would take memory without need.
    chosen = (draws.integers(n, size=(RESAMPLES // 10, n)) for _ in range(10))
    means = np.concatenate([sums[some].sum(1) / counts[some].sum(1) for some in chosen])
    low, high = np.percentile(means, [2.5, 97.5])
    tail = min((means <= 0).mean(), (means >= 0).mean())
    p = min(1.0, max(2 * tail, 2 / RESAMPLES))
    return Difference(mean=float(differences.mean()), ci95=(float(low), float(high)), p=float(p))
