"""What `--dry-run` measures: the same texts as the run has, about as many tokens, and nothing where nothing can be measured."""

import json
import re
from pathlib import Path

import pytest

from ollm_rl.cli.app import main
from ollm_rl.cli.time_estimate import gpu_lines, is_here
from ollm_rl.common.cache import cache_dir
from ollm_rl.config.compose import compose
from ollm_rl.experiments.pieces import Measuring
from tests.conftest import QUICK_KEYS

KEYS = [
    *QUICK_KEYS, "agent.num_generations=4", "agent.problems_per_iteration=4", "agent.num_problems=40", "agent.total_episodes=32",
    "estimate.seconds=2",
]  # fmt: skip
SAID = re.compile(r"in all: ([\d,]+) s \(([\d,]+) s of processor time\), ([\d,]+) generated tokens, ([\d,]+) texts")


@pytest.fixture(autouse=True)
def in_scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def numbers(text):
    return [int(group.replace(",", "")) for group in SAID.search(text).groups()]


@pytest.mark.parametrize(
    "command",
    [
        ["train", "evaluate.num_kl=0"],
        pytest.param(["compare", "agents=[prior,grpo]", "seeds=[0,1]"], marks=pytest.mark.slow),
    ],
)
def test_the_run_has_the_texts_and_about_the_tokens_that_were_said(command, capsys):
    main([*command, *KEYS, "name=first", "--dry-run"])
    said = capsys.readouterr().out
    assert not Path("runs").exists()
    seconds, _, tokens, texts = numbers(said)
    assert "grpo: train" in said and "decode rows a second" in said and seconds > 0
    main([*command, *KEYS, "name=first"])
    cost = json.loads(Path("runs/first/cost.json").read_text())
    assert texts == cost["episodes"]
    assert 1 / 1.5 < tokens / cost["tokens"] < 1.5
    printed = capsys.readouterr().out
    assert "What it cost" in printed and f"{cost['tokens']:,}" in printed
    assert "What it cost" in Path("runs/first/report.html").read_text()
    main([*command, *KEYS, "name=first"])  # done: it costs nothing more
    assert json.loads(Path("runs/first/cost.json").read_text()) == cost


def test_tasks_are_measured_one_after_another_and_what_is_fitted_first_is_left_out(capsys):
    arms = "arms={fitted:['agent=prior','backbone.adapter=sft']}"
    agents = "agents=[prior,fitted,lora_sft,shortlist_head]"
    tasks = ["compare", "tasks=[chain_sum,shortest_path]", agents, arms, "seeds=[0]"]
    main([*tasks, *QUICK_KEYS, "estimate.seconds=1", "--dry-run"])
    said = capsys.readouterr().out
    each = [int(found[0].replace(",", "")) for found in SAID.findall(said)]
    whole = re.search(r"all 2 tasks: ([\d,]+) s", said)
    assert whole and len(each) == 2 and abs(int(whole[1].replace(",", "")) - sum(each)) <= 1
    assert "What chain_sum would take" in said and "What shortest_path would take" in said
    assert said.count("fitted is not estimated: its backbone is another") == 2
    assert said.count(" is not estimated: it trains more than a policy over the options") == 4


def test_agents_that_begin_alike_are_measured_once(capsys, monkeypatch):
    """Their evaluations take the same, but for what is added to that of one that learns."""
    measured, grown = [], Measuring.grown
    monkeypatch.setattr(
        Measuring, "grown", lambda self, name, *a, **k: measured.append(name) or grown(self, name, *a, **k)
    )
    main(["compare", "agents=[prior,grpo]", "seeds=[0]", *KEYS, "--dry-run"])
    said = capsys.readouterr().out
    assert measured == ["prior: evaluate", "prior: look again", "grpo: train"]
    row = {name: re.search(rf"{name} +│ +([\d.]+)", said)[1] for name in ("prior: evaluate", "grpo: evaluate")}
    assert row["prior: evaluate"] == row["grpo: evaluate"]


@pytest.mark.slow
def test_what_goes_on_costs_more():
    main(["train", *KEYS, "name=first"])
    first = json.loads(Path("runs/first/cost.json").read_text())
    main(["train", *KEYS, "name=first", "agent.total_episodes=48"])
    both = json.loads(Path("runs/first/cost.json").read_text())
    assert both["episodes"] == first["episodes"] + 16 + 54 and both["seconds"] > first["seconds"]
    assert both["phases"]["grpo"] > first["phases"]["grpo"] and both["memory_gib"] > 0.05


@pytest.mark.slow
def test_a_conversion_that_is_not_there_is_estimated_by_phases_and_not_made(capsys, own_cache):
    keys = [*KEYS, "convert.seed=77"]
    before = {p.name for p in (cache_dir() / "plugins").glob("*")}
    main(["convert", *keys, "--dry-run"])
    said = capsys.readouterr().out
    for phase in ("convert: hidden states", "convert: options", "convert: prior"):
        assert phase in said
    assert {p.name for p in (cache_dir() / "plugins").glob("*")} == before
    main(["convert", *keys, "name=own"])
    capsys.readouterr()
    main(["oracle", *keys, "--dry-run"])
    said = capsys.readouterr().out
    assert "convert: options" not in said and "oracle best_first" in said  # it is in the cache now


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (["estimate.measure=false"], "estimate.measure=false"),
        (["rollout.num_workers=2"], "workers of a cluster are elsewhere"),
        (["backbone=deepseek_r1_1_5b", "plugin=paper"], "backbone 'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B' is not on this machine"),
        (["convert.solutions=sampled"], "solutions are to be sampled first"),
    ],
)  # fmt: skip
def test_what_is_not_measured_is_said_with_the_reason(keys, why, capsys):
    main(["train", "backbone=tiny", *keys, "--dry-run"])
    said = capsys.readouterr().out
    assert f"time: not measured ({why})" in said and "memory for rollouts" in said and "in all:" not in said


def test_a_command_that_would_fail_is_measured_as_such(capsys, tmp_path):
    main(["evaluate", "backbone=tiny", "policy=nothing/here", "--dry-run"])
    said = capsys.readouterr().out
    assert "time: not measured, for the command would fail (policy=nothing/here is not there." in said


def test_gpu_hours_are_those_of_the_device_that_was_measured():
    [line] = gpu_lines("train", compose(["agent.total_episodes=7680"]))
    assert "NVIDIA H100" in line and "0.0126 GPU hours" in line  # ten times 768 episodes in 4.5 s
    assert gpu_lines("train", compose(["backbone=tiny"])) == [] == gpu_lines("train", compose(["task=leg_counting"]))
    assert gpu_lines("train", compose(["agent=distill"])) == []


def test_backbones_are_found_without_a_download(tmp_path):
    assert is_here("tiny", None) and not is_here("nobody/has-this", None) and not is_here("./nothing", None)
    (tmp_path / "config.json").write_text("{}")
    assert is_here(str(tmp_path), None)
