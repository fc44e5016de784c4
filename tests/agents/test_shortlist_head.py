"""The control without options: its start is the backbone's head, its log-probabilities agree, and it learns."""

import pytest
import torch

from agents.shortlist_head import ShortlistHead, ShortlistPolicy
from ollm_rl.common.run_dir import NoRun, Run
from ollm_rl.errors import CheckpointError
from ollm_rl.rollout.sampler import Request

QUICK = dict(
    total_episodes=64, num_generations=4, problems_per_iteration=4, num_problems=20, learning_rate=1e-2,
    num_solutions=40, sft_epochs=1,
)  # fmt: skip


def test_an_untrained_head_is_the_backbones(tiny):
    backbone = tiny.backbone
    hidden = torch.randn(7, tiny.plugin.state_size)
    logits = backbone.logits(hidden)
    top, ids = logits.topk(5, -1)
    head = ShortlistPolicy(backbone, torch.tensor([3, 9]), tiny.plugin.state_size)
    assert torch.allclose(head(hidden, ids), top.log_softmax(-1), atol=1e-5)
    with torch.no_grad():
        head.net.weight[head.rows_of[9]] = 1.0
    changed = head(hidden, torch.tensor([[9, 3, 4]]).expand(7, 3)) - backbone.logits(hidden)[:, [9, 3, 4]]
    moved = changed - changed[:, 2:]
    assert moved[:, 1].abs().max() < 1e-5  # of token 3, whose row is zero
    assert torch.allclose(moved[:, 0], head.standardize(hidden).sum(-1), atol=1e-4)


def test_sampled_and_learned_log_probabilities_agree(tiny, cache):
    agent = ShortlistHead(tiny, **QUICK)
    agent.prepare(NoRun())
    episodes = agent.rollout([Request(p, i) for i, p in enumerate(tiny.problems("train", 6))])
    assert all(e.z.tolist() == e.tokens for e in episodes)
    data = agent.decisions(episodes)
    assert data.mask.gather(1, data.z[:, None])[:, 0].tolist() == [t for e in episodes for t in e.tokens]
    again = agent.policy(data.hidden, data.mask).gather(1, data.z[:, None])[:, 0]
    assert torch.allclose(again, data.log_probs, atol=1e-4)
    assert agent.divergence(episodes) == pytest.approx([0.0] * 6, abs=1e-6)


def test_it_learns_an_easy_reward(tiny, cache, easy, tmp_path):
    agent = ShortlistHead(tiny, **{**QUICK, "total_episodes": 480, "learning_rate": 3e-2, "beta": 0.0}, target_kl=0.0)
    run = Run(tmp_path, "easy", "")
    agent.learn(run)
    rewards = [m["reward"] for m in run.metrics()]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


def test_saved_and_loaded(tiny, cache, easy, tmp_path):
    agent = ShortlistHead(tiny, **QUICK)
    agent.learn(Run(tmp_path, "run", ""))
    agent.save(tmp_path / "head")
    other = ShortlistHead(tiny, **QUICK)
    other.prepare(NoRun())
    assert not torch.equal(other.policy.net.weight, agent.policy.net.weight)
    other.load(tmp_path / "head")
    assert torch.equal(other.policy.net.weight, agent.policy.net.weight)
    assert torch.equal(other.policy.tokens, agent.policy.tokens)
    with pytest.raises(CheckpointError, match="no head in"):
        other.load(tmp_path)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tiny, cache, easy, tmp_path):
    whole = ShortlistHead(tiny, **QUICK)
    whole.prepare(NoRun())
    begun_with = whole.policy.net.weight.clone()
    whole.learn(Run(tmp_path, "whole", ""))
    ShortlistHead(tiny, **{**QUICK, "total_episodes": 32}).learn(Run(tmp_path, "parts", ""))
    rest = ShortlistHead(tiny, **QUICK)
    rest.learn(Run(tmp_path, "parts", ""))
    assert torch.equal(whole.policy.net.weight, rest.policy.net.weight)
    assert not torch.equal(whole.policy.net.weight, begun_with)
