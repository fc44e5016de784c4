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
SETTINGS = ("loss_type", "scale_rewards", "beta", "epsilon_high", "num_iterations", "use_bias_correction_kl")
OWN = ("output_dir", "logging_dir", "ref_model")  # the last is None in a trainer that is made with beta=0


class Given(GRPOTrainer):
    """TRL's trainer on given texts: log-probabilities are looked up by their tokens, everything else is TRL's."""

    texts: list[list[int]]
    rewards: dict[tuple, float]
    tables: dict[str, dict[tuple, torch.Tensor]]
    now = "old"

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *_, **__):
        which = "reference" if model is self.ref_model else self.now
        assert self.beta or which != "reference"
        ids, there = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:].bool()
        rows = []
        for row, mask in zip(ids, there, strict=True):
            known = self.tables[which][tuple(row[mask].tolist())]
            rows.append(torch.cat([known, known.new_zeros(logits_to_keep - len(known))]))
        found = torch.stack(rows)
        return found, torch.zeros_like(found), None

    def begin(self, *settings):
        """As if it had just been made with these, which takes a hundred times as long."""
        for name, value in zip(SETTINGS, settings, strict=True):
            setattr(self.args, name, value)
            if hasattr(self, name):
                setattr(self, name, value)
        epsilon_high = self.args.epsilon_high
        self.epsilon_high = self.epsilon_low if epsilon_high is None else epsilon_high
        self._step, self._buffered_inputs = 0, None


@pytest.fixture(scope="module", autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def trainer_in(directory, **settings) -> Given:
    tokenizer = tiny_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    model.save_pretrained(directory / "model")  # TRL loads its reference from there
    model = LlamaForCausalLM.from_pretrained(directory / "model")

    def given_texts(prompts, trainer):
        texts = trainer.texts
        return {"prompt_ids": [[5, 6]] * EPISODES, "completion_ids": texts, "logprobs": [[0.0] * len(t) for t in texts]}

    def given_rewards(completion_ids, **_):
        return [made.rewards[tuple(ids)] for ids in completion_ids]

    config = GRPOConfig(
        output_dir=str(directory), per_device_train_batch_size=EPISODES // MINIBATCHES, steps_per_generation=MINIBATCHES,
        num_generations=GROUP, max_completion_length=MOST, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, epsilon=0.2, **settings,
    )  # fmt: skip
    prompts = Dataset.from_dict({"prompt": [f"problem {i}" for i in range(PROBLEMS)]})
    made = Given(
        model, given_rewards, args=config, train_dataset=prompts, processing_class=tokenizer, rollout_func=given_texts
    )
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> Given:
    """With a reference, which is not asked where beta is 0."""
    return trainer_in(tmp_path_factory.mktemp("trainer"), beta=0.04)


def plain(values: dict) -> dict:
    """Numbers, texts and truths among attributes."""
    kinds = (int, float, str, bool, type(None))
    return {k: v for k, v in values.items() if isinstance(v, kinds) and k not in OWN}


@pytest.mark.parametrize(
    "settings",
    [
        ("grpo", "group", 0.0, None, 1, False), ("bnpo", "batch", 0.04, 0.28, 2, True), ("dr_grpo", "none", 0.04, 0.28, 1, False),
        ("dapo", "group", 0.0, None, 2, False),
    ],
)  # fmt: skip
def test_settings_given_later_are_those_that_a_trainer_is_made_with(trainer, settings, tmp_path):
    made = trainer_in(tmp_path, **dict(zip(SETTINGS, settings, strict=True)))
    trainer.begin(*settings)
    assert plain(vars(trainer)) == plain(vars(made))
    assert plain(vars(trainer.args)) == plain(vars(made.args))


@pytest.mark.parametrize("scale_rewards", SCALES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_loss_and_its_gradient_are_trls(trainer, loss_type, scale_rewards):
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
    trainer.texts = texts
    trainer.rewards = {tuple(t): float(r) for t, r in zip(texts, rewards.flatten(), strict=True)}
    for epsilon_high, (beta, corrected), num_iterations in product(
        (None, 0.28), ((0.0, False), (0.04, False), (0.04, True)), (1, 2)
    ):
        trainer.begin(loss_type, scale_rewards, beta, epsilon_high, num_iterations, corrected)
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
