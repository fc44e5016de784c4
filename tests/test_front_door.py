"""The front door: the ten lines of docs/python.md on the tiny backbone, and what a notebook's user meets around them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest

import envs  # noqa: F401 (registers the environments)
import ollm_rl as ol
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError
from ollm_rl.session.opening import open_session
from tests.conftest import QUICK_KEYS

ROOT = Path(__file__).parent.parent
CONVERT = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1}
QUICK = {"total_episodes": 32, "num_generations": 4, "problems_per_iteration": 4, "num_problems": 20}


@pytest.fixture
def doors(tmp_path, monkeypatch):
    """The parts that the first lines give, in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    backbone = ol.load_backbone("tiny", dtype="float32")
    task = ol.make_task("chain_sum")
    plugin = ol.convert(backbone, task, **CONVERT)
    return ol.Session(backbone, plugin, task, reward=ol.MathVerify(), engine={"num_slots": 16, "max_new_tokens": 12})


@pytest.mark.slow
def test_the_ten_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = ol.load_backbone("tiny")
    task = ol.make_task("chain_sum")
    plugin = ol.convert(backbone, task, **CONVERT)
    session = ol.Session(backbone, plugin, task, reward=ol.MathVerify())
    agent = ol.make_agent("grpo", session, **QUICK)
    costs = agent.learn("runs/notebook")
    result = ol.evaluate(session, agent, num_problems=6, samples=2)
    searches = ol.Oracle(session, agent.policy, budget=60).solve(session.problems("test", 3))
    env = gymnasium.make("ollm_rl/LatentReasoning-v0", session=session)
    ol.write_report("runs/notebook")

    assert 0 <= plugin.report["coverage"]["all"] <= 1 and (plugin.path / "conversion.json").exists()
    assert costs["train_episodes"] == 32
    assert "grpo" in str(result) and len(result.to_pandas()) == 1
    assert result.rows[0].train_episodes == 32 and 2 in result.rows[0].sampled
    assert [s.problem for s in searches] == session.problems("test", 3)
    hidden, info = env.reset(seed=0)
    assert env.unwrapped.batch.session is session and hidden.shape == (plugin.state_size,) and info["problem"]
    run = tmp_path / "runs" / "notebook"
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    steps = [json.loads(line)["train_episodes"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [16, 32]
    assert (run / "policy" / "agent.json").exists()
    session.close()


def test_one_model_serves_notebook_environment_and_command_line(doors):
    """The same object, by whatever name and precision it is asked for."""
    again = ol.load_backbone(name="tiny", device="auto", dtype="float32")
    opened = open_session(compose(QUICK_KEYS))
    env = gymnasium.make("ollm_rl/LatentReasoning-v0", backbone="tiny", dtype="float32", plugin=str(doors.plugin.path))
    assert again is doors.backbone
    assert opened.backbone is doors.backbone and env.unwrapped.batch.session.backbone is doors.backbone
    assert ol.load_backbone("tiny") is ol.load_backbone("tiny", dtype="auto")
    opened.close()


def test_nothing_is_written_without_a_run(doors, tmp_path):
    agent = ol.make_agent("grpo", doors, **QUICK)
    costs = agent.learn()
    assert costs["train_episodes"] == 32 and agent.run_dir is None
    assert not list(tmp_path.iterdir())


def test_training_goes_on_where_it_was(doors, tmp_path):
    ol.make_agent("grpo", doors, **QUICK).learn("runs/whole")
    ol.make_agent("grpo", doors, **{**QUICK, "total_episodes": 16}).learn("runs/parts")
    agent = ol.make_agent("grpo", doors, **QUICK)
    assert agent.learn("runs/parts")["train_episodes"] == 32
    assert agent.run_dir == Path("runs/parts")
    weights = [(tmp_path / "runs" / name / "policy" / "policy.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_a_reward_is_any_function_with_trls_signature(doors):
    def length(completions, **_):
        return [min(len(text), 10) / 10 for text in completions]

    session = ol.Session(doors.backbone, doors.plugin, doors.task, reward=length, engine=doors.engine_settings)
    agent = ol.make_agent("prior", session)
    [problem] = session.problems("test", 1)
    from ollm_rl.options.policies import Sampling

    [episode] = session.rollout([ol.Request(problem)], Sampling(agent.policy))
    assert episode.reward == min(len(episode.text), 10) / 10


def test_unknown_agents_and_settings_name_the_nearest(doors):
    with pytest.raises(ConfigurationError, match="Did you mean 'grpo'"):
        ol.make_agent("grop", doors)
    with pytest.raises(ConfigurationError, match="Did you mean 'learning_rate'"):
        ol.make_agent("grpo", doors, learning_rat=0.1)
    with pytest.raises(ConfigurationError, match="no log-probabilities"):
        ol.Oracle(doors, ol.make_agent("random", doors).policy)
    with pytest.raises(AttributeError, match="no attribute 'sesion'"):
        ol.sesion  # noqa: B018


def test_every_name_says_how_it_is_used():
    assert sorted(ol.__all__) == list(ol.__all__) and set(ol.__all__) <= set(dir(ol))
    for name in ol.__all__:
        assert ">>> " in (getattr(ol, name).__doc__ or ""), name


def test_the_import_is_quick():
    """Under 0.3 s, in the best of some tries: other processes may keep the machine busy."""
    took = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", "import ollm_rl"], cwd=ROOT, check=True)
        took.append(time.monotonic() - start)
        if took[-1] < 0.3:
            return
    pytest.fail(f"import ollm_rl takes {min(took):.2f} s")
