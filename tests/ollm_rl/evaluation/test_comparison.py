"""What a comparison concludes from its rows and files, on numbers worked out by hand."""

import json

import numpy as np
import pytest

from ollm_rl.evaluation.comparison import (
    WINDOW,
    add_areas,
    add_thresholds,
    paired_tests,
    pool,
    pool_curves,
    summarize,
    trailing,
)
from ollm_rl.evaluation.metrics import bootstrap, wilson
from ollm_rl.evaluation.records import Difference, Point
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.report.tables import comparison_tables


def learner(root, agent, seed, curve, **row):
    """A cell's files: a learning curve as (episodes, reward, seconds), and greedy rewards."""
    folder = root / f"{agent}-{seed}"
    (folder / "rollouts").mkdir(parents=True)
    lines = [{"step": i, "train_episodes": e, "reward": r, "train_seconds": s} for i, (e, r, s) in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    greedy = row.pop("greedy", [])
    (folder / "rollouts" / "greedy.jsonl").write_text(
        "".join(json.dumps({"reward": r, "problem": f"problem {i}, {seed}"}) + "\n" for i, r in enumerate(greedy))
    )
    solved = sum(greedy)
    found = Row.from_dict({
        "agent": agent, "seed": seed, "n_problems": max(len(greedy), 1), "accuracy": solved / max(len(greedy), 1),
        "accuracy_ci95": [0.0, 1.0], "avg_at_8": 0.0, "mean_length": 10.0, "train_episodes": curve[-1][0] if curve else 0,
        "train_seconds": 1.0, "no_answer_rate": 0.0, "repetition_rate": 0.0, "foreign_script_rate": 0.0, **row,
    })  # fmt: skip
    found.directory = folder
    return found


def test_trailing_means_do_not_depend_on_the_size_of_iterations():
    large = [{"train_episodes": WINDOW * i, "reward": r} for i, r in enumerate((0.1, 0.5, 0.9), 1)]
    small = [
        {"train_episodes": WINDOW // 4 * (4 * i + j), "reward": r}
        for i, r in enumerate((0.1, 0.5, 0.9))
        for j in range(1, 5)
    ]
    assert trailing(large) == pytest.approx([0.1, 0.5, 0.9])
    assert trailing(small)[3::4] == pytest.approx(trailing(large))
    assert trailing(small)[5] == pytest.approx((0.1 * 2 + 0.5 * 2) / 4)


def test_a_problem_that_seeds_share_counts_once_in_the_interval(tmp_path):
    rows = [learner(tmp_path, "grpo", seed, [], greedy=[1.0] * 6 + [0.0] * 14) for seed in (0, 1, 2)]
    apart = pool(rows)[0]
    assert apart.accuracy_ci95 == pytest.approx(wilson(18, 60))
    for row in rows:
        file = row.directory / "rollouts" / "greedy.jsonl"
        lines = [json.loads(line) | {"problem_id": f"test-{i}"} for i, line in enumerate(file.read_text().splitlines())]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = pool(rows)[0]
    assert shared.n_problems == 60 and shared.accuracy == pytest.approx(0.3)
    assert shared.accuracy_ci95 == pytest.approx(wilson(6, 20))  # that of each seed, for all solved the same


def test_thresholds(tmp_path):
    curve = [(WINDOW, 0.1, 10.0), (2 * WINDOW, 0.3, 20.0), (3 * WINDOW, 0.5, 30.0)]
    rows = [
        learner(tmp_path, "prior", 0, [], avg_at_8=0.1),
        learner(tmp_path, "grpo", 0, curve, avg_at_8=0.5),
        learner(tmp_path, "slow", 0, [(WINDOW, 0.1, 10.0), (2 * WINDOW, 0.1, 20.0)], avg_at_8=0.2),
    ]
    add_thresholds(rows)
    assert rows[1].threshold == pytest.approx(0.3)
    assert (rows[1].episodes_to_threshold, rows[1].seconds_to_threshold) == (2 * WINDOW, 20.0)
    assert rows[2].episodes_to_threshold is None and rows[2].seconds_to_threshold is None
    assert rows[0].episodes_to_threshold is None and rows[0].threshold is None


def test_areas_are_over_the_episodes_that_all_had(tmp_path):
    rows = [
        learner(tmp_path, "one", 0, [(100, 0.2, 1), (200, 0.4, 2), (400, 1.0, 3)]),
        learner(tmp_path, "two", 0, [(300, 0.5, 1)]),
    ]
    add_areas(rows)
    assert rows[0].area_under_curve == pytest.approx((0.2 * 100 + 0.4 * 100 + 1.0 * 100) / 300)
    assert rows[1].area_under_curve == 0.5 and rows[1].area_episodes == 300


def test_bootstrap():
    assert bootstrap(np.zeros(50)) == Difference(mean=0.0, ci95=(0.0, 0.0), p=1.0)
    draws = np.random.default_rng(0)
    differences = draws.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=400)
    found, error = bootstrap(differences), differences.std() / np.sqrt(400)
    low, high = found.ci95
    assert found.mean == differences.mean() and found.p < 0.001
    assert (low, high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.3 * error)
    # The share of false alarms among experiments without a difference.
    alarms = sum(bootstrap(draws.choice([-1.0, 0.0, 1.0], size=100)).p < 0.05 for _ in range(100))
    assert alarms <= 15


def test_answers_to_one_problem_are_drawn_together():
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.2, 0.5, 0.3], size=100)
    alone = bootstrap(differences)
    thrice = bootstrap(np.tile(differences, 3), [str(i) for i in range(100)] * 3)
    assert thrice.mean == pytest.approx(alone.mean)
    assert thrice.ci95 == pytest.approx(alone.ci95, abs=0.03)  # no narrower for being repeated


def test_nobody_reaches_a_threshold_that_is_the_priors_own_level(tmp_path):
    rows = [
        learner(tmp_path, "prior", 0, [], avg_at_8=0.3),
        learner(tmp_path, "grpo", 0, [(WINDOW, 0.3, 10.0), (2 * WINDOW, 0.3, 20.0)], avg_at_8=0.2),
    ]
    add_thresholds(rows)
    assert rows[1].episodes_to_threshold is None and rows[1].threshold is None


def test_a_learner_that_logs_no_episodes_is_left_out(tmp_path):
    rows = [learner(tmp_path, "one", 0, [(0, 0.2, 1)]), learner(tmp_path, "two", 0, [(300, 0.5, 1)])]
    add_areas(rows)
    assert rows[0].area_under_curve is None and rows[1].area_under_curve == 0.5


def test_tests_pair_the_same_problems_of_the_same_seeds(tmp_path):
    rows = [
        learner(tmp_path, "one", 0, [], greedy=[1, 0, 0, 0]), learner(tmp_path, "one", 1, [], greedy=[0, 0, 1, 1]),
        learner(tmp_path, "two", 1, [], greedy=[1, 0, 1, 1]), learner(tmp_path, "two", 0, [], greedy=[1, 1, 1, 0]),
    ]  # fmt: skip
    [test] = paired_tests(rows)
    assert test.agents == ["one", "two"] and test.n == 8
    assert test.greedy.mean == pytest.approx(3 / 8) and test.greedy.ci95[0] >= 0  # no problem went the other way


def test_rewards_other_than_0_and_1_are_compared_too(tmp_path):
    graded = {
        "one": [learner(tmp_path, "one", s, [], greedy=[0.2, 0, 1, 0.4], accuracy=0.25, mean_reward=0.4) for s in (0, 1)],
        "two": [learner(tmp_path, "two", s, [], greedy=[0.4, 0.2, 1, 0.4], accuracy=0.25, mean_reward=0.5) for s in (0, 1)],
    }  # fmt: skip
    results = Results([*graded["one"], *graded["two"]], "sums", "tiny")
    summarize(results)
    [test] = results.tests
    assert test.greedy.mean == 0 and test.reward.mean == pytest.approx(0.1)
    assert test.reward.ci95 == bootstrap(np.array([0.2, 0.2, 0, 0] * 2)).ci95
    assert results.to_dict()["tests"][0]["reward_ci95"] == list(test.reward.ci95)
    assert Results.from_dict(results.to_dict()).tests == results.tests
    table = next(t for t in comparison_tables(results) if t.title == "Paired differences")
    assert table.head[-2:] == ["reward", "p"] and table.body[0][-2].startswith("+0.100 [+0.0")
    low, high = results.pooled[0].mean_reward_ci95
    assert 0 < low < 0.4 < high < 1 and "0.400 [" in results.table().body[0][results.table().head.index("reward")]
    plain = [
        learner(tmp_path, agent, 2, [], greedy=g, mean_reward=sum(g) / 2) for agent, g in (("a", [1, 0]), ("b", [1, 1]))
    ]
    [test] = paired_tests(plain)
    assert test.reward is None and "reward" not in test.to_dict()


def test_pooled_rows_say_before_after_and_how_many_reached_the_threshold(tmp_path):
    before = {"n_problems": 4, "accuracy": 0.25, "accuracy_ci95": [0.0, 1.0], "mean_length": 8.0}
    rows = [
        learner(tmp_path, "grpo", s, [(WINDOW, 0.1, 1)], greedy=[1, 1, 0, s], before=before, episodes_to_threshold=e)
        for s, e in ((0, 100), (1, None))
    ]
    [pooled] = pool(rows)
    assert pooled.accuracy == 5 / 8 and pooled.before.accuracy == 0.25 and pooled.before.n_problems == 8
    assert pooled.episodes_to_threshold_reached == 1 and pooled.episodes_to_threshold is None


def test_a_run_that_got_worse_out_of_distribution_is_marked(tmp_path):
    def ood(solved):
        share = {"n": len(solved), "accuracy": sum(solved) / len(solved), "accuracy_ci95": [0.0, 1.0]}
        return {"longer": {**share, "solved": solved}}

    good, bad = [True] * 40, [True] * 10 + [False] * 30
    rows = [
        learner(tmp_path, name, 0, [(WINDOW, 0.1, 1)], greedy=[1, 0], ood=ood(after), before={
            "n_problems": 2, "accuracy": 0.5, "accuracy_ci95": [0, 1], "mean_length": 9.0, "no_answer_rate": 0.0, "repetition_rate": 0.0,
            "foreign_script_rate": 0.0, "ood": ood(good),
        }, length_change=0.1)
        for name, after in (("worse", bad), ("same", good))
    ]  # fmt: skip
    results = Results(rows)
    summarize(results)
    marks = {r.agent: r.ood["longer"].worse for r in results.pooled}
    assert marks == {"worse": "yes", "same": "no"}
    assert json.loads(json.dumps(results.to_dict()["pooled"]))  # plain numbers only
    tables = {table.title: table for table in comparison_tables(results)}
    assert (
        "WORSE" in tables["Out of distribution"].body[0][1] and "WORSE" not in tables["Out of distribution"].body[1][1]
    )
    assert tables["Learning from rewards"].body[0][0] == "worse"
    assert all(len(row) == len(table.head) for table in tables.values() for row in table.body)


def test_curves_of_seeds_are_of_all_problems():
    def searched(n, *shares):
        points = [Point(budget=b, solved=s, ci95=(0, 1)) for b, s in zip((25, 50), shares, strict=True)]
        row = Row(agent="oracle", n_problems=n, accuracy=shares[-1], accuracy_ci95=(0, 1))
        return Results([row], curves={"puct": points})

    pooled = pool_curves([searched(10, 0.1, 0.5), searched(30, 0.3, 0.9)])["puct"]
    assert [(p.budget, p.solved) for p in pooled] == [(25, 0.25), (50, 0.8)]
    assert pooled[1].ci95 == wilson(32, 40)
    assert pool_curves([]) == {}
