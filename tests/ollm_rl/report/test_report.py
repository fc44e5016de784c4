"""Tables, notes and plots of several seeds."""

import json

import pytest

from ollm_rl.errors import CheckpointError
from ollm_rl.evaluation.comparison import learning_curve, pool, summarize
from ollm_rl.evaluation.records import Changes, Sampled, Share
from ollm_rl.evaluation.results import Results, Row
from ollm_rl.report import plots
from ollm_rl.report.html import write_report
from ollm_rl.report.learning_plots import evaluated_shares, over_seeds
from ollm_rl.report.plots import draw
from ollm_rl.report.tables import all_tables


def comparison(root, verdicts):
    """Results of two agents with two seeds, the second of which learned for longer."""
    rows = []
    for seed in (0, 1):
        for agent in ("prior", "grpo"):
            folder = root / f"{agent}-{seed}"
            folder.mkdir(parents=True)
            row = Row.from_dict({
                "agent": agent, "seed": seed, "n_problems": 4, "accuracy": 0.25 + 0.5 * seed, "accuracy_ci95": [0.0, 1.0],
                "avg_at_8": 0.2, "pass_at_8": 0.5, "mean_length": 10.0, "train_episodes": 0, "verdicts": verdicts,
            })  # fmt: skip
            row.directory = folder
            if agent == "grpo":
                lines = [{"train_episodes": 256 * i, "reward": 0.1 * i + 0.2 * seed} for i in range(1, 3 + seed)]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                row.train_episodes = lines[-1]["train_episodes"]
            rows.append(row)
    results = Results(rows, "sums", "tiny")
    summarize(results)
    results.save(root)
    return results


def test_pooled_rows_stand_first(tmp_path):
    results = comparison(tmp_path, {"equal": 1, "different": 3})
    body = results.table().body
    assert [row[:4] for row in body[:2]] == [[a, "all 2", "8", "0.500 [0.22, 0.78]"] for a in ("prior", "grpo")]
    assert [row[1] for row in body[2:]] == ["0", "0", "1", "1"]
    page = write_report(tmp_path).read_text()
    assert page.count('<tr class="all">') == 2
    assert "Verdicts on the greedy answers. prior: 6 different, 2 equal. grpo: 6 different, 2 equal." in page
    assert "Solved texts" not in page


def test_what_an_agent_was_before_it_learned_has_a_row_unless_another_row_is_the_same(tmp_path):
    scores = {"n_problems": 4, "accuracy_ci95": [0.0, 1.0], "mean_length": 9.0, "no_answer_rate": 0.0}
    before = {**scores, "accuracy": 0.25, "mean_reward": 0.3}
    row = Row.from_dict({**scores, "agent": "grpo", "accuracy": 0.5, "train_episodes": 64, "before": before})
    row.directory = tmp_path
    results = Results([row], "sums", "tiny")
    results.save(tmp_path)
    first, second = results.table().body
    assert first[:4] == ["grpo before", "0", "4", "0.250 [0.00, 1.00]"] and second[0] == "grpo"
    assert (
        first[results.table().head.index("reward")] == "0.300" and first[results.table().head.index("episodes")] == "0"
    )
    assert "<td>grpo before</td>" in write_report(tmp_path).read_text().replace("\n", "")
    prior = Row.from_dict({**scores, "agent": "prior", "accuracy": 0.25})
    assert [cells[0] for cells in Results([prior, row]).table().body] == ["prior", "grpo"]
    other = Row.from_dict({**scores, "agent": "prior", "accuracy": 0.25, "mean_length": 8.0})
    assert [cells[0] for cells in Results([other, row]).table().body] == ["prior", "grpo before", "grpo"]


def test_a_reward_without_verdicts_has_no_note(tmp_path):
    comparison(tmp_path, {})
    assert "Verdicts" not in write_report(tmp_path).read_text()


def test_a_mean_over_seeds_ends_with_the_shortest(tmp_path):
    results = comparison(tmp_path, {})
    curves = [learning_curve(row) for row in results.rows if row.agent == "grpo"]
    x, mean, low, high = over_seeds(curves, "train_episodes")
    assert x == [256, 512]
    assert [[round(v, 3) for v in values] for values in (mean, low, high)] == [[0.2, 0.3], [0.1, 0.2], [0.3, 0.4]]
    assert "learning_curve.png" in {path.name for path in draw(results, tmp_path / "plots")}


def test_the_curve_of_a_run_of_one_agent_is_in_its_own_directory(tmp_path):
    line = {"train_episodes": 64, "reward": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    Results([Row.from_dict(row("grpo"))]).save(tmp_path)
    assert learning_curve(Results.load(tmp_path).rows[0]) == [line]


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


def reported(root, found):
    """`found` as the results of a run in `root`."""
    root.mkdir(exist_ok=True)
    (root / "results.json").write_text(json.dumps(found))
    return Results.load(root)


def test_columns_say_how_many_samples_and_do_not_mix_them(tmp_path):
    four, eight = {"avg@4": 0.4, "pass@4": 0.6, "maj@4": 0.5}, {"avg_at_8": 0.2, "pass_at_8": 0.7}
    curve = {"oracle": [{"budget": 25, "solved": 0.5, "ci95": [0.1, 0.9]}]}
    results = {
        "task": "sums",
        "backbone": "tiny",
        "rows": [row("a", **four), row("b", **eight), row("c")],
        "curves": curve,
    }
    table = reported(tmp_path, results).table()
    assert table.head[4:10] == ["avg@4", "pass@4", "maj@4", "avg@8", "pass@8", "maj@8"]
    assert [cells[4:10] for cells in table.body] == [
        ["0.400", "0.600", "0.500", "-", "-", "-"], ["-", "-", "-", "0.200", "0.700", "-"], ["-"] * 6,
    ]  # fmt: skip
    page = write_report(tmp_path).read_text()
    assert "Of k = 4 and 8 sampled texts a problem" in page
    greedy = reported(tmp_path, {**results, "rows": [row("c")]})
    assert "@" not in "".join(greedy.table().head) and "sampled answers" not in write_report(tmp_path).read_text()


def test_seeds_with_other_numbers_of_samples_are_not_averaged():
    def pooled(*seeds):
        return pool([Row.from_dict({**row("a"), "seed": i, **figures}) for i, figures in enumerate(seeds)])[0].sampled

    assert pooled({"avg@4": 0.4}, {"avg@4": 0.2, "avg@8": 0.9}) == {4: Sampled(pytest.approx(0.3))}
    assert pooled({"avg@4": 0.4}, {"avg@8": 0.9}) == {}


def test_every_search_has_its_own_episodes(tmp_path):
    def episode(text):
        step = {"token": text, "latent": 0, "options": [[0, text, 0.9], [1, "other", 0.1]]}
        return {"problem": "p", "gold": "1", "reward": 1.0, "steps": [step]}

    for where in (tmp_path / "alone", tmp_path / "compared/oracle-0"):
        where.mkdir(parents=True)
        for name in ("replays", "replays_oracle_best_of_n"):
            (where / f"{name}.json").write_text(json.dumps([episode(f"said by {name}")]))
    rows = [row(a, search="x", budget=9, mean_tokens=1, mean_tried=1) for a in ("oracle", "oracle_best_of_n")]
    rows += [row("teacher_forced_cover", search="teacher_forced", exact_reproduction=0.5, tokens_reproduced=0.75)]
    for root in ("alone", "compared"):
        reported(tmp_path / root, {"task": "sums", "backbone": "tiny", "rows": rows})
        page = write_report(tmp_path / root).read_text()
        parts = page.split("<h3>")[1:]
        assert [part.partition(",")[0] for part in parts] == ["oracle", "oracle_best_of_n"]
        assert "said by replays<" in parts[0] and "said by replays_oracle_best_of_n<" in parts[1]
    assert "0.500 of 4 solutions said to the token, 0.7500 of their tokens" in page


def test_a_run_without_results_has_its_curve_and_its_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("agent: {_target_: agents.grpo.GRPO}\ntask: {name: sums <1>}\n")
    page = write_report(tmp_path).read_text()
    assert (
        "sums &lt;1&gt;" in page and "no results yet" in page and "data:image" not in page and "<h2>Results" not in page
    )
    lines = [{"train_episodes": 64 * i, "reward": 0.1 * i} for i in range(1, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert 'alt="learning_curve"' in write_report(tmp_path).read_text()


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run: it has no results.json, config.yaml or metrics.jsonl"):
        write_report(tmp_path)


def test_what_was_evaluated_while_it_learned_is_a_second_line(tmp_path):
    """Over the problems of all seeds, where all were evaluated."""
    rows = []
    for seed in (0, 1):
        lines = [{"train_episodes": 64 * i, "reward": 0.1} for i in (1, 2, 3)]
        lines += [
            {"train_episodes": 64 * i, "eval/accuracy": 0.25 * (1 + seed), "eval/n_problems": 20 * (1 + 2 * seed)}
            for i in range(1, 3 + seed)
        ]
        (tmp_path / f"grpo-{seed}").mkdir()
        (tmp_path / f"grpo-{seed}" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows.append(row("grpo", seed=seed, train_episodes=192))
    results = reported(tmp_path, {"task": "sums", "backbone": "tiny", "rows": rows})
    found = evaluated_shares(results.rows)
    assert {at: (share.n, share.accuracy) for at, share in found.items()} == {64: (80, 35 / 80), 128: (80, 35 / 80)}
    with_line = next(p for p in draw(results, tmp_path / "with") if p.stem == "learning_curve").read_bytes()
    for seed in (0, 1):
        path = tmp_path / f"grpo-{seed}" / "metrics.jsonl"
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if "eval" not in line))
    assert evaluated_shares(results.rows) == {}
    without = next(p for p in draw(results, tmp_path / "without") if p.stem == "learning_curve").read_bytes()
    assert with_line != without


def test_texts_are_escaped(tmp_path):
    step = {"token": "<b>", "latent": 0, "options": [[0, "<b>", 0.05], [1, "&", 0.95]]}
    episode = {"problem": "<i> & co", "gold": "1", "reward": 0.0, "answer": "<u>", "steps": [step]}
    (tmp_path / "replays.json").write_text(json.dumps([episode]))
    reported(tmp_path, {"task": "<sums>", "backbone": "tiny", "rows": [row("<agent>")]})
    page = write_report(tmp_path).read_text()
    for text in ("&lt;i&gt; &amp; co", "it answers &lt;u&gt;", "&lt;agent&gt;", "tiny on &lt;sums&gt;"):
        assert text in page
    assert (
        '<span class="t d rare" tabindex="0">&lt;b&gt;<small>0</small><span class="o"><div>1: “&amp;” 95.0%</div>'
        in page
    )


def test_several_tasks_have_one_table_and_a_page_each(tmp_path):
    parts = {task: {"task": task, "backbone": "tiny", "rows": [row("prior")]} for task in ("sums", "words")}
    for task, found in parts.items():
        reported(tmp_path / task, found)
    rows = [{"task": task, **found["rows"][0]} for task, found in parts.items()]
    reported(tmp_path, {"task": "sums, words", "backbone": "tiny", "rows": rows, "tasks": parts})
    page = write_report(tmp_path).read_text()
    assert "<td>words</td><td>prior</td>" in page and '<a href="words/report.html">' in page
    assert (tmp_path / "words" / "report.html").exists()


def test_hand_over_and_quarters_are_drawn(tmp_path, monkeypatch):
    def row(agent, accuracy, **more):
        return Row(agent=agent, n_problems=100, accuracy=accuracy, accuracy_ci95=(0, 1), **more)

    kept = {name: Share(n=100, accuracy=x, accuracy_ci95=(0.1, 0.5)) for name, x in (("4", 0.3), ("0.25", 0.35))}
    moved = [Changes(decisions=80, changed=0.1, by_quarter=[x, 0.1, 0, 0]) for x in (0.2, 0.4)]
    rows = [row("grpo", 0.6, seed=seed, hand_over=kept, changes=moved[seed]) for seed in (0, 1)]
    results = Results([row("prior", 0.2, seed=0), row("prior", 0.2, seed=1), *rows], "task", "tiny")
    summarize(results)
    shown = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: shown.setdefault(path.stem, figure) and path)
    draw(results, tmp_path)
    lines = [[list(line.get_ydata()) for line in axes.lines] for axes in shown["decides"].axes]
    assert lines == [[[0.2, 0.3, 0.6]], [[0.2, 0.35, 0.6]], [[pytest.approx(0.3), 0.1, 0, 0]]]
    assert [label.get_text() for label in shown["decides"].axes[1].get_xticklabels()] == ["0", "25%", "all"]
    del results.rows[2:]
    summarize(results)
    shown.clear()
    draw(results, tmp_path)
    assert "decides" not in shown  # nothing was handed over


def test_curves_of_pass_and_maj_at_k(tmp_path):
    results = comparison(tmp_path, {})
    one = Results(results.rows[:2], "sums", "tiny")
    assert not [p for p in draw(one, tmp_path / "plots") if p.name == "samples.png"]  # one k is no curve
    for row in one.rows:
        row.distinct_answers, row.text_distance = 2.5, 0.25
        row.sampled = {k: Sampled(0.2, 0.2 + 0.1 * k, 0.2, (0.1, 0.3), (0.1, 1.0), (0.1, 0.3)) for k in (1, 2, 4)}
    one.rows[1].sampled[4].maj = None  # a reward without answers
    assert [p for p in draw(one, tmp_path / "plots") if p.name == "samples.png"]
    [table] = [t for t in all_tables(one) if t.title == "Several texts a problem"]
    assert table.head[3:] == ["pass@1", "maj@1", "pass@2", "maj@2", "pass@4", "maj@4"]
    assert table.body[1] == ["grpo", "2.50", "0.25", "0.300", "0.200", "0.400", "0.200", "0.600", "-"]
    again = Results.from_dict(json.loads(json.dumps(one.to_dict())))
    assert [row.sampled for row in again.rows] == [row.sampled for row in one.rows]
    assert again.rows[0].distinct_answers == 2.5
    assert one.table().head[4:7] == ["avg@4", "pass@4", "maj@4"]  # the largest k only
