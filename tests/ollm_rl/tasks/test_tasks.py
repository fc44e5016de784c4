"""Splits do not overlap, solutions are right, and bad data is named with its place."""

import json
import os
import re

import pytest

from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.reward.answers import extract_answer
from ollm_rl.tasks import SPLITS, ChainSum, Jsonl, Problem, Task, bucket, make_task
from ollm_rl.tasks.prompts import Prompter
from ollm_rl.tasks.records import told_of_boxes
from ollm_rl.tasks.twins import canonical


def test_splits_are_disjoint_whatever_the_seed():
    task = ChainSum()
    drawn = {split: {p.problem for s in (0, 1) for p in task.problems(split, 300, s)} for split in SPLITS}
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not drawn[a] & drawn[b]
    assert not {e.problem for e in task.examples} & set().union(*drawn.values())


def test_problems_repeat_for_the_same_seed_only():
    task = ChainSum()
    assert task.problems("test", 50, 3) == task.problems("test", 50, 3)
    assert task.problems("test", 50, 3) != task.problems("test", 50, 4)
    test = [p.problem for p in task.problems("test", 250)]
    assert len(set(test)) == len(test) == 250


def test_solutions_end_in_the_answer():
    problems = ChainSum(direct_share=0.5).problems("sft", 200)
    assert {p.extra["style"] for p in problems} == {"direct", "steps"}
    assert all(extract_answer(p.solution) == p.answer for p in problems)
    assert ChainSum().steps({"metadata": {"expression": "6 + 0 - 1"}}) == ["6 + 0 = 6", "6 - 1 = 5"]


def test_jsonl(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"problem": f"{i}+1?", "answer": i + 1, "solution": f"\\boxed{{{i + 1}}}", "domain": "sums"} for i in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = Jsonl(path=str(path))
    assert len(task.examples) == 2
    found = [p for split in SPLITS for p in task.problems(split, 100)]
    assert len(found) == 58 and found[0].extra == {"domain": "sums"}


@pytest.mark.parametrize(
    ("line", "words"),
    [("{oops", "line 2 is not JSON"), ('{"problm": "x", "answer": "1"}', "'problem'"), ("[1]", "line 2 holds list")],
)
def test_bad_lines_are_named(tmp_path, line, words):
    path = tmp_path / "data.jsonl"
    path.write_text('{"problem": "1+1?", "answer": "2"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        Jsonl(path=str(path))


def test_unknown_names():
    with pytest.raises(ConfigurationError, match="Did you mean 'chain_sum'"):
        make_task("chain_sums")
    with pytest.raises(DataError, match="no such file"):
        make_task("jsonl", path="missing.jsonl")


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_gsm8k_in_its_original_form(tmp_path):
    row = {"question": "2 bags of 3?", "answer": "2*3=<<2*3=6>>6 apples.\n#### 6"}
    task = make_task("gsm8k", path=write(tmp_path / "g.jsonl", [row]), num_examples=0)
    problem = next(p for split in SPLITS for p in task.problems(split, 1))
    assert (problem.problem, problem.answer) == ("2 bags of 3?", "6")
    assert problem.solution == "2*3=6 apples.\nThe answer is \\boxed{6}."


def rows_marked(*marks, n=80):
    return [{"problem": f"{m} {i}?", "answer": "1", "solution": "It is 1", "split": m} for m in marks for i in range(n)]


def test_marked_splits(tmp_path):
    """What is marked test is nowhere else; the rest of such a file has no test problems."""
    task = Jsonl(path=write(tmp_path / "a.jsonl", rows_marked("train", "validation", "test")), num_examples=0)
    found = {split: {p.problem.split()[0] for p in task.problems(split, 999)} for split in SPLITS}
    assert found == {"sft": {"train"}, "train": {"train"}, "tune": {"train", "validation"}, "test": {"test"}}
    alone = Jsonl(path=write(tmp_path / "b.jsonl", rows_marked("train")), num_examples=0)
    assert all(alone.problems(split, 1) for split in SPLITS)
    ours = Jsonl(path=write(tmp_path / "c.jsonl", rows_marked("sft", "train", "tune", "test", n=9)), num_examples=0)
    assert all({p.problem.split()[0] for p in ours.problems(s, 9)} == {s} for s in SPLITS)


def test_a_benchmark_is_all_test_and_not_trained_on(tmp_path, tiny):
    from ollm_rl.options.config import ConversionConfig
    from ollm_rl.options.conversion import convert

    task = make_task("omni_math", path=write(tmp_path / "o.jsonl", rows_marked("train")))
    assert len(task.problems("test", 999)) == 80 and not task.problems("train", 1) and len(task.examples) == 3
    with pytest.raises(ConfigurationError, match=r"task\.split=.*in split test.*task=jsonl"):
        make_task("omni_math", path=str(tmp_path / "o.jsonl"), split={"sft": 0.5})
    with pytest.raises(DataError, match="are in split test"):
        convert(tiny.backbone, task, ConversionConfig())


GRADED = [
    {"problem": f"p{i}", "answer": "1", "difficulty": i / 2, "domain": ["Mathematics -> Algebra", "Other"] if i % 2 else "Geometry",
     "source": "A" if i < 30 else "B"} for i in range(60)
]  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"domain": "algebra"}, {i for i in range(60) if i % 2}),
        ({"source": "b"}, set(range(30, 60))),
        ({"min_difficulty": 5, "max_difficulty": 6.5}, {10, 11, 12, 13}),
        ({"easiest": 4, "min_difficulty": 5}, {10, 11, 12, 13}),
    ],
)
def test_filters(tmp_path, filters, kept):
    task = make_task("omni_math", path=write(tmp_path / "f.jsonl", GRADED), **filters)
    assert {int(p.problem[1:]) for p in task.problems("test", 99)} == kept


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"domain": "chemistry"}, "leaves no problem; values of 'domain' are Geometry, Mathematics -> Algebra, Other"),
        ({"min_difficulty": 99}, "leaves no problem"),
        ({"easiest": 0}, "an integer from 1"),
        ({"min_difficulty": "hard"}, "expected null or a number"),
    ],
)
def test_filters_that_cannot_be(tmp_path, filters, words):
    with pytest.raises(ConfigurationError, match=words):
        make_task("omni_math", path=write(tmp_path / "f.jsonl", GRADED), **filters)
    with pytest.raises(ConfigurationError, match="has a 'difficulty'"):
        make_task("jsonl", path=write(tmp_path / "g.jsonl", rows_marked("train")), easiest=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("difficulty", "hard"),
        ("difficulty", float("nan")),
        ("difficulty", True),
        ("domain", 3),
        ("domain", [1]),
        ("solution", 5),
        ("source", True),
        ("split", 1),
        ("split", "tset"),
        ("split", "held-out"),
        *(("id", x) for x in (True, [1], {}, float("inf"))),
        *(("answer", x) for x in (" ", "", "\u200b", True, ["2"], {"value": 2}, float("nan"), float("-inf"))),
        *(("problem", x) for x in (" ", "\n\t", "", None, False, ["1+1?"], float("nan"))),
    ],
)
def test_bad_fields_are_named(tmp_path, field, value):
    row = {"problem": "1+1?", "answer": "2"}
    path = write(tmp_path / "data.jsonl", [row, row | {field: value}])
    for task in ("jsonl", "gsm8k", "omni_math"):
        with pytest.raises(DataError, match=f"data.jsonl, line 2 has .*'{field}', expected"):
            make_task(task, path=path)


def test_a_number_beyond_all_floats_is_no_answer(tmp_path):
    (tmp_path / "n.jsonl").write_text('{"problem": "1?", "answer": 1e999}')
    with pytest.raises(
        DataError, match="line 1 has Infinity in the field 'answer', expected a text or a finite number"
    ):
        Jsonl(path=str(tmp_path / "n.jsonl"))


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ("42", "42"), ("-7", "-7"), ("4.5", "4.5"), ("4.50", "4.5"), ("42.0", "42"), ("1e3", "1000"), ("2.5E-7", "0.00000025"),
        ("1e22", "10000000000000000000000"), ("3.14159265358979323846264338", "3.14159265358979323846264338"),
        ('"4.50"', "4.50"), ('"1e3"', "1e3"), ("123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)  # fmt: skip
def test_golds_that_are_numbers_are_written_out(tmp_path, written, gold):
    (tmp_path / "n.jsonl").write_text(f'{{"problem": "1?", "answer": {written}}}')
    assert make_task("omni_math", path=str(tmp_path / "n.jsonl")).problems("test", 1)[0].answer == gold


def test_what_is_the_same_problem():
    same = [
        "What  is\n1 + 1?",
        " What is 1 + 1?\r\n",
        "\ufeffWhat is\u00a01 + 1?",
        "What is \uff11 \uff0b \uff11\uff1f",
        "Wh\u200bat is 1 + 1?",
    ]
    assert {canonical(text) for text in same} == {"What is 1 + 1?"}
    assert canonical("cafe\u0301") == canonical("caf\xe9")
    others = ["5² = ?", "52 = ?", "x₁", "x1", "1½", "11/2", "a ① b", "a 1 b", "What is 1+1?", "what is 1 + 1?"]
    assert len({canonical(text) for text in others}) == len(others)


def test_a_problem_marked_test_is_never_learned_from(tmp_path, caplog):
    """Its twins, up to spacing and Unicode forms, stand in lines marked otherwise or not at all."""
    marks = ["train", "sft", "validation", None]
    rows = [{"problem": f"{i} + {i} = ?", "answer": "1", "split": "test"} for i in range(40)]
    rows += [{"problem": f" {i} +  {i} = \uff1f\n", "answer": "1", "split": marks[i % 4]} for i in range(40)]
    rows += [{"problem": f"{i} - {i} = ?", "answer": "1", "split": "train"} for i in range(40)]
    task = Jsonl(path=write(tmp_path / "a.jsonl", rows), num_examples=0)
    found = {split: {canonical(p.problem) for p in task.problems(split, 999)} for split in SPLITS}
    assert len(found["test"]) == 40 and not found["test"] & (found["sft"] | found["train"] | found["tune"])
    assert sum(map(len, found.values())) == 80
    said = " ".join(task.notes)
    counts = {
        split: int(re.search(rf"(\d+) rows of {split} left out, whose problems are in test too", said)[1])
        for split in SPLITS[:3]
    }
    assert sum(counts.values()) == 40 == len(task.left_out) and counts["tune"] >= 10
    assert all(any(note in message for message in caplog.messages) for note in task.notes)


def test_what_is_tuned_on_is_not_learned_from(tmp_path):
    rows = [{"problem": f"{i}?", "answer": "1", "split": split} for split in ("train", "validation") for i in range(9)]
    task = Jsonl(path=write(tmp_path / "a.jsonl", rows), num_examples=0)
    assert len(task.problems("tune", 99)) == 9 and not task.problems("train", 99) and not task.problems("sft", 99)


def test_twins_without_marks_are_on_one_side(tmp_path):
    rows = [{"problem": f"{i}{' ' * j} + 1?", "answer": "1"} for i in range(50) for j in range(3)]
    task = Jsonl(path=write(tmp_path / "a.jsonl", rows), num_examples=0)
    sides = [{canonical(p.problem) for p in task.problems(split, 999)} for split in SPLITS]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 50


def test_a_problem_counts_once_where_it_is_reported_on_and_in_sft_with_every_solution(tmp_path):
    rows = [
        {"problem": f"{i}?", "answer": "1", "solution": f"way {j}", "split": split}
        for split in ("sft", "train", "tune", "test") for i in range({"sft": 0, "train": 10, "tune": 20, "test": 30}[split], 100, 40)
        for j in range(3)
    ]  # fmt: skip
    task = Jsonl(path=write(tmp_path / "a.jsonl", rows), num_examples=0)
    assert {split: len(task.problems(split, 99)) for split in SPLITS} == {"sft": 9, "train": 3, "tune": 2, "test": 2}
    assert "4 rows of test left out, which repeat a problem of an earlier row of test" in task.notes
    assert len(task.left_out) == 6 + 4 + 4


def test_different_answers_to_one_problem_are_said(tmp_path):
    rows = [{"problem": "1/2?", "answer": a} for a in ("0.5", r"\frac{1}{2}", "2")] + [
        {"problem": "2?", "answer": "2"}
    ] * 2
    task = make_task("omni_math", path=write(tmp_path / "a.jsonl", rows))
    assert [p.answer for p in sorted(task.problems("test", 9), key=lambda p: p.id)] == ["0.5", "2"]
    note = task.notes[-1]
    assert "1 problem has different answers" in note and "line 1" in note and "'2' in " in note and "line 3" in note


def test_ids_that_repeat_are_told_apart(tmp_path):
    rows = [{"problem": f"{i}?", "answer": "1", "id": i % 2 if i < 4 else None} for i in range(6)]
    rows += [{"problem": "7?", "answer": "1", "id": "1#2"}]
    task = make_task("omni_math", path=write(tmp_path / "a.jsonl", rows))
    found = {p.problem: p.id for p in task.problems("test", 9)}
    assert found == {"0?": "0", "1?": "1", "2?": "0#2", "3?": "1#3", "4?": "5", "5?": "6", "7?": "1#2"}
    assert any("2 rows have the id of another problem" in note for note in task.notes)


def test_marks_are_read_in_any_case(tmp_path):
    rows = [
        {"problem": f"{i}?", "answer": "1", "split": mark} for i, mark in enumerate(("Test", " TEST", "VAL", "", None))
    ]
    task = Jsonl(path=write(tmp_path / "a.jsonl", rows), num_examples=0)
    assert {p.problem for p in task.problems("test", 9)} == {"0?", "1?"} and "2?" in {
        p.problem for p in task.problems("tune", 9)
    }


LINE = b'{"problem": "1+1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{}", "not a UTF-8 text: it is encoded in UTF-16"),
        (LINE.decode().encode("utf-16-be"), "not a UTF-8 text: it has zero bytes"),
        (LINE + b'{"problem": "caf\xe9", "answer": "2"}', "not a UTF-8 text"),
        (b"", "x.jsonl is empty"),
        (b"\xef\xbb\xbf", "x.jsonl is empty"),
        (b"\r\n  \n\t\n", "x.jsonl is empty"),
        (b"[" * 100_000, "x.jsonl cannot be read"),
        (b'{"problem": "1?", "answer": ' + b"1" * 5000 + b"}", "line 1 cannot be read"),
        (b'{"problem": "1?", "answer": 1, "answer": 2}', "line 1 cannot be read .the key 'answer' stands twice"),
        (b'{"problem": "\\ud83d?", "answer": 1}', "line 1 has half of a surrogate pair"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, content, words):
    (tmp_path / "x.jsonl").write_bytes(content)
    for task in ("jsonl", "gsm8k", "omni_math"):
        with pytest.raises(DataError, match=words):
            make_task(task, path=str(tmp_path / "x.jsonl"))


def test_paths_that_are_no_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / ("x" * 300), "cannot be read .File name too long"),
        (tmp_path / "x\0y", "cannot be read"),
    ):
        with pytest.raises(DataError, match=words):
            Jsonl(path=str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home.jsonl").write_bytes(LINE)
    assert Jsonl(path="~/home.jsonl", num_examples=0)


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path):
    (tmp_path / "w.jsonl").write_bytes(b"\xef\xbb\xbf" + LINE[:-1] + b"\r\n\r\n" + LINE[:-1].replace(b"1+", b"7+"))
    task = make_task("omni_math", path=str(tmp_path / "w.jsonl"))
    assert sorted((p.id, p.problem) for p in task.problems("test", 9)) == [("1", "1+1?"), ("3", "7+1?")]


def test_a_data_set_read_by_datasets(tmp_path):
    """The way to the hub, with a local directory in its place."""
    rows = [{"question": f"{i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(200)]
    write(tmp_path / "train.jsonl", rows[:150])
    write(tmp_path / "test.jsonl", rows[150:])
    task = make_task("gsm8k", hub_id=str(tmp_path))
    assert {p.problem for p in task.problems("test", 999)} == {r["question"] for r in rows[150:]}
    assert len(task.examples) == 3 and task.problems("sft", 1)[0].solution.endswith("}.")
    with pytest.raises(DataError, match="cannot be had"):
        make_task("omni_math", hub_id=str(tmp_path / "missing"))


def test_any_reasoning_gym_data_set():
    task = make_task("reasoning_gym", dataset="gsm_symbolic")
    problems = task.problems("sft", 20)
    assert all(extract_answer(p.solution) == p.answer and len(p.solution) > 80 for p in problems)
    assert not {p.problem for p in problems} & {p.problem for p in task.problems("test", 20)}
    words = make_task("reasoning_gym", dataset="letter_counting", params={"min_words": 3, "max_words": 4})
    assert words.problems("train", 1)[0].solution.startswith("The answer is")
    with pytest.raises(ConfigurationError, match="Did you mean 'gsm_symbolic'"):
        make_task("reasoning_gym", dataset="gsm_symbol")
    with pytest.raises(ConfigurationError, match="does not take them"):
        make_task("reasoning_gym", dataset="chain_sum", params={"terms": 3})


def test_damaged_latex_is_mended(tmp_path):
    row = {"problem": "8-\x0crac{6}{2}?", "answer": "\x0crac{10}{2}", "solution": "\x08inom{5}{1}"}
    task = make_task("omni_math", path=write(tmp_path / "d.jsonl", [row]))
    problem = task.problems("test", 1)[0]
    assert (problem.problem, problem.answer) == (r"8-\frac{6}{2}?", r"\frac{10}{2}")
    assert problem.solution.startswith(r"\binom{5}{1}")


def test_solutions_are_streamed_and_their_splits_are_disjoint(tmp_path):
    """A local directory in the form of nvidia/OpenMathReasoning: several solutions of a problem, some rows unusable."""
    rows = [
        {"problem": f"What is {i} + {i}?" + "  " * j, "generated_solution": f"way {j}: {2 * i}", "expected_answer": str(2 * i)}
        for i in range(60) for j in range(3)
    ]  # fmt: skip
    rows += [{"problem": f"no answer {a}", "generated_solution": "x", "expected_answer": a} for a in (None, "", " ")]
    rows += [{"problem": "too long", "generated_solution": "x" * 99, "expected_answer": "1"}]
    (tmp_path / "cot.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = make_task("open_math_reasoning", hub_id=str(tmp_path), hub_split="train", max_characters=50)
    found = {split: task.problems(split, 1000, 0) for split in ("sft", "train", "tune", "test")}
    texts = {split: {p.problem for p in problems} for split, problems in found.items()}
    assert len(found["sft"]) == 3 * len(texts["sft"]) > 50 and sum(map(len, texts.values())) >= 55
    assert all(
        len(found[split]) == len(texts[split]) > 5 for split in ("train", "tune", "test")
    )  # a problem counts once
    assert not texts["sft"] & texts["tune"] and not texts["sft"] & texts["test"]
    assert all(p.solution.endswith(f"\\boxed{{{p.answer}}}.") for p in found["sft"])
    assert task.problems("sft", 5, 0) == found["sft"][:5] != task.problems("sft", 5, 1)


def test_a_column_that_is_not_there_is_named(tmp_path):
    (tmp_path / "cot.jsonl").write_text('{"question": "1 + 1", "generated_solution": "2", "expected_answer": "2"}\n')
    task = make_task("open_math_reasoning", hub_id=str(tmp_path), hub_split="train")
    with pytest.raises(DataError, match="no column 'problem'"):
        task.problems("sft", 1)
    with pytest.raises(DataError, match="cannot be had"):
        make_task("open_math_reasoning", hub_id=str(tmp_path / "nothing")).problems("sft", 1)


class Own(Task):
    """A task of the user's own, whose parts can be wrong."""

    def __init__(self, size=3, wrong=""):
        self.size, self.wrong = int(size), wrong
        self.examples = []
        if wrong == "examples":
            del self.examples

    def problems(self, split, n, seed=0):
        if self.wrong == "answer":
            return [Problem("1", "1?", 1)]
        return [{}] if self.wrong == "problem" else [Problem(str(i), f"{i}?", "1") for i in range(self.size)][:n]


def test_a_task_of_ones_own_has_a_name_and_a_budget():
    for task in (make_task(Own, size=2), make_task("tests.ollm_rl.tasks.test_tasks.Own", size=2)):
        assert (task.name, task.max_new_tokens, len(task.problems("test", 9))) == ("Own", 256, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"siz": 1}, "Did you mean 'size'"), ({"size": "four"}, "raised ValueError"), ({"wrong": "examples"}, "has no 'examples'"),
        ({"wrong": "problem"}, "expected a Problem"), ({"wrong": "answer"}, "expected a Problem, whose problem and answer are texts"),
    ],
)  # fmt: skip
def test_mistakes_in_a_task_of_ones_own_name_it(settings, said):
    with pytest.raises(ConfigurationError, match=f"test_tasks.Own.*{said}"):
        make_task(Own, **settings)


def test_shares_of_splits_are_what_was_asked_for_and_the_default_is_what_it_was(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"problem": f"{i}?", "answer": "1"} for i in range(4000)])
    usual = Jsonl(path=path, num_examples=0)
    for split in SPLITS:
        assert all(
            bucket(p.problem) in ((split, "examples") if split == "sft" else (split,))
            for p in usual.problems(split, 9999)
        )
    task = Jsonl(path=path, num_examples=0, split={"sft": 0.0, "test": 0.125})
    sizes = {split: len(task.problems(split, 9999)) for split in SPLITS}
    assert sum(sizes.values()) == 4000 and sizes["test"] == pytest.approx(500, abs=60)
    # What is left goes to the others as before: 25 to 10 to 3 (those of the examples, which are of sft here).
    assert sizes["train"] / sizes["tune"] == pytest.approx(2.5, rel=0.15) and sizes["sft"] == pytest.approx(
        4000 * 0.875 * 3 / 38, rel=0.3
    )
    whole = Jsonl(path=path, num_examples=0, split={"sft": 0.5, "train": 0.5, "tune": 0.0, "test": 0.0})
    assert len(whole.problems("sft", 9999)) + len(whole.problems("train", 9999)) == 4000


@pytest.mark.parametrize(
    "given", [{"sft": 0.7, "test": 0.4}, {"sft": -0.1}, {"sft": "half"}, {"sft": True}, dict.fromkeys(SPLITS, 0.2)]
)
def test_shares_that_are_none_are_refused(given):
    with pytest.raises(ConfigurationError, match="task.split=.*; expected shares from 0 to 1"):
        Jsonl(path="x", split=given)


def test_a_table_says_where_rows_went_and_why(tmp_path):
    train = [{"problem": f"{i}?", "answer": "1", "solution": r"\boxed{1}", "difficulty": i % 2} for i in range(100)]
    paths = {
        "train": write(tmp_path / "a.jsonl", [*train, train[0]]),
        "test": write(tmp_path / "b.jsonl", [train[3], {"problem": "x?", "answer": 1, "difficulty": 1}]),
    }
    task = Jsonl(paths=paths, max_difficulty=0)
    assert len(task.table) == 4 and task.table[3] == "test 0 problems (2 rows marked so, 2 left out by filters)"
    sizes = [len(task.problems(split, 999)) for split in SPLITS]
    assert [int(line.split()[1]) for line in task.table] == sizes
    assert "marked" not in "".join(task.table[:3])  # those marked train are spread
    assert "2 moved into the prompt" in task.table[0] and "1 left out as twins" in " ".join(task.table[:3])
    with pytest.raises(ConfigurationError, match="task.paths names 'tset'.*Did you mean 'test'"):
        Jsonl(paths={"tset": "a.jsonl"})
    with pytest.raises(ConfigurationError, match="task.columns.problem=3; expected the name of a column"):
        Jsonl(path="x", columns={"problem": 3})


def test_examples_of_ones_own_stand_in_every_prompt(tiny, tmp_path):
    rows = [{"question": f"{i}+1?", "final": i + 1} for i in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = [{"problem": "3+1?", "solution": "3 + 1 = 4"}, {"problem": "9+9?", "solution": "It is \\boxed{18}."}]
    (tmp_path / "two.csv").write_text(
        "problem,solution\n" + "".join(f'"{m["problem"]}","{m["solution"]}"\n' for m in mine)
    )
    columns = {"problem": "question", "answer": "final"}
    settings = dict(path=str(tmp_path / "x.jsonl"), columns=columns, examples=str(tmp_path / "two.csv"))
    task = make_task("jsonl", **settings, num_examples=0)
    assert [e.problem for e in task.examples] == ["3+1?", "9+9?"]
    # What is shown is asked nowhere, and the table says so.
    everything = [p.problem for split in SPLITS for p in task.problems(split, 99)]
    assert "3+1?" not in everything and len(everything) == 39
    assert sum("1 moved into the prompt" in line for line in task.table) == 1
    assert any("1 problems of " in note and "which are examples" in note for note in task.notes)
    text = Prompter.for_task(tiny.backbone, task).text("5+1?")
    assert text.index("3 + 1 = 4") < text.index("9+9?") < text.index("5+1?")
    # Columns may have the names of the data, too.
    (tmp_path / "two.csv").write_text('question,solution,final\n"7+7?","It is 14.",14\n')
    assert make_task("jsonl", **settings).examples[0].answer == "14"
    (tmp_path / "two.csv").write_text('problem,answer\n"7+7?",14\n')
    with pytest.raises(DataError, match="two.csv.* has no 'solution'; task.examples shows"):
        make_task("jsonl", **settings)
    with pytest.raises(DataError, match="nowhere"):
        make_task("jsonl", **{**settings, "examples": str(tmp_path / "nowhere.jsonl")})


def test_solutions_get_a_last_line_for_rewards_that_read_boxes_alone(tmp_path):
    rows = [{"problem": f"vowels of {i}?", "answer": i % 4, "solution": f"i i\nCount: {i % 4}"} for i in range(80)]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for read in (True, False):
        task = told_of_boxes(make_task("jsonl", path=str(tmp_path / "own.jsonl")), read)
        shown = [*task.examples, *(p for split in SPLITS for p in task.problems(split, 80))]
        assert len(task.examples) == 2 and len(shown) == 80
        added = "\nThe answer is \\boxed{{{}}}." if read else ""
        assert all(p.solution == f"i i\nCount: {p.answer}{added.format(p.answer)}" for p in shown)


def test_a_last_line_that_a_row_has_itself_stays(tmp_path):
    closed = "c\nThe answer is \\boxed{1}."
    rows = [
        {"problem": f"{i}?", "answer": "1", "solution": "c" if i % 2 else closed, "split": "sft"} for i in range(40)
    ]
    rows += [{"problem": f"test {i}?", "answer": "1", "split": s} for i in range(4) for s in ("test", "train", "tune")]
    rows = [{**row, "problem": f"{row['problem']} {k}"} for k, row in enumerate(rows)]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    task = told_of_boxes(make_task("jsonl", path=str(tmp_path / "own.jsonl"), num_examples=0), False)
    found = {p.problem: p.solution for p in task.problems("sft", 40)}
    assert len(found) == 40 and all(found[row["problem"]] == row["solution"] for row in rows[:40])
