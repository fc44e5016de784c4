"""What counts as derived: the tasks' careful solutions do, right answers from nowhere do not."""

import pytest

from benchmarks.derived import derived
from ollm_rl.tasks import make_task

SUM = {"expression": "6 + 0 - 1"}


@pytest.mark.parametrize("task", ["chain_sum", "leg_counting"])
def test_careful_solutions_are_derived_and_hasty_ones_are_not(task):
    problems = [p for p in make_task(task).problems("sft", 200, 0) if p.answer in (p.solution or "")]
    rewards = derived(
        completions=[p.solution for p in problems],
        answer=[p.answer for p in problems],
        metadata=[p.extra["metadata"] for p in problems],
    )
    careful = [p.extra["style"] == "steps" for p in problems]
    assert 20 < sum(careful) < 180 and [r == 1.0 for r in rewards] == careful


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("6 + 0 = 6\n6 - 1 = 5\nThe answer is \\boxed{5}.", 1.0),
        ("The answer is \\boxed{5}.", 0.0),
        ("6 - 1 = 5\nThe answer is \\boxed{5}.", 0.0),  # a line too few
        ("6 + 0 = 7\n6 - 1 = 5\nThe answer is \\boxed{5}.", 0.0),  # a line that does not hold
        ("6 + 0 = 6\n6 - 1 = 5\n5 + 1 = 6\nThe answer is \\boxed{5}.", 0.0),  # which leads elsewhere
        ("2 + 2 = 4\n4 + 1 = 5\nThe answer is \\boxed{5}.", 0.0),  # of another problem
        ("6 + 0 = 6\n6 - 1 = 5\nThe answer is \\boxed{4}.", 0.0),
    ],
)
def test_what_is_derived(text, reward):
    assert derived(completions=[text], answer=["5"], metadata=[SUM]) == [reward]
