"""Evaluation while an agent learns: it is logged, and training does not notice it."""

import json
import shutil

import pytest
import torch

import ollm_rl as ol
from agents.grpo import GRPO
from ollm_rl.cli.app import main
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate
from tests.conftest import QUICK_KEYS

QUICK = dict(total_episodes=64, num_generations=4, problems_per_iteration=4, num_problems=20, learning_rate=1e-2)


@pytest.fixture
def easy(tiny, monkeypatch):
    """A reward that a random model earns now and then, and is sometimes the full one."""

    def odd(completion_ids, **_):
        return [float(sum(tokens) % 2) for tokens in completion_ids]

    from ollm_rl.rollout.judge import Judge

    monkeypatch.setattr(tiny, "judge", Judge(odd))


def untimed(run):
    return [{k: v for k, v in m.items() if not k.startswith(("time/", "train_seconds"))} for m in run.metrics()]


def trained(tiny, folder, name, callbacks=()):
    agent, run = GRPO(tiny, **QUICK), Run(folder, name, "")
    agent.learn(run, callbacks)
    return agent, run


def test_it_is_logged_and_changes_nothing(tiny, easy, tmp_path):
    plain, without = trained(tiny, tmp_path, "plain")
    watched, run = trained(tiny, tmp_path, "watched", [ol.EvaluateWhileTraining(2, 5)])
    lines = untimed(run)
    assert [m["step"] for m in lines if "eval/accuracy" in m] == [2, 4]
    assert all(m["eval/n_problems"] == 5 and 0 <= m["eval/accuracy"] <= 1 for m in lines if "eval/accuracy" in m)
    assert [{k: v for k, v in m.items() if not k.startswith("eval/")} for m in lines] == untimed(without)
    assert all(torch.equal(a, b) for a, b in zip(plain.policy.parameters(), watched.policy.parameters(), strict=True))
    last = evaluate(tiny, watched, "grpo", tiny.problems("tune", 5, tiny.seed), 0, tiny.seed).greedy
    assert lines[-1]["eval/accuracy"] == sum(e.solved for e in last) / 5


def test_also_after_an_interruption(tiny, easy, tmp_path):
    callbacks = [ol.EvaluateWhileTraining(1, 5)]
    _, run = trained(tiny, tmp_path, "whole", callbacks)
    run.close()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "latest").write_text(
        "step_3\n"
    )  # as a kill during the last iteration leaves it
    _, again = trained(tiny, tmp_path, "cut", callbacks)
    assert untimed(again) == untimed(run) and len(untimed(run)) == 4


def test_problems_are_never_those_of_the_test(tiny, easy, tmp_path):
    callback = ol.EvaluateWhileTraining(4, 8)
    trained(tiny, tmp_path, "run", [callback])
    assert callback.problems == tiny.problems("tune", 8, tiny.seed)
    assert not {p.problem for p in callback.problems} & {p.problem for p in tiny.problems("test", 500)}


def test_from_the_command_line(tmp_path):
    keys = [*QUICK_KEYS, f"runs_dir={tmp_path}", *(f"agent.{k}={v}" for k, v in QUICK.items())]
    main(["train", *keys, "evaluate.every=2", "evaluate.every_problems=3", "name=x"])
    lines = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert [(m["train_episodes"], m["eval/n_problems"]) for m in lines if "eval/accuracy" in m] == [(32, 3), (64, 3)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "x" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("eval/accuracy")] == [2, 4]


@pytest.mark.parametrize("value", ["0", "-1", "abc"])
def test_wrong_values_are_refused_before_anything_starts(value, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["train", *QUICK_KEYS, f"evaluate.every={value}", f"runs_dir={tmp_path}"])
    assert error.value.code == 2 and "evaluate.every" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_it_says_what_it_expects():
    with pytest.raises(ConfigurationError, match="evaluate.every=0; expected null or an integer from 1"):
        ol.EvaluateWhileTraining(0)
