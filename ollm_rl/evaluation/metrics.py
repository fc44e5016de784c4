"""Statistics of judged episodes: intervals, pass@k, majorities, breakdowns, degenerate texts, paired tests. No model runs here."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ollm_rl.evaluation.records import Breakdown, Difference, Sampled, Share
from ollm_rl.evaluation.rows import Row
from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.reward.verifier import MAX_ANSWER
from ollm_rl.rollout.episode import Episode
from ollm_rl.tasks import Problem
from ollm_rl.tasks.base import values_of

BREAKDOWN = ("domain", "difficulty", "source")


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
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


def majority(episodes: Sequence[Episode]) -> float:
    """How right the answer is that most of a problem's texts give: the solved share of the texts that give it.

    Answers that the verifier's normal form makes equal are one, texts without an answer do not vote, and of answers that are
    equally frequent it is the mean. Over these k texts as they are: no estimate of what other k would give.
    """
    votes: dict[Any, list[bool]] = {}
    for episode in episodes:
        if episode.answer is not None:
            votes.setdefault(_vote(episode.answer), []).append(episode.solved)
    most = max(map(len, votes.values()), default=0)
    winners = [solved for solved in votes.values() if len(solved) == most]
    return sum(sum(solved) / most for solved in winners) / len(winners) if winners else 0.0


def _vote(answer: str) -> Any:
    if len(answer) > MAX_ANSWER:  # it is compared as it stands
        return answer.strip()
    number = plain_number(form := normal_form(answer))
    return form if number is None else number


def sampled_metrics(episodes: Sequence[Episode], k: int) -> dict[int, Sampled]:
    """`avg@k`, `pass@k` and `maj@k` of k texts per problem, one problem's after another's, under k; nothing if k is 0.

    `maj@k` is None where rewards have nothing to do with stated answers: solved texts, and no answer in any.
    """
    if not k or not episodes:
        return {}
    groups = [episodes[at : at + k] for at in range(0, len(episodes), k)]
    correct = [sum(e.solved for e in group) for group in groups]
    unstated = any(correct) and all(e.answer is None for e in episodes)
    avg, best = float(np.mean(correct)) / k, float(np.mean([pass_at_k(k, c, k) for c in correct]))
    return {k: Sampled(avg, best, None if unstated else float(np.mean([majority(group) for group in groups])))}


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


def share(solved: float, n: int) -> Share:
    return Share(n=n, accuracy=solved / max(n, 1), accuracy_ci95=wilson(solved, n))


def pool_breakdowns(parts: Sequence[Breakdown]) -> Breakdown:
    """Breakdowns of several runs as one."""
    found: Breakdown = {}
    for field in BREAKDOWN:
        names = dict.fromkeys(name for part in parts for name in part.get(field, {}))
        shares = {name: [part[field][name] for part in parts if name in part.get(field, {})] for name in names}
        if shares:
            found[field] = {
                name: share(sum(s.accuracy * s.n for s in some), sum(s.n for s in some))
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


def results_row(name: str, greedy: list[Episode], sampled: list[Episode], k: int, seed: int = 0) -> Row:
    """The figures of an evaluation with k sampled texts a problem."""
    whole = share(sum(e.solved for e in greedy), len(greedy))
    return Row(
        agent=name,
        seed=seed,
        n_problems=whole.n,
        accuracy=whole.accuracy,
        accuracy_ci95=whole.accuracy_ci95,
        sampled=sampled_metrics(sampled, k),
        mean_length=float(np.mean([len(e.tokens) for e in greedy])) if greedy else 0.0,
        mean_decisions=float(np.mean([e.num_decisions for e in greedy])) if greedy else 0.0,
        mean_reward=float(np.mean([e.reward for e in greedy])) if greedy else 0.0,
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
