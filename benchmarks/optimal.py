"""Optimal latents beside best-of-n of other agents, at equal verdicts: the share of problems solved within so many generated tokens.

    ollm-rl oracle task=chain_sum oracle.budget=10000 reward=custom reward._target_=benchmarks.derived.derived name=latents
    ollm-rl evaluate task=chain_sum agent=lora_grpo policy=<run>/policy evaluate.samples=96 name=lora
    python -m benchmarks.optimal --searches latents=runs/latents --sampled lora=runs/lora --out benchmarks/results/optimal.json

A sampled text counts where it is right, and `derived` where it also derives its answer (benchmarks/derived.py; tasks that are judged by
the whole text, such as a plan, have no lucky answers); searches are judged so if their run had that reward. Of sampled texts a budget of T tokens a problem holds as many as fit, in the order in which they were drawn.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.derived import is_derived
from ollm_rl.evaluation.metrics import wilson
from ollm_rl.evaluation.results import Results
from ollm_rl.session.opening import task_of

BUDGETS = (50, 100, 200, 500, 1000, 2000, 5000, 10000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampled", nargs="*", default=[])
    parser.add_argument("--searches", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    command = shlex.join(["python", "-m", "benchmarks.optimal", *sys.argv[1:]])
    found: dict[str, Any] = {"command": command, "sampled": {}, "searches": {}}
    for name, _, place in (each.partition("=") for each in given.sampled):
        found["sampled"][name] = sampled(Path(place))
    for name, _, place in (each.partition("=") for each in given.searches):
        results = Results.load(Path(place))
        found["searches"][name] = {
            kind: [{"budget": p.budget, "share": p.solved, "ci95": p.ci95} for p in points if p.budget in BUDGETS]
            for kind, points in results.curves.items()
        } | {"n": results.rows[0].n_problems}
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


def sampled(run: Path) -> dict[str, Any]:
    """Curves of best-of-n over a run's sampled texts."""
    row = Results.load(run).rows[0]
    lines = [json.loads(line) for line in (run / "rollouts" / "sampled.jsonl").read_text().splitlines()]
    problems: dict[str, list[dict]] = {}
    for line in lines:
        problems.setdefault(line["problem_id"], []).append(line)
    facts = facts_of(run, [*problems])
    curves: dict[str, list[dict]] = {"solved": [], "derived": []} if can_guess(facts) else {"solved": []}
    shortest = min(sum(len(line["tokens"]) for line in texts) for texts in problems.values())
    for budget in (b for b in BUDGETS if b <= shortest):
        for kind, points in curves.items():
            hits = 0
            for name, texts in problems.items():
                left = budget
                for line in texts:
                    left -= len(line["tokens"])
                    if left < 0:
                        break
                    if line["solved"] and (kind == "solved" or is_derived(line["text"], line["gold"], facts[name])):
                        hits += 1
                        break
            points.append({"budget": budget, "share": hits / len(problems), "ci95": wilson(hits, len(problems))})
    return {"n": len(problems), "texts": len(lines) // len(problems), "seed": row.seed, **curves}


def can_guess(facts: dict[str, dict]) -> bool:
    """Whether an answer alone is judged, so that a text may have guessed it."""
    return any({"animals", "expression"} & each.keys() for each in facts.values())


def facts_of(run: Path, wanted: list[str]) -> dict[str, dict]:
    """What reasoning_gym says of each problem of a run."""
    config = OmegaConf.load(run / "config.yaml")
    problems = task_of(config).problems(config.evaluate.split, config.evaluate.num_problems, config.seed)
    found = {p.id: p.extra.get("metadata", {}) for p in problems}
    return {name: found[name] for name in wanted}


if __name__ == "__main__":
    main()
