"""The aims of the LoRA comparison, from results whose verdicts are known."""

import json
from dataclasses import replace

import pytest

from benchmarks.aims import above, controls, fast, fitted, together
from ollm_rl.evaluation.comparison import pool
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row


@pytest.fixture
def results(tmp_path):
    """Arms with four problems each, as `(name, verdicts, seconds from nothing, seconds of learning, accuracy before)`."""

    def made(*arms):
        rows = []
        for name, verdicts, total, learning, before in arms:
            texts = tmp_path / name / "rollouts" / "greedy.jsonl"
            texts.parent.mkdir(parents=True)
            lines = [
                {"problem": f"p{i}", "problem_id": f"p{i}", "text": "", "reward": v, "correct": bool(v), "seed": 0}
                for i, v in enumerate(verdicts)
            ]
            texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
            share = sum(verdicts) / len(verdicts)
            row = Row(
                agent=name, n_problems=len(verdicts), accuracy=share, accuracy_ci95=(0, 1), train_seconds=learning
            )
            row.directory, row.total_seconds = texts.parents[1], total
            if before is not None:
                row.before = Row(agent=name, n_problems=len(verdicts), accuracy=before, accuracy_ci95=(0, 1))
            rows.append(row)
        return Results(rows=rows, pooled=pool(rows))

    return made


def test_a_rival_is_a_point_of_loras_curve_that_is_near_and_early(results):
    arms = results(
        ("grpo", [1, 1, 1, 0], 100.0, 10.0, 0.25),
        ("lora_sft", [1, 0, 0, 0], 200.0, 0.0, None),  # early, but far below
        ("lora_grpo", [1, 1, 1, 0], 499.0, 99.0, 0.5),  # as good, in less than five times the seconds
        ("lora_grpo_2", [1, 1, 1, 1], 501.0, 1.0, 0.0),  # better, but after more than that; before learning far below
    )
    found = fast(arms)["arms"]["grpo"]
    assert not found["met"]
    assert [(p["agent"], p["seconds"], p["accuracy"]) for p in found["rivals"]] == [("lora_grpo", 499.0, 0.75)]
    assert fast(Results(rows=arms.rows[:2], pooled=arms.pooled[:2]))["arms"]["grpo"]["met"]


def test_the_best_arm_of_each_side_counts_and_tasks_are_pooled(results):
    one = results(
        ("lora_grpo", [1, 0, 0, 0], 1.0, 1.0, None),
        ("lora_grpo_2", [1, 1, 0, 0], 1.0, 1.0, None),
        ("lora_grpo_3", [1, 1, 1, 1], 1.0, 1.0, None),  # a fit more than the others have: not at equal fits
        ("fitted_grpo", [1, 1, 1, 0], 1.0, 1.0, None),
    )
    found = fitted({"sums": one})
    assert found["tasks"]["sums"]["lora"] == "lora_grpo_2" and found["tasks"]["sums"]["above"]["mean"] == 0.25
    assert found["pooled"]["mean"] == 0.25 and found["pooled"]["n"] == 4
    assert found["three_epochs"] == {}  # nothing over three epochs stands beside it
    more = results(
        ("fitted_grpo_3", [1, 0, 0, 0], 1.0, 1.0, None),
        ("fitted_grpo_long_3", [1, 1, 1, 0], 1.0, 1.0, None),
    )
    rows = [*one.rows, *more.rows]
    three = fitted({"sums": Results(rows=rows, pooled=pool(rows))})["three_epochs"]["sums"]
    assert [(pair["latents"], pair["above"]["mean"]) for pair in three] == [
        ("fitted_grpo_3", -0.75), ("fitted_grpo_long_3", -0.25)
    ]  # fmt: skip


def test_controls_stand_beside_arms_over_the_same_backbone(results):
    one = results(
        ("steer", [1, 0, 0, 0], 1.0, 1.0, None),
        ("grpo", [1, 1, 0, 0], 1.0, 1.0, None),
        ("fitted_steer", [1, 1, 1, 1], 1.0, 1.0, None),
        ("fitted_grpo", [1, 1, 1, 0], 1.0, 1.0, None),
        ("fitted_steer_3", [0, 0, 0, 0], 1.0, 1.0, None),
        ("fitted_grpo_long_3", [1, 1, 1, 0], 1.0, 1.0, None),
    )
    found = controls(one)
    assert {arm: {c: t["mean"] for c, t in of.items()} for arm, of in found.items()} == {
        "grpo": {"steer": 0.25}, "fitted_grpo": {"fitted_steer": -0.25}, "fitted_grpo_long_3": {"fitted_steer_3": 0.75}
    }  # fmt: skip
    assert above(one.rows, "grpo", "nobody") == {}


def test_arms_of_two_runs_stand_beside_each_other_on_the_seeds_of_both(results):
    one = results(("fitted_grpo_long_3", [1, 1, 1, 0], 1.0, 1.0, None))
    other_seed = replace(one.rows[0], seed=1)
    other_seed.directory = one.rows[0].directory
    long = results(("lora_grpo_long_3", [1, 1, 0, 0], 1.0, 1.0, None))
    found = together(replace(one, rows=[*one.rows, other_seed]), long)
    assert [row.agent for row in found.pooled] == ["fitted_grpo_long_3", "lora_grpo_long_3"]
    pair = above(found.rows, "lora_grpo_long_3", "fitted_grpo_long_3")
    assert (pair["n"], pair["mean"]) == (4, 0.25)
