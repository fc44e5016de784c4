"""Policies that a driver sends are moved to the worker's device, wherever in what is sent they are."""

import copy

import pytest
import torch

from agents.grpo import GRPO
from ollm_rl.cluster.session import settle
from ollm_rl.options.policies import Sampling
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.rollout.acting import PolicyAdapter

THERE = torch.device("meta")  # a device that every machine has


@pytest.mark.parametrize(
    "wrap",
    [
        lambda agent: agent.policy,
        lambda agent: Sampling(agent.policy),
        lambda agent: Sampling(agent.policy).__call__,
        lambda agent: agent,
        lambda agent: PolicyAdapter(agent, True),
        lambda agent: Oracle(agent.session, agent.policy),
    ],
)
def test_weights_follow_the_model(tiny, wrap):
    agent, device = copy.copy(GRPO(tiny)), tiny.backbone.device
    settle([wrap(agent), 3, "text", None, [agent.session]], THERE)
    assert {p.device for p in agent.policy.parameters()} == {THERE}
    assert tiny.plugin.standardize.mean.device == tiny.backbone.model.device == device  # the session's own stay
    with pytest.raises(RuntimeError):
        agent.policy(torch.zeros(1, tiny.plugin.state_size))
