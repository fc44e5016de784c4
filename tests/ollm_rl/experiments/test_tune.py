"""Tuning on the tiny backbone: what is tried, what came of it, and what is said to mistakes."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from ollm_rl.cli.app import main
from ollm_rl.cluster.tuner import Ended
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError, TrainingError
from ollm_rl.experiments.overrides import shared
from ollm_rl.experiments.tuning_plan import plan_of
from tests.conftest import QUICK_KEYS
from tests.ollm_rl.cluster.faulty import first

KEYS = [
    *(key for key in QUICK_KEYS if not key.startswith("evaluate.")), "reward=tests.ollm_rl.experiments.test_tune.reward",
    "tune.num_problems=4", "tune.samples=2", "tune.episodes=32", "agent.num_generations=4", "agent.problems_per_iteration=4",
    "agent.num_problems=40", "rollout.num_cpus_per_worker=1",
]  # fmt: skip
RATES = "grpo.learning_rate=1e-3,1e-2"


def reward(completions, answer, **columns):
    """By the length of answers; it fails once, if that is wanted, when a trial is done."""
    cache = Path(os.environ["OLLM_RL_CACHE"])
    if (cache / "to-fail").exists() and [*cache.glob("tuned/*/trials/*/results.json")] and first("failed"):
        raise RuntimeError("the verifier broke")
    return [float(len(c) % 2) for c in completions]


def in_turn(folder, job, points, setup):
    """What Ray Tune does, in this process."""
    return [Ended(point, job(point, partial(setup.watcher.on_report, point))) for point in points]


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr("ollm_rl.cluster.tuner.run_trials", in_turn)


def plan(*overrides):
    given = ["agents=[grpo]", *overrides] if not any(o.startswith("agents=") for o in overrides) else [*overrides]
    return plan_of(given, compose(shared(given)))


def test_a_grid_of_two_settings(tmp_path, without_ray, capsys, monkeypatch):
    given = ["tune", "agent=grpo", RATES, *KEYS, f"runs_dir={tmp_path}", "name=two"]
    main(given)
    found = json.loads((tmp_path / "two" / "tune.json").read_text())
    assert found["split"] == "tune" and found["task"] == "chain_sum" and found["n"] == 4 and found["seed"] == 0
    assert found["command"].startswith("ollm-rl tune ") and RATES in found["command"]
    assert [row["settings"] for row in found["rows"]] == [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]
    for row in found["rows"]:
        assert (
            row["train_episodes"] == 32
            and row["n_problems"] == 4
            and 0 <= row["area"] <= 1
            and row["score"] == row["avg@2"]
        )
        assert row["avg@2_ci95"][0] <= row["avg@2"] <= row["avg@2_ci95"][1] and len(row["accuracy_ci95"]) == 2
        trial = tmp_path / "two" / row["trial"]
        assert "split: tune" in (trial / "config.yaml").read_text() and (trial / "policy").is_dir()
    best = max(found["rows"], key=lambda row: row["score"])["settings"]
    assert found["best"] == {"grpo": best}
    [override] = found["overrides"]["grpo"]
    assert compose(["agent=grpo", override]).config.agent.learning_rate == best["learning_rate"]
    assert (tmp_path / "two" / "plots" / "tune.png").exists() and override in capsys.readouterr().out
    lines = (tmp_path / "two" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 2]
    monkeypatch.setattr("ollm_rl.experiments.tune.run_one", None)  # nothing is run again
    main(given)
    assert (tmp_path / "two" / "metrics.jsonl").read_text() == lines
    with pytest.raises(SystemExit) as refused:
        main([*given, "resume=never"])
    assert refused.value.code == 2
    with pytest.raises(SystemExit) as refused:
        main([*given, "grpo.minibatches=1,2"])
    assert refused.value.code == 2 and "another configuration" in capsys.readouterr().err


def test_settings_that_fail_are_rows(tmp_path, without_ray, monkeypatch, capsys):
    def fails(settings, *rest, **named):
        raise TrainingError("weights are not finite")

    monkeypatch.setattr("ollm_rl.experiments.tune.run_trial", fails)
    with pytest.raises(SystemExit) as refused:
        main(["tune", "agent=grpo", RATES, *KEYS, f"runs_dir={tmp_path}"])
    assert (
        refused.value.code == 2 and "no setting of grpo has a score: weights are not finite" in capsys.readouterr().err
    )


def test_default_spaces_are_equally_large():
    agents = ["grpo", "ppo", "shortlist_head", "lora_grpo"]
    assert plan().size("grpo") == 12
    found = plan(f"agents=[{','.join(agents)}]", "tune.search=coordinate")
    assert [found.size(name) for name in agents] == [6] * 4
    assert found.trial("ppo", {}).settings.config.agent.total_episodes == 384
    assert plan("agent.learning_rate=3e-4").size("grpo") == 4  # what is fixed is not varied


def test_coordinates_are_held_at_the_best(tmp_path, without_ray, monkeypatch):

    tried = []

    def scored(plan, root, point, report):
        tried.append(point["values"])
        return {"score": float(point["values"]["learning_rate"])}

    monkeypatch.setattr("ollm_rl.experiments.tune.run_one", scored)
    monkeypatch.setattr(
        "ollm_rl.experiments.tune.Tuning._row",
        lambda self, trial, metrics: {
            "agent": trial.agent,
            "settings": trial.chosen,
            "trial": trial.name,
            "score": metrics["score"],
        },
    )
    from ollm_rl.common.run_dir import Run
    from ollm_rl.experiments.tune import Tuning

    given = plan(RATES, "grpo.minibatches=2,4", "tune.search=coordinate")  # of which 2 is the default
    run = Run(tmp_path, "x", given.settings.yaml())
    Tuning(given, run).search()
    run.close()
    assert tried == [
        {"learning_rate": "0.001"},
        {"learning_rate": "0.01"},
        {"learning_rate": "0.01", "minibatches": "4"},
    ]


def test_random_settings_differ_and_repeat():
    given = [
        "grpo.learning_rate=tag(log,interval(1e-5,1e-3))",
        "grpo.minibatches=interval(1,4)",
        "tune.search=random",
        "tune.num_samples=5",
    ]
    found = plan(*given)
    points = found.points("grpo")
    trials = {found.trial("grpo", values).name: found.trial("grpo", values) for values in points}
    assert len(trials) == 5 and points == plan(*given).points("grpo") != plan(*given, "seed=1").points("grpo")
    assert all(1 <= trial.chosen["minibatches"] <= 4 for trial in trials.values())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["agents=[grpoo]"], "Did you mean 'grpo'"),
        (["grpo.learning_rat=1,2"], "Did you mean 'learning_rate'"),
        (["ppo.learning_rate=1,2"], "none of the agents that are tuned"),
        (["grpo.learning_rate=1e-3,-1"], "learning_rate=-1; expected a number above 0"),
        (["grpo.learning_rate=interval(-1,1)", "tune.search=random"], "expected a number above 0"),
        (["grpo.learning_rate=[1e-3,1e-2]"], "without brackets"),
        (["grpo.learning_rate="], "has no value"),
        (["grpo.learning_rate=interval(1e-3,1e-2)"], "tries lists"),
        (["grpo={minibatches:2},{minibatchs:3}"], "Did you mean 'minibatches'"),
        (["grpo.minibatches=1,2", "grpo={minibatches:2,beta:0},{}"], "varied twice"),
        (["agents=[distill]"], "no default space"),
        (["agents=[grpo,ppo]", RATES], "grpo 2, ppo 12"),
        (["agents=[grpo,distill]", "distill.epochs=1,2"], "budgets cannot be equal"),
        (["agent.total_episodes=64"], "give tune.episodes="),
        (["evaluate.split=test"], "give tune.split="),
        (["tune.search=anealing"], "expected one of grid, coordinate, random, optuna"),
        (["tune.search=random", RATES], "has only 2 settings"),
        (["tune.samples=0"], "expected at least 1"),
        (["tune.early_stopping=true", "tune.grace_episodes=384"], "expected fewer than tune.episodes=384"),
    ],
)  # fmt: skip
def test_mistakes_are_said_before_anything_is_loaded(overrides, said, monkeypatch):
    monkeypatch.setattr("ollm_rl.experiments.tuning_plan.TRIES", 20)
    with pytest.raises(ConfigurationError) as caught:
        given = plan(*overrides)
        given.points("grpo")
    assert said in str(caught.value)


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("ollm_rl.experiments.tuning_plan.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"tune needs Ray. Install it with `pip install 'ollm_rl\[tune\]'`"):
        plan(RATES)
    monkeypatch.setattr("ollm_rl.experiments.tuning_plan.find_spec", lambda name: name == "ray" or None)
    with pytest.raises(ConfigurationError, match="tune.search=optuna needs Optuna"):
        plan(RATES, "tune.search=optuna")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_trials_side_by_side_go_on_where_they_ended(own_cache, capsys):
    given = [
        "tune",
        "agents=[grpo]",
        "grpo.learning_rate=1e-3,1e-2,3e-2",
        *KEYS,
        f"runs_dir={own_cache / 'tuned'}",
        "tune.max_concurrent=1",
    ]
    (own_cache / "to-fail").touch()
    with pytest.raises(SystemExit) as failed:
        main(given)
    assert failed.value.code == 2 and "the verifier broke" in capsys.readouterr().err
    folder = own_cache / "tuned" / "tune"
    [done] = folder.glob("trials/*/results.json")
    before = done.stat().st_mtime_ns
    main(given)
    found = json.loads((folder / "tune.json").read_text())
    assert len(found["rows"]) == 3 and done.stat().st_mtime_ns == before
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
