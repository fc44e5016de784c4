"""Code tasks: solutions pass their tests, lines that follow the habit are taken back, tests tell wrong functions from right ones."""

import itertools
from collections import Counter

import pytest

import ollm_rl as ol
from ollm_rl.errors import ConfigurationError
from ollm_rl.tasks.base import SPLITS


@pytest.fixture(scope="module")
def reward():
    return ol.PythonTests()


def verdicts(reward, texts, problems):
    return Counter(reward.check_many([(text, p.extra["tests"]) for text, p in zip(texts, problems, strict=True)]))


def test_solutions_pass_and_splits_are_disjoint(reward):
    task = ol.make_task("python_functions")
    found = {split: task.problems(split, 200, 3) for split in SPLITS}
    for problems in found.values():
        assert verdicts(reward, [p.solution for p in problems], problems) == {"passed": 200}
        assert verdicts(reward, [p.answer for p in problems], problems) == {"passed": 200}
    texts = [{p.problem for p in problems} for problems in found.values()]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert len(texts[SPLITS.index("test")]) == 200 and len(texts[SPLITS.index("tune")]) == 200  # no problem twice
    assert [p.solution for p in task.problems("test", 200, 3)] == [p.solution for p in found["test"]]
    assert task.examples and all(p.solution == p.answer for p in task.examples)


def test_careless_lines_are_taken_back_at_once():
    careful = ol.make_task("python_functions", careless_share=0, careless_share_after_map=0)
    assert all(p.solution == p.answer for p in careful.problems("sft", 100))
    problems = ol.make_task("python_functions").problems("sft", 300)
    taken_back = [p for p in problems if p.extra["style"] == "taken back"]
    assert 200 < len(taken_back) < 290
    for p in taken_back:
        lines = p.solution.splitlines()
        names = [line.split(" = ")[0] for line in lines]
        # What is left where the last line of every name is kept is the careful solution.
        kept = [line for line, name, after in zip(lines, names, [*names[1:], ""], strict=True) if name != after]
        assert "\n".join(kept) == p.answer
        assert len(set(lines)) == len(lines)  # the habit does not try the same again


def kinds(lines):
    """Whether each line after the first filters; the last returns."""
    return [" if " in line for line in lines[1:-1]]


def test_careless_lines_stay_with_the_kind_of_the_line_before_most_often_after_a_filter():
    careless, after = Counter(), Counter()
    for p in ol.make_task("python_functions").problems("sft", 400):
        steps, names = kinds(p.answer.splitlines()), "abcde"
        assert sum(a != b for a, b in itertools.pairwise(steps)) >= 3
        tried = Counter(line.strip()[0] for line in p.solution.splitlines()[1:-1])
        for i, (step, name) in enumerate(zip(steps, names, strict=True)):
            kind = i == 0 or steps[i - 1]
            if step == kind or kind not in steps[i + 1 :]:
                assert tried[name] == 1
            else:
                after[kind] += 1
                careless[kind] += tried[name] > 1
    assert 0.6 < careless[True] / after[True] < 0.7 and 0.3 < careless[False] / after[False] < 0.4


def test_a_line_left_out_or_in_another_order_fails(reward):
    problems = ol.make_task("python_functions").problems("test", 200)
    without = [
        p.answer.replace(f"    b = {p.answer.split('    b = ')[1].splitlines()[0]}", "    b = a") for p in problems
    ]
    assert (
        verdicts(reward, without, problems)["failed"] > 160
    )  # not all: "keep over 3" says nothing after "keep over 5"
    careless = ol.make_task("python_functions", careless_share=1, careless_share_after_map=1).problems("test", 200)
    first = []
    for p in careless:  # a habit's line, and the rest as if it were right
        lines = p.solution.splitlines()
        names = [line.split(" = ")[0] for line in lines]
        first.append("\n".join(line for i, line in enumerate(lines) if i == 0 or names[i] != names[i - 1]))
    assert verdicts(reward, first, careless)["failed"] > 80


def test_wrong_settings_are_named():
    with pytest.raises(ConfigurationError, match=r"task.min_steps=6; expected at most task.max_steps=5"):
        ol.make_task("python_functions", min_steps=6)
    with pytest.raises(ConfigurationError, match=r"task.min_changes=3; expected less than task.min_steps=2"):
        ol.make_task("python_functions", min_steps=2)
    found = ol.make_task("python_functions", min_steps=1, max_steps=1, min_changes=0).problems("test", 500)
    assert 0 < len({p.problem for p in found}) == len(found) < 500  # a small space runs out instead of repeating
