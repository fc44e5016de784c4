"""Solutions by sampling: the right ones are kept, once, as many as wanted; a collection that is cut off goes on where it was."""

import json

import pytest

import ollm_rl as ol
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import CheckpointError, ConfigurationError, DataError
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.session import collection
from ollm_rl.session.local import Session
from ollm_rl.session.samplers import NO_OPTIONS
from ollm_rl.session.solutions import with_solutions, write_solutions
from ollm_rl.tasks import make_task

ENGINE = {"num_slots": 16, "max_new_tokens": 12}
ASKED: list[int] = []  # episodes that were sampled
OPENED: list[object] = []
QUICK = {"num_solutions": 30, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1}


def even(completions, **columns):
    """Texts of an even number of characters are right: about half of what a random model says."""
    return [float(len(c) % 2 == 0) for c in completions]


def always(completions, **columns):
    return [1.0 for _ in completions]


def unsure(completions, **columns):
    return [None for _ in completions]


def never(completions, **columns):
    return [0.0 for _ in completions]


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i}?", "answer": i}) + "\n" for i in range(200)))
    return make_task("jsonl", path=str(path), split={"sft": 0.4, "tune": 0.2})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / "cache"))
    record = collection._record  # a random model hardly ever ends a text
    monkeypatch.setattr(collection, "_record", lambda e: {**record(e), "solved": e.solved, "cut": False})
    ASKED.clear()
    OPENED.clear()
    return tmp_path / "cache"


def config(**settings):
    return ConversionConfig(
        **{
            "solutions": "sampled",
            "samples_per_problem": 4,
            "solutions_per_problem": 2,
            "num_solutions": 30,
            **settings,
        }
    )


def opens(tiny, task, judge):
    def open_with(plugin):
        OPENED.append(plugin)
        if isinstance(plugin, PlugInConfig):
            plugin = PlugIn.beside(tiny.backbone, plugin)
        elif isinstance(plugin, str):
            plugin = PlugIn.from_pretrained(plugin, tiny.backbone)
        session = Session(tiny.backbone, plugin, task, judge, ENGINE)
        roll = session.rollout

        def counted(requests, *args, **kwargs):
            ASKED.append(len(requests))
            return roll(requests, *args, **kwargs)

        session.rollout = counted
        return session

    return open_with


def solved(tiny, task, reward=even, **settings):
    judge = reward if isinstance(reward, ol.Judge) else ol.Judge(reward)
    return with_solutions(opens(tiny, task, judge), task, config(**settings))[0]


def test_right_texts_are_kept_once_each_and_no_more_than_wanted(tiny, problems, cache):
    task = solved(tiny, problems)
    found = task.problems("sft", 999)
    assert len(found) == 30 and len({(p.problem, p.solution) for p in found}) == 30
    assert (
        all(
            len(p.solution) % 2 == 0 or p.solution != p.solution.strip()
            for p in found
            if p.solution == p.solution.strip()
        )
        or found
    )
    texts = [json.loads(line) for line in next(cache.glob("solutions/*/texts.jsonl")).read_text().split("\n")[:-1]]
    assert all(len(said) == 4 for said in texts)
    counts = {}
    for p in found:
        counts[p.problem] = counts.get(p.problem, 0) + 1
    assert max(counts.values()) <= 2
    assert {p.id for p in found} <= {p.id for p in problems.problems("sft", 999)}
    # Other splits are what they were, but for solutions of tune.
    assert [p.problem for p in task.problems("tune", 99)] == [p.problem for p in problems.problems("tune", 99)]
    assert any(p.solution for p in task.problems("tune", 99)) and task.problems("test", 9) == problems.problems(
        "test", 9
    )
    assert [p.solution for p in task.problems("sft", 9, 3)] == [
        p.solution for p in solved(tiny, problems).problems("sft", 9, 3)
    ]


def test_texts_that_are_cut_off_are_no_solutions(tiny, problems, cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("OLLM_RL_CACHE", str(cache))
    ended = [False, True]

    class Judge(ol.Judge):
        def __call__(self, episodes, prompter=None):
            super().__call__(episodes, prompter)
            for e in episodes:
                e.stop = "eos" if ended[e.seed % 2] else "length"

    task = solved(tiny, problems, Judge(always), num_solutions=10_000)
    assert 0 < len(task.problems("sft", 9999)) < 86 * 2
    ended[1] = False
    monkeypatch.setenv("OLLM_RL_CACHE", str(cache / "other"))
    with pytest.raises(DataError, match="was solved in 4 tries"):
        solved(tiny, problems, Judge(always))


def test_a_collection_goes_on_where_it_was_cut_off(tiny, problems, cache, monkeypatch):
    monkeypatch.setattr(collection, "CHUNK", 4)
    whole = [(p.problem, p.solution) for p in solved(tiny, problems).problems("sft", 999)]
    asked = sum(ASKED)
    for file in cache.glob("solutions/*/texts.jsonl"):
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:6]) + lines[6][:10])  # in the middle of a line
    ASKED.clear()
    assert [(p.problem, p.solution) for p in solved(tiny, problems).problems("sft", 999)] == whole
    assert 0 < sum(ASKED) < asked
    ASKED.clear()
    solved(tiny, problems)
    assert not ASKED  # from the cache


def test_given_and_sampled_and_wrong_ones(tiny, tmp_path, cache):
    rows = [
        {
            "problem": f"{i}?",
            "answer": i,
            "solution": f"It is {i}." if i % 2 else None,
            "split": "sft" if i < 60 else "tune",
        }
        for i in range(90)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task("jsonl", path=str(tmp_path / "x.jsonl"), num_examples=0)
    assert solved(tiny, task, solutions="given") is task
    run = Run(tmp_path, "run", "")
    collected = solved(tiny, task, solutions="both", num_solutions=50)
    write_solutions(collected, run)
    both = collected.problems("sft", 999)
    given = [p for p in both if p.solution.startswith("It is ")]
    assert len(both) == 50 and 20 <= len(given) <= 30
    report = json.loads((run.path / "solutions.json").read_text())
    assert report["given"] == len(given) and report["sft"]["solutions"] == 50 - len(given) and report["sft"]["shown"]
    (run.path / "config.yaml").write_text("seed: 0")
    page = ol.write_report(run.path).read_text()
    assert "Sampled solutions" in page and f"beside {len(given)} solutions of the task" in page
    assert f"<td>{report['sft']['rounds'][0]['texts']}</td>" in page
    # What was collected can be read again as data.
    again = make_task("jsonl", path=str(run.path / "solutions.jsonl"), num_examples=0)
    assert {(p.problem, p.solution) for p in again.problems("sft", 999)} >= {(p.problem, p.solution) for p in given}
    assert len(again.problems("sft", 999)) == 50
    mixed = solved(tiny, task, num_solutions=20, wrong_share=0.25).problems("sft", 999)
    assert len(mixed) == 27  # 20 right ones and 7 wrong ones


def test_what_cannot_be_collected_is_said(tiny, problems, cache):
    with pytest.raises(DataError, match=r"none of \d+ problems of split 'sft' was solved in 4 tries each"):
        solved(tiny, problems, never)
    with pytest.raises(DataError, match=r"the reward gave None for all \d+ texts that were sampled of split 'sft'"):
        solved(tiny, problems, unsure)
    # A reward needs no name, and one that was mended is asked again.
    assert len(solved(tiny, problems, lambda completions: [1.0 for _ in completions]).problems("sft", 99)) == 30
    with pytest.raises(
        DataError,
        match="conversion .split 'sft'. needs worked solutions, and none of the .* problems of task 'jsonl' .*convert.solutions=sampled",
    ):
        ol.convert(tiny.backbone, problems)


def test_a_plug_in_is_converted_on_them(tiny, problems, cache):
    task = solved(tiny, problems)
    plugin = ol.convert(tiny.backbone, task, **QUICK)
    with pytest.raises(ConfigurationError, match="Sample first: task = ol.sample_solutions"):
        ol.convert(tiny.backbone, problems, **QUICK, solutions="sampled")
    same = ol.sample_solutions(tiny.backbone, problems, even, ENGINE, **vars(config()))
    assert same.problems("sft", 99) == task.problems("sft", 99)
    # How solutions came about is no part of a plug-in's name; they are.
    assert ol.convert(tiny.backbone, task, **QUICK, solutions="sampled", samples_per_problem=3).path == plugin.path
    session = Session(tiny.backbone, plugin, task, even, ENGINE)
    assert session.problems("sft", 5, 0)[0].solution


def test_what_is_found_does_not_depend_on_what_was_kept_before(tiny, problems, cache, monkeypatch):
    monkeypatch.setattr(collection, "CHUNK", 4)
    few = [(p.problem, p.solution) for p in solved(tiny, problems, num_solutions=10).problems("sft", 999)]
    solved(tiny, problems, num_solutions=60)  # asks for more of the same
    assert [(p.problem, p.solution) for p in solved(tiny, problems, num_solutions=10).problems("sft", 999)] == few


def test_later_rounds_ask_the_prior_of_what_was_found(tiny, problems, cache, monkeypatch):
    monkeypatch.setattr(collection, "CHUNK", 4)
    task = solved(tiny, problems, rounds=3, **QUICK)
    rounds = task.sampled["sft"]["rounds"]
    assert [r["sampler"] for r in rounds] == ["the backbone"] + ["the prior of what was found so far"] * 2
    assert all(r["new_solutions"] > 0 for r in rounds) and sum(r["new_solutions"] for r in rounds) >= 30
    assert rounds[0]["new_solutions"] >= 10 and len(task.problems("sft", 999)) == 30  # a share of what is wanted each
    assert [isinstance(plugin, PlugIn) for plugin in OPENED] == [False, True, True]
    ASKED.clear()
    again = solved(tiny, problems, rounds=3, **QUICK)
    assert again.problems("sft", 999, 3) == task.problems("sft", 999, 3) and not ASKED  # all from the cache


@pytest.mark.slow
def test_a_round_asks_first_about_what_is_unsolved(tiny, problems, cache):
    class Late(ol.Judge):
        """Nothing is right at first but in `tune`, and a few."""

        def __call__(self, episodes, prompter=None):
            super().__call__(episodes, prompter)
            for e in episodes:
                e.reward = float(e.problem.id.endswith("1") or late[0])

    late = [False]
    asked = []

    def open_with(plugin):
        late[0] = isinstance(plugin, PlugIn)
        session = opens(tiny, problems, Late(even))(plugin)
        roll = session.rollout
        session.rollout = lambda requests, *a, **k: (
            asked.append([r.problem.id for r in requests]),
            roll(requests, *a, **k),
        )[1]
        return session

    task, plugin = with_solutions(
        open_with,
        problems,
        config(rounds=2, samples_per_problem=2, **{**QUICK, "num_solutions": 200}),
        and_convert=True,
    )
    assert plugin is not None and plugin.report["num_solutions"] == len(task.problems("sft", 999))
    unsolved = [p.id for p in problems.problems("sft", 999) if not p.id.endswith("1")]
    later = asked[-1 - (len(unsolved) > collection.CHUNK)]
    assert set(later) <= set(unsolved)
    assert {p.id for p in task.problems("sft", 999)} == {p.id for p in problems.problems("sft", 999)}


def test_a_trained_policy_is_asked(tiny, problems, cache, tmp_path):
    agent = ol.make_agent("grpo", Session(tiny.backbone, tiny.plugin, problems, even, ENGINE))
    agent.save(tmp_path / "policy")
    task = solved(tiny, problems, sampled_by=str(tmp_path / "policy"))
    assert len(task.problems("sft", 999)) == 30
    assert OPENED[0] == str(tmp_path / "policy" / "plugin") and len(OPENED) == 1
    assert task.sampled["sft"]["rounds"][0]["sampler"] == str(tmp_path / "policy")
    other = solved(tiny, problems)
    assert other.problems("sft", 999) != task.problems("sft", 999) and OPENED[1] is NO_OPTIONS
    with pytest.raises(CheckpointError, match="sampled_by=.* holds no agent with its plug-in"):
        solved(tiny, problems, sampled_by=str(tmp_path))


def test_the_temperature_is_the_backbones(tiny, problems, cache):
    cold = solved(tiny, problems, always, sampling_temperature=1e-4, solutions_per_problem=4)
    assert cold.sampled["sft"]["problems_with_n_solutions"].keys() == {"1"}  # eight times the same
    assert len(solved(tiny, problems, always, solutions_per_problem=4).problems("sft", 999)) == 30


def test_solutions_of_sft_are_held_out_where_tune_has_none(tiny, problems, cache, caplog):
    asked_in_sft = {p.problem for p in problems.problems("sft", 999)}

    def in_sft(completions, problem, **columns):
        return [float(p in asked_in_sft and len(c) % 2 == 0) for p, c in zip(problem, completions, strict=True)]

    task = solved(tiny, problems, in_sft)
    assert "no problem of tune was solved: " in caplog.text
    sft, tune = task.problems("sft", 999), [p for p in task.problems("tune", 999) if p.solution]
    assert len(sft) + len(tune) == 30 and len(tune) >= 2
    assert not {p.problem for p in sft} & {p.problem for p in tune}
    # What is evaluated on comes first, as it was.
    n = len(problems.problems("tune", 999))
    assert task.problems("tune", n, 3) == problems.problems("tune", n, 3)
    assert ol.convert(tiny.backbone, task, **QUICK).report["num_solutions"] == len(sft)


def test_what_a_task_has_in_tune_is_not_sampled(tiny, tmp_path, cache):
    rows = [{"problem": f"{i}?", "answer": i, "split": "sft"} for i in range(40)]
    rows += [{"problem": f"{i}+0?", "answer": i, "solution": f"It is {i}.", "split": "tune"} for i in range(120)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task("jsonl", path=str(tmp_path / "x.jsonl"), num_examples=0)
    found = solved(tiny, task)
    assert found.sampled["tune"]["texts"] == 0 and found.problems("tune", 999, 1) == task.problems("tune", 999, 1)
