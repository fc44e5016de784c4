"""Plans are judged by the rules of their problem: any right one counts, and nothing else does."""

import time

import pytest

from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.plans import Plan, judged

GRID = {"kind": "path", "size": [3, 3], "walls": [[1, 1]], "start": [0, 0], "goal": [2, 2]}
JUGS = {"kind": "jugs", "sizes": [3, 5, 8], "target": 4}
SHORTEST = {**GRID, "moves": 4}
NUMBERS = {"kind": "countdown", "numbers": [3, 4, 5], "target": 17}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("right 0,1\nright 0,2\ndown 1,2\ndown 2,2\ngoal", "right"),
        ("down\ndown\nright\nright", "right"),  # another way, and no states written out
        ("right 0,1\nleft 0,0\ndown 1,0\ndown 2,0\nright 2,1\nright 2,2", "right"),  # a detour
        ("right 0,1\ndown 1,1", "impossible"),  # a wall
        ("up -1,0", "impossible"),
        ("right 2,2\ngoal", "unfinished"),  # what is claimed does not count
        ("right 0,1\nright 0,2\ndown 1,2\ndown 2,2\nup 1,2", "unfinished"),
        ("goal", "no_plan"),
        ("", "no_plan"),
    ],
)
def test_ways(text, verdict):
    assert judged(text, GRID)[0] == verdict


def test_where_the_shortest_is_asked_for_others_get_half():
    texts = ["down\ndown\nright\nright", "right\nleft\ndown\ndown\nright\nright", "down"]
    assert Plan()(completions=texts, plan=[SHORTEST] * 3) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("fill B: 0 5 0\npour B->A: 3 2 0\nempty A: 0 2 0\npour B->A: 2 0 0\nfill B: 2 5 0\npour B->A: 3 4 0\ndone", "right"),
        ("fill B", "unfinished"),
        ("pour A->A", "impossible"),
        ("fill D", "impossible"),
        ("fill A->B", "impossible"),
        ("pour A", "impossible"),
        ("4", "no_plan"),
    ],
)  # fmt: skip
def test_jugs(text, verdict):
    assert judged(text, JUGS)[0] == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("3 * 4 = 12, 12 5\n12 + 5 = 17\nThe answer is \\boxed{3 * 4 + 5}.", "right"),
        (r"\boxed{5 + (4 \times 3)}", "right"),
        (r"\boxed{(4)*3+5}", "right"),
        (r"\boxed{17}", "impossible"),
        (r"\boxed{3 * 4 + 5 + 0}", "impossible"),  # a number that is not there
        (r"\boxed{3 * 5 + 4}", "unfinished"),
        (r"\boxed{3 * 4 + 5 = 17}", "impossible"),
        (r"\boxed{3 4 5}", "impossible"),
        (r"\boxed{3 ** 4 + 5}", "impossible"),
        (r"\boxed{__import__('os')}", "impossible"),
        (r"\boxed{(3 * 4 + 5}", "impossible"),
        ("3 * 4 + 5 = 17", "no_plan"),
    ],
)
def test_expressions(text, verdict):
    assert judged(text, NUMBERS)[0] == verdict


def test_hostile_texts_take_no_time():
    start = time.monotonic()
    for text in ("right\n" * 200_000, "(" * 100_000, r"\boxed{" + "(" * 190 + "}", r"\boxed{" + "9" * 190 + "}", r"\boxed{" + "99*" * 60 + "9}"):  # fmt: skip
        for rules in (GRID, JUGS, NUMBERS):
            assert judged(text, rules)[0] != "right"
    assert time.monotonic() - start < 2


def test_it_is_a_reward_of_trl_and_says_what_it_judges():
    logged = {}
    rewards = Plan()(completions=["down\ndown\nright\nright", "up"], plan=[GRID, GRID], log_extra=logged.__setitem__)
    assert rewards == [1.0, 0.0]
    assert logged == {"verdict": ["right", "impossible"], "answer": ["down down right right", "up"]}
    with pytest.raises(ConfigurationError, match="planning tasks"):
        Plan()(completions=["up"], answer=["1"])
