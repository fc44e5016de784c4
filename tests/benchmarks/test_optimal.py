"""Best-of-n within a budget of tokens: which texts fit into it, and which count."""

import json
from pathlib import Path

import pytest

from benchmarks.optimal import sampled
from ollm_rl.cli.app import main
from ollm_rl.tasks import make_task
from tests.conftest import QUICK_KEYS

GUESS = "The answer is \\boxed{{{}}}."


def drawn(task, texts_of):
    """A run whose sampled texts of 100 tokens each were put in place of the tiny model's: (text, solved) of each problem."""
    main(["evaluate", *QUICK_KEYS, f"task={task}", "agent=backbone", "evaluate.samples=6", f"name={task}"])
    file = Path("runs") / task / "rollouts" / "sampled.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    problems = {p.id: p for p in make_task(task).problems("test", 6, 0)}
    assert {line["problem_id"] for line in lines} == {*problems}
    seen: dict[str, int] = {}
    for line in lines:
        i = seen[line["problem_id"]] = seen.get(line["problem_id"], -1) + 1
        line["text"], line["solved"] = texts_of(problems[line["problem_id"]])[i]
        line["tokens"] = [0] * 100
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        kind: {p["budget"]: p["share"] for p in points}
        for kind, points in sampled(file.parents[1]).items()
        if isinstance(points, list)
    }


@pytest.mark.parametrize("task", ["chain_sum", "leg_counting"])
def test_a_guess_is_right_and_not_derived(task):
    wrong = ("no", False)
    found = drawn(task, lambda p: [wrong, (GUESS.format(p.answer), True), wrong, wrong, wrong, wrong])
    assert found["solved"] == {50: 0, 100: 0, 200: 1, 500: 1}  # six texts of 100 tokens: 1,000 do not fit
    assert found["derived"][500] < 1


def test_a_plan_is_judged_whole():
    found = drawn("shortest_path", lambda p: [("no", False)] * 4 + [("a plan", True), ("no", False)])
    assert found == {"solved": {50: 0, 100: 0, 200: 0, 500: 1}}
