"""Parts of a comparison, and combinations, side by side on a cluster."""

import json
from pathlib import Path

import pytest

from ollm_rl.cli.app import main
from ollm_rl.cluster.jobs import side_by_side
from ollm_rl.common.run_dir import Run
from ollm_rl.config.compose import compose
from ollm_rl.experiments.compare import run_parts
from tests.conftest import QUICK_KEYS

pytestmark = pytest.mark.usefixtures("cluster")
REWARD = "reward=tests.ollm_rl.cluster.faulty.reward"  # not all zero, as those of a random model are
KEYS = [*QUICK_KEYS, REWARD, "rollout.num_cpus_per_worker=1"]
LEARNERS = [
    "agent.total_episodes=32", "grpo.num_generations=4", "grpo.problems_per_iteration=4", "ppo.episodes_per_iteration=16",
    "ppo.minibatch_size=32", "agent.num_problems=40",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_fails(own_cache):
    (own_cache / "reward-failed").touch()


def figures(value):
    """Without what is measured in seconds."""
    if isinstance(value, dict):
        return {k: figures(v) for k, v in value.items() if "seconds" not in k and k != "occupancy"}
    return [figures(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_a_comparison_side_by_side_gives_what_one_after_the_other_gives(tmp_path):
    agents = ["compare", "agents=[grpo,ppo]", "seeds=[1]", "with_oracle=true"]
    given = [*agents, f"runs_dir={tmp_path}", *LEARNERS, *KEYS]
    main([*given, "name=turns"])
    main([*given, "name=together", "rollout.address=local", "resume=never"])
    turns, together = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("turns", "together"))
    assert len(together["rows"]) == 3
    assert figures(together["rows"]) == figures(turns["rows"])
    assert figures(together["pooled"]) == figures(turns["pooled"])
    rewards = [json.loads(x)["reward"] for x in (tmp_path / "together/grpo-1/metrics.jsonl").read_text().splitlines()]
    assert min(rewards) > 0 and max(rewards) < 1


def test_parts_that_share_a_long_setup_do_not_wait_for_each_other(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr("ollm_rl.cluster.jobs.side_by_side", lambda calls, rollout: begun.extend(calls))
    comparisons = []
    for task in ("chain_sum", "leg_counting"):
        given = [
            f"task={task}",
            "agents=[prior,lora_sft,lora_grpo]",
            "seeds=[0,1]",
            "with_oracle=true",
            "rollout.address=local",
        ]
        settings = compose(given)
        comparisons.append((given, settings, Run(tmp_path, task, settings.yaml())))
    run_parts(comparisons)
    of_task = (
        ["lora_sft-0"],
        ["prior-0", "oracle-0", "prior-1", "oracle-1"],
        ["lora_grpo-0", "lora_sft-1", "lora_grpo-1"],
    )
    assert begun == [
        tmp_path / task / name for names in of_task for task in ("chain_sum", "leg_counting") for name in names
    ]


@pytest.mark.slow
def test_parts_of_all_tasks_are_begun_at_once_and_none_again(tmp_path, monkeypatch):
    begun = []

    def watched(calls, rollout):
        begun.append([path.relative_to(tmp_path / "both") for path in calls])
        side_by_side(calls, rollout)

    monkeypatch.setattr("ollm_rl.cluster.jobs.side_by_side", watched)
    given = ["compare", "agents=[prior]", "tasks=[chain_sum,leg_counting]", f"runs_dir={tmp_path}", "name=both", *KEYS]
    for _ in range(2):
        main([*given, "rollout.address=local"])
    assert begun == [[Path("chain_sum/prior-0"), Path("leg_counting/prior-0")]]
    (tmp_path / "both/leg_counting/prior-0/config.yaml").write_text("backbone: another\n")
    with pytest.raises(SystemExit) as refused:  # of a part that is done, before a new one begins
        main([*given, "rollout.address=local", "seeds=[0,1]"])
    assert refused.value.code == 2 and len(begun) == 1
    assert {p.parent.name for p in (tmp_path / "both").glob("*/report.html")} == {"chain_sum", "leg_counting"}


def test_a_mistake_in_one_part_is_said(tmp_path, capsys):
    given = [
        "compare",
        "agents=[prior,grpo]",
        "agent.num_generations=1",
        f"runs_dir={tmp_path}",
        "rollout.address=local",
    ]
    with pytest.raises(SystemExit) as caught:
        main([*given, *KEYS])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "an integer from 2" in said and "ray::" not in said


@pytest.mark.slow
def test_combinations_run_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["evaluate", "agent=prior,random", "name=two", "rollout.address=local", *KEYS])
    folder = tmp_path / "runs" / "two"
    rows = [json.loads((folder / name / "results.json").read_text())["rows"][0] for name in ("prior", "random")]
    assert [row["agent"] for row in rows] == ["prior", "random"]
    assert "random" in capsys.readouterr().out


def test_a_cluster_that_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    def nobody(address, **_):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the cluster of these tests is, and would be taken
    monkeypatch.setattr("ray.init", nobody)
    with pytest.raises(SystemExit) as caught:
        main(["compare", "agents=[prior]", f"runs_dir={tmp_path}", "rollout.address=auto", *KEYS])
    assert caught.value.code == 2 and "no Ray cluster answers at 'auto'" in capsys.readouterr().err
