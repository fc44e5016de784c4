"""Splits do not overlap, solutions are right, and bad data is named with its place."""

import json

import pytest

from ollm_rl.answers import extract_answer
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.tasks import SPLITS, ChainSum, Jsonl, make_task


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
    from ollm_rl.conversion import plugin_for
    from ollm_rl.plugin_training import ConversionConfig

    task = make_task("omni_math", path=write(tmp_path / "o.jsonl", rows_marked("train")))
    assert len(task.problems("test", 999)) == 80 and not task.problems("train", 1) and len(task.examples) == 3
    with pytest.raises(DataError, match="marked as test"):
        plugin_for(tiny.backbone, tiny.prompter, task, ConversionConfig())


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
        ({"easiest": 0}, "positive integer"),
        ({"min_difficulty": "hard"}, "expected a number"),
    ],
)
def test_filters_that_cannot_be(tmp_path, filters, words):
    with pytest.raises(ConfigurationError, match=words):
        make_task("omni_math", path=write(tmp_path / "f.jsonl", GRADED), **filters)
    with pytest.raises(ConfigurationError, match="has a 'difficulty'"):
        make_task("jsonl", path=write(tmp_path / "g.jsonl", rows_marked("train")), easiest=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("difficulty", "hard"), ("domain", 3), ("domain", [1]), ("solution", 5), ("answer", " "), ("source", True)],
)
def test_bad_fields_are_named(tmp_path, field, value):
    row = {"problem": "1+1?", "answer": "2"}
    path = write(tmp_path / "data.jsonl", [row, row | {field: value}])
    with pytest.raises(DataError, match=f"data.jsonl, line 2 has .*'{field}'"):
        Jsonl(path=path)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="not a UTF-8 text"):
        Jsonl(path=str(tmp_path / "x.jsonl"))


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
        {"problem": f"What is {i} + {i}?", "generated_solution": f"way {j}: {2 * i}", "expected_answer": str(2 * i)}
        for i in range(60) for j in range(3)
    ]  # fmt: skip
    rows += [{"problem": "no answer", "generated_solution": "x", "expected_answer": None}]
    rows += [{"problem": "too long", "generated_solution": "x" * 99, "expected_answer": "1"}]
    (tmp_path / "cot.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = make_task("open_math_reasoning", hub_id=str(tmp_path), hub_split="train", max_characters=50)
    found = {split: task.problems(split, 1000, 0) for split in ("sft", "train", "tune", "test")}
    texts = {split: {p.problem for p in problems} for split, problems in found.items()}
    assert sum(len(p) for p in found.values()) >= 150 and len(found["sft"]) == 3 * len(texts["sft"])
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
