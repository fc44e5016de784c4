"""What searches found: the row of `results.json`, solved share against budget, and how far the latents are from the policy's."""

from collections.abc import Sequence

import numpy as np

from ollm_rl.evaluation.metrics import breakdown, degeneration, share, wilson
from ollm_rl.evaluation.records import Deviations, Point, SearchFigures
from ollm_rl.evaluation.rows import Row
from ollm_rl.oracle.search import Search

CURVE = (25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


def summarize_searches(
    searches: Sequence[Search], search: str, budget: int, agent: str = "oracle", seed: int = 0
) -> tuple[Row, list[Point]]:
    """The row of a search, under the name `agent`, and its solved share at growing budgets."""
    n = len(searches)
    solved = [s for s in searches if s.solution is not None]
    spent, recomputed = sum(s.spent for s in searches), sum(s.recomputed for s in searches)
    whole = share(len(solved), n)
    figures = SearchFigures(
        search=search,
        budget=budget,
        mean_tokens=spent / max(n, 1),
        recomputed_tokens=recomputed / max(n, 1),
        computed_over_distinct=(spent + recomputed) / max(spent, 1),
        mean_tried=float(np.mean([s.tried for s in searches])) if searches else 0.0,
        verifier_timeouts=sum(s.timeouts for s in searches),
        mean_shortest_length=_mean([len(s.shortest.tokens) for s in solved if s.shortest is not None]),
        deviations=deviations(solved),
    )
    row = Row(
        agent=agent,
        seed=seed,
        n_problems=n,
        accuracy=whole.accuracy,
        accuracy_ci95=whole.accuracy_ci95,
        search=figures,
        **degeneration([s.solution for s in solved if s.solution is not None]),
        breakdown=breakdown([(s.problem, s.solution is not None) for s in searches]),
    )
    curve = []
    for limit in [b for b in CURVE if b < budget] + [budget]:
        within = sum(s.solved_at is not None and s.solved_at <= limit for s in solved)
        curve.append(Point(budget=limit, solved=within / max(n, 1), ci95=wilson(within, n)))
    return row, curve


def deviations(solved: Sequence[Search]) -> Deviations | None:
    """How far the latents of solved texts are from the policy's own; None if nothing is known of them."""
    texts = [s for s in solved if s.choices and s.solution is not None]
    if not texts:
        return None
    ranks = np.array([c.rank for s in texts for c in s.choices])
    per_text = [sum(c.rank > 0 for c in s.choices) for s in texts]
    where = [c.position / len(s.solution.tokens) for s in texts if s.solution for c in s.choices if c.rank > 0]
    return Deviations(
        n_texts=len(texts),
        mean=float(np.mean(per_text)),
        none=float(np.mean([d == 0 for d in per_text])),
        ranks=[float(np.mean(ranks == r)) for r in range(int(ranks.max()) + 1)],
        log_prob=float(np.mean([sum(c.log_prob for c in s.choices) for s in texts])),
        position=[float(np.quantile(where, q)) for q in (0.25, 0.5, 0.75)] if where else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
