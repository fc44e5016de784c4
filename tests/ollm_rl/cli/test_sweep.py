"""Combinations of overrides."""

import json

import pytest

from ollm_rl.cli.app import main
from ollm_rl.cli.sweep import alternatives, combinations
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError
from tests.conftest import QUICK_KEYS


def test_commas_in_brackets_and_quotes_separate_nothing():
    assert alternatives("seed=0,1") == ["seed=0", "seed=1"]
    for whole in (
        "agents=[prior,grpo]",
        "agent.training={a: 1, b: 2}",
        'task.name="a,b"',
        "inspect.prompt=a, b",
        "seed=0",
    ):
        assert alternatives(whole) == [whole]


def test_every_combination_has_a_name_of_its_own():
    jobs = combinations(["agent=grpo,ppo", "seed=0,1", "agent.learning_rate=0.1", "name=sweep"])
    names = [job[-1] for job in jobs]
    assert names == [f"name=sweep/{a}-seed{s}" for a in ("grpo", "ppo") for s in (0, 1)]
    assert jobs[3][:3] == ["agent=ppo", "seed=1", "agent.learning_rate=0.1"]
    assert combinations(["agent=grpo"]) == [["agent=grpo"]]


@pytest.mark.parametrize("wrong", ["seed=0,", "name=a,b"])
def test_what_cannot_be_combined_is_said(wrong):
    with pytest.raises(ConfigurationError, match="cannot read"):
        for job in combinations([wrong]):
            compose(job)


def test_several_values_may_be_written_as_in_hydra():
    assert alternatives("seed=range(0,3)") == ["seed=0", "seed=1", "seed=2"]
    assert alternatives("agent=choice(grpo,ppo)") == ["agent=grpo", "agent=ppo"]
    assert alternatives("seeds=[0,1]") == ["seeds=[0,1]"]
    assert alternatives("task.wording=Don't add {problem}, tell me") == ["task.wording=Don't add {problem}, tell me"]


def test_a_mistake_in_the_last_combination_shows_before_the_first_runs(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "agent=prior,priro", f"runs_dir={tmp_path}", *QUICK_KEYS])
    assert caught.value.code == 2
    assert not any(tmp_path.iterdir())


def test_combinations_run_one_after_the_other(own_cache, tmp_path, capsys):
    main(["evaluate", "agent=prior,random", "seed=0,1", "name=two", f"runs_dir={tmp_path}", *QUICK_KEYS])
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        "prior-seed0", "prior-seed1", "random-seed0", "random-seed1",
    ]  # fmt: skip
    assert json.loads((tmp_path / "two" / "random-seed1" / "results.json").read_text())["rows"][0]["seed"] == 1
    assert "random-seed1" in capsys.readouterr().out


def test_a_text_that_is_taken_as_it_stands_is_not_several():
    for key in ("task.instruction", "task.system_prompt", "task.prefill"):
        assert alternatives(f"{key}=Count, then say") == [f"{key}=Count, then say"]
