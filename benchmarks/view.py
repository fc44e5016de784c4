"""How fast `ollm-rl view` is on many runs: writing its page, and opening it in headless Chromium.

    python benchmarks/view.py [runs=200] [episodes=100000] [keep=<directory>]

Makes runs of training with greedy and sampled texts and rollouts of every iteration, all texts different, and measures in turn: the first build, one in
which nothing has changed, one after a single run has gone on, and in the browser the time from asking for the page until its table stands (`opens_s`, the
median of 5), until a comparison of two runs and an episode stand, and a search through all texts. `build_cpu_s` is what other work on the machine hardly changes. Prints one JSON line.
"""

import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.browser import CHROMIUM, Browser

OWN = {"runs": 200, "episodes": 100_000}
ITERATIONS, PROBLEMS = 10, 40
TEXT = "the sum of two parts is taken first and then what is left is put beside it so that nothing is counted twice"


def episode(rng: random.Random, problem: int, split: str) -> dict[str, Any]:
    """A line of rollouts, about as long as those of word problems."""
    a, b = divmod(problem * 7919, 97)
    tokens = rng.randint(30, 90)
    right = rng.random() < 0.6
    return {
        "problem_id": f"{split}-0-{problem}", "problem": f"{a % 50} + {b} = ? Put the final answer in \\boxed{{}}.", "gold": str(a % 50 + b),
        "text": " ".join(rng.choices(TEXT.split(), k=tokens - 8)) + f". The answer is \\boxed{{{a % 50 + b + (not right)}}}.",
        "answer": str(a % 50 + b + (not right)), "reward": float(right), "solved": right, "verdict": "equal" if right else "different",
        "stop": "eos", "seed": rng.randrange(2**31), "log_prob": -rng.random() * 9, "policy_version": None,
        "latents": [rng.choice((-1, -1, rng.randrange(8))) for _ in range(tokens)], "tokens": [rng.randrange(256) for _ in range(tokens)],
    }  # fmt: skip


def make_run(folder: Path, seed: int, episodes: int) -> None:
    """The files that `train` leaves, as far as they are looked at."""
    rng = random.Random(seed)
    (folder / "rollouts").mkdir(parents=True)
    agent, task = ("grpo", "prior", "local")[seed % 3], ("chain_sum", "leg_counting")[seed % 2]
    target = {"grpo": "agents.grpo.GRPO", "prior": "agents.prior.Prior", "local": "agents.controls.Local"}[agent]
    (folder / "config.yaml").write_text(
        f"seed: {seed}\ntask:\n  name: {task}\nbackbone:\n  name: tiny\nagent:\n  _target_: {target}\n"
    )
    rest = max(PROBLEMS, episodes - PROBLEMS)
    parts = {"greedy": PROBLEMS, "sampled": rest // 2 // PROBLEMS * PROBLEMS}
    parts |= {f"train_{i}": (rest - parts["sampled"]) // ITERATIONS for i in range(1, ITERATIONS + 1)}
    lines = {name: [episode(rng, i % PROBLEMS, "test") for i in range(n)] for name, n in parts.items()}
    for name, part in lines.items():
        (folder / "rollouts" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    solved = sum(line["solved"] for line in lines["greedy"])
    share = solved / PROBLEMS
    curve = [
        {"step": i, "train_episodes": 64 * i, "train_seconds": 1.5 * i, "reward": share * i / ITERATIONS, "kl_from_prior": i * rng.random(),
         "entropy": 1 / i, **({"eval/accuracy": share * i / ITERATIONS} if i % 5 == 0 else {})}
        for i in range(1, ITERATIONS + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    row = {
        "agent": agent, "seed": seed, "n_problems": PROBLEMS, "accuracy": share, "accuracy_ci95": [max(0, share - 0.15), min(1, share + 0.15)],
        "avg@4": share, "pass@4": min(1, share + 0.2), "maj@4": share, "train_episodes": 640, "train_seconds": 15.0,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"task": task, "backbone": "tiny", "rows": [row]}))


def opening(page: Path, folder: Path) -> dict[str, float]:
    """Seconds until what is asked for stands on the page."""
    url, found = page.resolve().as_uri(), {}
    with Browser(folder / "profile", folder) as browser:
        opened = []
        for _ in range(5):
            began = time.perf_counter()
            browser.open(url)
            browser.wait("document.body?.dataset.ready === 'runs' && document.querySelectorAll('tr.r').length")
            opened.append(time.perf_counter() - began)
        found["opens_s"], found["opens_slowest_s"] = median(opened), max(opened)
        found["opens_of_which_page_s"] = browser.js("document.body.dataset.milliseconds / 1000")
        ids = browser.js("index.runs.slice(0, 2).map(run => run.id)")
        for name, address, ready in (
            ("compares_s", f"view=compare&a={ids[0]}&b={ids[1]}", "document.querySelector('.boxes')"),
            ("episode_s", f"view=run&run={ids[0]}&set=train_3&ep=2", "document.querySelector('.trace .t')"),
            ("search_s", "view=search&find=nothing is counted twice", "document.querySelector('[data-done]')"),
        ):
            began = time.perf_counter()
            browser.js(f"location.hash = {json.dumps(address)}; null")
            browser.wait(ready, 300)
            found[name] = time.perf_counter() - began
        if browser.thrown:
            sys.exit(f"the page has raised: {browser.thrown}")
    return found


def measure(own: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All figures."""
    from ollm_rl.view.page import write_view

    runs, each = folder / "runs", own["episodes"] // own["runs"]
    for seed in range(own["runs"]):
        make_run(runs / f"run-{seed}", seed, each)
    found: dict[str, Any] = {"runs": own["runs"]}
    for name in ("build_s", "unchanged_s", "one_changed_s"):
        if name == "one_changed_s":
            with (runs / "run-0" / "metrics.jsonl").open("a") as out:
                out.write(json.dumps({"step": ITERATIONS + 1, "train_episodes": 704, "reward": 0.5}) + "\n")
            shutil.copy(
                runs / "run-0" / "rollouts" / "train_1.jsonl",
                runs / "run-0" / "rollouts" / f"train_{ITERATIONS + 1}.jsonl",
            )
        cpu = time.process_time()
        made = write_view(runs)
        if name == "build_s":
            found["build_cpu_s"] = round(time.process_time() - cpu, 2)
        found[name] = round(made.seconds, 2)
        found["files" if name == "build_s" else f"{name.removesuffix('_s')}_files"] = made.written
        found["episodes"] = made.episodes
    sizes = {kind: sum(p.stat().st_size for p in (runs / kind).rglob("*") if p.is_file()) for kind in ("", "view")}
    found |= {"bytes_of_runs": sizes[""] - sizes["view"], "bytes": sizes["view"]}
    if CHROMIUM is not None:
        found |= {name: round(seconds, 2) for name, seconds in opening(made.page, folder).items()}
    return {**found, "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}"}


def main() -> None:
    own, keep = dict(OWN), ""
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key == "keep":
            keep = value
        elif key in own and value.isdecimal() and int(value):
            own[key] = int(value)
        else:
            sys.exit(f"{argument}: expected runs=<number>, episodes=<number> or keep=<directory>")
    if keep:
        print(json.dumps(measure(own, Path(keep))))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(own, Path(folder))))


if __name__ == "__main__":
    main()
