"""Searches that begin in the middle of a text."""

import pytest

from ollm_rl.errors import ConfigurationError
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.local import Session

LENGTH = 6


@pytest.fixture
def session(tiny):
    """Short texts, none of them right; `tried` has those that were judged."""
    own = Session(tiny.backbone, tiny.plugin, tiny.task, engine={"num_slots": 16, "max_new_tokens": LENGTH})
    own.tried = []

    def judge(episodes, prompter=None):
        for episode in episodes:
            own.tried.append(tuple(episode.tokens))
            episode.reward, episode.judged = 0.0, True

    own.judge = judge
    return own


def opening(session, problem):
    """The first tokens of a sampled text, with their latents."""
    [episode] = session.rollout([Request(problem, 3)], lambda h, mask, u: (mask.float().cumsum(-1).argmax(-1), u))
    return episode.tokens[: LENGTH - 2], episode.latents[: LENGTH - 2]


@pytest.mark.parametrize("search", ["best_first", "beam", "puct", "exhaustive"])
def test_all_texts_that_begin_so_are_tried_and_no_others(session, search):
    [problem] = session.problems("test", 1)
    tokens, latents = opening(session, problem)
    session.tried.clear()
    oracle = Oracle(session, LatentPolicy.from_prior(session.plugin), search=search, budget=10_000)
    found = oracle.solve_from(problem, tokens, latents)
    engine, expected = session.new_engine(num_slots=1), set()
    prompt = session.prompter.encode(problem)

    def offered(text):
        engine.clear()
        engine.admit([[*prompt, *text]], room=0)
        return [
            t
            for t, allowed in zip(engine.options.tokens[0].tolist(), engine.options.mask[0].tolist(), strict=True)
            if allowed
        ]

    for first in offered(tokens):
        if first in engine.eos_ids:
            expected.add((*tokens, first))
        else:
            expected |= {(*tokens, first, second) for second in offered([*tokens, first])}
    assert sorted(session.tried) == sorted(expected) and found.tried == len(expected) > 10
    edges = {text[:end] for text in expected for end in range(len(tokens) + 1, LENGTH + 1) if len(text) >= end}
    assert found.spent == len(edges)  # the beginning costs nothing, and what texts share counts once


@pytest.mark.parametrize("search", ["best_first", "best_of_n"])
def test_budgets_hold(session, search):
    [problem] = session.problems("test", 1)
    tokens, latents = opening(session, problem)
    session.tried.clear()
    found = Oracle(session, LatentPolicy.from_prior(session.plugin), search=search, budget=11).solve_from(
        problem, tokens, latents
    )
    assert found.spent == 11 and found.solution is None
    assert all(text[: len(tokens)] == tuple(tokens) for text in session.tried)
    assert session.tried


def test_without_verdicts_it_is_refused(session):
    oracle = Oracle(session, LatentPolicy.from_prior(session.plugin), judge="vote")
    with pytest.raises(ConfigurationError, match="oracle.judge=vote; expected verdict"):
        oracle.solve_from(session.problems("test", 1)[0], [], [])


def test_time_is_bounded(session):
    oracle = Oracle(session, LatentPolicy.from_prior(session.plugin), budget=10_000, max_seconds=1e-9)
    assert oracle.solve_from(session.problems("test", 1)[0], [], []).tried == 0
