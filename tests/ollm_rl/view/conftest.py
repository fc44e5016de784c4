"""Runs to look at: made by hand, with texts that would break a page, and those of an earlier release."""

import json
import shutil
from pathlib import Path

import pytest

OLD = Path(__file__).parents[2] / "fixtures" / "runs_23d70ee"
HOSTILE = '</script><img src=x onerror="document.body.dataset.hacked=1"><b>"&amp; \u2028 `${1}` 1 + 1 = ?'
TARGETS = {"grpo": "agents.grpo.GRPO", "prior": "agents.prior.Prior"}


def line(problem, right, text="The answer is 2.", **more):
    """A line of rollouts; its tokens are the bytes of `tiny` for "ab"."""
    return {
        "problem_id": f"test-{problem}", "problem": f"problem {problem}", "gold": "2", "text": text, "answer": "2" if right else "3",
        "reward": float(right), "solved": right, "verdict": "equal" if right else "different", "stop": "eos", "seed": 1,
        "log_prob": -0.5, "policy_version": None, "latents": [1, -1], "tokens": [67, 68], **more,
    }  # fmt: skip


def steps(*options):
    """A replay's steps: a decision among `options`, and a token that all agree on."""
    return [
        {"token": "a", "latent": 1, "options": [*options, [1, "a", 0.04]]},
        {"token": "b", "latent": -1, "options": [[0, "b", 1.0]]},
    ]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))


def write_run(folder, agent, solved, seed=0, task="sums", finished=True, text="The answer is 2.", iterations=2):
    """The files of a run that has solved these problems of four."""
    greedy = [line(i, i in solved, f"{text} ({agent})") for i in range(4)]
    write_lines(folder / "rollouts" / "greedy.jsonl", greedy)
    (folder / "config.yaml").write_text(
        f"seed: {seed}\ntask:\n  name: {json.dumps(task)}\nbackbone:\n  name: tiny\nagent:\n  _target_: {TARGETS[agent]}\n"
    )
    if agent == "grpo":
        curve = [
            {
                "step": i,
                "train_episodes": 3 * i,
                "train_seconds": 1.0 * i,
                "reward": 0.2 * i,
                "kl_from_prior": 0.1 * i,
                "stopped_early": 0,
            }
            for i in range(1, iterations + 1)
        ]
        write_lines(folder / "metrics.jsonl", curve)
        for i in range(1, iterations + 1):
            write_lines(
                folder / "rollouts" / f"train_{i}.jsonl", [line(f"t{i}-{j}", j == 0, f"step {i}") for j in range(3)]
            )
    replay = [{**greedy[0], "steps": steps([0, HOSTILE, 0.9])}]
    (folder / "replays.json").write_text(json.dumps(replay))
    if finished:
        row = {
            "agent": agent, "seed": seed, "n_problems": 4, "accuracy": len(solved) / 4, "accuracy_ci95": [0.1, 0.9], "avg@8": 0.5,
            "pass@8": 0.75, "maj@8": 0.5, "train_episodes": 6 if agent == "grpo" else 0, "train_seconds": 2.0,
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps({"task": task, "backbone": "tiny", "rows": [row]}))


@pytest.fixture
def runs(tmp_path):
    """A comparison, a run that was interrupted, one whose texts attack the page, and directories that are none."""
    root = tmp_path / "runs"
    write_run(root / "both" / "prior-3", "prior", {0, 1}, seed=3)
    write_run(root / "both" / "grpo-3", "grpo", {1, 2, 3}, seed=3)
    rows = [
        json.loads((root / "both" / part / "results.json").read_text())["rows"][0] for part in ("prior-3", "grpo-3")
    ]
    rows = [{**row, "directory": part} for row, part in zip(rows, ("prior-3", "grpo-3"), strict=True)]
    (root / "both" / "config.yaml").write_text("task:\n  name: sums\nbackbone:\n  name: tiny\nagents: [prior, grpo]\n")
    (root / "both" / "results.json").write_text(json.dumps({"task": "sums", "backbone": "tiny", "rows": rows}))
    write_run(root / "broken_off", "grpo", {0}, finished=False, iterations=12)
    (root / "broken_off" / "replays.json").unlink()
    write_run(root / "hostile", "prior", {3}, task=HOSTILE, text=HOSTILE)
    (root / "photos" / "summer").mkdir(parents=True)
    (root / "photos" / "summer" / "config.yaml").write_text("camera: none\n")
    (root / ".hidden").mkdir()
    return root


@pytest.fixture
def old_runs(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "old"))
