"""Slow rewards: many at once, each with a limit and retries; what fails is left out, and seen."""

import asyncio
import threading
import time

import pytest

import ollm_rl as ol
from ollm_rl.errors import ConfigurationError, RewardError


def episodes(*texts, **extra):
    return [ol.Episode(ol.Problem(str(i), f"{i}?", "2", None, extra), text=text) for i, text in enumerate(texts)]


def judged(reward, *texts, **extra):
    played = episodes(*texts, **extra)
    ol.Judge(reward)(played)
    return played


def test_completions_are_judged_at_the_same_time_and_no_more_than_allowed():
    running, most = 0, 0

    async def slow(completion, answer):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return float(completion == answer)

    start = time.monotonic()
    played = judged(ol.PerCompletion(slow, concurrency=8), *["2", "3"] * 16)
    assert time.monotonic() - start < 1.0 and most == 8
    assert [e.reward for e in played] == [1.0, 0.0] * 16


def test_functions_that_are_not_asynchronous_run_in_threads():
    names = set()

    def slow(prompt, completion, **columns):
        names.add(threading.current_thread().name)
        time.sleep(0.05)
        assert columns["domain"] == "sums" and prompt == "0?"
        return 0.5

    [episode] = judged(ol.PerCompletion(slow), "x", domain="sums")
    assert episode.reward == 0.5 and threading.current_thread().name not in names


def test_a_try_that_fails_is_repeated_and_what_never_works_is_left_out():
    tries = {}

    def moody(completion):
        tries[completion] = tries.get(completion, 0) + 1
        if completion == "never" or (completion == "later" and tries[completion] < 3):
            raise ConnectionError("busy")
        if completion == "hangs":
            time.sleep(30)
        return 1.0

    start = time.monotonic()
    played = judged(ol.PerCompletion(moody, retries=2, wait_s=0.01, timeout_s=0.2), "now", "later", "never", "hangs")
    assert time.monotonic() - start < 5  # nobody waits for the thread that hangs
    assert [e.judged for e in played] == [True, True, False, False] and [e.verdict for e in played] == [
        "",
        "",
        "failed",
        "failed",
    ]
    assert tries == {"now": 1, "later": 3, "never": 3, "hangs": 3}


def test_where_all_fail_the_last_error_is_raised():
    def down(completion):
        raise ConnectionError("the judge is down")

    with pytest.raises(RewardError, match="raised ConnectionError: the judge is down"):
        judged(ol.PerCompletion(down, retries=0), "a", "b")


@pytest.mark.parametrize(
    "settings", [{"concurrency": 0}, {"timeout_s": 0}, {"retries": -1}, {"wait_s": "x"}, {"function": 3}]
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ConfigurationError, match=f"reward.{next(iter(settings))}="):
        ol.PerCompletion(**{"function": len, **settings})
