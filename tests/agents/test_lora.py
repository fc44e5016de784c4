"""The LoRA baselines on TRL's trainers: sizes, what is trained, resuming, and that they learn."""

import json
from dataclasses import replace

import pytest
import torch

from agents.backbone import PlainBackbone
from agents.lora import LoRASFT, matched_rank
from agents.lora_grpo import LoRAGRPO
from agents.trainers import score_few
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.sampler import Request
from tests.architectures import random_backbone

SFT = dict(rank=2, num_solutions=40, sft_epochs=1, sft_batch_size=8)
QUICK = dict(
    **SFT, total_episodes=64, num_generations=4, problems_per_iteration=4, minibatches=2, micro_batch_size=4, num_problems=20,
    learning_rate=1e-2,
)  # fmt: skip


def test_the_rank_is_matched_to_the_plugin(tiny):
    agent = LoRASFT(tiny)
    one = LoRASFT(tiny, rank=1).num_parameters
    assert abs(agent.num_parameters - tiny.plugin.num_parameters) <= one / 2
    assert agent.rank == matched_rank(tiny.backbone, tiny.plugin.num_parameters)


def test_a_new_adapter_changes_nothing_and_leaves_the_shared_backbone_alone(tiny):
    agent = LoRASFT(tiny, rank=2, num_examples=3)
    problems = tiny.problems("test", 4)
    assert agent.backbone.model is not tiny.backbone.model
    assert not any("lora" in name for name, _ in tiny.backbone.model.named_parameters())
    assert agent.prompt(problems[0])[: len(tiny.prompter.prefix)] == tiny.prompter.prefix
    mine = evaluate(tiny, agent, "lora", problems, 2)
    theirs = evaluate(tiny, PlainBackbone(tiny), "backbone", problems, 2)
    assert [e.tokens for e in mine.greedy + mine.sampled] == [e.tokens for e in theirs.greedy + theirs.sampled]


def scored(backbone, ids, mask, labels) -> tuple[list[list[torch.Tensor]], list[int]]:
    """What TRL's forward gives, and ours; and how many tokens went through the body."""
    from trl.trainer.utils import add_fused_lm_head

    model = backbone.model.requires_grad_(True)
    found, tokens = [], [0, 0]
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    for at, change in enumerate((lambda _: None, score_few)):
        change(backbone)
        seen = model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs, at=at: tokens.__setitem__(at, tokens[at] + kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, num_items_in_batch=150)
        model.zero_grad()
        out.loss.backward()
        seen.remove()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append([out.loss, out.log_probs, out.entropy, out.is_top1.float(), out.label_mask.float(), gradient])
    assert found[0][0] > 0 and found[0][-1].abs().max() > 1e-3
    return found, tokens


# Positions that turn states, and learned ones; logits that are scaled, under two names, and capped.
@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "cohere", "gemma2"])
def test_scoring_few_tokens_gives_what_trl_gives(name):
    ids = torch.randint(3, 200, (40, 9), generator=torch.Generator().manual_seed(0))  # scored in three parts
    mask = torch.ones_like(ids)
    mask[1::2, :4] = 0  # padding
    mask[:20, 7:] = 0  # and of short texts
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    labels[2] = -100  # a text that counts nowhere
    found, _ = scored(random_backbone(name), ids, mask, labels)
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-5)


# gemma2 keeps a window of keys and values in half of its layers: nothing is shared.
@pytest.mark.parametrize(("name", "fewer"), [("llama", True), ("gpt2", True), ("granite", True), ("gemma2", False)])
@pytest.mark.parametrize("what", ["prompts", "their beginning"])
def test_what_texts_share_goes_through_the_body_once(name, fewer, what):
    ids = torch.randint(3, 200, (40, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if what == "prompts":
        which = torch.randint(5, (40,), generator=torch.Generator().manual_seed(1))
        ids[:, :14] = ids[which, :14]
        mask[which % 2 == 0, :4] = 0  # of short prompts
    else:
        ids[:, :10] = ids[0, :10]
    mask[:20, 17:] = 0  # of short texts
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :14] = -100
    labels[2] = -100
    found, tokens = scored(random_backbone(name), ids, mask, labels)
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-5)
    assert (tokens[1] < 0.7 * tokens[0]) == fewer


def test_sft_lowers_the_loss_and_is_cached(tiny, cache, tmp_path):
    run = Run(tmp_path, "sft", "")
    agent = LoRASFT(tiny, **{**SFT, "sft_epochs": 6, "sft_learning_rate": 1e-2})
    counts = agent.learn(run)
    losses = [m["loss"] for m in run.metrics() if "loss" in m]
    assert losses[-1] < 0.8 * losses[0]
    assert counts["setup_seconds"] > 0 and counts["trainable_parameters"] == agent.num_parameters
    again = LoRASFT(tiny, **{**SFT, "sft_epochs": 6, "sft_learning_rate": 1e-2})
    again.prepare(run)
    assert all(torch.equal(a, b) for a, b in zip(again.weights().values(), agent.weights().values(), strict=True))


def test_short_and_long_solutions_count_alike(tiny, tmp_path):
    """A token weighs one over those of its batch: batches must be mixed, or short solutions count for more."""
    agent = LoRASFT(tiny, **SFT)
    problems = tiny.problems("sft", 80)
    problems = [replace(p, solution=("7", "8 + 8 + 8 + 8 + 8 + 8 + 8 + 8")[i % 2]) for i, p in enumerate(problems)]
    shares = []

    def watch(model, args, kwargs):
        said = (kwargs["labels"] != -100).sum(1)
        shares.append((said > said.min()).float().mean().item() if said.min() < 5 else 1.0)

    agent.model.register_forward_pre_hook(watch, with_kwargs=True)
    agent._train(problems, tmp_path / "sft", None)
    assert len(shares) == 10 and sum(0.1 < share < 0.9 for share in shares) >= 8


def test_problems_are_trained_on_as_often_as_they_are_drawn(tiny, tmp_path):
    run, agent = Run(tmp_path, "often", ""), LoRAGRPO(tiny, **QUICK)
    agent.prepare(run)
    one, other = tiny.problems("train", 2)
    agent.acting_session.problems = lambda *_: [one] * 19 + [other]
    agent.learn(run)
    lines = [json.loads(x) for f in run.path.glob("rollouts/train_*.jsonl") for x in f.read_text().splitlines()]
    assert len(lines) == 64
    assert sum(line["problem"] == one.problem for line in lines) >= 60


def test_grpo_learns_an_easy_reward(tiny, easy, tmp_path):
    run = Run(tmp_path, "easy", "")
    agent = LoRAGRPO(tiny, **{**QUICK, "rank": 8, "total_episodes": 480, "learning_rate": 3e-2})
    agent.prepare(run)
    begun_with = agent.weights()
    counts = agent.learn(run)
    metrics = run.metrics()
    assert [m["train_episodes"] for m in metrics] == list(range(16, 496, 16))
    assert counts["train_episodes"] == 480 and counts["train_tokens"] > 480
    rewards = [m["reward"] for m in metrics]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert any(not torch.equal(a, b) for a, b in zip(begun_with.values(), agent.weights().values(), strict=True))
    problems = tiny.problems("test", 3)
    episodes = agent.acting_session.rollout(
        [Request(p) for p in problems], PolicyAdapter(agent, False), from_logits=True
    )
    assert min(agent.divergence(episodes)) > 0
    lines = [json.loads(x) for x in (run.path / "rollouts" / "train_1.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and len({x["problem_id"] for x in lines}) == 4


def test_it_acts_with_its_own_model(tiny, easy, tmp_path):
    agent = LoRAGRPO(tiny, **QUICK)
    before = evaluate(tiny, agent, "lora_grpo", tiny.problems("test", 4), 0)
    with torch.no_grad():
        for name, weight in agent.model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.5)
    agent.changed()
    after = evaluate(tiny, agent, "lora_grpo", tiny.problems("test", 4), 0)
    assert [e.tokens for e in before.greedy] != [e.tokens for e in after.greedy]


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tiny, easy, tmp_path):
    whole = LoRAGRPO(tiny, **QUICK)
    whole.learn(Run(tmp_path, "whole", ""))
    LoRAGRPO(tiny, **{**QUICK, "total_episodes": 32}).learn(Run(tmp_path, "parts", ""))
    rest, run = LoRAGRPO(tiny, **QUICK), Run(tmp_path, "parts", "")
    counts = rest.learn(run)
    assert counts["train_episodes"] == 64 and [m["step"] for m in run.metrics()] == [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole.weights().values(), rest.weights().values(), strict=True))


def test_a_run_killed_after_training_does_not_train_on(tiny, easy, tmp_path):
    first, run = LoRAGRPO(tiny, **QUICK), Run(tmp_path, "run", "")
    counts = first.learn(run)
    (run.path / "trainer" / "checkpoint-9").mkdir()  # half of one, from a kill while it was saved
    again = LoRAGRPO(tiny, **QUICK)
    found = again.learn(Run(tmp_path, "run", ""))
    assert found["train_episodes"] == counts["train_episodes"] == 64 and len(run.metrics()) == 4
    assert all(torch.equal(a, b) for a, b in zip(first.weights().values(), again.weights().values(), strict=True))


def test_a_loaded_adapter_is_what_training_begins_with(tiny, easy, tmp_path):
    first = LoRAGRPO(tiny, **{**QUICK, "total_episodes": 16})
    first.learn(Run(tmp_path, "first", ""))
    first.save(tmp_path / "adapter")
    second = LoRAGRPO(tiny, **QUICK)
    second.load(tmp_path / "adapter")
    second.prepare(Run(tmp_path, "second", ""))
    assert all(torch.equal(a, b) for a, b in zip(first.weights().values(), second.weights().values(), strict=True))


def test_saved_and_loaded(tiny, tmp_path):
    agent = LoRASFT(tiny, **SFT)
    agent.learn(Run(tmp_path, "run", ""))
    agent.save(tmp_path / "adapter")
    other = LoRASFT(tiny, **SFT)
    other.load(tmp_path / "adapter")
    assert all(torch.equal(a, b) for a, b in zip(other.weights().values(), agent.weights().values(), strict=True))
    with pytest.raises(CheckpointError, match="expected lora, rank 3"):
        LoRASFT(tiny, **{**SFT, "rank": 3}).load(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no adapter in"):
        other.load(tmp_path)


def test_settings_are_checked_before_anything_is_trained(tiny):
    with pytest.raises(ConfigurationError, match="expected one of sft, base"):
        LoRAGRPO(tiny, **{**QUICK, "begin": "nothing"})
    with pytest.raises(ConfigurationError, match="expected a multiple of agent.minibatches=2"):
        LoRAGRPO(tiny, **{**QUICK, "micro_batch_size": 3})
    with pytest.raises(ConfigurationError, match="fewer training problems"):
        LoRAGRPO(tiny, **{**QUICK, "num_problems": 3})


def test_a_tiny_adapter_trains_a_few_numbers_and_is_kept(tiny, easy, tmp_path):
    with pytest.raises(ConfigurationError, match="expected settings of peft.TinyLoraConfig"):
        LoRASFT(tiny, adapter="tiny_lora", peft={"you": 3})
    settings = {**QUICK, "rank": 2, "adapter": "tiny_lora", "peft": {"u": 5, "weight_tying": 1.0}, "begin": "base"}
    agent = LoRAGRPO(tiny, **settings, num_examples=3)
    assert agent.num_parameters == 5
    before = agent.weights()
    run = Run(tmp_path, "tiny", "a: 1\n")
    agent.learn(run)
    run.close()
    after = agent.weights()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    agent.save(tmp_path / "kept")
    again = LoRAGRPO(tiny, **settings, num_examples=3)
    again.load(tmp_path / "kept")
    assert all(torch.equal(after[name], tensor) for name, tensor in again.weights().items())
    problems = tiny.problems("test", 3)
    texts = [evaluate(tiny, one, "tiny", problems, 0).greedy for one in (agent, again)]
    assert [e.tokens for e in texts[0]] == [e.tokens for e in texts[1]]
    with pytest.raises(CheckpointError, match="has rank 2|is of kind tiny_lora"):
        LoRAGRPO(tiny, **QUICK).load(tmp_path / "kept")
