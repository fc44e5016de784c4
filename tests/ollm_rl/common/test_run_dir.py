"""Run directories: resuming after real signals, half-written files, and refusals."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ollm_rl.cli.app import main
from ollm_rl.common.cost import COST
from ollm_rl.common.run_dir import CONFIG, RESULTS, Run, policy_dir, whole_lines
from ollm_rl.config.compose import compose
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.experiments.single import SessionCache, run_trial
from tests.conftest import QUICK_KEYS

ROOT = Path(__file__).parents[3]
STEPS = 12


def train(folder: Path) -> subprocess.Popen:
    keys = [f"agent.total_episodes={16 * STEPS}", "agent.num_generations=4", "agent.problems_per_iteration=4"]
    keys += ["agent.num_problems=40"]
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
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
    assert kind is signal.SIGKILL or (tmp_path / "runs/train" / COST).exists()
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


def test_values_are_compared_and_not_lines(tmp_path):
    Run(tmp_path, "run", "agent:\n  rate: 1.0e-4\n  names: [a, b]\nresume: auto\n")
    Run(tmp_path, "run", "resume: must\nagent: {names: ['a', b], rate: 0.0001}\n", "must")
    with pytest.raises(CheckpointError, match="there 'agent.rate: 0.0001', now 'agent.rate: 0.1'"):
        Run(tmp_path, "run", "agent: {names: [a, b], rate: 0.1}\n")


def without(yaml: str, key: str) -> str:
    """A configuration as a release without `key` wrote it."""
    lines = [line for line in yaml.splitlines() if not line.strip().startswith(f"{key}:")]
    assert len(lines) == len(yaml.splitlines()) - 1
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("use_bias_correction_kl", "agent.use_bias_correction_kl=false"),
        ("num_kl", "evaluate.num_kl=3"),
        ("length_penalty", "oracle.length_penalty=0.5"),
    ],
)
def test_a_setting_that_an_older_run_lacks_has_todays_default(tmp_path, key, other):
    now = compose(["agent=grpo"])
    Run(tmp_path, "old", without(now.yaml(), key))
    Run(tmp_path, "old", now.yaml(), "must")
    with pytest.raises(CheckpointError, match=f"there no '.*{key}', now"):
        Run(tmp_path, "old", compose(["agent=grpo", other]).yaml())


def test_a_setting_that_is_gone_is_ignored_if_it_was_off(tmp_path):
    now = compose(["agent=grpo"]).yaml()
    for name, line in (("off", "  warmup: null"), ("on", "  warmup: 3")):
        Run(tmp_path, name, now.replace("agent:\n", f"agent:\n{line}\n"))
    Run(tmp_path, "off", now, "must")
    with pytest.raises(CheckpointError, match="there 'agent.warmup: 3', now no 'agent.warmup'"):
        Run(tmp_path, "on", now)


def test_settings_of_the_users_own_are_in_no_release(tmp_path):
    mine = ["agent._target_=my.Agent", "agent.a=1"]
    Run(tmp_path, "own", compose([*mine, "agent.b=false"]).yaml())
    for other in (mine, [*mine, "agent.b=false", "agent.c=2"]):
        with pytest.raises(CheckpointError, match="another configuration"):
            Run(tmp_path, "own", compose(other).yaml())
    gym = ["task=reasoning_gym", "task.params.size=3"]
    Run(tmp_path, "gym", compose([*gym, "task.params.flag=false"]).yaml())
    with pytest.raises(CheckpointError, match="task.params.flag"):
        Run(tmp_path, "gym", compose(gym).yaml())


def test_what_is_refused_leaves_the_configuration_alone(tmp_path):
    run = Run(tmp_path, "run", "agent: {total_episodes: 64, beta: 0.1}\nagents: [a]\n")
    run.log_metrics(1, {"train_episodes": 64})
    written = (run.path / CONFIG).read_text()
    with pytest.raises(CheckpointError, match="beta"):
        Run(tmp_path, "run", "agent: {total_episodes: 128, beta: 0.2}\nagents: [a, b]\n")
    with pytest.raises(
        CheckpointError, match="trained further than agent.total_episodes=32: it has train_episodes 64 of 64"
    ):
        Run(tmp_path, "run", "agent: {total_episodes: 32, beta: 0.1}\nagents: [a]\n")
    more = Run(tmp_path, "run", "agent: {total_episodes: 128, beta: 0.1}\nagents: [a]\n")
    assert more.grown == {"agent.total_episodes": (64, 128)}
    assert (run.path / CONFIG).read_text() == written  # nothing was done yet
    more.log_metrics(2, {})
    assert "128" in (run.path / CONFIG).read_text()


HOLD = """
import sys, time
from ollm_rl.common.run_dir import Run
run = Run(sys.argv[1], "run", "a: 1")
print("open", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path):
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=surroundings, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(CheckpointError, match=f"in use by another process \\(process {other.pid} on"):
            Run(tmp_path, "run", "a: 1")
        other.kill()
    first = Run(tmp_path, "run", "a: 1", "must")
    again = Run(tmp_path, "run", "a: 1", "must")  # this process may
    first.close()
    command = [sys.executable, "-c", HOLD.replace("60", "0"), str(tmp_path)]
    held = subprocess.run(command, env=surroundings, capture_output=True, text=True)
    assert held.returncode == 1 and f"process {os.getpid()}" in held.stderr
    again.close()
    again.close()
    assert subprocess.run(command, env=surroundings, capture_output=True).returncode == 0


def saved(run: Run, step: int) -> Path:
    scratch = run.checkpoint_dir(step)
    (scratch / "deep").mkdir()
    for name in ("policy.safetensors", "counters.json", "deep/state.pkl"):
        (scratch / name).write_text(json.dumps({"step": step, "padding": "x" * 50}))
    return run.commit_checkpoint(step)


DAMAGE = {
    "cut off": lambda p: (p / "policy.safetensors").write_text("{"),
    "empty": lambda p: (p / "deep/state.pkl").write_text(""),
    "missing": lambda p: (p / "counters.json").unlink(),
    "changed": lambda p: (p / "counters.json").write_text((p / "counters.json").read_text().replace("x", "y")),
    "its list cut off": lambda p: (p / "files.json").write_text('{"policy'),
    "gone": shutil.rmtree,
    "unsealed and empty": lambda p: [f.write_text("") for f in p.rglob("*.json")] and (p / "files.json").unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, how, caplog):
    run = Run(tmp_path, "run", "")
    saved(run, 3)
    DAMAGE[how](saved(run, 4))
    with caplog.at_level(logging.WARNING):
        assert run.latest_checkpoint() == (3, run.path / "checkpoints/step_3")
    assert "going on from step_3" in caplog.text and "step_4" in caplog.text
    (run.path / "checkpoints/step_3/counters.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* is whole \(step_4: .*step_3: counters.json is missing.*delete"
    ):
        run.latest_checkpoint()


def test_a_run_stands_for_its_policy(tmp_path):
    part = Run(tmp_path / "both", "grpo-0", "a: 1\n")
    part.log_metrics(1, {})
    Run(tmp_path, "both", "a: 1\n").log_metrics(1, {})
    with pytest.raises(CheckpointError, match="is a run without a policy.*runs/<name>/policy"):
        policy_dir(part.path)
    (part.path / "policy").mkdir()
    assert policy_dir(part.path) == policy_dir(part.path / "policy") == part.path / "policy"
    with pytest.raises(CheckpointError, match="both is a run without a policy.*There are .*grpo-0/policy"):
        policy_dir(tmp_path / "both")
    assert policy_dir(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert compose([f"policy={part.path}"]).config.policy == str(part.path / "policy")


@pytest.mark.parametrize(
    "key, choice", [("convert.sampled_by", []), ("oracle.critic", []), ("oracle.value", []), ("agent.path", []), ("agent.value", ["agent=search"])]
)  # fmt: skip
def test_a_run_stands_for_its_policy_wherever_one_is_asked_for(tmp_path, key, choice):
    run = Run(tmp_path, "run", "a: 1\n")
    run.log_metrics(1, {})
    (run.path / "policy").mkdir()
    assert OmegaConf.select(compose([*choice, f"{key}={run.path}"]).config, key) == str(run.path / "policy")
    [kept] = [OmegaConf.select(compose(["agent=search", f"agent.policy={run.path}{{seed}}"]).config, "agent.policy")]
    assert kept == f"{run.path}{{seed}}"  # which run it is, every seed says for itself


def test_a_run_stands_for_its_plug_in(tmp_path):
    run = Run(tmp_path, "run", "a: 1\n")
    run.log_metrics(1, {})
    assert compose([f"plugin.path={run.path}"]).config.plugin.path == str(
        run.path
    )  # it has none: said by what looks for it
    (run.path / "policy" / "plugin").mkdir(parents=True)
    assert compose([f"plugin.path={run.path}"]).config.plugin.path == str(run.path / "policy" / "plugin")
    (run.path / "plugin").mkdir()
    assert compose([f"plugin.path={run.path}"]).config.plugin.path == str(run.path / "plugin")


def test_a_run_that_goes_on_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run = Run(tmp_path, "run", "a: 1\n")
        saved(run, 3)
        run.close()
        assert "goes on" not in caplog.text
        Run(tmp_path, "run", "a: 1\n").close()
    assert "goes on; its last checkpoint is of step 3" in caplog.text


def test_a_pointer_that_is_no_checkpoint_is_passed_over(tmp_path):
    run = Run(tmp_path, "run", "")
    assert run.latest_checkpoint() is None
    saved(run, 3)
    saved(run, 4)
    for text in ("", "step_", "nonsense"):
        (run.path / "checkpoints/latest").write_text(text)
        assert run.latest_checkpoint() == (4, run.path / "checkpoints/step_4")
    (run.path / "checkpoints/latest").unlink()
    assert run.latest_checkpoint() == (4, run.path / "checkpoints/step_4")
    (run.path / "checkpoints/latest").write_text("step_3\n")  # a kill came between the directory and the pointer
    assert run.latest_checkpoint() == (3, run.path / "checkpoints/step_3")


def test_a_number_that_json_does_not_know_is_null(tmp_path):
    run = Run(tmp_path, "run", "")
    run.log_metrics(1, {"a": float("nan"), "b": [float("inf"), 1.5]})
    run.write_json("x.json", {"a": float("-inf")})
    assert run.metrics() == [{"step": 1, "a": None, "b": [None, 1.5]}]
    assert json.loads((run.path / "x.json").read_text()) == {"a": None}


def test_a_damaged_line_of_metrics_is_said(tmp_path):
    run = Run(tmp_path, "run", "")
    run.log_metrics(1, {})
    (run.path / "metrics.jsonl").write_text('\0\0\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 1 is not JSON"):
        run.metrics()


@pytest.fixture(scope="module")
def sessions(own_cache):
    sessions = SessionCache()
    yield sessions
    sessions.close()


def grpo(sessions: SessionCache, folder: Path, episodes: int, *more: str) -> dict:
    """`train` without tables and plots; its row."""
    keys = [
        "agent.num_generations=4",
        "agent.problems_per_iteration=4",
        "agent.num_problems=20",
        "agent.learning_rate=1e-3",
    ]
    settings = compose(["agent=grpo", *QUICK_KEYS, *keys, f"agent.total_episodes={episodes}", *more])
    run = Run(folder, "train", settings.yaml())
    try:
        return run_trial(settings, run, sessions, 0).to_dict()["rows"][0]
    finally:
        run.close()


def figures(row: dict) -> dict:
    return {k: v for k, v in row.items() if "seconds" not in k}


def test_a_finished_run_with_a_larger_limit_trains_on(sessions, tmp_path):
    whole = grpo(sessions, tmp_path / "whole", 48)
    short, path = grpo(sessions, tmp_path / "parts", 32), tmp_path / "parts/train"
    before = json.loads((path / "before.json").read_text())
    sessions.known.clear()
    assert grpo(sessions, tmp_path / "parts", 32) == short
    row = grpo(sessions, tmp_path / "parts", 48)
    assert row["train_episodes"] == 48 and row["before"] == before == short["before"]
    assert figures(row) == figures(whole)
    assert [m["train_episodes"] for m in whole_lines(path / "metrics.jsonl")] == [16, 32, 48]
    one, other = (load_file(tmp_path / n / "train/policy/policy.safetensors") for n in ("whole", "parts"))
    assert all((one[k] == other[k]).all() for k in one)
    config = (path / CONFIG).read_text()
    assert "total_episodes: 48" in config
    for episodes, more, why in (
        (16, [], "trained further than agent.total_episodes=16"),
        (64, ["evaluate.samples=4"], "there 'evaluate.samples: 8', now 'evaluate.samples: 4'"),
    ):
        with pytest.raises(CheckpointError, match=why):
            grpo(sessions, tmp_path / "parts", episodes, *more)
        assert (path / CONFIG).read_text() == config and json.loads((path / RESULTS).read_text())["rows"] == [row]


def test_a_run_with_damaged_checkpoints_goes_on_from_the_whole_one(sessions, tmp_path):
    whole, path = grpo(sessions, tmp_path, 48), tmp_path / "train"
    (path / RESULTS).unlink()
    (path / "checkpoints/step_3/optimizer.pt").write_bytes(b"")
    again = grpo(sessions, tmp_path, 48)
    assert figures(again) == figures(whole)
    assert [m["step"] for m in whole_lines(path / "metrics.jsonl")] == [1, 2, 3]
    for step in (2, 3):
        (path / f"checkpoints/step_{step}/policy.json").write_text("{")
    results, config = (path / RESULTS).read_text(), (path / CONFIG).read_text()
    with pytest.raises(
        CheckpointError, match="is whole"
    ):  # what was done is not thrown away for more that cannot be had
        grpo(sessions, tmp_path, 64)
    assert (path / RESULTS).read_text() == results and (path / CONFIG).read_text() == config


def test_a_refused_new_run_does_not_refuse_the_mended_command(sessions, tmp_path):
    with pytest.raises(ConfigurationError):
        grpo(sessions, tmp_path, 16, "agent.num_generations=1", "agent.pass_at_k=1")
    assert not (tmp_path / "train").exists()
    assert grpo(sessions, tmp_path, 16)["train_episodes"] == 16


def test_what_cannot_train_on_is_refused_with_the_reason(tmp_path, own_cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = """
import torch
class Own:
    def __init__(self, session, total_episodes=4): self.n = total_episodes
    def learn(self, run): return {"train_episodes": self.n}
    def predict(self, hidden, deterministic=True): return torch.zeros(len(hidden), dtype=torch.long)
    def save(self, path): pass
    load = save
"""
    (tmp_path / "own_agents.py").write_text(own)
    command = ["train", "agent._target_=own_agents.Own", *QUICK_KEYS]
    main([*command, "agent.total_episodes=4"])
    with pytest.raises(SystemExit) as refused:
        main([*command, "agent.total_episodes=8"])
    said = " ".join(capsys.readouterr().err.split())
    assert refused.value.code == 2 and "agent.total_episodes=4, and now agent.total_episodes=8" in said
    assert "does not train on" in said and "total_episodes: 4" in (tmp_path / "runs/train/config.yaml").read_text()
    compared = ["compare", "agents=[prior,own_agents.Own]", "name=both", *QUICK_KEYS]
    main([*compared, "agent.total_episodes=4"])
    config = (tmp_path / "runs/both/config.yaml").read_text()
    with pytest.raises(SystemExit):
        main([*compared, "agent.total_episodes=8", "seeds=[0,1]"])
    assert (tmp_path / "runs/both/config.yaml").read_text() == config and not (tmp_path / "runs/both/prior-1").exists()


@pytest.mark.parametrize("left", ["results.json", "metrics.jsonl", "checkpoints/step_1/policy.json"])
def test_what_is_left_of_a_run_without_its_configuration_is_not_continued(tmp_path, left):
    """Nothing says that it was made with this configuration."""
    file = tmp_path / "run" / left
    file.parent.mkdir(parents=True)
    file.write_text("{}\n")
    with pytest.raises(CheckpointError, match=f"has {left.partition('/')[0]} of a run, but no config.yaml"):
        Run(tmp_path, "run", "seed: 0\n")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("text", ["", '{"rows": [{"agent"', "\x00"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, text):
    from ollm_rl.common.run_dir import stored_json

    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CheckpointError, match="results.json cannot be read .*delete it and repeat"):
        stored_json(tmp_path / "results.json")
