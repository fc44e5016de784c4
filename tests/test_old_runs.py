"""Runs, checkpoints and plug-ins of release 23d70ee are still read; `fixtures/runs_23d70ee/README.md` says how they were made."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ollm_rl.cli.app import main
from ollm_rl.common.run_dir import whole_lines
from ollm_rl.options.modules import PlugIn

OLD = Path(__file__).parent / "fixtures" / "runs_23d70ee"
SIZES = [
    "backbone=tiny", "backbone.dtype=float32", "plugin.reader_depth=0", "plugin.encoder_width=16", "plugin.decoder_width=16", "plugin.prior_width=16",
    "convert.num_solutions=60", "convert.num_heldout=20", "convert.epochs=1", "convert.prior_epochs=1",
    "convert.hard_assignment=0.6", "convert.bias_penalty=0.1", "convert.first_option_weight=1", "evaluate.num_problems=3", "oracle.num_problems=3", "oracle.budget=60",
    "engine.num_slots=32", "engine.max_new_tokens=12",
]  # fmt: skip
TRAINING = [
    "agent.total_episodes=32",
    "agent.num_generations=4",
    "agent.problems_per_iteration=4",
    "agent.learning_rate=1e-3",
    "agent.minibatches=4",
    "agent.beta=0.02",
    "agent.pass_at_k=3",
]
REWARD = "reward=tests.fixtures.runs_23d70ee.reward.even"
# The commands that made them, under today's names; plug-ins had no reader.
COMMANDS = {
    "grpo": ["train", "agent=grpo", *SIZES, *TRAINING, REWARD],
    "full_head": ["train", "agent=shortlist_head", *SIZES, *TRAINING, REWARD, "agent.num_tokens=32"],
    "prior": ["evaluate", "agent=prior", *SIZES],
    "oracle": ["oracle", *SIZES, REWARD, "oracle.deviation_penalty=0.1", "oracle.length_penalty=0.5"],
    "compare": [
        "compare", "agents=[prior,grpo,shortlist_head]", "seeds=[0]", "with_oracle=true", *SIZES, *TRAINING, REWARD,
        "shortlist_head.num_tokens=32",
    ],
}  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """A copy of the old runs."""
    return shutil.copytree(OLD, tmp_path / "runs", ignore=shutil.ignore_patterns("__pycache__"))


def contents(folder: Path) -> dict[str, bytes]:
    """What a run consists of, without what every command writes anew from it."""
    anew = ["results.json", "report.html", *(["config.yaml"] if folder.name == "compare" else [])]
    files = [f for f in folder.rglob("*") if f.is_file() and "plots" not in f.parts and not f.name.startswith(".")]
    found = {str(f.relative_to(folder)): f.read_bytes() for f in files if f not in [folder / name for name in anew]}
    return {name.replace("full_head-0/", "shortlist_head-0/"): text for name, text in found.items()}


def today(agent: str) -> str:
    return {"full_head": "shortlist_head"}.get(agent, agent)


def tokens(run: Path) -> list[list[int]]:
    return [line["tokens"] for line in whole_lines(run / "rollouts" / "greedy.jsonl")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "compare")) for name in COMMANDS]
)
def test_the_same_command_finds_its_results_and_writes_the_report(runs, name, tmp_path, monkeypatch):
    """No model is opened, for that would leave a plug-in in the cache, and no file of the run is touched."""
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / "cache"))
    before, rows = contents(runs / name), json.loads((runs / name / "results.json").read_text())["rows"]
    main([*COMMANDS[name], f"runs_dir={runs}", f"name={name}"])
    assert contents(runs / name) == before and not (tmp_path / "cache").exists()
    again = json.loads((runs / name / "results.json").read_text())["rows"]
    for old, new in zip(rows, again, strict=True):
        assert new["agent"] == today(old["agent"])
        same = (
            "accuracy",
            "avg_at_8",
            "pass_at_8",
            "train_episodes",
            "no_answer_rate",
            "budget",
            "episodes_to_threshold",
        )
        assert {k: old.get(k) for k in same} == {k: new.get(k) for k in same}
    page = (runs / name / "report.html").read_text().replace(f"\nname: {name}\n", "")  # the run keeps its own name
    assert all(today(row["agent"]) in page for row in rows) and "full_head" not in page
    assert name == "prior" or any((runs / name / "plots").iterdir())


@pytest.mark.parametrize(("name", "weights"), [("grpo", "policy"), ("full_head", "head")])
def test_more_episodes_train_on_from_the_old_checkpoint(runs, name, weights):
    old, more = OLD / name, [w for w in COMMANDS[name] if "total_episodes" not in w]
    main([*more, "agent.total_episodes=48", f"runs_dir={runs}", f"name={name}"])
    [row] = json.loads((runs / name / "results.json").read_text())["rows"]
    assert (
        row["train_episodes"] == 48
        and row["before"]["accuracy"] == json.loads((old / "before.json").read_text())["accuracy"]
    )
    lines = whole_lines(runs / name / "metrics.jsonl")
    assert lines[:2] == whole_lines(old / "metrics.jsonl") and [line["train_episodes"] for line in lines] == [
        16,
        32,
        48,
    ]
    before, after = (
        torch.load(f / name / "checkpoints" / f"step_{i}" / "optimizer.pt", weights_only=True)["state"]
        for f, i in ((OLD, 2), (runs, 3))
    )
    assert all(after[i]["step"] > before[i]["step"] > 0 for i in before)
    file = f"policy/{weights}.safetensors"
    one, other = load_file(old / file), load_file(runs / name / file)
    assert one.keys() == other.keys() and all(one[k].shape == other[k].shape for k in one)
    # As far as the few steps of 16 episodes lead, and no further: it did not begin anew.
    assert 0 < max(float((one[k].float() - other[k].float()).abs().max()) for k in one) < 0.02


@pytest.mark.parametrize(
    ("name", "agent"), [("grpo", ["agent=grpo"]), ("full_head", ["agent=shortlist_head", "agent.num_tokens=32"])]
)
def test_an_old_policy_says_what_it_said(runs, name, agent):
    """On the old plug-in: to the token."""
    old = [f"plugin.path={OLD / 'convert/plugin'}", f"policy={OLD / name / 'policy'}"]
    main(["evaluate", *agent, *SIZES, *old, "evaluate.samples=0", f"runs_dir={runs}", "name=again"])
    assert tokens(runs / "again") == tokens(OLD / name)


def test_an_old_policy_is_searched_with(runs):
    old = [f"plugin.path={OLD / 'convert/plugin'}", f"policy={OLD / 'grpo/policy'}"]
    main(["oracle", "agent=grpo", *SIZES, *old, REWARD, f"runs_dir={runs}", "name=again"])
    assert json.loads((runs / "again/results.json").read_text())["rows"][0]["n_problems"] == 3


def test_searches_that_an_old_run_has_done_are_not_done_again(runs):
    """Without its results, a run was interrupted: its searches are kept."""
    stored = (runs / "oracle/searches_best_first.jsonl").read_text()
    (runs / "oracle/results.json").unlink()
    main([*COMMANDS["oracle"], f"runs_dir={runs}", "name=oracle"])
    assert (runs / "oracle/searches_best_first.jsonl").read_text() == stored
    row, before = (json.loads((f / "oracle/results.json").read_text())["rows"][0] for f in (runs, OLD))
    assert (row["accuracy"], row["mean_tokens"], row["deviations"]) == tuple(
        before[k] for k in ("accuracy", "mean_tokens", "departures")
    )


def test_an_old_plug_in_is_a_model_of_transformers():
    from transformers import AutoModelForCausalLM

    import ollm_rl.options.hf  # noqa: F401 (registers the architecture)

    model = AutoModelForCausalLM.from_pretrained(OLD / "convert/plugin")
    weights = PlugIn.from_pretrained(OLD / "convert/plugin").state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.plugin.state_dict().items())
