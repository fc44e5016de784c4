"""The LoRA baselines on TRL's trainers: sizes, what is trained, resuming, and that they learn."""

import json

import pytest
import torch

from agents.lora import LoRAGRPO, LoRASFT, matched_rank
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.evaluation import evaluate
from ollm_rl.judges import Judge
from ollm_rl.rollout import Request
from ollm_rl.runs import Run
from ollm_rl.workspace import Acting

SFT = dict(rank=2, num_solutions=40, sft_epochs=1, sft_batch_size=8)
QUICK = dict(
    **SFT, total_episodes=64, num_generations=4, problems_per_iteration=4, minibatches=2, micro_batch_size=4, num_problems=20,
    learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def easy(tiny, monkeypatch):
    """The share of tokens with an odd number."""

    class Odd(Judge):
        def __call__(self, episodes):
            for e in episodes:
                e.reward = sum(t % 2 for t in e.tokens) / len(e.tokens)

    monkeypatch.setattr(tiny, "judge", Odd(len))


def test_the_rank_is_matched_to_the_plugin(tiny):
    agent = LoRASFT(tiny)
    one = LoRASFT(tiny, rank=1).num_parameters
    assert abs(agent.num_parameters - tiny.plugin.num_parameters) <= one / 2
    assert agent.rank == matched_rank(tiny.backbone, tiny.plugin.num_parameters)


def test_a_new_adapter_changes_nothing_and_leaves_the_shared_backbone_alone(tiny):
    agent = LoRASFT(tiny, rank=2, num_examples=3)
    hidden = torch.randn(4, tiny.backbone.hidden_size)
    assert agent.backbone.model is not tiny.backbone.model
    assert torch.equal(agent.backbone.logits(hidden), tiny.backbone.logits(hidden))
    assert agent.prompt(tiny.problems("test", 1)[0])[: len(tiny.prompter.prefix)] == tiny.prompter.prefix
    assert not any("lora" in name for name, _ in tiny.backbone.model.named_parameters())


def test_sft_lowers_the_loss_and_is_cached(tiny, cache, tmp_path):
    run = Run(tmp_path, "sft", "")
    agent = LoRASFT(tiny, **{**SFT, "sft_epochs": 6, "sft_learning_rate": 1e-2})
    counts = agent.learn(run)
    losses = [m["loss"] for m in run.metrics() if "loss" in m]
    assert losses[-1] < 0.8 * losses[0]
    assert counts["setup_seconds"] > 0 and counts["trainable_parameters"] == agent.num_parameters
    again = LoRASFT(tiny, **{**SFT, "sft_epochs": 6, "sft_learning_rate": 1e-2})
    again.fit_solutions()
    assert all(torch.equal(a, b) for a, b in zip(again.weights().values(), agent.weights().values(), strict=True))


def test_grpo_learns_an_easy_reward(tiny, cache, easy, tmp_path):
    run = Run(tmp_path, "easy", "")
    agent = LoRAGRPO(tiny, **{**QUICK, "total_episodes": 320, "learning_rate": 3e-2})
    agent.prepare()
    begun_with = agent.weights()
    counts = agent.learn(run)
    metrics = run.metrics()
    assert [m["train_episodes"] for m in metrics] == list(range(16, 336, 16))
    assert counts["train_episodes"] == 320 and counts["train_tokens"] > 320
    rewards = [m["reward"] for m in metrics]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert any(not torch.equal(a, b) for a, b in zip(begun_with.values(), agent.weights().values(), strict=True))
    problems = tiny.problems("test", 3)
    episodes = agent.acting_workspace.rollout([Request(p) for p in problems], Acting(agent, False), from_logits=True)
    assert min(agent.divergence(episodes)) > 0
    lines = [json.loads(x) for x in (run.path / "rollouts" / "train_1.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and len({x["problem_id"] for x in lines}) == 4


def test_it_acts_with_its_own_model(tiny, cache, easy, tmp_path):
    agent = LoRAGRPO(tiny, **QUICK)
    before = evaluate(tiny, agent, "lora_grpo", tiny.problems("test", 4), 0)
    with torch.no_grad():
        for name, weight in agent.model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.5)
    agent.changed()
    after = evaluate(tiny, agent, "lora_grpo", tiny.problems("test", 4), 0)
    assert [e.tokens for e in before.greedy] != [e.tokens for e in after.greedy]


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tiny, cache, easy, tmp_path):
    whole = LoRAGRPO(tiny, **QUICK)
    whole.learn(Run(tmp_path, "whole", ""))
    LoRAGRPO(tiny, **{**QUICK, "total_episodes": 32}).learn(Run(tmp_path, "parts", ""))
    rest, run = LoRAGRPO(tiny, **QUICK), Run(tmp_path, "parts", "")
    counts = rest.learn(run)
    assert counts["train_episodes"] == 64 and [m["step"] for m in run.metrics()] == [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole.weights().values(), rest.weights().values(), strict=True))


def test_saved_and_loaded(tiny, cache, tmp_path):
    agent = LoRASFT(tiny, **SFT)
    agent.learn(Run(tmp_path, "run", ""))
    agent.save(tmp_path / "adapter")
    other = LoRASFT(tiny, **SFT)
    other.load(tmp_path / "adapter")
    assert all(torch.equal(a, b) for a, b in zip(other.weights().values(), agent.weights().values(), strict=True))
    with pytest.raises(CheckpointError, match="expected rank 3"):
        LoRASFT(tiny, **{**SFT, "rank": 3}).load(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no adapter in"):
        other.load(tmp_path)


def test_settings_are_checked_before_anything_is_trained(tiny):
    with pytest.raises(ConfigurationError, match="expected 'sft' or 'base'"):
        LoRAGRPO(tiny, **{**QUICK, "begin": "nothing"})
    with pytest.raises(ConfigurationError, match="expected a multiple of agent.minibatches=2"):
        LoRAGRPO(tiny, **{**QUICK, "micro_batch_size": 3})
