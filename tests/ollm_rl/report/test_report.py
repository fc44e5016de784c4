"""Tables, notes and plots of several seeds."""

import json

import pytest

from ollm_rl.evaluation.comparison import learning_curve, pool, summarize
from ollm_rl.report.html import write_report
from ollm_rl.report.plots import _over_seeds, draw
from ollm_rl.report.tables import results_table


def comparison(root, verdicts):
    """Results of two agents with two seeds, the second of which learned for longer."""
    rows = []
    for seed in (0, 1):
        for agent in ("prior", "grpo"):
            folder = root / f"{agent}-{seed}"
            folder.mkdir(parents=True)
            row = {
                "agent": agent, "seed": seed, "n_problems": 4, "accuracy": 0.25 + 0.5 * seed, "accuracy_ci95": [0.0, 1.0],
                "avg_at_8": 0.2, "pass_at_8": 0.5, "mean_length": 10.0, "train_episodes": 0, "verdicts": verdicts,
            }  # fmt: skip
            if agent == "grpo":
                lines = [{"train_episodes": 256 * i, "reward": 0.1 * i + 0.2 * seed} for i in range(1, 3 + seed)]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                row["train_episodes"] = lines[-1]["train_episodes"]
            rows.append(row)
    return {"task": "sums", "backbone": "tiny", "rows": rows, **summarize(rows, root)}


def test_pooled_rows_stand_first(tmp_path):
    results = comparison(tmp_path, {"equal": 1, "different": 3})
    body = results_table(results).body
    assert [row[:4] for row in body[:2]] == [[a, "all 2", "8", "0.500 [0.22, 0.78]"] for a in ("prior", "grpo")]
    assert [row[1] for row in body[2:]] == ["0", "0", "1", "1"]
    page = write_report(tmp_path, results).read_text()
    assert page.count('<tr class="all">') == 2
    assert "Verdicts on the greedy answers. prior: 6 different, 2 equal. grpo: 6 different, 2 equal." in page
    assert "Solved texts" not in page


def test_a_reward_without_verdicts_has_no_note(tmp_path):
    results = comparison(tmp_path, {})
    assert "Verdicts" not in write_report(tmp_path, results).read_text()


def test_a_mean_over_seeds_ends_with_the_shortest(tmp_path):
    results = comparison(tmp_path, {})
    curves = [learning_curve(row, tmp_path) for row in results["rows"] if row["agent"] == "grpo"]
    x, mean, low, high = _over_seeds(curves, "train_episodes")
    assert x == [256, 512]
    assert [[round(v, 3) for v in values] for values in (mean, low, high)] == [[0.2, 0.3], [0.1, 0.2], [0.3, 0.4]]
    assert "learning_curve.png" in {path.name for path in draw(tmp_path, results)}


def test_the_curve_of_a_run_of_one_agent_is_in_its_own_directory(tmp_path):
    line = {"train_episodes": 64, "reward": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert learning_curve({"agent": "grpo", "seed": 0}, tmp_path) == [line]


def row(agent, **figures):
    return {
        "agent": agent,
        "seed": 0,
        "n_problems": 4,
        "accuracy": 0.5,
        "accuracy_ci95": [0.1, 0.9],
        "mean_length": 9.0,
        **figures,
    }


def test_columns_say_how_many_samples_and_do_not_mix_them(tmp_path):
    four, eight = {"avg@4": 0.4, "pass@4": 0.6, "maj@4": 0.5}, {"avg_at_8": 0.2, "pass_at_8": 0.7}
    curve = {"oracle": [{"budget": 25, "solved": 0.5, "ci95": [0.1, 0.9]}]}
    results = {
        "task": "sums",
        "backbone": "tiny",
        "rows": [row("a", **four), row("b", **eight), row("c")],
        "curves": curve,
    }
    table = results_table(results)
    assert table.head[4:10] == ["avg@4", "pass@4", "maj@4", "avg@8", "pass@8", "maj@8"]
    assert [cells[4:10] for cells in table.body] == [
        ["0.400", "0.600", "0.500", "-", "-", "-"], ["-", "-", "-", "0.200", "0.700", "-"], ["-"] * 6,
    ]  # fmt: skip
    page = write_report(tmp_path, results).read_text()
    assert "k = 4 and 8 sampled answers per problem" in page
    greedy = {**results, "rows": [row("c")]}
    assert (
        "@" not in "".join(results_table(greedy).head)
        and "sampled answers" not in write_report(tmp_path, greedy).read_text()
    )


def test_seeds_with_other_numbers_of_samples_are_not_averaged():
    [pooled] = pool([{**row("a"), "avg@4": 0.4}, {**row("a"), "seed": 1, "avg@4": 0.2, "avg@8": 0.9}])
    assert pooled["avg@4"] == pytest.approx(0.3) and "avg@8" not in pooled
    [pooled] = pool([{**row("a"), "avg@4": 0.4}, {**row("a"), "seed": 1, "avg@8": 0.9}])
    assert "avg@4" not in pooled and "avg@8" not in pooled


def test_every_search_has_its_own_episodes(tmp_path):
    def episode(text):
        step = {"token": text, "latent": 0, "options": [[0, text, 0.9], [1, "other", 0.1]]}
        return {"problem": "p", "gold": "1", "reward": 1.0, "steps": [step]}

    for where in (tmp_path / "alone", tmp_path / "compared/oracle-0"):
        where.mkdir(parents=True)
        for name in ("replays", "replays_oracle_best_of_n"):
            (where / f"{name}.json").write_text(json.dumps([episode(f"said by {name}")]))
    rows = [
        row(a, search="x", budget=9, mean_tokens=1, mean_tried=1)
        for a in ("oracle", "oracle_best_of_n", "teacher_forced_cover")
    ]
    for root in ("alone", "compared"):
        page = write_report(tmp_path / root, {"task": "sums", "backbone": "tiny", "rows": rows}).read_text()
        parts = page.split("<h3>")[1:]
        assert [part.partition(",")[0] for part in parts] == ["oracle", "oracle_best_of_n"]
        assert "said by replays<" in parts[0] and "said by replays_oracle_best_of_n<" in parts[1]
