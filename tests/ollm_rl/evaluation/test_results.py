"""`results.json` read and written: nothing is lost, and files of earlier releases are read."""

import json
import shutil

import pytest

from ollm_rl.errors import CheckpointError
from ollm_rl.evaluation.records import Sampled
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row

SHARE = {"n": 4, "accuracy": 0.5, "accuracy_ci95": [0.15, 0.85]}
SCORES = {
    "n_problems": 4, "accuracy": 0.5, "accuracy_ci95": [0.15, 0.85], "mean_length": 20.0, "no_answer_rate": 0.25,
    "repetition_rate": 0.0, "foreign_script_rate": 0.0, "verdicts": {"equal": 2, "different": 2},
}  # fmt: skip
LEARNER = {
    "agent": "grpo", "seed": 1, **SCORES, "avg@4": 0.4, "pass@4": 0.75, "maj@4": 0.5, "breakdown": {"difficulty": {"2": SHARE}},
    "train_episodes": 64, "train_tokens": 1280, "train_seconds": 3.5, "setup_seconds": 1.5, "kl_from_start": 0.2,
    "before": {**SCORES, "ood": {"longer": {**SHARE, "solved": [True, True, False, False]}}},
    "ood": {"longer": {**SHARE, "solved": [True, False, False, True]}}, "length_change": 0.0,
    "changes": {"decisions": 40, "changed": 0.25, "most_common": [["The", "3", 5]]},
    "area_under_curve": 0.3, "area_episodes": 64,
}  # fmt: skip
SEARCH = {
    "agent": "oracle", "seed": 1, "search": "puct", **SCORES, "avg_at_8": None, "pass_at_8": None, "budget": 500,
    "mean_tokens": 80.5, "recomputed_tokens": 1.0, "computed_over_distinct": 1.01, "mean_tried": 3.0, "verifier_timeouts": 0,
    "mean_shortest_length": None, "occupancy": 0.5, "search_seconds": 2.0, "train_episodes": 0, "train_tokens": 0,
    "train_seconds": 0.0, "breakdown": {},
    "deviations": {
        "n_texts": 2, "mean": 1.0, "none": 0.5, "ranks": [0.9, 0.1], "log_prob": -2.0, "position": [0.1, 0.2, 0.3],
    },
}  # fmt: skip
TEACHER = {
    "agent": "teacher_forced_cover", "seed": 1, "search": "teacher_forced", **SCORES, "avg_at_8": None, "pass_at_8": None,
    "exact_reproduction": 0.75, "exact_reproduction_ci95": [0.3, 0.95], "tokens_reproduced": 0.9, "tokens_covered": 0.95,
    "mean_tokens": 21.0, "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0, "breakdown": {},
}  # fmt: skip
HEADER = {"task": "sums", "backbone": "tiny"}


def stored(root, **found):
    root.mkdir(parents=True, exist_ok=True)
    (root / "results.json").write_text(json.dumps({**HEADER, **found}))
    return Results.load(root)


@pytest.mark.parametrize("row", [LEARNER, SEARCH, TEACHER], ids=lambda row: row["agent"])
def test_a_row_is_written_as_it_was_read(row):
    assert json.loads(json.dumps(Row.from_dict(row).to_dict())) == row


def test_what_is_read_has_types():
    row = Row.from_dict(LEARNER)
    assert row.sampled == {4: Sampled(0.4, 0.75, 0.5)}
    assert row.breakdown["difficulty"]["2"].accuracy_ci95 == (0.15, 0.85)
    assert row.before.ood["longer"].solved == [True, True, False, False] and row.before.verdicts["equal"] == 2
    assert row.changes.changed == 0.25 and row.search is None and row.teacher is None
    assert Row.from_dict(SEARCH).search.deviations.position == [0.1, 0.2, 0.3]
    assert Row.from_dict(TEACHER).teacher.exact_reproduction == 0.75 and Row.from_dict(TEACHER).search is None


def test_eight_samples_have_two_names_in_the_file():
    found = Row.from_dict({**LEARNER, "avg@8": 0.3, "pass@8": 0.8, "maj@8": None}).to_dict()
    assert (found["avg_at_8"], found["pass_at_8"], found["maj@8"], found["avg@4"]) == (0.3, 0.8, None, 0.4)


def test_a_comparison_is_written_as_it_was_read(tmp_path):
    test = {"agents": ["prior", "grpo"], "n": 4, "greedy": 0.25, "greedy_ci95": [0.0, 0.5], "greedy_p": 0.04}
    pooled = {k: v for k, v in LEARNER.items() if k not in ("seed", "changes", "verdicts", "ood", "before")}
    reached = {"episodes_to_threshold_reached": 1, "seconds_to_threshold_reached": 1}
    change = {"before": 0.25, "change": 0.25, "change_ci95": [-0.1, 0.6], "change_p": 0.2, "worse": "no"}
    compared = {
        "threshold": 0.4,
        "episodes_to_threshold": None,
        "seconds_to_threshold": None,
        "directory": "elsewhere/x",
    }
    found = {
        "rows": [{**LEARNER, **compared}],
        "pooled": [{**pooled, "seeds": [1], **reached, "ood": {"longer": {**SHARE, **change}}}],
        "tests": [test],
        "curves": {"puct": [{"budget": 25, "solved": 0.5, "ci95": [0.1, 0.9]}]},
        "conversion": {"coverage": {"all": 0.9, "uncertain": 0.8}},
    }
    results = stored(tmp_path, **found)
    assert results.rows[0].directory == tmp_path / "elsewhere" / "x"
    path = results.save(tmp_path)
    assert json.loads(path.read_text()) == {**HEADER, **found}


def test_what_another_release_wrote_is_kept(tmp_path):
    further = {"novelty": 3, "avg_at": "no figure"}
    row = {**LEARNER, **further, "before": {**SCORES, **further}, "changes": {**LEARNER["changes"], **further}}
    results = stored(tmp_path, rows=[row], tracker="mlflow")
    assert results.rows[0].extra == further and results.extra == {"tracker": "mlflow"}
    assert results.to_dict() == {**HEADER, "rows": [row], "tracker": "mlflow"}


def test_files_of_earlier_releases_are_read(tmp_path):
    """As release 23d70ee wrote a comparison: no `@`, other words, and directories that only names tell."""
    old = {k: v for k, v in LEARNER.items() if "@" not in k and k != "verdicts"}
    rows = [
        {**old, "agent": "full_head", "avg_at_8": 0.25, "pass_at_8": 0.5},
        {**{k: v for k, v in SEARCH.items() if k != "deviations"}, "departures": SEARCH["deviations"]},
    ]
    for name in ("full_head-1", "oracle-1"):
        (tmp_path / name).mkdir()
    test = {"agents": ["prior", "full_head"], "n": 4, "greedy": 0.25, "greedy_ci95": [0.0, 0.5], "greedy_p": 0.04}
    head, oracle = (results := stored(tmp_path, rows=rows, tests=[test])).rows
    assert head.agent == "shortlist_head" and head.sampled == {8: Sampled(0.25, 0.5)}
    assert (head.directory, oracle.directory) == (tmp_path / "full_head-1", tmp_path / "oracle-1")
    assert oracle.search.deviations.mean == 1.0 and oracle.sampled == {}
    assert results.tests[0].agents == ["prior", "shortlist_head"]
    [alone] = stored(tmp_path / "alone", rows=rows[:1]).rows
    assert alone.directory == tmp_path / "alone"


def test_a_comparison_can_be_moved(tmp_path):
    row = Row.from_dict(LEARNER)
    row.directory = tmp_path / "here" / "any-name"
    row.directory.mkdir(parents=True)
    results = Results([row], "sums", "tiny")
    results.save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert Results.load(tmp_path / "there").rows[0].directory == tmp_path / "there" / "any-name"


def test_results_of_several_tasks_have_those_of_each(tmp_path):
    part = {**HEADER, "rows": [{**LEARNER, "directory": "grpo-1"}]}
    results = stored(
        tmp_path,
        task="sums, words",
        rows=[{"task": "sums", **LEARNER, "directory": "sums/grpo-1"}],
        tasks={"sums": part},
    )
    assert results.rows[0].task == "sums"
    assert results.rows[0].directory == results.tasks["sums"].rows[0].directory == tmp_path / "sums" / "grpo-1"
    assert results.table().body[0][:2] == ["sums", "grpo"]


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '{"rows": [{"agent": "grpo"}]}', '{"rows": 3}', '{"rows": [{"agent": "a", "accuracy_ci95": 1}]}'],
)
def test_what_holds_no_results_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CheckpointError, match="results.json does not hold results .*delete it and repeat"):
        Results.load(tmp_path)


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no results.json; expected the directory of a run that is done"):
        Results.load(tmp_path)


def test_results_are_printed_computed_with_and_drawn(tmp_path):
    results = Results([Row.from_dict(LEARNER), Row.from_dict({**SEARCH, "agent": "<oracle>"})], "sums", "tiny")
    lines = str(results).splitlines()
    assert "sums with tiny" in lines[0] and "pass@4" in lines[2]
    assert [line.split()[1] for line in lines if "0.500 [0.15, 0.85]" in line] == ["grpo", "<oracle>"]
    assert "&lt;oracle&gt;" in results._repr_html_() and "<td>0.500 [0.15, 0.85]</td>" in results._repr_html_()
    table = results.to_pandas()
    assert table["accuracy"].tolist() == [0.5, 0.5] and table["accuracy_low"].tolist() == [0.15, 0.15]
    assert table["pass@4"][0] == 0.75 and table["before_accuracy"][0] == 0.5 and table["budget"][1] == 500
    assert results.plot(tmp_path / "overview.svg").read_text().count("<svg") == 1
    with pytest.raises(ValueError, match="no rows to plot"):
        Results([]).plot(tmp_path / "nothing.png")
