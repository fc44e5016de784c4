"""Frontiers: with a critic, and of the user's own."""

import pytest

from ollm_rl.errors import ConfigurationError
from ollm_rl.options.policies import Critic
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.search import Branch, Choice, Frontier, Puct


def test_the_branch_of_a_text_that_it_values_comes_first():
    frontier = Puct(exploration=0.1)
    for token in (1, 2):
        frontier.push(Branch([token], [0], [Choice(0, 0, -1.0)], -1.0))
    lines = [frontier.pop(), frontier.pop()]
    for line, value in zip(lines, (0.1, 0.9), strict=True):
        frontier.leave(line, [line.child(3, 1, Choice(1, 1, -1.0))], Choice(1, 0, -0.5), value)
        frontier.ended(line, 0.0)
    assert frontier.pop().tokens == [*lines[1].tokens, 3]


def test_every_text_is_still_judged_once(short, monkeypatch):
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(short, "judge", lambda episodes, prompter=None: seen.extend(tuple(e.tokens) for e in episodes))

    def prior(hidden, mask):
        return short.plugin.prior_logits(hidden).masked_fill(~mask, -1e9).log_softmax(-1)

    def texts(critic):
        seen.clear()
        Oracle(short, prior, "puct", budget=100_000, critic=critic).solve(short.problems("test", 1))
        assert len(seen) == len(set(seen))
        return list(seen)

    without = texts(None)
    with_one = texts(Critic.beside(short.plugin, 8))
    assert set(with_one) == set(without)
    assert with_one != without


class Raises(Frontier):
    def pop(self):
        return self._branches[0].logprob


class Keeps(Frontier):
    def pop(self):
        return self._branches[-1]


class GivesNothing(Frontier):
    def pop(self):
        self._branches.pop()


class NeverBegun(Frontier):
    def __init__(self):
        """Without the base class's."""


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (Raises, r"Raises: pop raised AttributeError: .*logprob.* \(.*test_search.py, line \d+\)"),
        (Keeps, "Keeps: pop\\(\\) gave a branch that is still there"),
        (GivesNothing, "GivesNothing: pop\\(\\) gave NoneType; expected a Branch"),
        (NeverBegun, "NeverBegun: .* raised AttributeError"),
    ],
)
def test_the_errors_of_an_own_search_name_it(tiny, search, said):
    with pytest.raises(ConfigurationError, match=said):
        Oracle(tiny, tiny.plugin.prior_log_probs, search, budget=60).solve(tiny.problems("test", 1))
