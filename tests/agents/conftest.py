"""What tests of learners share."""

import pytest

from ollm_rl.rollout.judge import Judge


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache directory of the test's own."""
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def easy(tiny, monkeypatch):
    """A reward that a random model earns now and then: the share of tokens with an odd number."""

    class Odd(Judge):
        def __call__(self, episodes, prompter=None):
            for e in episodes:
                e.reward = sum(t % 2 for t in e.tokens) / len(e.tokens)

    monkeypatch.setattr(tiny, "judge", Odd(len))
