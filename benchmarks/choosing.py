"""Choosing without the verdict, over several seeds: `python benchmarks/choosing.py runs/val_legs0 runs/val_legs1 ... --out choosing.json`.

Runs with `value.enabled=true evaluate.samples=16` are pooled: problems of different seeds are different problems, verifiers are each seed's own.
Beside the verifier stand the cheapest choices: the shortest, the longest and the likeliest of the texts.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ollm_rl.evaluation.metrics import bootstrap
from ollm_rl.evaluation.verification import Group, Stored, groups_of, verify


def groups(run: Path) -> list[Group]:
    """The sampled texts of a run's problems."""
    lines = {
        name: [json.loads(x) for x in (run / "rollouts" / f"{name}.jsonl").open()] for name in ("greedy", "sampled")
    }
    names = [f"{run.name} {line['problem_id']}" for line in lines["greedy"]]
    return groups_of([Stored(x) for x in lines["greedy"]], [Stored(x) for x in lines["sampled"]], names)


def cheap(found: list[Group]) -> dict[str, dict]:
    """What the cheapest choices solve, and how far the text of the largest value is above them."""
    best, names, said = np.array([g.best() for g in found]), [g.name for g in found], {}
    for name, score in (
        ("shortest", lambda g: -g.lengths), ("longest", lambda g: g.lengths), ("likeliest", lambda g: g.log_probs),
    ):  # fmt: skip
        own = np.array([g.solved[np.argmax(score(g))] for g in found])
        above = bootstrap(best - own, names)
        said[name] = {"solved": float(own.mean()), "best_by_verifier_above": above.mean, "ci95": list(above.ci95)}
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = [g for run in args.runs for g in groups(run)]
    seeds = {run.name: asdict(v) for run in args.runs if (v := verify(groups(run))) is not None}
    pooled = verify(found)
    assert pooled is not None
    for each in (*seeds.values(), whole := asdict(pooled)):
        for key in ("reliability", "weighted_at", "best_at"):
            each.pop(key)
    result = {"runs": [str(run) for run in args.runs], "pooled": whole, "cheap": cheap(found), "seeds": seeds}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
