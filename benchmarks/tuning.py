"""Learning rates of the learners that are compared: one grid of three for each, with equal budgets, on problems that nobody reports.

    python benchmarks/tuning.py [--task chain_sum] [--episodes 384] [--problems 100] [--seed 100] [--out FILE]

Every agent gets as many settings and, rounded up to whole iterations, as many episodes as every other. What counts is the sampled
accuracy after them, on split `tune`. Prints one JSON line last.
"""

import argparse
import json
import sys
from pathlib import Path

from ollm_rl.config import compose
from ollm_rl.experiment import Lab, run_cell
from ollm_rl.runs import Run

GRIDS = {
    "grpo": (5e-5, 1e-4, 3e-4),
    "ppo": (1e-4, 2e-4, 5e-4),
    "full_head": (1e-4, 1e-3, 3e-3),
    "lora_grpo": (1e-4, 3e-4, 1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="chain_sum")
    parser.add_argument("--agents", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--episodes", type=int, default=384)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    common = [
        f"task={given.task}", f"seed={given.seed}", "evaluate.split=tune", f"evaluate.num_problems={given.problems}",
        "evaluate.samples=4", f"agent.total_episodes={given.episodes}",
    ]  # fmt: skip
    rows, lab = [], Lab()
    try:
        for agent in given.agents:
            for rate in GRIDS[agent]:
                settings = compose([*common, f"agent={agent}", f"agent.learning_rate={rate}"])
                run = Run(given.runs / given.task, f"{agent}-{rate:g}", settings.yaml())
                row = run_cell(settings, run, lab, given.seed)
                rewards = [m["reward"] for m in run.metrics() if "reward" in m]
                rows.append({
                    "agent": agent, "learning_rate": rate, "area": sum(rewards) / len(rewards),
                    "avg_at_4": row["avg_at_4"], "accuracy": row["accuracy"], "accuracy_ci95": row["accuracy_ci95"],
                    "n_problems": row["n_problems"], "train_episodes": row["train_episodes"],
                    "train_seconds": row["train_seconds"],
                })  # fmt: skip
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        lab.close()
    best = {
        a: max((r for r in rows if r["agent"] == a), key=lambda r: r["avg_at_4"])["learning_rate"] for a in given.agents
    }
    result = {
        "command": " ".join(["python", *sys.argv]), "task": given.task, "seed": given.seed, "split": "tune",
        "rows": rows, "best": best,
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
