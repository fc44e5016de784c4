"""How good the estimates of `--dry-run` are: predicted and actual seconds of whole commands, one right after the other.

    python benchmarks/estimates.py --repeat 2 --out benchmarks/results/estimates.json

Processor seconds are compared as well as those by the clock: on a machine that others use too, only the former are a property of
the program. Every actual run is new; `fresh` settings also convert anew, in a cache of their own. Prints one JSON line.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ollm_rl.common.cache import cache_dir

FACTOR = 1.5  # that estimates are to be within
SMALL = ["convert.num_solutions=1000", "convert.epochs=2", "convert.prior_epochs=2", "convert.reader_epochs=2"]
SHORT = ["evaluate.num_problems=64", "agent.total_episodes=384"]
SETTINGS: dict[str, tuple[bool, list[str]]] = {
    "train tiny, converted anew": (True, ["train", "backbone=tiny", *SMALL, "evaluate.num_problems=100", "agent.total_episodes=512"]),
    "train smollm2": (False, ["train", *SHORT]),
    "oracle smollm2": (False, ["oracle", "oracle.budget=500", "oracle.num_problems=100"]),
    "compare smollm2": (
        False,
        ["compare", "agents=[prior,grpo]", "seeds=[0,1]", "with_oracle=true", "oracle.budget=500", "oracle.num_problems=64", *SHORT],
    ),
}  # fmt: skip
SAID = re.compile(r"in all: ([\d,]+) s \(([\d,]+) s of processor time\), ([\d,]+) generated tokens")


def command(arguments: list[str], folder: str, cache: Path) -> tuple[float, float, str]:
    """Run `ollm-rl`: seconds by the clock, of the processor, and what it said."""
    environment = {**os.environ, "OLLM_RL_CACHE": str(cache)}
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "ollm_rl", *arguments, f"runs_dir={folder}"], env=environment, capture_output=True, text=True
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - wall, cpu, done.stdout


def cache_of(fresh: bool, folder: str) -> Path:
    """The cache directory of this machine, or a new one with its backbones and what was measured and compiled for it."""
    if not fresh:
        return cache_dir()
    made = Path(folder) / "cache"
    made.mkdir()
    for name in ("backbones", "kernels", "bf16_speed.json"):
        if (cache_dir() / name).exists():
            (made / name).symlink_to(cache_dir() / name)
    return made


def once(fresh: bool, arguments: list[str]) -> dict[str, float]:
    """A prediction and what came after it."""
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_of(fresh, folder)
        _, _, said = command([*arguments, "--dry-run"], folder, cache)
        if (found := SAID.search(said)) is None:
            raise SystemExit(f"no estimate in:\n{said[-2000:]}")
        wall, cpu, tokens = (float(group.replace(",", "")) for group in found.groups())
        actual_wall, actual_cpu, _ = command(arguments, folder, cache)
        [cost] = [json.loads(p.read_text()) for p in Path(folder).glob("*/cost.json")]
    return {
        "predicted_s": wall, "actual_s": round(actual_wall, 1), "predicted_cpu_s": cpu, "actual_cpu_s": round(actual_cpu, 1),
        "ratio": round(wall / actual_wall, 2), "ratio_cpu": round(cpu / actual_cpu, 2),
        "predicted_tokens": tokens, "actual_tokens": cost["tokens"], "ratio_tokens": round(tokens / max(1, cost["tokens"]), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--only", default="", help="settings whose names have this in them")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for name, (fresh, arguments) in SETTINGS.items():
        if given.only not in name:
            continue
        runs = [once(fresh, arguments) for _ in range(given.repeat)]
        median = statistics.median(run["ratio_cpu"] for run in runs)
        rows.append({
            "setting": name, "command": f"ollm-rl {' '.join(arguments)}", "runs": runs, "median_ratio_cpu": median,
            "within": all(1 / FACTOR <= run["ratio_cpu"] <= FACTOR for run in runs),
        })  # fmt: skip
        print(name, *runs, sep="\n  ", file=sys.stderr)
    load = os.getloadavg()[1]
    result = {
        "machine": f"{os.cpu_count()} processors, {torch.get_num_threads()} threads, load {load:.1f} over the last five minutes",
        "factor": FACTOR, "rows": rows,
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
