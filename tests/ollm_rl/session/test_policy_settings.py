"""A policy is evaluated and searched with on what it was trained on, unless the command says otherwise; then a line says what differs."""

import json
import logging

import pytest
from omegaconf import OmegaConf

import ollm_rl as ol
from ollm_rl.cli.app import main
from ollm_rl.config.compose import compose
from ollm_rl.errors import CheckpointError
from ollm_rl.serving.opening import opened
from ollm_rl.session.policy_settings import with_policy

TINY = ["backbone=tiny", "backbone.dtype=float32"]  # as the policies below
SIZES = ["evaluate.num_problems=5", "evaluate.samples=0"]


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "the policy was trained on" in r.getMessage()]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The directory of a user with problems and a reward of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_length.py").write_text(
        "def reward(prompts, completions, **columns):\n    return [len(c) % 10 / 10 for c in completions]\n"
    )
    rows = [{"problem": f"{i} + 1 = ?", "answer": str(i + 1), "solution": f"\\boxed{{{i + 1}}}"} for i in range(200)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def saved(tiny, path, reward=None, task=None):
    task = ol.make_task("jsonl", path="mine.jsonl") if task is None else task
    session = ol.Session(tiny.backbone, tiny.plugin, task, reward, engine={"max_new_tokens": 12})
    ol.make_agent("grpo", session, total_episodes=64).save(path)
    return f"policy={path}"


def kept(name):
    return OmegaConf.load(f"runs/{name}/config.yaml")


@pytest.mark.parametrize("command", ["evaluate", "oracle"])
def test_what_the_command_does_not_name_is_the_policys(tiny, user, lines, command):
    policy = saved(tiny, "policy")
    main([command, policy, *SIZES, "oracle.num_problems=3", "oracle.budget=40", "name=again"])
    found = kept("again")
    assert (found.task.name, found.task.path, found.backbone.name) == ("jsonl", "mine.jsonl", "tiny")
    assert found.engine.max_new_tokens == 12 and found.agent.total_episodes == 64 and not lines()
    results = json.loads((user / "runs/again/results.json").read_text())
    assert results["task"] == "jsonl"
    main([command, policy, *SIZES, "oracle.num_problems=3", "oracle.budget=40", "name=again"])  # its own configuration


def test_naming_a_part_leaves_the_others_the_policys(tiny, user, lines):
    policy = saved(tiny, "policy")
    for given in (
        [*TINY, "agent=grpo"],
        ["reward=math_verify"],
        ["backbone.device=cpu"],
        ["engine.num_slots=8"],
    ):
        found = compose(with_policy([policy, *given])).config
        assert (found.task.name, found.backbone.name, found.engine.max_new_tokens) == ("jsonl", "tiny", 12), given
    assert not lines()
    found = compose(with_policy([policy, "task.num_examples=1"])).config
    assert (found.task.path, found.task.num_examples) == ("mine.jsonl", 1) and "task.num_examples=1" in lines()[-1]
    session, agent = opened(compose([policy]), [policy, *TINY])  # the same for play, chat, serve and export
    assert session.task.name == "jsonl" and agent.session is session
    session.close()


def test_another_task_stands_and_is_said(tiny, user, lines):
    found = compose(with_policy([saved(tiny, "policy"), "task=countdown"])).config
    assert (found.task.name, found.reward._target_.rpartition(".")[2]) == (
        "countdown",
        "Plan",
    )  # a task brings its reward
    [line] = lines()
    assert (
        "trained on task=jsonl task.path=mine.jsonl reward=math_verify engine.max_new_tokens=12, it is evaluated on task=countdown"
        in line
    )
    assert (
        compose(with_policy(["policy=policy", "experiment=demo"])).config.task.name == "chain_sum" and len(lines()) == 2
    )


def test_a_reward_of_ones_own_has_to_be_named(tiny, user, lines, capsys):
    from my_length import reward

    policy = saved(tiny, "policy", ol.Judge(reward, solved_at=0.5))
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", policy, *SIZES])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and said.endswith("name it: reward=my_length.reward reward.solved_at=0.5")
    assert not (user / "runs").exists()
    main(["evaluate", policy, "reward=my_length.reward", "reward.solved_at=0.5", *SIZES])
    assert kept("evaluate").task.name == "jsonl" and not lines()
    with_policy([policy, *TINY])
    assert "reward=my_length.reward" in lines()[0] and "reward=math_verify" in lines()[0]
    with_policy([policy, *TINY], judged=False)  # nobody asks for a verdict
    assert len(lines()) == 1


def test_a_task_without_a_name_has_to_be_named(tiny, user):
    task = ol.make_task("chain_sum")
    task.settings = None
    policy = saved(tiny, "policy", task=task)
    with pytest.raises(CheckpointError, match=r"task=<module>.<name>"):
        with_policy([policy])
    assert compose(with_policy([policy, "task=chain_sum"])).config.backbone.name == "tiny"


def test_a_directory_that_says_nothing_is_said(user, caplog):
    (user / "policy").mkdir()
    assert with_policy(["policy=policy"]) == ["policy=policy"]
    assert (
        "does not say what it was trained on; it is evaluated on task=chain_sum reward=math_verify backbone=smollm2"
        in caplog.text
    )
    caplog.clear()
    with_policy(["policy=policy", "task=chain_sum", "reward=math_verify", "backbone=tiny"])
    with_policy(["policy=elsewhere"])  # which is said later
    assert not caplog.text


def test_every_policy_of_a_sweep_has_its_own(tiny, user):
    saved(tiny, "one")
    saved(tiny, "two", task=ol.make_task("chain_sum", max_terms=3))
    main(["evaluate", "policy=one,two", *SIZES, "name=both"])
    assert [kept(f"both/policy{name}").task.name for name in ("one", "two")] == ["jsonl", "chain_sum"]
