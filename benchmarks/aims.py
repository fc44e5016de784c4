"""Whether a comparison over several tasks reaches its aims, each with its paired interval (benchmarks/README.md, "Is it better than LoRA-RL?").

    python benchmarks/aims.py runs/headline runs/headline_long [--out benchmarks/results/aims.json]

(a) latents over the frozen backbone: the points of LoRA's curves of accuracy against seconds from nothing that are within three points of
theirs, or above, in less than five times their seconds. Points of a curve are the fit alone, the evaluations while it learned (split
tune), and the accuracy at the end. (b) latents over the fitted backbone less the best LoRA arm of each task at equal fits (one epoch and
the conversion, two epochs), pooled over tasks; and pairs after three epochs for both, with equal episodes and with more for latents. (c)
latents less each control over the same backbone.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollm_rl.evaluation.comparison import paired_tests
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import PooledRow, Row
from ollm_rl.report.learning_plots import against_seconds

NEAR, TIMES = 0.03, 5.0
EQUAL = ("lora_sft", "lora_grpo", "lora_sft_2", "lora_grpo_2", "lora_rank1")
LONG = "fitted_grpo_long_3"  # 4,096 episodes, not 768
THREE = (("lora_grpo_3", "fitted_grpo_3"), ("lora_grpo_long_3", LONG), ("lora_grpo_3", LONG))
LORA = (*EQUAL, "lora_sft_3", "lora_grpo_3", "lora_grpo_long_3")
FROZEN, FITTED = ("grpo", "grpo_long"), ("fitted_grpo",)
BACKBONES = (
    ("", "", FROZEN),
    ("fitted_", "", FITTED),
    ("fitted_", "_3", ("fitted_grpo_3", LONG)),
)  # how controls are named
CONTROLS = ("best_prefix", "steer", "first_decisions", "shortlist_head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="arms of the same task in several runs stand beside each other"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tasks: dict[str, Results] = {}
    for path in (path for run in given.runs for path in sorted(run.glob("*/results.json"))):
        if (found := Results.load(path.parent)).pooled:
            tasks[path.parent.name] = together(tasks.get(path.parent.name), found)
    aims = {
        "command": f"python benchmarks/aims.py {' '.join(map(str, given.runs))}",
        "a": {name: fast(results) for name, results in tasks.items()},
        "b": fitted(tasks),
        "c": {name: controls(results) for name, results in tasks.items()},
    }
    text = json.dumps(aims, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


def together(one: Results | None, other: Results) -> Results:
    """The arms of two runs of a task."""
    return other if one is None else replace(one, rows=one.rows + other.rows, pooled=one.pooled + other.pooled)


def fast(results: Results) -> dict[str, Any]:
    """Aim (a) on a task: for each arm over the frozen backbone, LoRA's points that come near too early."""
    pooled = {row.agent: row for row in results.pooled}
    points = []
    for row in (pooled[name] for name in LORA if name in pooled):
        x, y = against_seconds(results, row)
        pairs = zip([*x, row.total_seconds], [*y, row.accuracy], strict=True)
        points += [{"agent": row.agent, "seconds": seconds, "accuracy": accuracy} for seconds, accuracy in pairs]
    found = {}
    for row in (pooled[name] for name in FROZEN if name in pooled):
        assert row.total_seconds is not None
        near = [p for p in points if p["accuracy"] >= row.accuracy - NEAR and p["seconds"] < TIMES * row.total_seconds]
        found[row.agent] = {
            "n": row.n_problems, "accuracy": row.accuracy, "ci95": row.accuracy_ci95, "seconds": row.total_seconds,
            "met": not near, "rivals": sorted(near, key=lambda p: p["seconds"]),
        }  # fmt: skip
    return {"arms": found, "lora": points}


def fitted(tasks: dict[str, Results]) -> dict[str, Any]:
    """Aim (b): on each task the best arm of latents over the fitted backbone, less the best LoRA arm."""
    best, rows, three = {}, list[Row](), {}
    for task, results in tasks.items():
        pooled = {row.agent: row for row in results.pooled}
        if pairs := [[*pair] for pair in THREE if {*pair} <= pooled.keys()]:
            three[task] = [_beside(results, pair) for pair in pairs]
        names = [_best(of, pooled) for of in (EQUAL, FITTED)]
        best[task] = _beside(results, names)
        rows += [
            replace(r, agent="lora" if r.agent == names[0] else "latents") for r in results.rows if r.agent in names
        ]
    return {"tasks": best, "pooled": above(rows, "lora", "latents"), "three_epochs": three}


def _best(of: tuple[str, ...], pooled: dict[str, PooledRow]) -> str:
    return max((name for name in of if name in pooled), key=lambda name: pooled[name].accuracy)


def _beside(results: Results, names: list[str]) -> dict[str, Any]:
    return dict(zip(("lora", "latents"), names, strict=True)) | {"above": above(results.rows, *names)}


def controls(results: Results) -> dict[str, Any]:
    """Aim (c): how far latents are above each control over the same backbone."""
    agents = {row.agent for row in results.rows}
    return {
        arm: {c: above(results.rows, c, arm) for c in (prefix + control + suffix for control in CONTROLS) if c in agents}
        for prefix, suffix, arms in BACKBONES for arm in arms if arm in agents
    }  # fmt: skip


def above(rows: list[Row], one: str, other: str) -> dict[str, Any]:
    """How much more problems `other` solves than `one`, greedily and paired, on the seeds of both; {} if they had not the same."""
    both = {r.seed for r in rows if r.agent == one} & {r.seed for r in rows if r.agent == other}
    ordered = sorted((r for r in rows if r.agent in (one, other) and r.seed in both), key=lambda r: r.agent != one)
    return next(
        (
            {"n": t.n, "mean": t.greedy.mean, "ci95": t.greedy.ci95, "p": t.greedy.p}
            for t in paired_tests(ordered)
            if t.greedy
        ),
        {},
    )


if __name__ == "__main__":
    main()
