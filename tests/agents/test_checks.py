"""Numbers that are not finite end training, and settings with which it would not end are refused."""

import math

import pytest
import torch

from agents.distill import Distill
from agents.grpo import GRPO
from agents.lora import LoRASFT
from agents.lora_grpo import LoRAGRPO
from agents.ppo import PPO
from agents.reference import Reference
from agents.shortlist_head import ShortlistHead
from ollm_rl.common.finite import check_weights, descend
from ollm_rl.common.run_dir import NoRun, Run
from ollm_rl.errors import ConfigurationError, DataError, TrainingError
from ollm_rl.rollout.judge import Judge

QUICK = dict(total_episodes=32, num_generations=4, problems_per_iteration=4, num_problems=20)
NAN = math.nan
WRONG = [
    (GRPO, dict(total_episodes=0)), (GRPO, dict(total_episodes=-5)), (GRPO, dict(problems_per_iteration=0)),
    (GRPO, dict(num_generations=0)), (GRPO, dict(minibatches=0)), (GRPO, dict(num_iterations=0)), (GRPO, dict(save_every=0)),
    (GRPO, dict(num_problems=0)), (GRPO, dict(learning_rate=0.0)), (GRPO, dict(learning_rate=-1.0)),
    (GRPO, dict(learning_rate=NAN)), (GRPO, dict(learning_rate=math.inf)), (GRPO, dict(beta=NAN)), (GRPO, dict(epsilon=-0.1)),
    (GRPO, dict(max_decisions=0)), (ShortlistHead, dict(sft_epochs=0)), (ShortlistHead, dict(sft_learning_rate=NAN)),
    (ShortlistHead, dict(problems_per_iteration=0)), (PPO, dict(total_episodes=0)), (PPO, dict(episodes_per_iteration=0)),
    (PPO, dict(save_every=0)), (PPO, dict(learning_rate=NAN)), (PPO, dict(num_epochs=0)), (PPO, dict(gae_lambda=1.5)),
    (Distill, dict(rounds=0)), (Distill, dict(learning_rate=0.0)), (Distill, dict(batch_size=0)),
    (Distill, dict(texts_per_problem=0)), (Distill, dict(dropout=NAN)), (Reference, dict(epochs=0)),
    (Reference, dict(learning_rate=NAN)), (LoRASFT, dict(sft_batch_size=0)), (LoRASFT, dict(sft_learning_rate=-1.0)),
    (LoRASFT, dict(rank=0)), (LoRAGRPO, dict(total_episodes=0)), (LoRAGRPO, dict(problems_per_iteration=0)),
    (LoRAGRPO, dict(minibatches=0)), (LoRAGRPO, dict(num_generations=1)), (LoRAGRPO, dict(learning_rate=NAN)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "wrong"), WRONG)
def test_settings_are_refused_by_name(tiny, kind, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ConfigurationError, match=rf"agent\.{name}={value}; expected "):
        kind(tiny, **wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_touches_nothing(bad):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    with pytest.raises(TrainingError, match="the loss: NaN or infinite"):
        descend(optimizer, (weight * bad).sum())
    with pytest.raises(TrainingError, match="the gradient: NaN or infinite"):  # of a loss of 0
        descend(optimizer, (weight - weight.detach()).abs().sqrt().sum(), max_norm=1.0)
    assert weight.tolist() == [1.0, 2.0]
    assert descend(optimizer, weight.sum(), max_norm=1.0) == 3.0
    with pytest.raises(TrainingError, match="the policy, w: NaN"):
        check_weights("the policy", {"n": torch.tensor(1), "w": torch.tensor([bad])})


class Rewards(Judge):
    """The same few rewards, again and again."""

    def __init__(self, *rewards):
        super().__init__(len)
        self.rewards = rewards

    def __call__(self, episodes, prompter=None):
        for i, e in enumerate(episodes):
            e.reward = self.rewards[i % len(self.rewards)]


def stops(agent, run: Run, why: str) -> None:
    """It ends with an error, and no checkpoint or policy holds a weight that is not finite."""
    with pytest.raises(TrainingError, match=why):
        agent.prepare(run)
        agent.learn(run)
        agent.save(run.path / "policy")
    assert not (run.path / "policy").exists()
    assert not list(run.path.glob("checkpoints/step_*"))


@pytest.mark.parametrize("reward", [1e38, -1e38, math.nan, math.inf])
@pytest.mark.parametrize("kind", [GRPO, PPO])
def test_rewards_beyond_float32_end_training(cluster, tiny, tmp_path, monkeypatch, kind, reward):
    monkeypatch.setattr(tiny, "judge", Rewards(0.0, reward))
    agent = (
        GRPO(tiny, **QUICK)
        if kind is GRPO
        else PPO(tiny, total_episodes=32, episodes_per_iteration=16, num_problems=20)
    )
    stops(agent, Run(tmp_path, "run", ""), "a reward of ")


def test_steps_that_are_too_large_end_training(cluster, tiny, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "judge", Rewards(1.0, 0.0, 0.0, 0.0))
    stops(GRPO(tiny, **QUICK, learning_rate=1e29, target_kl=0.0), Run(tmp_path, "grpo", ""), "NaN or infinite")
    small = dict(rounds=1, problems_per_round=6, budget=60, width=4)
    stops(Distill(tiny, **small, learning_rate=1e29), Run(tmp_path, "distill", ""), "NaN or infinite")
    with pytest.raises(TrainingError, match="NaN or infinite"):
        ShortlistHead(tiny, **QUICK, num_solutions=40, sft_learning_rate=1e29).prepare(NoRun())
    stops(
        PPO(tiny, total_episodes=64, episodes_per_iteration=32, num_problems=20, minibatch_size=16, learning_rate=1e29),
        Run(tmp_path, "ppo", ""), "NaN or infinite",
    )  # fmt: skip


def test_an_adapter_of_nan_is_neither_kept_nor_cached(tiny, cache, tmp_path):
    agent = LoRASFT(tiny, rank=2, num_solutions=40, sft_batch_size=4, sft_learning_rate=1e29)
    stops(agent, Run(tmp_path, "sft", ""), "the adapter.*NaN or infinite")
    assert not list((tmp_path / "cache" / "adapters").glob("*/sft.json"))


def test_an_iteration_without_episodes_ends_training(tiny, tmp_path, monkeypatch):
    agent, run = GRPO(tiny, **QUICK), Run(tmp_path, "run", "")
    monkeypatch.setattr(agent, "rollout", lambda requests: [])
    with pytest.raises(TrainingError, match="an iteration gave no episode"):
        agent.learn(run)
    assert not run.metrics()


def test_episodes_without_decisions_are_counted_and_training_ends(cluster, tiny, tmp_path, monkeypatch):
    agent, run = GRPO(tiny, **QUICK), Run(tmp_path, "run", "")
    sampled = agent.rollout

    def forced(requests):
        episodes = sampled(requests)
        for e in episodes:
            e.hidden = e.z = e.log_probs = e.mask = None
        return episodes

    monkeypatch.setattr(agent, "rollout", forced)
    assert agent.learn(run)["train_episodes"] == 32
    assert [m["num_decisions"] for m in run.metrics()] == [0, 0]
    ppo = PPO(tiny, total_episodes=32, episodes_per_iteration=16, num_problems=20, min_entropy=100)
    with pytest.raises(TrainingError, match="160 episodes without a decision to learn from"):
        ppo.learn(Run(tmp_path, "ppo", ""))


@pytest.mark.parametrize("kind", [GRPO, PPO, Distill])
def test_nothing_to_train_on_is_said_before_anything_is_evaluated(tiny, tmp_path, monkeypatch, kind):
    problems = tiny.task.problems
    monkeypatch.setattr(
        tiny.task, "problems", lambda split, n, seed=0: [] if split == "train" else problems(split, n, seed)
    )
    with pytest.raises(DataError, match="no problems in split 'train'"):
        kind(tiny).prepare(Run(tmp_path, "run", ""))
