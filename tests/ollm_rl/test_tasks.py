"""Splits do not overlap, solutions are right, and bad data is named with its place."""

import json

import pytest

from ollm_rl.answers import extract_answer
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.tasks import SPLITS, ChainSum, Jsonl, make_task, solve_chain_sum


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
    assert solve_chain_sum("6 + 0 - 1", steps=True) == "6 + 0 = 6\n6 - 1 = 5\nThe answer is \\boxed{5}."


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
