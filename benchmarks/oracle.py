"""Searches beside one another: solved share against generated tokens, and what half of best-of-8's tokens buy.

    python benchmarks/oracle.py [--searches best_first puct beam best_of_n] [--seeds 0 1 2] [--problems 200]
        [--budget 10000] [--split test] [--teacher 2 5 10] [--out FILE] [--plot FILE] [key=value ...]

All searches of a seed have the same problems and the same prior. `tokens_for_best_of_8`: tokens a problem (a mean, a solved
one stops) that a search needs for the share that 8 samples a problem solve, over those of the 8 samples, or (`..._stopping`)
over those of samples that stop at the first right one; medians over seeds. `--teacher` gives numbers of options K: gold solutions said by the latents of encoder and teacher. Prints one JSON line last.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from ollm_rl.config.compose import compose
from ollm_rl.evaluation.records import Point
from ollm_rl.experiments.oracle_run import search_policy
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.search import Search
from ollm_rl.oracle.summary import summarize_searches
from ollm_rl.oracle.teacher import PICKERS, teacher_forced
from ollm_rl.report.plots import draw_curves
from ollm_rl.session.opening import open_session

BUDGETS = (100, 200, 500, 1000, 2000, 5000, 10_000)


def tokens_within(searches: Sequence[Search], budget: int) -> float:
    """Mean tokens that the searches had spent when each was solved or at this budget."""
    return sum(min(s.solved_at or s.spent, s.spent, budget) for s in searches) / len(searches)


def tokens_to_reach(searches: Sequence[Search], share: float) -> float | None:
    """Mean tokens a problem at the smallest budget with so large a solved share; None if it was never reached."""
    found = sorted(s.solved_at for s in searches if s.solved_at is not None)
    needed = round(share * len(searches))
    return tokens_within(searches, found[needed - 1]) if 0 < needed <= len(found) else None


def one_seed(overrides: list[str], names: Sequence[str], seed: int, n: int, budget: int, split: str) -> dict:
    """All searches on one seed's problems."""
    settings = compose(overrides)
    session = open_session(settings, seed)
    problems, policy = session.problems(split, n, seed), search_policy(session, settings)
    eight = Oracle(session, policy, "best_of_n", 10**9, 8, max_tries=8, stop_when_solved=False).solve(problems, seed)
    share, tokens = sum(s.solution is not None for s in eight) / n, sum(s.spent for s in eight) / n
    stopping = tokens_within(eight, 10**9)
    found: dict = {"seed": seed, "best_of_8": {"solved": share, "tokens": tokens, "stopping": stopping}, "searches": {}}
    for name in names:
        oracle, start = Oracle(session, policy, name, budget), time.monotonic()
        searches = oracle.solve(problems, seed)
        row, curve = summarize_searches(searches, name, budget)
        figures = row.to_dict()
        enough = tokens_to_reach(searches, share)
        keys = ("accuracy", "accuracy_ci95", "mean_tokens", "mean_tried", "computed_over_distinct", "deviations")
        found["searches"][name] = {
            **{key: figures[key] for key in keys},
            "at": {str(b): sum((s.solved_at or budget + 1) <= b for s in searches) / n for b in BUDGETS if b <= budget},
            "tokens_for_best_of_8": None if enough is None else enough / tokens,
            "tokens_for_best_of_8_stopping": None if enough is None else enough / stopping,
            "occupancy": oracle.occupancy, "seconds": time.monotonic() - start, "curve": [point.to_dict() for point in curve],
        }  # fmt: skip
        print(json.dumps({"seed": seed, "search": name, **found["searches"][name]}), file=sys.stderr, flush=True)
    session.close()
    return found


def teachers(overrides: list[str], sizes: Sequence[int], n: int, split: str) -> list[dict]:
    """Teacher forcing with options of several K."""
    rows = []
    for k in sizes:
        session = open_session(compose([*overrides, f"plugin.num_options={k}", "engine.max_new_tokens=96"]))
        problems = [p for p in session.problems(split, n) if p.solution]
        for picker in PICKERS:
            rows.append({"num_options": k, **teacher_forced(session, problems, picker).to_dict()})
            rows[-1].pop("breakdown")
        session.close()
    return rows


def _median(ratios: Sequence[float | None]) -> float | None:
    """None if one seed's share was not reached."""
    known = [r for r in ratios if r is not None]
    return median(known) if len(known) == len(ratios) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", nargs="*", default=["best_first", "puct", "beam", "best_of_n"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--budget", type=int, default=10_000)
    parser.add_argument("--split", default="test")
    parser.add_argument("--teacher", nargs="*", type=int, default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    extra = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    given = parser.parse_args([word for word in sys.argv[1:] if word not in extra])
    seeds = []
    if given.searches:
        seeds = [one_seed(extra, given.searches, s, given.problems, given.budget, given.split) for s in given.seeds]
    ratios = {
        kind: {name: _median([s["searches"][name][kind] for s in seeds]) for name in given.searches}
        for kind in ("tokens_for_best_of_8", "tokens_for_best_of_8_stopping")
    }
    result = {
        "command": " ".join(["python benchmarks/oracle.py", *sys.argv[1:]]), "n": given.problems, "split": given.split,
        "torch": torch.__version__, **ratios, "seeds": seeds,
        "teacher_forced": teachers(extra, given.teacher, given.problems, given.split),
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    if given.plot and seeds:
        curves = {name: [Point.from_dict(p) for p in s["curve"]] for name, s in seeds[0]["searches"].items()}
        draw_curves(curves, f"n = {given.problems}, seed {given.seeds[0]}", given.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
