"""Keeping options to their shortlists."""

import pytest
import torch

from ollm_rl.options import shortlist_loss
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.hidden_cache import compute_hidden_states
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.quality import bias_size, option_logits, shortlist_agreement, shortlist_logits, whole_logits
from ollm_rl.options.shortlist_loss import LEARNED, OffShortlistPenalty
from ollm_rl.tasks import ChainSum
from ollm_rl.tasks.prompts import Prompter


@pytest.fixture(scope="module")
def states(tiny):
    task = ChainSum()
    return compute_hidden_states(tiny.backbone, Prompter.for_task(tiny.backbone, task), task.problems("sft", 8), 16)


def outsider(backbone, states) -> int:
    """A token that is on nobody's shortlist; not the padding, whose row is zero."""
    return max(set(range(1, backbone.vocab_size)) - set(states.ids.flatten().tolist()))


def test_agreement_is_that_of_the_two_argmaxes(tiny, states):
    """Counted by hand on options that are far from the backbone; and 1 on options that are the backbone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plugin = PlugIn.beside(tiny.backbone, PlugInConfig(reader_depth=0, num_options=4, shortlist=16, init_scale=5.0))
    with torch.no_grad():
        plugin.decoder.writes.weight *= 10
        whole = whole_logits(tiny.backbone, states, plugin.biases(states.hidden)).argmax(-1)
        listed = states.ids.gather(1, option_logits(tiny.backbone, plugin, states).argmax(-1))
    agreement = shortlist_agreement(tiny.backbone, plugin, states)
    assert 0.01 < agreement < 0.99
    assert agreement == pytest.approx(float((whole == listed).float().mean()), abs=1e-6)
    plugin.decoder.zero_()
    assert shortlist_agreement(tiny.backbone, plugin, states) == 1


def test_an_option_that_says_an_outsider_learns_not_to(tiny, states):
    backbone = tiny.backbone
    token = outsider(backbone, states)
    row = backbone.head.weight[token].detach()
    biases = (20 * row / row.norm()).repeat(len(states), 2, 1).requires_grad_()
    optimizer = torch.optim.SGD([biases], lr=len(states))
    assert (whole_logits(backbone, states, biases).argmax(-1) == token).float().mean() > 0.9
    losses, off_shortlist = [], OffShortlistPenalty(backbone)
    for _ in range(200):
        loss = off_shortlist.loss(states, biases, shortlist_logits(backbone, states)(biases))
        assert losses or off_shortlist.tokens.tolist() == [token] * len(off_shortlist.tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    few = max(1, len(states) // LEARNED)  # as many positions as the loss looks at
    strays = whole_logits(backbone, states.block(0, few), biases[:few].detach()).argmax(-1) == token
    assert losses[-1] < losses[0] / 4 and not strays.any()


def test_a_position_is_not_kept_from_its_own_candidates(tiny, states):
    """OffShortlistPenalty of one position that are candidates of another are not counted there."""
    backbone = tiny.backbone
    off_shortlist = OffShortlistPenalty(backbone)
    biases = torch.zeros(len(states), 2, backbone.hidden_size)
    logits = shortlist_logits(backbone, states)(biases)
    off_shortlist.tokens = states.ids[0].long()
    loss = off_shortlist.loss(states.block(0, 1), biases[:1], logits[:1])
    found = off_shortlist.tokens[~torch.isin(off_shortlist.tokens, states.ids[0])].unique()
    others = backbone.logits(states.hidden[:1].to(backbone.head.weight.dtype))[0, found].logsumexp(-1)
    assert float(loss) == pytest.approx(float(torch.log1p((others - logits[0, 0].logsumexp(-1)).exp())), rel=1e-4)


def test_size_of_biases_is_relative_to_the_hidden_states(states):
    assert float(bias_size(states, 0.5 * states.hidden[:, None].repeat(1, 3, 1))) == pytest.approx(0.25)


def test_products_have_few_widths_and_the_loss_of_any(tiny, states, monkeypatch):
    """Tokens that fill up a product weigh nothing: neither in the loss nor in its gradient."""
    found = []
    for columns in (1, 128):
        monkeypatch.setattr(shortlist_loss, "COLUMNS", columns)
        biases = torch.randn(len(states), 4, tiny.backbone.hidden_size, generator=torch.Generator().manual_seed(0))
        biases.requires_grad_()
        off_shortlist = OffShortlistPenalty(tiny.backbone)
        loss = off_shortlist.loss(states, biases, shortlist_logits(tiny.backbone, states)(biases))
        loss.backward()
        assert 1 < len(off_shortlist.tokens.unique()) != 128
        found.append((loss.detach(), biases.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
