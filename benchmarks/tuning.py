"""Settings of the learners that are compared: equal grids with equal budgets, on problems that nobody reports.

    python benchmarks/tuning.py --what rates|updates|beyond [--task chain_sum] [--episodes 384] [--problems 100] [--seed 100] [--out FILE]

First three learning rates; then, at the best of them, three ways to make more of an episode (smaller iterations, more updates); then one
step beyond the end of a grid at which the best so far lies. Every agent gets as many settings and, rounded up to whole iterations, as
many episodes as every other. What counts is the sampled accuracy after them, on split `tune`. Prints one JSON line last.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ollm_rl.common.run_dir import Run
from ollm_rl.config.compose import compose
from ollm_rl.experiments.single import SessionCache, run_trial

RATES = {
    "grpo": (5e-5, 1e-4, 3e-4),
    "ppo": (1e-4, 2e-4, 5e-4),
    "shortlist_head": (1e-4, 1e-3, 3e-3),
    "lora_grpo": (1e-4, 3e-4, 1e-3),
}
BEST = {
    "grpo": 3e-4,
    "ppo": 1e-4,
    "shortlist_head": 3e-3,
    "lora_grpo": 1e-4,
}  # of these, as `results/tuning_chain_sum.json` has it
SMALL: dict[str, Any] = {"problems_per_iteration": 8, "minibatches": 2}
UPDATES: dict[str, tuple[dict[str, Any], ...]] = {
    "grpo": (SMALL, {**SMALL, "num_iterations": 4, "target_kl": 0.05}, {**SMALL, "minibatches": 4, "num_iterations": 4, "target_kl": 0.1}),
    "ppo": ({"episodes_per_iteration": 128}, {"episodes_per_iteration": 64}, {"episodes_per_iteration": 64, "num_epochs": 8}),
    "shortlist_head": (SMALL, {**SMALL, "num_iterations": 4, "target_kl": 0.05}, {**SMALL, "minibatches": 4, "num_iterations": 4, "target_kl": 0.1}),
    "lora_grpo": ({"minibatches": 2}, {"num_iterations": 2}, {"problems_per_iteration": 4}),
}  # fmt: skip
# The best of both are grpo's first and ppo's second of `UPDATES`, and shortlist_head's last and lora_grpo's first of `RATES`.
BEYOND: dict[str, dict[str, Any]] = {
    "grpo": {**SMALL, "learning_rate": 1e-3},
    "ppo": {"episodes_per_iteration": 64, "learning_rate": 5e-5},
    "shortlist_head": {"learning_rate": 1e-2},
    "lora_grpo": {"learning_rate": 3e-5},
}


def grid(what: str, agent: str) -> list[dict[str, Any]]:
    if what == "rates":
        return [{"learning_rate": rate} for rate in RATES[agent]]
    if what == "beyond":
        return [BEYOND[agent]]
    return [{"learning_rate": BEST[agent], **settings} for settings in UPDATES[agent]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("rates", "updates", "beyond"), default="rates")
    parser.add_argument("--task", default="chain_sum")
    parser.add_argument("--agents", nargs="+", choices=list(RATES), default=list(RATES))
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
    rows, sessions = [], SessionCache()
    try:
        for agent in given.agents:
            for i, mine in enumerate(grid(given.what, agent)):
                settings = compose([*common, f"agent={agent}", *(f"agent.{k}={v}" for k, v in mine.items())])
                run = Run(given.runs / given.task / given.what, f"{agent}-{i}", settings.yaml())
                row = run_trial(settings, run, sessions, given.seed).rows[0]
                rewards = [m["reward"] for m in run.metrics() if "reward" in m]
                run.close()
                rows.append({
                    "agent": agent, "settings": mine, "area": sum(rewards) / len(rewards),
                    "avg_at_4": row.sampled[4].avg, "accuracy": row.accuracy, "accuracy_ci95": row.accuracy_ci95,
                    "n_problems": row.n_problems, "train_episodes": row.train_episodes,
                    "train_seconds": row.train_seconds,
                })  # fmt: skip
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        sessions.close()
    compared = [] if given.what == "beyond" else given.agents  # of one setting there is no best
    best = {a: max((r for r in rows if r["agent"] == a), key=lambda r: r["avg_at_4"])["settings"] for a in compared}
    result = {
        "command": " ".join(["python", *sys.argv]), "task": given.task, "seed": given.seed, "split": "tune",
        "rows": rows, "best": best,
    }  # fmt: skip
    if given.out:
        kept = json.loads(given.out.read_text()) if given.out.exists() else {}  # of the other grid
        given.out.write_text(json.dumps({**kept, given.what: result}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
