"""Whether a comparison over several tasks reaches its aims, each with its paired interval (benchmarks/README.md, "Is it better than LoRA-RL?").

    python benchmarks/aims.py runs/headline [--out benchmarks/results/aims.json]

(a) latents over the frozen backbone: the points of LoRA's curves of accuracy against seconds from nothing that are within three points of
theirs, or above, in less than five times their seconds. Points of a curve are the fit alone and the evaluations while it learned (split
tune), the last the accuracy on test. (b) latents over the fitted backbone less the best LoRA arm of each task, pooled over tasks.
(c) latents less each control over the same backbone.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ollm_rl.evaluation.comparison import evaluation_curve
from ollm_rl.evaluation.metrics import bootstrap
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import PooledRow
from ollm_rl.report.learning_plots import evaluated_shares

NEAR, TIMES = 0.03, 5.0
LORA = ("lora_sft", "lora_grpo", "lora_sft_2", "lora_grpo_2", "lora_rank1")
FROZEN, FITTED = ("grpo", "grpo_long"), ("fitted_grpo", "fitted_grpo_long")
CONTROLS = ("best_prefix", "steer", "first_decisions", "shortlist_head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tasks = {path.parent.name: Results.load(path.parent) for path in sorted(given.run.glob("*/results.json"))}
    tasks = {name: found for name, found in tasks.items() if found.pooled}
    found = {
        "command": f"python benchmarks/aims.py {given.run}",
        "a": {name: fast(results) for name, results in tasks.items()},
        "b": fitted(tasks),
        "c": {name: controls(results) for name, results in tasks.items()},
    }
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


def fast(results: Results) -> dict:
    """Aim (a) on a task, for each arm over the frozen backbone."""
    pooled = {row.agent: row for row in results.pooled}
    points = [point for name in LORA if name in pooled for point in curve(results, pooled[name])]
    found = {}
    for name in FROZEN:
        if (row := pooled.get(name)) is None or not row.total_seconds:
            continue
        rivals = [
            p for p in points if p["accuracy"] >= row.accuracy - NEAR and p["seconds"] < TIMES * row.total_seconds
        ]
        found[name] = {
            "n": row.n_problems, "accuracy": row.accuracy, "ci95": row.accuracy_ci95, "seconds": row.total_seconds,
            "met": not rivals,
            "rivals": sorted(rivals, key=lambda p: p["seconds"])[:3],
            "curve": curve(results, row),
        }  # fmt: skip
    return {"arms": found, "lora": points}


def curve(results: Results, row: PooledRow) -> list[dict]:
    """Accuracy against seconds from nothing: what an arm began as, what it was while it learned, and what it is."""
    assert row.total_seconds is not None
    begun = row.total_seconds - row.train_seconds
    mine = [each for each in results.rows if each.agent == row.agent]
    lines = [{line["train_episodes"]: line for line in evaluation_curve(each)} for each in mine]
    points = []
    if row.before is not None and begun > 0:
        points.append(
            {"agent": row.agent, "split": "test", "episodes": 0, "seconds": begun, "accuracy": row.before.accuracy}
        )
    for at, share in evaluated_shares(mine).items():
        seconds = begun + float(np.mean([each[at]["train_seconds"] for each in lines]))
        points.append(
            {"agent": row.agent, "split": "tune", "episodes": at, "seconds": seconds, "accuracy": share.accuracy}
        )
    points.append(
        {
            "agent": row.agent,
            "split": "test",
            "episodes": row.train_episodes,
            "seconds": row.total_seconds,
            "accuracy": row.accuracy,
        }
    )
    return points


def greedy(results: Results, agent: str) -> tuple[np.ndarray, list[str]]:
    """Whether each problem was solved, and which it is, in the order of seeds."""
    solved, problems = [], []
    for row in sorted((r for r in results.rows if r.agent == agent), key=lambda r: r.seed):
        assert row.directory is not None
        for text in (row.directory / "rollouts" / "greedy.jsonl").read_text().splitlines():
            line = json.loads(text)
            solved.append(float(line.get("solved", line["reward"] >= 1.0)))
            problems.append(line["problem"])
    return np.array(solved), problems


def fitted(tasks: dict[str, Results]) -> dict:
    """Aim (b): on each task the best arm of latents over the fitted backbone, less the best LoRA arm."""
    found, differences, asked = {}, [], []
    for task, results in tasks.items():
        pooled = {row.agent: row for row in results.pooled}
        ours, theirs = (
            max((name for name in names if name in pooled), key=lambda n: pooled[n].accuracy, default=None)
            for names in (FITTED, LORA)
        )
        if ours is None or theirs is None:
            continue
        (mine, problems), (other, same) = greedy(results, ours), greedy(results, theirs)
        if problems != same:
            found[task] = {"ours": ours, "theirs": theirs, "missing": "not on the same problems"}
            continue
        found[task] = {"ours": ours, "theirs": theirs, "n": len(mine), "above": said(mine - other, problems)}
        differences.append(mine - other)
        asked += [f"{task} {p}" for p in problems]
    whole = said(np.concatenate(differences), asked) if differences else None
    return {"tasks": found, "pooled": whole, "met": bool(whole and whole["mean"] >= NEAR)}


def controls(results: Results) -> dict:
    """Aim (c): how far latents are above each control over the same backbone."""
    pooled = {row.agent for row in results.pooled}
    found: dict[str, dict] = {}
    for prefix, arms in (("", FROZEN), ("fitted_", FITTED)):
        for arm in (a for a in arms if a in pooled):
            for control in (f"{prefix}{c}" for c in CONTROLS):
                if control not in pooled:
                    continue
                (mine, problems), (other, same) = greedy(results, arm), greedy(results, control)
                if problems == same:
                    found.setdefault(arm, {})[control] = {"n": len(mine), "above": said(mine - other, problems)}
    return found


def said(differences: np.ndarray, problems: list[str]) -> dict:
    whole = bootstrap(differences, problems)
    return {"mean": whole.mean, "ci95": list(whole.ci95), "p": whole.p}


if __name__ == "__main__":
    main()
