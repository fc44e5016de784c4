"""Callbacks: what is said where nothing can be learned."""

import logging

from ollm_rl.session.callbacks import EqualRewards


def said(caplog, shares):
    watch = EqualRewards()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for step, share in enumerate(shares, 1):
            watch.on_iteration_end(None, step, {"frac_reward_zero_std": share, "reward": 0.0})
    return [record.getMessage() for record in caplog.records]


def test_equal_rewards_are_said_once(caplog):
    [line] = said(caplog, [1.0] * 25)
    assert line.startswith("10 iterations in a row") and "(0.000 in the mean)" in line
    assert said(caplog, [1.0] * 9 + [0.99] + [1.0] * 9) == []


def test_agents_without_groups_are_let_be(caplog):
    watch = EqualRewards()
    for step in range(20):
        watch.on_iteration_end(None, step, {"reward": 0.0})
    assert caplog.records == []
