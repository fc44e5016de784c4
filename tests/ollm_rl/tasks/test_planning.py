"""Planning tasks: every solution is a right plan, careless steps are as many as wanted, splits are disjoint."""

import pytest

import ollm_rl as ol
from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.plans import DIRECTIONS, judged, moved
from ollm_rl.tasks.base import SPLITS
from ollm_rl.tasks.planning import distances

TASKS = ("shortest_path", "countdown", "jugs")


@pytest.mark.parametrize("name", TASKS)
def test_solutions_are_right_and_splits_disjoint(name):
    task = ol.make_task(name)
    found = {split: task.problems(split, 100, 3) for split in SPLITS}
    for problems in found.values():
        assert len(problems) == 100
        assert all(judged(p.solution, p.extra["plan"])[0] in ("right", "detour") for p in problems)
    texts = [{p.problem for p in problems} for problems in found.values()]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert len(texts[SPLITS.index("test")]) == 100 and len(texts[SPLITS.index("tune")]) == 100  # no problem twice
    assert [p.solution for p in task.problems("test", 100, 3)] == [p.solution for p in found["test"]]
    assert task.examples and all(p.extra["style"] == "steps" for p in task.examples)


@pytest.mark.parametrize("name", TASKS)
def test_careful_solutions_are_the_shortest_and_careless_ones_are_not(name):
    careful = ol.make_task(name, careless_share=0).problems("sft", 100)
    assert all(judged(p.solution, p.extra["plan"])[0] == "right" for p in careful)
    assert all(p.extra["moves"] == p.extra["difficulty"] for p in careful)
    careless = ol.make_task(name).problems("sft", 100)
    assert sum(p.extra["moves"] for p in careless) > 1.2 * sum(p.extra["difficulty"] for p in careless)


def test_ways_are_careless_to_the_sides_more_often_than_up_and_down():
    made = {
        True: 0,
        False: 0,
    }  # steps that lead nearer by no shortest way, after a step to a side or at first, and after others
    for p in ol.make_task("shortest_path", careless_share=1, careless_share_vertical=0, max_detour=30).problems(
        "sft", 200
    ):
        rules, steps = p.extra["plan"], [line.split()[0] for line in p.solution.splitlines()[:-1]]
        place, goal = tuple(rules["start"]), tuple(rules["goal"])
        left = distances([goal], lambda at, r=rules: (to for x in DIRECTIONS if (to := moved(r, at, x)) is not None))
        for before, step in zip(["", *steps], steps, strict=False):
            after = moved(rules, place, step)
            made[before not in ("up", "down")] += left[after] >= left[place]
            place = after
    assert made[True] > 50 and made[False] == 0


@pytest.mark.parametrize("name", TASKS)
def test_problems_out_of_distribution_can_be_solved_too(name):
    for changed in ol.make_task(name).ood_variants.values():
        found = ol.make_task(name, **changed).problems("test", 20)
        assert found and all(judged(p.solution, p.extra["plan"])[0] in ("right", "detour") for p in found)


@pytest.mark.parametrize(
    ("name", "settings"), [("shortest_path", {"min_moves": 40}), ("jugs", {"min_moves": 30, "max_moves": 31})]
)
def test_settings_that_leave_no_problem_are_refused(name, settings):
    with pytest.raises(ConfigurationError, match="none of 2000 problems"):
        ol.make_task(name, **settings)


def test_wrong_settings_are_named():
    with pytest.raises(ConfigurationError, match="min_size"):
        ol.make_task("shortest_path", min_size=7)
    with pytest.raises(ConfigurationError, match="wording"):
        ol.make_task("countdown", wording="no place for it")


def test_a_session_judges_by_the_task_s_own_reward(tiny):
    task = ol.make_task("shortest_path")
    session = ol.Session(tiny.backbone, tiny.plugin, task)
    [problem] = task.problems("sft", 1)
    episode = ol.Episode(problem, text=problem.solution)
    session.judge([episode])
    assert episode.reward >= 0.5 and episode.verdict in ("right", "detour")
    assert isinstance(ol.Session(tiny.backbone, tiny.plugin, task, reward=ol.MathVerify()).judge.reward, ol.MathVerify)
