"""Run directories: resuming after real signals, half-written files, and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ollm_rl.errors import CheckpointError
from ollm_rl.runs import Run
from tests.conftest import QUICK_KEYS

ROOT = Path(__file__).parents[2]
STEPS = 12


def train(folder: Path) -> subprocess.Popen:
    keys = [f"agent.total_episodes={16 * STEPS}", "agent.num_generations=4", "agent.problems_per_iteration=4"]
    command = [sys.executable, "-m", "ollm_rl", "train", "agent=grpo", *keys, *QUICK_KEYS]
    # One thread: sums over two may come out in another order, and the weights are compared bit by bit.
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=surroundings, stderr=subprocess.PIPE, text=True,
        # A suite that runs in the background of a shell ignores SIGINT, and its children would as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def steps_of(folder: Path) -> list[int]:
    path = folder / "runs/train/metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    _, errors = (process := train(folder)).communicate(timeout=120)
    assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_killed_in_training_ends_like_an_uninterrupted_one(uninterrupted, tmp_path, kind, code):
    process = train(tmp_path)
    metrics = tmp_path / "runs/train/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it was killed"
        time.sleep(0.002)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert not (tmp_path / "runs/train/results.json").exists()
    assert kind is signal.SIGKILL or "continues from the last checkpoint" in " ".join(errors.split())
    _, errors = (process := train(tmp_path)).communicate(timeout=120)
    assert process.returncode == 0, errors
    assert steps_of(tmp_path) == steps_of(uninterrupted) == list(range(1, STEPS + 1))
    whole, again = (load_file(f / "runs/train/policy/policy.safetensors") for f in (uninterrupted, tmp_path))
    assert whole.keys() == again.keys() and all((whole[k] == again[k]).all() for k in whole)


def test_half_a_line_of_metrics_is_forgotten(tmp_path):
    run = Run(tmp_path, "r", "a: 1\n")
    run.log_metrics(1, {"reward": 0.5})
    run.close()
    with (run.path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 2, "rew')
    run.truncate_metrics(1)
    assert [m["step"] for m in run.metrics()] == [1]
    assert (run.path / "metrics.jsonl").read_text().count("\n") == 1


def test_resume_modes(tmp_path):
    with pytest.raises(CheckpointError, match="resume=must"):
        Run(tmp_path, "r", "a: 1\n", "must")
    Run(tmp_path, "r", "a: 1\n")
    Run(tmp_path, "r", "a: 1\n", "must")
    with pytest.raises(CheckpointError, match="resume=never"):
        Run(tmp_path, "r", "a: 1\n", "never")
    with pytest.raises(CheckpointError, match="there 'a: 1', now 'a: 2'"):
        Run(tmp_path, "r", "a: 2\n")


def test_a_comparison_may_grow(tmp_path):
    Run(tmp_path, "run", "agents:\n- prior\nseeds:\n- 0\nagent:\n  beta: 0.1\n")
    Run(tmp_path, "run", "agents:\n- prior\n- grpo\nseeds:\n- 0\n- 1\nagent:\n  beta: 0.1\n", "must")
    with pytest.raises(CheckpointError, match="beta"):
        Run(tmp_path, "run", "agents:\n- prior\nseeds:\n- 0\nagent:\n  beta: 0.2\n")


def test_a_run_is_continued_on_another_cluster(tmp_path):
    Run(tmp_path, "run", "seed: 0\nrollout:\n  address: ray://one:10001\n")
    Run(tmp_path, "run", "seed: 0\nrollout:\n  address: auto\n", "must")
    with pytest.raises(CheckpointError, match="seed"):
        Run(tmp_path, "run", "seed: 1\nrollout:\n  address: auto\n")
