"""The page of many runs as files: what it says of them, what is written anew, and what is passed over."""

import json
import os
import shutil
import time

import pytest

from ollm_rl.cli.app import main
from ollm_rl.errors import ConfigurationError
from ollm_rl.view import chunks
from ollm_rl.view.chunks import unpacked
from ollm_rl.view.page import write_view
from tests.conftest import QUICK_KEYS
from tests.ollm_rl.view.conftest import HOSTILE, line, steps, write_lines, write_run


def index(view):
    return unpacked(view.page.parent / "data" / "index.js")


def table(view):
    """The rows by name."""
    return {run["name"]: run for run in index(view)["runs"]}


def details(view, run):
    return unpacked(view.page.parent / "data" / run["data"])


def episodes(view, run, name):
    """All that the page has of a set, in its order, by way of the addresses that it is given."""
    found = []
    for file, first, n in details(view, run)["sets"][name]["parts"]:
        own = [e for e in unpacked(view.page.parent / "data" / file) if e["set"] == name]
        assert [e["i"] for e in own] == list(range(first, first + n))
        found += own
    return found


def data_files(view):
    data = view.page.parent / "data"
    return {p.relative_to(data).as_posix(): p.stat().st_mtime_ns for p in data.rglob("*.js") if p.name != "index.js"}


def test_every_agent_and_seed_is_a_row(runs):
    view = write_view(runs)
    assert view.page == runs / "view" / "index.html" and view.runs == 4
    rows = table(view)
    assert set(rows) == {"both/prior-3", "both/grpo-3", "broken_off", "hostile"}
    learned = rows["both/grpo-3"]
    assert {key: learned[key] for key in ("command", "task", "backbone", "agent", "seed", "n", "accuracy", "low", "high")} == {
        "command": "compare", "task": "sums", "backbone": "tiny", "agent": "grpo", "seed": 3, "n": 4, "accuracy": 0.75, "low": 0.1, "high": 0.9,
    }  # fmt: skip
    assert (learned["k"], learned["avg"], learned["pass"]) == (8, 0.5, 0.75)
    assert (learned["episodes"], learned["seconds"], learned["state"], learned["stored"]) == (6, 2.0, "finished", 10)
    assert abs(learned["when"] - time.time()) < 600
    stopped = rows["broken_off"]
    assert (stopped["state"], stopped["command"], stopped["accuracy"]) == ("interrupted", "train", None)
    assert (stopped["episodes"], stopped["agent"]) == (36, "grpo")
    assert rows["hostile"]["task"] == HOSTILE
    assert index(view)["notes"] == view.notes == ["photos/summer: holds no run"]


def test_a_run_whose_process_lives_is_running(runs):
    owner = runs / "broken_off" / ".owner"
    owner.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
    assert table(write_view(runs))["broken_off"]["state"] == "running"
    owner.write_text(f"process {os.getpid()} on another-machine\n")
    assert table(write_view(runs))["broken_off"]["state"] == "interrupted"
    owner.write_text("\0")
    assert table(write_view(runs))["broken_off"]["state"] == "interrupted"


def test_an_inspection_is_no_training_that_was_interrupted(runs):
    (runs / "look").mkdir()
    (runs / "look" / "config.yaml").write_text((runs / "both" / "grpo-3" / "config.yaml").read_text())
    (runs / "look" / "inspect.html").write_text("<p>options")
    row = table(write_view(runs))["look"]
    assert (row["command"], row["state"], row["report"]) == ("inspect", "finished", "../look/inspect.html")


def test_runs_of_an_earlier_release(old_runs):
    view = write_view(old_runs)
    rows = table(view)
    assert not view.notes and len(rows) == 9
    commands = {name: row["command"] for name, row in rows.items()}
    assert commands == {
        "convert": "convert", "grpo": "train", "full_head": "train", "prior": "evaluate", "oracle": "oracle",
        **{f"compare/{part}": "compare" for part in ("prior-0", "grpo-0", "full_head-0", "oracle-0")},
    }  # fmt: skip
    assert rows["full_head"]["agent"] == "shortlist_head"
    for name, row in rows.items():
        folder = old_runs / name
        if (results := folder / "results.json").exists() and name != "convert":
            [stored] = json.loads(results.read_text())["rows"]
            assert row["accuracy"] == stored["accuracy"]
        for path in folder.glob("rollouts/*.jsonl"):
            lines = [json.loads(each) for each in path.read_text().splitlines()]
            assert [e["record"] for e in episodes(view, row, path.stem)] == lines
    assert rows["oracle"]["first"] == "oracle_best_first"
    assert any("steps" in e for e in episodes(view, rows["oracle"], "oracle_best_first"))
    assert details(view, rows["convert"])["conversion"]["coverage"]


def test_a_comparison_whose_parts_are_gone_still_has_its_rows(runs):
    shutil.rmtree(runs / "both" / "prior-3")
    rows = table(write_view(runs))
    assert rows["both"]["agent"] == "prior" and rows["both"]["accuracy"] == 0.5 and rows["both"]["stored"] == 0
    assert rows["both/grpo-3"]["stored"] == 10


def test_one_run_is_a_directory_of_runs_too(runs):
    rows = table(write_view(runs / "both", runs / "page"))
    assert set(rows) == {"prior-3", "grpo-3"} and rows["grpo-3"]["command"] == "compare"
    rows = table(write_view(runs / "both" / "grpo-3", runs / "page"))
    assert set(rows) == {"grpo-3"} and rows["grpo-3"]["command"] == "train"


def test_curves_are_columns(runs):
    view = write_view(runs)
    curves = details(view, table(view)["both/grpo-3"])["curves"]
    assert curves["step"] == [1.0, 2.0] and curves["reward"] == [0.2, 0.4] and curves["train_episodes"] == [3.0, 6.0]
    assert details(view, table(view)["both/prior-3"])["curves"] == {}


def test_episodes_keep_their_lines_and_get_what_the_options_would_have_said(runs):
    view = write_view(runs)
    run = table(view)["both/grpo-3"]
    greedy = episodes(view, run, "greedy")
    stored = [json.loads(each) for each in (runs / "both/grpo-3/rollouts/greedy.jsonl").read_text().splitlines()]
    assert [e["record"] for e in greedy] == stored
    assert [e["solved"] for e in greedy] == [False, True, True, True]
    assert greedy[0]["said"] == "failed (it answers 3; the answer is 2)" and greedy[1]["said"] == "solved"
    assert greedy[0]["steps"] == steps([0, HOSTILE, 0.9]) and "steps" not in greedy[1]
    sets = details(view, run)["sets"]
    assert list(sets) == ["greedy", "train_1", "train_2"]
    assert [(sets[name]["n"], sets[name]["solved"]) for name in sets] == [(4, 3), (3, 1), (3, 1)]
    assert [e["record"]["text"] for e in episodes(view, run, "train_2")] == ["step 2"] * 3


def test_tokens_have_their_texts(runs):
    view = write_view(runs)
    texts = unpacked(view.page.parent / "data" / table(view)["hostile"]["tokens"])
    assert texts[67] + texts[68] == "ab"


def test_a_backbone_that_is_not_here_is_no_obstacle(runs):
    config = runs / "broken_off" / "config.yaml"
    config.write_text(config.read_text().replace("name: tiny", "name: nobody/has-this"))
    view = write_view(runs)
    assert table(view)["broken_off"]["tokens"] is None
    assert any("nobody/has-this" in note for note in view.notes)


def test_what_has_not_changed_is_not_written_again(runs):
    first = write_view(runs)
    before = data_files(first)
    again = write_view(runs)
    assert first.written == len(before) and again.written == 0 and data_files(again) == before
    with (runs / "both/grpo-3/metrics.jsonl").open("a") as out:
        out.write(json.dumps({"step": 3, "train_episodes": 9, "reward": 0.9}) + "\n")
    curve = write_view(runs)
    new = data_files(curve).keys() - before.keys()
    assert curve.written == len(new) == 1 and details(curve, table(curve)["both/grpo-3"])["curves"]["reward"][-1] == 0.9
    shutil.rmtree(runs / "broken_off")
    gone = write_view(runs)
    assert gone.written == 0 and "broken_off" not in table(gone)
    assert {name.split("/")[0] for name in data_files(gone)} == {row["run"] for row in table(gone).values()} | {
        table(gone)["hostile"]["tokens"]
    }


def test_a_run_that_goes_on_keeps_its_earlier_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "LARGEST", 2000)
    write_run(tmp_path / "long", "grpo", {0}, iterations=12)
    view = write_view(tmp_path)
    before = data_files(view)
    assert len(before) > 6
    write_lines(tmp_path / "long" / "rollouts" / "train_13.jsonl", [line(1, True)])
    more = write_view(tmp_path)
    kept = before.keys() & data_files(more).keys()
    assert more.written <= 2 and len(kept) >= len(before) - 2
    assert [e["record"] for e in episodes(more, table(more)["long"], "train_13")] == [line(1, True)]


def test_large_files_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "LARGEST", 5000)
    write_run(tmp_path / "one", "prior", {0})
    lines = [line(i, i % 3 == 0, f"text {i}") for i in range(100)]
    write_lines(tmp_path / "one" / "rollouts" / "sampled.jsonl", lines)
    view = write_view(tmp_path)
    run = table(view)["one"]
    assert len(details(view, run)["sets"]["sampled"]["parts"]) == 5
    assert [e["record"] for e in episodes(view, run, "sampled")] == lines
    few = write_view(tmp_path, limit=7)
    assert [e["record"] for e in episodes(few, table(few)["one"], "sampled")] == lines[:7]
    assert "view.limit=7" in few.notes[-1]


def test_the_page_holds_no_text_of_a_run_and_needs_nothing_from_elsewhere(runs):
    view = write_view(runs)
    page = view.page.read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert page.count("<script") == page.count("</script") == 1 and "innerHTML" not in page
    assert "default-src 'none'" in page and "onerror=" not in page
    for path in (view.page.parent / "data").rglob("*.js"):
        text = path.read_text(encoding="ascii")
        assert text.startswith('ollm("') and text.endswith('")\n') and not set("<>'`\\") & set(text)


def test_a_name_that_is_html_is_escaped(runs):
    root = runs.rename(runs.with_name("<img src=x onerror=alert(1)>"))
    page = write_view(root).page.read_text()
    assert "<img" not in page and "&lt;img src=x" in page


def damage(runs):
    write_run(runs / "good", "prior", {0})
    (runs / "both/prior-3/results.json").write_text('{"rows": [{"agent"')
    (runs / "hostile/results.json").write_text(
        json.dumps({"rows": [{"agent": "x", "n_problems": 1, "accuracy": "high", "accuracy_ci95": [0, 1]}]})
    )
    (runs / "broken_off/config.yaml").write_bytes(b"\xff\xfe: [")
    (runs / "both/grpo-3/replays.json").write_text("[3]")
    (runs / "both/grpo-3/conversion.json").write_text("{")
    (runs / "both/grpo-3/metrics.jsonl").write_text(
        '{"step": 1, "reward": NaN, "train_episodes": 3}\nbroken\n[1]\n{"step": 2, "rew'
    )
    with (runs / "both/grpo-3/rollouts/train_1.jsonl").open("a") as out:
        odd = line(9, True, verdict=None, gold=None, answer=["x"], reward=1, latents=["?"], tokens=[{}], seed="\ud800")
        out.write("\0\n" + '{"problem": 1}\n' + json.dumps(odd) + '\n{"problem": "cut off')
    (runs / "lists").mkdir()
    (runs / "lists/results.json").write_text("[1, 2]")
    (runs / "loop").mkdir()
    (runs / "loop/loop").symlink_to(runs)
    (runs / "empty").mkdir()
    (runs / "a_file").write_text("")
    (runs / "tuned").mkdir()
    (runs / "tuned/tune.json").write_text('{"rows": [3]}')


def test_what_is_damaged_or_foreign_is_passed_over_with_a_note(runs):
    damage(runs)
    view = write_view(runs)
    rows = table(view)
    assert rows["good"]["accuracy"] == 0.25
    assert rows["both/prior-3"]["accuracy"] == 0.5  # of the comparison's file
    assert rows["hostile"]["state"] == "interrupted" and rows["hostile"]["stored"] == 4
    assert rows["broken_off"]["stored"] == 40 and rows["broken_off"]["task"] is None
    run = rows["both/grpo-3"]
    assert [e["record"]["problem"] for e in episodes(view, run, "train_1")][-1] == "problem 9"
    assert details(view, run)["curves"]["reward"] == [None]
    for said in (
        "both/prior-3: results.json is passed over", "hostile: results.json is passed over", "broken_off: config.yaml is damaged",
        "both/grpo-3: replays.json is passed over", "both/grpo-3: conversion.json is damaged", "both/grpo-3: metrics.jsonl: 2 damaged lines",
        "both/grpo-3: rollouts/train_1.jsonl: 2 damaged lines", "lists: results.json is passed over", "empty: holds no run",
        "tuned: tune.json is passed over", "loop: holds no run",
    ):  # fmt: skip
        assert any(said in note for note in view.notes), said
    again = write_view(runs)
    assert again.written == 0 and again.notes == view.notes


def test_a_damaged_page_is_mended(runs):
    view = write_view(runs)
    run = table(view)["hostile"]
    home = view.page.parent / "data" / run["run"]
    (home / "manifest.json").write_text("{")
    for path in home.glob("*.js"):
        path.unlink()
    again = write_view(runs)
    assert len(episodes(again, table(again)["hostile"], "greedy")) == 4


@pytest.mark.parametrize("where", ["nowhere", "a_file", "empty", "photos"])
def test_a_directory_without_runs_is_a_user_error(runs, where, capsys):
    (runs / "a_file").write_text("")
    (runs / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["view", str(runs / where)])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "view.directory=" in said and "expected" in said
    assert not (runs / where / "view").exists()


def test_only_a_new_directory_or_an_earlier_page_is_written_to(runs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("all of it")
    with pytest.raises(ConfigurationError, match="view.out=.*something else"):
        write_view(runs, other)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigurationError, match="view.out="):
        write_view(runs, other / "thesis.tex" / "page")
    view = write_view(runs, tmp_path / "new" / "page")
    assert write_view(runs, tmp_path / "new" / "page").written == 0 and view.page.exists()


def test_the_command_looks_at_what_a_run_has_left(tmp_path, own_cache, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(tmp_path)
    keys = [
        "agent.num_generations=4",
        "agent.problems_per_iteration=4",
        "agent.total_episodes=32",
        "agent.num_problems=40",
    ]
    main(["train", *QUICK_KEYS, *keys, "name=first", "evaluate.every=1", "evaluate.every_problems=4"])
    capsys.readouterr()
    main(["view", "runs/", "open=true"])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "page: runs/view/index.html" and said[-2].startswith("runs: 1, episodes: ")
    assert not opened  # there is no terminal here
    main(["view", "limit=3", f"out={tmp_path / 'page'}"])
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {tmp_path / 'page' / 'index.html'}"
    view = write_view("runs")
    run = table(view)["first"]
    assert (run["state"], run["command"], run["episodes"], run["report"]) == (
        "finished",
        "train",
        32,
        "../first/report.html",
    )
    assert {"reward", "eval/accuracy", "kl_from_prior"} <= details(view, run)["curves"].keys()
    greedy = episodes(view, run, "greedy")
    with_steps = [e for e in greedy if "steps" in e]
    texts = unpacked(view.page.parent / "data" / run["tokens"])
    assert with_steps and all(
        [texts[t] for t in e["record"]["tokens"]] == [s["token"] for s in e["steps"]] for e in with_steps
    )
    assert episodes(view, run, "train_2")


def test_a_page_opens_where_there_is_a_screen(runs, monkeypatch):
    from ollm_rl.view import opening

    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(opening, "_has_screen", lambda: True)
    main(["view", str(runs), "view.open=true"])
    main(["view", f"directory={runs}", "open=false"])
    assert opened == [(runs / "view" / "index.html").resolve().as_uri()]
