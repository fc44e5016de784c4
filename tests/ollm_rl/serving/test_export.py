"""Exports: what transformers loads says what the engine says, alone and as it was asked in training."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import ollm_rl as ol
from agents.grpo import GRPO
from ollm_rl.cli.app import main
from ollm_rl.common.run_dir import CONFIG, RESULTS
from ollm_rl.errors import CheckpointError, ConfigurationError, OLLMError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.options.next_token import FLOOR
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.serving.export import CARD, export
from ollm_rl.tasks.prompts import Prompting
from tests.conftest import QUICK_KEYS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def agent(tiny):
    """One that is not the prior any more, with a session whose texts are short."""
    task = ol.make_task("chain_sum")
    session = ol.Session(tiny.backbone, tiny.plugin, task, engine={"num_slots": 16, "max_new_tokens": 12}, seed=5)
    agent = ol.make_agent("grpo", session)
    with torch.no_grad():
        agent.policy.net[-1].bias[1] += 2.0
    return agent


@pytest.fixture(scope="module")
def exported(agent, tmp_path_factory):
    return export(agent, tmp_path_factory.mktemp("export") / "out")


def answers(agent, problems):
    greedy = PolicyAdapter(agent, True)
    return agent.session.rollout([agent.request(p, 0, True) for p in problems], greedy, keep_hidden=False)


def test_transformers_alone_gives_the_answers_of_the_engine(agent, exported):
    problems = agent.session.problems("test", 20)
    expected = [e.text for e in answers(agent, problems)]
    model = AutoModelForCausalLM.from_pretrained(exported, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(exported, padding_side="left")
    asked = [[{"role": "user", "content": p.problem}] for p in problems]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    said = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(said, skip_special_tokens=True) == expected
    assert len(set(expected)) > 1
    through = pipeline("text-generation", model=model, tokenizer=tokenizer)
    [found] = through([asked[0]], return_full_text=False)
    assert found[0]["generated_text"].strip() == expected[0].strip()


def test_the_mixture_gives_every_token_a_probability(agent, tmp_path):
    path = export(agent, tmp_path / "mixture", kind="mixture")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    assert not (path / "policy.json").exists() and "mixture" in (path / CARD).read_text()
    with torch.inference_mode():
        logits = model(torch.tensor([[5, 6, 7]])).logits
    assert (logits > FLOOR).all() and torch.allclose(logits.exp().sum(-1), torch.ones(1, 3), atol=1e-4)


def test_the_card_has_the_scores_of_the_run(agent, tmp_path):
    agent.save(tmp_path / "run" / "policy")
    (tmp_path / "run" / CONFIG).write_text("{}\n")
    problems = agent.session.problems("test", 10)
    found = evaluate(agent.session, agent, "grpo", problems, 4, 5).row
    (tmp_path / "run" / RESULTS).write_text(
        json.dumps({"rows": [found.to_dict()], "task": "chain_sum", "backbone": "tiny"})
    )
    text = (export(ol.load_agent(tmp_path / "run" / "policy"), tmp_path / "out") / CARD).read_text()
    low, high = found.accuracy_ci95
    assert f"| greedy accuracy | {found.accuracy:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert f"maj@4 | {found.sampled[4].maj:.3f}" in text and "On 10 held-out problems" in text
    assert text.startswith("---\nlibrary_name: transformers") and "num_generations: 8" in text
    mixture = (export(ol.load_agent(tmp_path / "run" / "policy"), tmp_path / "out", kind="mixture") / CARD).read_text()
    assert "greedy accuracy" not in mixture  # which was measured of the policy


def test_the_commands_of_the_card_run_word_for_word(tmp_path, monkeypatch):
    """Own problems, own reward, the tiny backbone: the card's number comes again, and training it again is the same run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_length.py").write_text(
        "def reward(prompts, completions, **columns):\n    return [len(c) % 10 / 10 for c in completions]\n"
    )
    (tmp_path / "data").mkdir()
    rows = [{"problem": f"{i} + 1 = ?", "answer": str(i + 1), "solution": f"\\boxed{{{i + 1}}}"} for i in range(200)]
    (tmp_path / "data" / "my rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        "task=jsonl", f"task.path={tmp_path / 'data/my rows.jsonl'}", "task.instruction={problem} Count, then say it's.",
        "reward=my_length.reward", "reward.solved_at=0.5", "agent.total_episodes=32", "agent.num_generations=4", "seed=3",
        "agent.problems_per_iteration=4", *(key for key in QUICK_KEYS if not key.startswith("oracle.")), "evaluate.num_problems=20",
    ]  # fmt: skip
    main(["train", *given, "name=mine"])
    main(["export", "policy=runs/mine/policy", "out=mine"])
    text = (tmp_path / "mine" / CARD).read_text()
    [row] = json.loads((tmp_path / "runs/mine/results.json").read_text())["rows"]
    assert "The reward is `my_length.reward`" in text and "from a reward of 0.5 on (`reward.solved_at`)" in text
    low, high = row["mean_reward_ci95"]
    assert f"| mean reward of greedy texts | {row['mean_reward']:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert str(tmp_path) not in text
    train, again = (shlex.split(line)[1:] for line in text.splitlines() if line.startswith("ollm-rl "))
    main([*again, "name=again"])
    [measured] = json.loads((tmp_path / "runs/again/results.json").read_text())["rows"]
    same = ("accuracy", "avg@8", "pass@8", "mean_reward")
    assert 0 < row["avg@8"] < 1 and [measured[key] for key in same] == [row[key] for key in same]
    before = (tmp_path / "runs/mine/metrics.jsonl").read_text()
    (tmp_path / "runs/mine/config.yaml").write_text(
        (tmp_path / "runs/mine/config.yaml").read_text().replace(f"{tmp_path}/", "")
    )
    main([*train, "name=mine"])  # no other configuration: already done
    assert (tmp_path / "runs/mine/metrics.jsonl").read_text() == before
    main(["export", "policy=runs/mine/policy", "out=mixed", "kind=mixture"])
    mixture = (tmp_path / "mixed" / CARD).read_text()
    main([*next(shlex.split(li)[1:] for li in mixture.splitlines() if li.startswith("ollm-rl evaluate")), "name=mixed"])


def test_the_card_names_no_directory_of_this_machine(tiny, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"problem": "1 + 1", "answer": "2", "solution": "The answer is \\\\boxed{2}."}\n' * 3)
    task = ol.make_task("jsonl", path=str(data), num_examples=1)
    agent = ol.make_agent("prior", ol.Session(tiny.backbone, tiny.plugin, task))
    text = (export(agent, tmp_path / "out") / CARD).read_text()
    assert "mine.jsonl" in text and str(tmp_path) not in text


@pytest.mark.parametrize("name", ["local", "steer", "first_decisions", "best_prefix", "backbone", "shortlist_head"])
def test_what_is_more_than_a_policy_on_states_is_refused(tiny, tmp_path, name):
    agent = ol.make_agent(name, tiny)
    with pytest.raises(ConfigurationError, match="cannot leave as kind=policy"):
        export(agent, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(agent, tmp_path / "out", kind="mixture").is_dir()  # the plug-in can


class Contrary(GRPO):
    """One whose class inherits a policy, and does the opposite."""

    def predict(self, hidden, deterministic=True, mask=None, uniforms=None):
        return self.policy(hidden, mask).masked_fill(~mask, 0).argmin(-1)


def test_an_agent_that_does_not_follow_its_policy_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigurationError, match="does not predict what its policy finds likeliest"):
        export(ol.make_agent(Contrary, tiny), tmp_path / "out")
    export(ol.make_agent("prior", tiny), tmp_path / "out")


def test_a_directory_of_something_else_is_left_alone(agent, exported, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds something that is no export"):
        export(agent, tmp_path)
    with pytest.raises(ConfigurationError, match="is a file"):
        export(agent, tmp_path / "notes.txt")
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigurationError, match="kind=critic"):
        export(agent, tmp_path / "out", kind="critic")


def test_an_earlier_export_is_replaced_and_leaves_nothing_behind(agent, tmp_path):
    export(agent, tmp_path / "out", bundle=True)
    (tmp_path / "out" / ".git").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    export(agent, tmp_path / "out", kind="mixture")
    left = {f.name for f in (tmp_path / "out").iterdir()}
    assert "backbone" not in left and "policy.safetensors" not in left
    assert {".git", "notes.txt"} < left  # which are the user's
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_an_empty_working_directory_and_one_that_cannot_be_written(agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (export(agent, ".") / "policy.json").exists()
    with pytest.raises(ConfigurationError, match="out="):
        export(agent, "/proc/out")


@pytest.mark.slow
def test_bundled_it_stands_alone(agent, tmp_path):
    """In another process, with an empty cache and no hub."""
    path = export(agent, tmp_path / "out", bundle=True)
    problem = agent.session.problems("test", 1)[0]
    [episode] = answers(agent, [problem])
    code = (
        "import sys, ollm_rl.options.hf; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]); tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "x = tokenizer.apply_chat_template([{'role': 'user', 'content': sys.argv[2]}], add_generation_prompt=True,"
        " return_tensors='pt', return_dict=True)\n"
        "print('said:' + repr(tokenizer.decode(model.generate(**x)[0, x['input_ids'].shape[1]:], skip_special_tokens=True)))"
    )
    empty = {"HOME": str(tmp_path / "home"), "OLLM_RL_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), problem.problem], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **empty},
    )  # fmt: skip
    assert f"said:{episode.text!r}" in done.stdout, done.stderr
    assert not (tmp_path / "cache" / "backbones").exists()


def test_the_hub_gets_the_directory(agent, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(f.name for f in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    path = export(agent, tmp_path / "out", push_to_hub="me/mine")
    assert calls == [("me/mine", True), ("me/mine", sorted(f.name for f in path.iterdir()))]
    Hub.create_repo = lambda self, name, exist_ok: 1 / 0
    with pytest.raises(CheckpointError, match="the hub did not take it"):
        export(agent, tmp_path / "out", push_to_hub="me/mine")


def test_a_prompt_that_is_not_what_the_task_asks_is_said(agent, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "ollm_rl.serving.export.chat_template", lambda prompter: prompter.tokenizer.chat_template or "x"
    )
    export(agent, tmp_path / "out")
    assert "asks otherwise than the task at 20 of 20 problems" in caplog.text


def test_from_the_command_line(agent, tmp_path, capsys):
    agent.save(tmp_path / "policy")
    main(["export", f"policy={tmp_path / 'policy'}", f"out={tmp_path / 'a,b'}", "bundle=true"])
    assert "ollm-rl chat policy=" in capsys.readouterr().out
    assert (tmp_path / "a,b" / "backbone" / "config.json").exists()
    for arguments, words in (
        ([f"policy={tmp_path / 'policy'}"], "out=<directory>"),
        ([f"out={tmp_path / 'x'}"], "needs policy="),
        ([f"policy={tmp_path / 'no'}", f"out={tmp_path / 'x'}"], "is not there"),
        ([f"policy={tmp_path / 'policy'}", f"out={tmp_path / 'x'}", "kind=critic"], "policy, mixture"),
        ([f"policy={tmp_path / 'policy'}", f"ot={tmp_path / 'x'}"], "out"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["export", *arguments])
        assert ended.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_a_policy_whose_reward_is_not_here_can_leave(agent, tmp_path):
    agent.save(tmp_path / "policy")
    found = json.loads((tmp_path / "policy" / "agent.json").read_text())
    (tmp_path / "policy" / "agent.json").write_text(json.dumps(found | {"reward": {"_target_": "mine.reward"}}))
    main(["export", f"policy={tmp_path / 'policy'}", f"out={tmp_path / 'out'}"])
    with pytest.raises(OLLMError, match="reward"):
        ol.load_agent(tmp_path / "policy")


def test_prompts_of_a_task_leave_with_it(tiny, tmp_path):
    """System message, instruction and prefill, as `Prompting` has them."""
    task = ol.make_task("chain_sum")
    task.prompting = Prompting("Be brief.", "Compute {problem}!", "So ")
    session = ol.Session(tiny.backbone, tiny.plugin, task, engine={"max_new_tokens": 5})
    tokenizer = AutoTokenizer.from_pretrained(export(ol.make_agent("prior", session), tmp_path / "out"))
    problem = session.problems("test", 1)[0]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.problem}], add_generation_prompt=True, return_dict=False
    )
    assert list(ids) == session.prompter.prefix + session.prompter.encode(problem)
