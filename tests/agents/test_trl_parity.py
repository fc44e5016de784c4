"""Our GRPO objective against TRL's own trainer, on the same log-probabilities and rewards, in float64."""

from itertools import product

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from agents.config import LOSS_TYPES, SCALES
from agents.objective import decision_weights, group_advantages, grpo_loss
from ollm_rl.models.tiny import tiny_tokenizer

GROUP, PROBLEMS, MINIBATCHES, MOST = 4, 6, 3, 9
EPISODES = GROUP * PROBLEMS


class Given(GRPOTrainer):
    """TRL's trainer on given texts: log-probabilities are looked up by their tokens, everything else is TRL's."""

    tables: dict[str, dict[tuple, torch.Tensor]]
    now = "old"

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *_, **__):
        which = "reference" if model is self.ref_model else self.now
        ids, there = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:].bool()
        rows = []
        for row, mask in zip(ids, there, strict=True):
            known = self.tables[which][tuple(row[mask].tolist())]
            rows.append(torch.cat([known, known.new_zeros(logits_to_keep - len(known))]))
        found = torch.stack(rows)
        return found, torch.zeros_like(found), None


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def trainer_on(texts, rewards, directory, **settings) -> Given:
    tokenizer = tiny_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    model.save_pretrained(directory / "model")  # TRL loads its reference from there
    model = LlamaForCausalLM.from_pretrained(directory / "model")
    place = {tuple(text): i for i, text in enumerate(texts)}

    def given_texts(prompts, trainer):
        return {"prompt_ids": [[5, 6]] * EPISODES, "completion_ids": texts, "logprobs": [[0.0] * len(t) for t in texts]}

    def given_rewards(completion_ids, **_):
        return [float(rewards.flatten()[place[tuple(ids)]]) for ids in completion_ids]

    config = GRPOConfig(
        output_dir=str(directory), per_device_train_batch_size=EPISODES // MINIBATCHES, steps_per_generation=MINIBATCHES,
        num_generations=GROUP, max_completion_length=MOST, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, **settings,
    )  # fmt: skip
    prompts = Dataset.from_dict({"prompt": [f"problem {i}" for i in range(PROBLEMS)]})
    made = Given(
        model, given_rewards, args=config, train_dataset=prompts, processing_class=tokenizer, rollout_func=given_texts
    )
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


@pytest.mark.parametrize("scale_rewards", SCALES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_loss_and_its_gradient_are_trls(loss_type, scale_rewards, tmp_path, float64):
    """For every clipping range, weight of the KL and number of passes: each minibatch's loss and gradient to 1e-6."""
    generator = torch.Generator().manual_seed(LOSS_TYPES.index(loss_type) * 10 + SCALES.index(scale_rewards))
    texts = [
        [10 + i, *range(50, 50 + int(n))]
        for i, n in enumerate(torch.randint(0, MOST, (EPISODES,), generator=generator))
    ]
    rewards = torch.rand(PROBLEMS, GROUP, generator=generator).round(decimals=1)
    rewards[0] = 1.0  # a group without a difference
    tables = {
        name: {tuple(t): -torch.rand(len(t), generator=generator) for t in texts}
        for name in ("old", "reference", "pass_1", "pass_2")
    }
    for epsilon_high, (beta, corrected), num_iterations in product(
        (None, 0.28), ((0.0, False), (0.04, False), (0.04, True)), (1, 2)
    ):
        trainer = trainer_on(
            texts, rewards, tmp_path, loss_type=loss_type, scale_rewards=scale_rewards, beta=beta,
            epsilon=0.2, epsilon_high=epsilon_high, num_iterations=num_iterations,
            use_bias_correction_kl=corrected,
        )  # fmt: skip
        trainer.tables = {name: dict(table) for name, table in tables.items()}
        batch = [{"prompt": f"problem {i // GROUP}"} for i in range(EPISODES)]
        high = 0.2 if epsilon_high is None else epsilon_high
        advantages = group_advantages(rewards, scale_rewards).flatten()
        for step in range(MINIBATCHES * num_iterations):
            trainer.now = "old"  # if it samples now
            inputs = trainer._prepare_inputs(batch)
            trainer._step += 1
            trainer.now = f"pass_{1 + step // MINIBATCHES}"
            mine = [
                tuple(row[mask.bool()].tolist())
                for row, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
            ]
            new = {t: tables[trainer.now][t].clone().requires_grad_() for t in mine}
            trainer.tables[trainer.now] = new
            theirs = trainer.compute_loss(trainer.model, inputs)
            their_gradient = torch.cat(torch.autograd.grad(theirs, [new[t] for t in mine]))

            at = [t[0] - 10 for t in mine]
            owner = torch.cat([torch.full((len(t),), i) for i, t in enumerate(mine)])
            counts = torch.ones(len(owner))
            everything = sum(map(len, texts)) / MINIBATCHES
            weights = decision_weights(owner, counts, loss_type, MOST, len(mine), everything)
            lines = torch.cat([tables[trainer.now][t] for t in mine]).requires_grad_()
            old, reference = (torch.cat([tables[name][t] for t in mine]) for name in ("old", "reference"))
            losses = grpo_loss(
                lines, old, advantages[at][owner], 0.2, high, reference if beta else None, beta, corrected
            )
            ours = (losses * weights).sum()
            gradient = torch.autograd.grad(ours, lines)[0]
            assert theirs.dtype == torch.float64
            assert abs(float(ours) - float(theirs)) < 1e-6, (epsilon_high, beta, corrected, num_iterations, step)
            assert torch.allclose(gradient, their_gradient, rtol=0, atol=1e-6)
        assert gradient.abs().max() > 1e-4  # so that there was something to compare
