"""A saved agent is one object: opened again with its session, or on another, from this release and from earlier ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ollm_rl as ol
from agents.grpo import GRPO
from agents.shortlist_head import ShortlistHead
from ollm_rl.cli.app import main
from ollm_rl.errors import CheckpointError, OLLMError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.options.config import PlugInConfig
from tests.conftest import QUICK_KEYS
from tests.fixtures.runs_23d70ee.reward import even

QUICK = {"total_episodes": 32, "num_generations": 4, "problems_per_iteration": 4, "num_problems": 20}
OLD = Path(__file__).parents[2] / "fixtures" / "runs_23d70ee"


@pytest.fixture
def saved(tiny, tmp_path):
    """A trained agent and the directory that it was saved in."""
    task = ol.make_task("chain_sum")
    session = ol.Session(tiny.backbone, tiny.plugin, task, engine={"num_slots": 16, "max_new_tokens": 12}, seed=5)
    agent = ol.make_agent("grpo", session, **QUICK, learning_rate=1e-2)
    with torch.no_grad():
        agent.policy.net[-1].bias[4] += 3.0
    agent.save(tmp_path / "saved")
    return agent, tmp_path / "saved"


def hidden(agent):
    return torch.randn(20, agent.session.plugin.state_size, generator=torch.Generator().manual_seed(0))


def test_it_comes_back_with_its_session(saved, tmp_path):
    agent, path = saved
    moved = path.rename(tmp_path / "given to a colleague")
    again = ol.load_agent(moved)
    assert type(again) is GRPO and torch.equal(again.predict(hidden(agent)), agent.predict(hidden(agent)))
    assert again.settings == agent.settings and again.settings["learning_rate"] == 1e-2
    session = again.session
    assert session.backbone.fingerprint == agent.session.backbone.fingerprint and session.seed == 5
    assert session.task.settings == {"name": "chain_sum"} and session.engine_settings["max_new_tokens"] == 12
    assert session.plugin.report == agent.session.plugin.report
    assert torch.equal(session.plugin.biases(hidden(agent)), agent.session.plugin.biases(hidden(agent)))
    assert again.learn()["train_episodes"] == 32
    session.close()


def test_it_comes_back_on_a_given_session(saved, tiny):
    agent, path = saved
    again = ol.load_agent(path, tiny)
    assert again.session is tiny and torch.equal(again.predict(hidden(agent)), agent.predict(hidden(agent)))


def test_a_directory_is_safetensors_and_json_only(saved):
    _, path = saved
    assert {f.suffix for f in path.rglob("*") if f.is_file()} == {".json", ".safetensors"}
    assert (path / "plugin" / "plugin.safetensors").exists() and (path / "plugin" / "conversion.json").exists()


def test_checkpoints_share_the_plugin(saved, tmp_path):
    agent, _ = saved
    agent.learn(tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step_2"
    assert (step / "agent.json").exists() and not (step / "plugin").exists()
    assert (tmp_path / "run" / "policy" / "plugin").is_dir()
    again = ol.load_agent(step)
    assert torch.equal(again.predict(hidden(agent)), agent.predict(hidden(agent)))


def test_a_run_of_the_command_line_is_loaded(tmp_path):
    main(
        [
            "train",
            *QUICK_KEYS,
            *(f"agent.{k}={v}" for k, v in QUICK.items()),
            f"runs_dir={tmp_path}",
            "name=x",
            "seed=2",
        ]
    )
    agent = ol.load_agent(tmp_path / "x" / "policy")
    assert agent.settings["total_episodes"] == 32 and agent.session.seed == 2
    assert agent.session.engine_settings["max_new_tokens"] == 16 and agent.session.reward["timeout_s"] == 2.0
    assert agent.session.task.settings["max_terms"] == 4
    agent.session.close()


@pytest.mark.parametrize(("run", "kind"), [("grpo", GRPO), ("full_head", ShortlistHead)])
def test_a_policy_of_release_23d70ee_by_its_runs_configuration(run, kind, tmp_path):
    with pytest.raises(CheckpointError, match="reward tests.fixtures.runs_23d70ee.reward.even"):
        ol.load_agent(OLD / run / "policy")
    agent = ol.load_agent(OLD / run / "policy", reward=even)
    assert type(agent) is kind and agent.session.backbone.name == "tiny"
    found = evaluate(agent.session, agent, run, agent.session.problems("test", 2), 0).greedy
    assert len(found) == 2 and all(len(e.tokens) <= agent.session.engine_settings["max_new_tokens"] for e in found)
    agent.session.close()


def test_a_checkpoint_of_release_23d70ee():
    agent, policy = (ol.load_agent(OLD / "grpo" / where, reward=even) for where in ("checkpoints/step_2", "policy"))
    assert torch.equal(agent.predict(hidden(agent)), policy.predict(hidden(agent)))


def test_a_policy_of_release_23d70ee_on_a_given_session(tiny, tmp_path):
    shutil.copytree(OLD / "grpo" / "policy", tmp_path / "a" / "b" / "bare")
    agent = ol.load_agent(tmp_path / "a" / "b" / "bare", tiny)
    assert agent.session is tiny
    state = load_file(OLD / "grpo" / "policy" / "policy.safetensors")
    assert all(torch.equal(state[k], v) for k, v in agent.policy.state_dict().items())
    with pytest.raises(CheckpointError, match="Give session="):
        ol.load_agent(tmp_path / "a" / "b" / "bare")


def test_what_is_no_agent_is_refused(saved, tmp_path, tiny):
    agent, path = saved
    with pytest.raises(CheckpointError, match="no directory"):
        ol.load_agent(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no agent"):
        ol.load_agent(tmp_path / "empty", tiny)
    (path / "agent.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        ol.load_agent(path)


def edited(path, **changes):
    found = json.loads((path / "agent.json").read_text())
    (path / "agent.json").write_text(json.dumps({**found, **changes}))


@pytest.mark.parametrize("target", ["os.system", "my_agents.Mine", "agents.base.digest", "agents.nothing.Here", 5])
def test_a_file_does_not_choose_what_is_imported(saved, tmp_path, monkeypatch, target):
    _, path = saved
    (tmp_path / "my_agents.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edited(path, _target_=target)
    with pytest.raises(OLLMError):
        ol.load_agent(path)


def test_a_class_from_elsewhere_is_named_by_the_user(saved, tmp_path, monkeypatch, tiny):
    agent, path = saved
    (tmp_path / "their_agents.py").write_text("from agents.grpo import GRPO\n\n\nclass Mine(GRPO):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    edited(path, _target_="their_agents.Mine")
    with pytest.raises(CheckpointError, match="agent='their_agents.Mine'"):
        ol.load_agent(path, tiny)
    again = ol.load_agent(path, tiny, agent="their_agents.Mine")
    assert type(again).__name__ == "Mine" and again.settings == agent.settings


def test_a_reward_from_elsewhere_is_given_by_the_user(saved, tiny):
    _, path = saved
    edited(path, reward={"_target_": "os.system"})
    with pytest.raises(CheckpointError, match="reward os.system"):
        ol.load_agent(path)
    assert ol.load_agent(path, tiny).session is tiny
    assert ol.load_agent(path, reward=even).session.judge.reward is even


def test_another_backbone_is_refused(saved, tiny):
    _, path = saved
    found = json.loads((path / "agent.json").read_text())
    edited(path, backbone={**found["backbone"], "fingerprint": "another"})
    for session in (tiny, None):
        with pytest.raises(CheckpointError, match="another"):
            ol.load_agent(path, session)


def test_a_task_of_ones_own_needs_a_session(tiny, tmp_path):
    class Mine(ol.Task):
        name, max_new_tokens = "mine", 8
        examples = tiny.task.examples

        def problems(self, split, n, seed=0):
            return [ol.Problem("1", "1 + 1", "2")][:n]

    session = ol.Session(tiny.backbone, tiny.plugin, Mine())
    ol.make_agent("prior", session).save(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="task that make_task did not make"):
        ol.load_agent(tmp_path / "mine")
    assert ol.load_agent(tmp_path / "mine", session).session is session


REWARD = "def parity(completions, **columns):\n    return [float(len(c) % 2) for c in completions]\n"


def test_an_agent_comes_back_with_the_prompts_that_it_had(tmp_path, monkeypatch):
    """Examples that show boxes stand in prompts only where the reward reads boxes, which the task alone does not say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "parities.py").write_text(REWARD)
    rows = [{"problem": f"{i}?", "answer": i} for i in range(150)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = [*QUICK_KEYS, "task=jsonl", "task.path=data.jsonl", "agent=prior"]
    plugin = ol.PlugIn.beside(ol.load_backbone("tiny", "float32"), PlugInConfig(reader_depth=0))
    plugin.save_pretrained(tmp_path / "plugin")
    for name, reward, shown in (
        ("own", ["reward=parities.parity"], 0),
        ("boxes", [], 2),
        ("sum", ["reward=weighted", "reward.functions=[parities.parity,ollm_rl.reward.functions.MathVerify]"], 2),
    ):
        main(["train", *keys, *reward, f"name={name}", "plugin.path=plugin", "plugin.reader_depth=0"])
        again = ol.load_agent(
            f"runs/{name}/policy",
            reward=ol.MathVerify() if name == "boxes" else lambda completions: [0.0] * len(completions),
        )
        assert len(again.session.prompter.examples) == shown == len(again.session.task.examples), name
