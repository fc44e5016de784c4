"""Objectives of conversion."""

import logging
import math

import pytest
import torch

from ollm_rl.errors import ConfigurationError, TrainingError
from ollm_rl.options import config
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.hidden_cache import compute_hidden_states
from ollm_rl.options.objectives import OBJECTIVES, KLController, Positions, em, expected, gumbel, kl_to_uniform
from ollm_rl.options.training import Progress, convert
from ollm_rl.tasks import ChainSum
from ollm_rl.tasks.prompts import Prompter


def random_positions(n: int = 6, k: int = 4, d: int = 5, s: int = 7) -> Positions:
    torch.manual_seed(0)
    rows = torch.randn(n, d, s)
    logits = torch.randn(n, 1, s)
    return Positions(
        logits_of=lambda bias: torch.bmm(bias, rows) + logits,
        biases=torch.randn(n, k, d, requires_grad=True),
        target=torch.randint(s, (n,)),
        log_prior=torch.randn(n, k).log_softmax(-1),
        log_q=torch.randn(n, k).log_softmax(-1).requires_grad_(),
    )


@pytest.fixture(scope="module")
def states(tiny):
    task = ChainSum()
    return compute_hidden_states(tiny.backbone, Prompter.for_task(tiny.backbone, task), task.problems("sft", 60), 48)


def test_names_are_those_that_the_configuration_knows():
    assert tuple(OBJECTIVES) == config.OBJECTIVES


def test_kl_to_uniform_is_zero_for_uniform_and_log_k_for_one_choice():
    log_q = torch.tensor([[0.25] * 4, [1 - 3e-7, 1e-7, 1e-7, 1e-7]]).log()
    torch.testing.assert_close(kl_to_uniform(log_q), torch.tensor([0.0, math.log(4)]), atol=1e-5, rtol=0)


def test_em_gradient_is_that_of_the_marginal_likelihood():
    """The responsible options are the exact posterior: d/db of the expectation = d/db of -log sum_z pi0(z) p_z(x)."""
    at = random_positions()
    ours = torch.autograd.grad(em(at, ConversionConfig(), 0.0)[0], at.biases)[0]
    ce = at.cross_entropy(at.logits_of(at.biases))
    marginal = -(at.log_prior - ce).logsumexp(-1).mean()
    torch.testing.assert_close(ours, torch.autograd.grad(marginal, at.biases)[0])


def test_gumbel_estimates_the_expectation():
    at = random_positions()
    with torch.no_grad():
        imitation = -(at.log_q.exp() * at.log_prior).sum(-1).mean()
        exact = (at.log_q.exp() * at.cross_entropy(at.logits_of(at.biases))).sum(-1).mean()
        drawn = torch.stack([gumbel(at, ConversionConfig(), 0.0)[0] - imitation for _ in range(2000)])
    assert float(drawn.mean()) == pytest.approx(float(exact), abs=4 * float(drawn.std()) / 2000**0.5)
    assert float(expected(at, ConversionConfig(), 0.0)[0] - imitation) == pytest.approx(float(exact), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["expected", "em", "gumbel"])
def test_the_controller_holds_the_rate(tiny, states, objective, monkeypatch):
    seen: list[float] = []
    update = KLController.update
    monkeypatch.setattr(KLController, "update", lambda self, kl: (seen.append(kl), update(self, kl))[1])
    sizes = PlugInConfig(
        reader_depth=0, num_options=4, encoder_width=32, decoder_width=32, prior_width=32, shortlist=48
    )
    settings = ConversionConfig(
        objective=objective, epochs=60, prior_epochs=1, batch_size=256, learning_rate=3e-3, kl_target=0.2,
        kl_rate=0.05, plugin=sizes,
    )  # fmt: skip
    convert(tiny.backbone, states, settings)
    last = seen[-len(seen) // 4 :]
    assert sum(last) / len(last) == pytest.approx(0.2, abs=0.06)


def test_collapse_is_said_during_training(tiny, states, caplog):
    with caplog.at_level(logging.WARNING, "ollm_rl"):
        sizes = PlugInConfig(reader_depth=0, init_scale=1e-6)
        convert(tiny.backbone, states, ConversionConfig(objective="gumbel", epochs=1, prior_epochs=1, plugin=sizes))
    assert "collapsing" in caplog.text


@pytest.mark.parametrize("wrong", [{"objective": "mean"}, {"prior_target": "x"}, {"kl_target": -1.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        ConversionConfig(**wrong)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tiny, states, tmp_path):
    """Stopped after each phase's second epoch, in both phases; metrics are logged."""
    sizes = PlugInConfig(reader_depth=0, num_options=4, encoder_width=32, decoder_width=32, prior_width=32)
    settings = ConversionConfig(objective="gumbel", epochs=3, prior_epochs=3, batch_size=256, plugin=sizes)
    whole = convert(tiny.backbone, states, settings)

    class Stop(Exception):
        pass

    class Stopping(Progress):
        left = 2

        def save(self, phase, epoch, trained):
            super().save(phase, epoch, trained)
            self.left -= 1
            if self.left == 0:
                raise Stop

    seen: list[int] = []
    for _ in range(2):
        with pytest.raises(Stop):
            convert(tiny.backbone, states, settings, Stopping(tmp_path, lambda step, metrics: seen.append(step)))
    again = convert(tiny.backbone, states, settings, Progress(tmp_path))
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert seen


def test_a_plugin_of_nan_is_not_made(tiny):
    """Training stops at the first loss that is no number, before a weight is touched by it."""
    states = compute_hidden_states(tiny.backbone, tiny.prompter, tiny.task.problems("sft", 20, 0), 48)
    sizes = PlugInConfig(reader_depth=0)
    steep = ConversionConfig(epochs=6, prior_epochs=1, batch_size=64, learning_rate=9e29, plugin=sizes)
    with pytest.raises(TrainingError, match="convert.learning_rate"):
        convert(tiny.backbone, states, steep)
    states.hidden = states.hidden.clone().index_fill(0, torch.tensor([3]), float("nan"))
    with pytest.raises(TrainingError, match="the loss: NaN or infinite"):
        convert(tiny.backbone, states, ConversionConfig(epochs=1, prior_epochs=1, batch_size=64, plugin=sizes))
