"""Every example runs on the tiny model, as its head says."""

import json
import re
import runpy
import sys

import pytest
import torch

from tests.test_layers import ROOT

EXAMPLES = ROOT / "examples"
ACCURACIES = r"greedy accuracy (\d\.\d{3}) before, (\d\.\d{3}) after (\d+) episodes"


@pytest.fixture
def run(own_cache, tmp_path, monkeypatch, capsys):
    """Run an example in this process, which has torch and the model already; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    known = set(sys.modules)

    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield call
    for name in set(sys.modules) - known:
        if name in ("my_reward", "own_search"):
            del sys.modules[name]


def test_every_example_says_its_command_and_what_to_expect():
    files = list(EXAMPLES.glob("*.py"))
    assert len(files) >= 7
    for path in files:
        head = path.read_text().split('"""')[1]
        assert f"python examples/{path.name}" in head
        assert re.search(r"\d\.\d{3}", head), f"{path} gives no number"


def test_sb3(run):
    said = re.search(ACCURACIES, run("sb3_ppo", "--backbone", "tiny", "--steps", "512", "--problems", "4"))
    assert said and int(said[3]) > 0


def test_sb3_begins_as_the_prior_and_learns(tiny):
    """Its policy before the first update gives the prior's probabilities; updates change them."""
    sb3 = runpy.run_path(str(EXAMPLES / "sb3_ppo.py"))
    env = sb3["Batched"](sb3["LatentReasoningVectorEnv"](num_envs=4, session=tiny, max_new_tokens=8))
    model = sb3["ppo"](env, tiny.plugin, seed=0)
    seen = torch.as_tensor(env.reset())
    prior = tiny.plugin.prior_logits(seen).softmax(-1)

    def probs():
        return model.policy.get_distribution(seen).distribution.probs

    assert torch.allclose(probs(), prior, atol=1e-5)
    tiny_reward = env.env.step
    env.env.step = lambda actions: (lambda s: (s[0], (actions == 1).astype(float), *s[2:]))(
        tiny_reward(actions)
    )  # latent 1 is paid
    model.learn(1024)
    assert probs()[:, 1].mean() > prior[:, 1].mean()


def test_cleanrl(run):
    said = re.search(ACCURACIES, run("cleanrl_ppo", "--backbone", "tiny", "--iterations", "2", "--problems", "4"))
    assert said and int(said[3]) > 0


def test_own_search(run):
    said = run("own_search", "--backbone", "tiny", "--problems", "4", "--budget", "40")
    assert [line.split()[0] for line in said.splitlines()] == ["LimitedDiscrepancy", "best_first", "best_of_n"]


@pytest.mark.slow
def test_trl(run):
    assert "mean reward of each step: 0.000, 0.000" in run("trl_grpo")


@pytest.mark.slow
def test_own_task(run, tmp_path):
    said = run("own_task", "--folder", "shop", "--backbone", "tiny")
    assert re.search(r"prior: greedy accuracy .*\ngrpo: greedy accuracy ", said)
    assert re.search(r"(\d+) of \1 worked solutions get the full reward from 'right_or_sound'", said)
    assert (tmp_path / "shop" / "model" / "config.json").is_file()
    assert len(json.loads((tmp_path / "shop/runs/both/results.json").read_text())["rows"]) == 4


@pytest.mark.slow
def test_evaluation_through_the_server(run, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = [
        "agent=prior",
        "task=chain_sum",
        "backbone=tiny",
        "convert.num_solutions=60",
        "convert.num_heldout=20",
        "convert.epochs=1",
    ]
    assert "prior: greedy accuracy 0.000 through the server (n = 8)" in run(
        "evaluate_server", "--problems", "8", *words
    )


@pytest.mark.slow
def test_rllib(cluster, run):
    said = run("rllib_ppo", "--backbone", "tiny", "--iterations", "2", "--steps", "512", "--problems", "4")
    found = re.search(ACCURACIES, said)
    assert found and int(found[3]) > 0
