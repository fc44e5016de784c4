"""What objective, K and reader do to the options: coverage, distinct tokens, and what prior, reference and oracle make of them.

    python benchmarks/options.py [--objectives cover expected em gumbel] [--options 2 5 10 20] [--seeds 0 1] [--depths 1] [--agents prior]
        [--problems 100] [--split tune] [--out benchmarks/results/options.json] [key=value ...]

Every cell converts anew (hidden states are shared), plays the prior greedily and 8 times a problem, and searches. Cells are runs
under runs/options: interrupted, the same command goes on. Prints one JSON line last.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from ollm_rl.common.run_dir import Run
from ollm_rl.config.compose import compose
from ollm_rl.experiments.compare import compare
from ollm_rl.options.config import PlugInConfig


def cell(
    objective: str,
    num_options: int,
    depth: int,
    seed: int,
    agents: list[str],
    problems: int,
    split: str,
    extra: list[str],
) -> dict:
    """One conversion and what it is worth."""
    overrides = [
        f"convert.objective={objective}", f"plugin.num_options={num_options}", f"plugin.reader_depth={depth}",
        f"convert.seed={seed}", f"agents=[{','.join(agents)}]", f"seeds=[{seed}]", "with_oracle=true", f"evaluate.num_problems={problems}", f"evaluate.split={split}",
        f"oracle.num_problems={problems}", "agent=prior", *extra,
    ]  # fmt: skip
    settings = compose(overrides)
    run = Run(Path(settings.config.runs_dir) / "options", f"{objective}-{num_options}-{depth}-{seed}", settings.yaml())
    results = compare(overrides, settings, run)
    run.close()
    rows, report = {r.agent: r.to_dict() for r in results.rows}, results.conversion
    return {
        "objective": objective, "num_options": num_options, "reader_depth": depth, "seed": seed, "n": problems,
        **{k: report[k]["uncertain"] for k in ("coverage", "distinct_tokens", "prior_token_accuracy")},
        "collapsed": report["collapsed"], "conversion_seconds": report["seconds"], "reader": report.get("reader"),
        **{k: rows["prior"][k] for k in ("accuracy", "accuracy_ci95", "avg_at_8", "pass_at_8")},
        **{a: {k: rows[a][k] for k in ("accuracy", "accuracy_ci95", "avg_at_8", "pass_at_8")} for a in agents if a != "prior"},
        "oracle": rows["oracle"]["accuracy"], "oracle_ci95": rows["oracle"]["accuracy_ci95"],
        "oracle_budget": rows["oracle"]["budget"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=["cover", "expected", "em", "gumbel"])
    parser.add_argument("--options", nargs="+", type=int, default=[2, 5, 10, 20])
    parser.add_argument("--depths", nargs="+", type=int, default=[PlugInConfig.reader_depth])
    parser.add_argument("--agents", nargs="+", default=["prior"], help="prior, and others beside it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--split", default="tune")
    parser.add_argument("--out", type=Path)
    extra = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    given = parser.parse_args([word for word in sys.argv[1:] if word not in extra])
    cells = []
    for seed, depth, k, objective in itertools.product(given.seeds, given.depths, given.options, given.objectives):
        cells.append(cell(objective, k, depth, seed, given.agents, given.problems, given.split, extra))
        print(json.dumps(cells[-1]), flush=True)
    result = {
        "command": " ".join(["python benchmarks/options.py", *sys.argv[1:]]),
        "split": given.split,
        "cells": cells,
    }
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
