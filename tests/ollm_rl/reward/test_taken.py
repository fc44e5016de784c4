"""A setting of a reward that it does not name is refused, whatever takes the rest of its arguments."""

import functools

import pytest

from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.functions import MathVerify
from ollm_rl.reward.per_completion import PerCompletion
from ollm_rl.reward.taken import check_settings
from ollm_rl.rollout.judge import Weighted


def count_vowels(prompts, completions, answer, off_by_one=0.2, **columns):
    return [off_by_one for _ in completions]


def required(completions, weight, domain=None, **kwargs):
    return [weight for _ in completions]


def plain(completions, *args):
    return [0.0 for _ in completions]


def factory(bonus=1.0, **kwargs):
    return lambda completions, **columns: [bonus for _ in completions]


@functools.wraps(count_vowels)
def wrapped(*args, **kwargs):
    return count_vowels(*args, **kwargs)


class Base:
    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, completions, **columns):
        return [self.weight for _ in completions]


class Shaped(Base):
    def __init__(self, slope=0.5, **kwargs):
        super().__init__(**kwargs)


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        (count_vowels, {"off_by": 0.3}, r"count_vowels has no setting 'off_by'; it takes off_by_one, and .*Did you mean 'off_by_one'\?"),
        (count_vowels, {"off_by_one": 0.3, "zzz": 1}, "no setting 'zzz'; it takes off_by_one, and every reward has conversational, solved_at, limit_s"),
        (count_vowels, {"columns": {}}, "no setting 'columns'"),
        (count_vowels, {"answer": "5"}, "'answer', which it is handed with each call"),
        (count_vowels, {"limit": 5}, "Did you mean 'limit_s'"),
        (wrapped, {"off_by": 0.3}, "Did you mean 'off_by_one'"),
        (functools.partial(count_vowels, off_by_one=1), {"off_by": 0.3}, "Did you mean 'off_by_one'"),
        (required, {"wight": 1}, r"it takes domain, weight \(which has no default\).*Did you mean 'weight'"),
        (plain, {"args": 1}, "it takes no settings of its own"),
        (factory, {"bonis": 1}, "Did you mean 'bonus'"),
        (Shaped, {"weigth": 1}, "takes slope, weight,.*Did you mean 'weight'"),
        (Base(), {"weight": 1}, "it takes no settings of its own"),
        (MathVerify, {"timout_s": 1}, "it takes timeout_s, column,.*Did you mean 'timeout_s'"),
        (PerCompletion, {"function": "x", "concurency": 1}, "Did you mean 'concurrency'"),
        (Weighted, {"functions": [], "weigths": []}, "Did you mean 'weights'"),
        (dict, {}, "Expected a function or a class in Python"),
    ],
)  # fmt: skip
def test_settings_without_a_name_are_refused(target, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        check_settings(target, settings)


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        (count_vowels, {"off_by_one": 0.3}), (wrapped, {"off_by_one": 0.3}), (required, {"weight": 1, "domain": "x"}), (factory, {"bonus": 2}),
        (Shaped, {"slope": 1, "weight": 2}), (MathVerify, {"timeout_s": 1, "column": "gold"}), (PerCompletion, {"function": "x", "timeout_s": 2}),
        (count_vowels, {"conversational": True, "solved_at": 0.5, "limit_s": 3}), (Weighted, {"functions": [], "weights": [1]}),
    ],
)  # fmt: skip
def test_settings_with_a_name_are_taken(target, settings):
    check_settings(target, settings)
