"""Tables of published figures, and arms of another run in them."""

import pytest

from benchmarks.costs import draw, kind_of, learners
from benchmarks.published import in_one_table, out_of_distribution, put_tables, with_arms


def arm(agent, accuracies, seconds, ood=None):
    rows = [{"agent": agent, "seed": s, "accuracy": a, "right": "10"} for s, a in enumerate(accuracies)]
    mean = sum(accuracies) / len(accuracies)
    pooled = {
        "agent": agent,
        "n_problems": 200,
        "accuracy": mean,
        "accuracy_ci95": [0.1, 0.9],
        "avg@4": 0.5,
        "avg@4_ci95": [0.4, 0.6],
    }
    variants = {"harder": {"n": 60, "accuracy": ood}} if ood is not None else {}
    return {"rows": rows, "pooled": [pooled | {"total_seconds": seconds, "ood": variants}], "tests": []}


def figures(*arms, tests=()):
    task = {key: [x for each in arms for x in each[key]] for key in ("rows", "pooled")} | {"tests": [*tests]}
    return {"command": "c", "note": "n", "sums": task}


BEFORE = figures(
    arm("lora_grpo", [0.7, 0.8], 900), arm("grpo", [0.6, 0.7], 300, 0.25), tests=[{"agents": ["lora_grpo", "grpo"]}]
)


def test_tables_are_in_order_by_seed_and_out_of_distribution(tmp_path):
    found = {"sums": BEFORE["sums"]}
    first, second = in_one_table(found)[2:]
    assert "`grpo`" in first and "0.60, 0.70" in first and "| 300 |" in first and "`lora_grpo`" in second
    assert out_of_distribution(found)[-1] == "| `sums` | harder | 60 | 0.25 |"
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n")
    put_tables(page, "x", BEFORE)
    assert "0.60, 0.70" in page.read_text() and "old" not in page.read_text() and page.read_text().endswith("b\n")


def test_arms_of_another_run_come_in_and_those_that_are_kept_stay():
    new = figures(
        arm("grpo", [0.6, 0.7], 500), arm("lora_grpo_2", [0.8, 0.8], 2000), tests=[{"agents": ["lora_grpo_2", "grpo"]}]
    )
    found = with_arms(BEFORE, new, ["grpo"])["sums"]
    assert {p["agent"]: p["total_seconds"] for p in found["pooled"]} == {
        "lora_grpo": 900,
        "grpo": 300,
        "lora_grpo_2": 2000,
    }
    assert [t["agents"] for t in found["tests"]] == [["lora_grpo", "grpo"], ["lora_grpo_2", "grpo"]]
    assert {p["agent"]: p["total_seconds"] for p in with_arms(BEFORE, new)["sums"]["pooled"]}["grpo"] == 500
    with pytest.raises(SystemExit, match="answered otherwise"):
        with_arms(BEFORE, figures(arm("grpo", [0.6, 0.9], 500)), ["grpo"])


def test_arms_of_two_runs_are_compared_on_the_problems_of_both():
    new = figures(arm("fitted_grpo", [1.0, 0.5], 500))
    for row, right in zip(new["sums"]["rows"], ("11", "10"), strict=True):
        row["right"] = right
    problems = {"sums": {0: ["1+1", "1+2"], 1: ["1+3", "1+2"]}}
    tests = {tuple(t["agents"]): t for t in with_arms(BEFORE, new, [], problems)["sums"]["tests"]}
    assert tests["grpo", "fitted_grpo"]["n"] == 4 and tests["grpo", "fitted_grpo"]["greedy"] == 0.25
    assert {*tests} == {("lora_grpo", "grpo"), ("grpo", "fitted_grpo"), ("lora_grpo", "fitted_grpo")}
    fewer = {"sums": {0: ["1+1"], 1: ["1+3", "1+2"]}}
    assert len(with_arms(BEFORE, new, [], fewer)["sums"]["tests"]) == 1
    replaced = with_arms(BEFORE, figures(arm("grpo", [0.6, 0.7], 500)))["sums"]
    assert replaced["tests"] == []  # what it was compared with before is another's


def test_the_plot_of_costs_has_every_arm_that_learns_and_no_control(tmp_path):
    found = figures(
        *(
            arm(name, [0.6, 0.7], 300)
            for name in ("prior", "grpo", "lora_grpo_3", "fitted_steer_3", "fitted_shortlist_head_3")
        )
    )
    for row in found["sums"]["pooled"]:
        if row["agent"] != "prior":
            row |= {"before": {"accuracy": 0.2}, "train_seconds": 100}
    assert [row["agent"] for row in learners(found["sums"])] == ["grpo", "lora_grpo_3", "fitted_shortlist_head_3"]
    kinds = {name: kind_of(name)[0] for name in ("lora_grpo_3", "fitted_shortlist_head_3", "fitted_grpo", "grpo_long")}
    assert kinds == {
        "lora_grpo_3": "LoRA-RL", "fitted_shortlist_head_3": "tokens of the shortlist",
        "fitted_grpo": "latents over a backbone that LoRA fitted", "grpo_long": "latents over the frozen backbone",
    }  # fmt: skip
    path = draw(found, tmp_path / "costs.png")
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")
    assert draw(figures(arm("prior", [0.6], 300)), tmp_path / "none.png") is None
