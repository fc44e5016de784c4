"""GRPO: its formulas against hand computations, learning, and resuming."""

import json
import math
import shutil
from itertools import combinations

import pytest
import torch

from agents.grpo import GRPO
from agents.objective import decision_weights, group_advantages, grpo_loss, pass_at_k_rewards
from agents.prior import Prior
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.options.policies import Sampling
from ollm_rl.rollout.episode import pack, unpack
from ollm_rl.rollout.judge import Judge
from ollm_rl.rollout.sampler import Request, _Row, rollout

QUICK = dict(total_episodes=64, num_generations=4, problems_per_iteration=4, num_problems=20, learning_rate=1e-3)


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    group = group_advantages(rewards, "group")
    assert group[0].tolist() == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=1e-3)
    assert group[1].tolist() == [0, 0, 0, 0]
    assert group_advantages(rewards, "none")[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages(rewards, "batch")[0, 0] == pytest.approx(0.5 / (float(rewards.std()) + 1e-4))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_rewards_are_means_over_all_sets_of_k(k):
    rewards = torch.rand(3, 6, generator=torch.Generator().manual_seed(k)).round(decimals=1)  # with ties
    found = pass_at_k_rewards(rewards, k)
    for row, credit in zip(rewards.tolist(), found.tolist(), strict=True):
        for i in range(6):
            best = [max(row[j] for j in chosen) for chosen in combinations(range(6), k) if i in chosen]
            assert credit[i] == pytest.approx(sum(best) / len(best), abs=1e-6)


def test_pass_at_k_must_be_less_than_the_group(tiny):
    with pytest.raises(ConfigurationError, match="pass_at_k=4; expected 1 to 3"):
        GRPO(tiny, **QUICK, pass_at_k=4)


def test_loss_is_clipped_on_the_right_side():
    old = torch.zeros(4)
    new = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5]))
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert grpo_loss(new, old, advantage, 0.2, 0.28).tolist() == pytest.approx([-1.28, 1.5, -0.5, 0.8])
    kl = grpo_loss(new, new, torch.zeros(4), 0.2, 0.28, old, beta=2.0)
    assert float(kl[0]) == pytest.approx(2 * (1 / 1.5 + math.log(1.5) - 1), abs=1e-6)


def test_weights_of_decisions():
    owner, counts = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 1.0, 0.0, 1.0])

    def weights(loss_type, per_minibatch=3.0):
        return decision_weights(owner, counts, loss_type, 8, 2, per_minibatch).tolist()

    assert weights("grpo") == pytest.approx([0.25, 0.25, 0, 0.5])
    assert weights("dr_grpo") == pytest.approx([1 / 16, 1 / 16, 0, 1 / 16])
    assert weights("dapo") == weights("bnpo") == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert weights("dapo", 6.0) == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6])  # of a minibatch with few decisions
    assert weights("bnpo", 6.0) == weights("bnpo")


@pytest.mark.parametrize("kept", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_it_learns_an_easy_reward(tiny, tmp_path, monkeypatch, kept):
    """The reward is the share of decisions with a high latent: a bandit that any policy gradient must solve, also from some of them."""

    class Latents(Judge):
        def __call__(self, episodes, prompter=None):
            for e in episodes:
                chosen = [z for z in e.latents if z >= 0]
                e.reward = sum(z > 4 for z in chosen) / max(len(chosen), 1)

    monkeypatch.setattr(tiny, "judge", Latents(len))
    monkeypatch.setattr(tiny.engine, "kept_decisions", kept)
    settings = {**QUICK, "total_episodes": 960, "num_generations": 8, "learning_rate": 3e-3, "beta": 0.0}
    agent, run = GRPO(tiny, **settings, target_kl=0.0), Run(tmp_path, "easy", "")
    agent.learn(run)
    rewards = [m["reward"] for m in run.metrics()]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.2


@pytest.mark.slow
def test_the_forward_kl_holds_the_policy_where_the_prior_is_sure(tiny, tmp_path, monkeypatch):
    """No reward is credited there, so nothing else would."""

    class Latents(Judge):
        def __call__(self, episodes, prompter=None):
            for e in episodes:
                e.reward = sum(z > 4 for z in e.latents) / max(len(e.latents), 1)

    monkeypatch.setattr(tiny, "judge", Latents(len))
    agent = GRPO(tiny, **QUICK)
    data = agent.decisions(agent._sample(tiny.problems("train", 20), 1))
    with torch.no_grad():
        prior = agent.prior(data.hidden, data.mask)
        entropies = -(prior.exp() * prior).sum(-1)
    median = float(entropies.median())
    moved, agrees = {}, {}
    for weight in (0.0, 1.0):
        settings = {**QUICK, "total_episodes": 480, "learning_rate": 3e-3, "beta": 0.0, "target_kl": 0.0}
        agent, run = GRPO(tiny, **settings, min_entropy=median, forward_kl=weight), Run(tmp_path, f"run-{weight}", "")
        agent.learn(run)
        with torch.no_grad():
            away = (prior.exp() * (prior - agent.policy(data.hidden, data.mask))).sum(-1)
        moved[weight] = [float(away[where].mean()) for where in (entropies <= median, entropies > median)]
        agrees[weight] = run.metrics()[-1]["agrees_where_prior_is_sure"]
    assert moved[1.0][0] < 0.3 * moved[0.0][0], moved  # held where the prior is sure
    assert moved[1.0][1] > 3 * moved[1.0][0], moved  # and free where it is not
    assert agrees[0.0] < agrees[1.0], agrees


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tiny, tmp_path):
    whole, run = GRPO(tiny, **QUICK), Run(tmp_path, "whole", "")
    counts = whole.learn(run)
    assert counts["train_episodes"] == 64
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = Run(tmp_path, "cut", "")
    (cut.path / "checkpoints" / "latest").write_text("step_3\n")  # as a kill during the last iteration leaves it
    again = GRPO(tiny, **QUICK)
    again.learn(cut)
    assert [m["step"] for m in cut.metrics()] == [m["step"] for m in run.metrics()] == [1, 2, 3, 4]
    for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_save_and_load_give_the_same_choices(tiny, tmp_path):
    agent = GRPO(tiny, **QUICK)
    torch.nn.init.normal_(agent.policy.net[0].weight)
    agent.save(tmp_path)
    other = Prior(tiny)
    other.load(tmp_path)
    hidden = torch.randn(20, tiny.plugin.state_size)
    assert torch.equal(agent.predict(hidden), other.predict(hidden))
    facts = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**facts, "fingerprint": "another"}))
    with pytest.raises(CheckpointError, match="was trained on backbone 'tiny'"):
        other.load(tmp_path)


def test_settings_are_checked(tiny):
    with pytest.raises(ConfigurationError, match="an integer from 2"):
        GRPO(tiny, num_generations=1)
    with pytest.raises(ConfigurationError, match="expected one of grpo"):
        GRPO(tiny, loss_type="ppo")


def test_a_loaded_policy_goes_on_learning(tiny, tmp_path, monkeypatch):
    class Latents(Judge):
        def __call__(self, episodes, prompter=None):
            for e in episodes:
                e.reward = float(sum(z for z in e.latents if z >= 0) % 2)

    monkeypatch.setattr(tiny, "judge", Latents(len))
    agent = GRPO(tiny, **QUICK)
    agent.save(tmp_path / "policy")
    agent.load(tmp_path / "policy")
    before = [p.clone() for p in agent.policy.net.parameters()]
    agent.learn(Run(tmp_path, "run", ""))
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.net.parameters(), strict=True))


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_gradient_from_some_decisions_is_on_average_that_from_all(tiny, loss_type):
    """Two of an episode's decisions are kept: the mean gradient over many such samples, and over how they are drawn, is the whole one."""
    agent = GRPO(tiny, loss_type=loss_type, **QUICK)
    requests = [Request(p, i) for i, p in enumerate(tiny.problems("train", 6))]
    act = Sampling(agent.policy)

    def thinned(episode, kept, seed):
        row = _Row(0, Request(episode.problem, seed), 99, kept)
        for values in zip(episode.hidden, episode.mask, episode.z, episode.log_probs, strict=True):
            row.decide(*values)
        return row.finish(tiny.prompter)

    def gradient(some):
        data = agent.decisions(some)
        advantage = torch.tensor([1.0, -0.5, 0.3, 0.8, -1.0, 0.2])[data.owner]
        total = sum(e.num_decisions for e in some)
        weights = decision_weights(data.owner, data.weight, loss_type, 20, len(some), total)
        new = agent.policy(data.hidden, data.mask).gather(1, data.z[:, None])[:, 0]
        loss = (grpo_loss(new, data.log_probs, advantage, 0.2, 0.28) * weights).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.net.parameters()))])

    whole = [e for _, e in sorted(rollout(tiny.new_engine(), requests, act), key=lambda found: found[0])]
    assert min(e.num_decisions for e in whole) > 4
    full = gradient(whole)
    samples = []
    for seed in range(400):
        some = [thinned(e, 2, 1000 * (seed + 1) + i) for i, e in enumerate(whole)]
        assert all(e.num_kept == 2 and e.num_decisions == w.num_decisions for e, w in zip(some, whole, strict=True))
        samples.append(gradient(some))
    found = torch.stack(samples)
    off, chance = float((found.mean(0) - full).norm()), float(found.var(0).sum().sqrt()) / 400**0.5
    assert off < 1.5 * chance, "more than chance explains"
    assert chance < 0.5 * full.norm()


def test_kept_decisions_are_some_of_all_and_the_texts_stay_the_same(tiny):
    requests = [Request(p, i) for i, p in enumerate(tiny.problems("train", 6))]
    agent = GRPO(tiny, **QUICK)
    found = []
    for kept in (None, 3):
        engine = tiny.new_engine(kept_decisions=kept)
        found.append([e for _, e in sorted(rollout(engine, requests, Sampling(agent.policy)), key=lambda f: f[0])])
    for whole, some in zip(*found, strict=True):
        assert some.tokens == whole.tokens and some.num_kept == min(3, whole.num_kept)
        assert some.num_decisions == whole.num_decisions
        at = [int((whole.hidden == h).all(-1).nonzero()[0]) for h in some.hidden]
        assert (
            at == sorted(at) and torch.equal(some.z, whole.z[at]) and torch.equal(some.log_probs, whole.log_probs[at])
        )
    [again] = unpack(pack(found[1][:1]), [requests[0].problem])
    assert again.num_decisions == found[1][0].num_decisions and torch.equal(again.z, found[1][0].z)


def test_nothing_is_learned_from_episodes_that_were_not_judged(tiny, easy):
    """They are as good as the mean of their group: the others' advantages are those of a group without them, on the same scale."""
    agent = GRPO(tiny, **QUICK, beta=0.0, pass_at_k=1)
    episodes = agent._sample(tiny.problems("train", 20, 0), 1)
    before = [p.clone() for p in agent.policy.learned()]
    for e in episodes:
        e.judged, e.reward = False, 0.0
    agent._update(episodes, 1)
    assert all(torch.equal(now, was) for now, was in zip(agent.policy.learned(), before, strict=True))
    for i, e in enumerate(episodes):  # two of four in a group, equally good: nothing to learn either
        e.judged, e.reward = i % 2 == 0, float(i % 2 == 0)
    agent._update(episodes, 1)
    assert all(torch.equal(now, was) for now, was in zip(agent.policy.learned(), before, strict=True))
    for i, e in enumerate(episodes):
        e.judged, e.reward = True, float(i % 2 == 0)
    agent._update(episodes, 1)
    assert any(not torch.equal(now, was) for now, was in zip(agent.policy.learned(), before, strict=True))


def test_a_reward_of_none_leaves_an_episode_unjudged(tiny):
    judge = Judge(lambda completions, log_extra: [None, 1.0])
    requests = [Request(p, i) for i, p in enumerate(tiny.problems("train", 2, 0))]
    episodes = [e for _, e in sorted(rollout(tiny.engine, requests, Sampling(GRPO(tiny).policy)), key=lambda x: x[0])]
    judge(episodes)
    assert [(e.reward, e.judged) for e in episodes] == [(0.0, False), (1.0, True)]
    again = unpack(pack(episodes), [e.problem for e in episodes])
    assert [e.judged for e in again] == [False, True]
