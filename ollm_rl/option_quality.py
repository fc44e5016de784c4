"""What options decode to on stored positions, and what they are worth."""

from collections.abc import Callable

import torch
from torch import Tensor

from ollm_rl.backbone import Backbone
from ollm_rl.hidden_cache import Blocks, HiddenStates, blocks
from ollm_rl.plugin import PlugIn, canonical

UNCERTAIN_NATS = 0.5
COLLAPSED = 1.2  # distinct tokens at uncertain positions; below, the options are one


def option_logits(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    """Logits of all options on the positions' shortlists: (n, K, S + 1) float32."""
    return shortlist_logits(backbone, states)(decoder_biases(backbone, plugin, states))


def decoder_biases(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    """(n, K, d), in bf16 if the backbone is."""
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
        return plugin.biases(states.hidden)


def shortlist_logits(backbone: Backbone, states: HiddenStates) -> Callable[[Tensor], Tensor]:
    """From biases (n, M, d) to logits (n, M, S + 1) float32 of the positions' shortlists."""
    rows = backbone.head_rows(states.ids).transpose(1, 2)

    def logits_of(bias: Tensor) -> Tensor:
        logits = torch.bmm(bias.to(rows.dtype), rows).float() + states.logits[:, None]
        return backbone.cap(logits).masked_fill(states.logits[:, None].isneginf(), float("-inf"))

    return logits_of


@torch.no_grad()
def _decoded(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    """(N, K): the place in the shortlist that each option decodes to."""
    return torch.cat([
        option_logits(backbone, plugin, moved(part, backbone.device)).argmax(-1).cpu() for part in blocks(states)
    ])  # fmt: skip


def canonical_labels(backbone: Backbone, plugin: PlugIn, states: Blocks) -> tuple[Tensor, Tensor]:
    """Whether some option decodes to the gold token (N,) float, and the lowest-numbered that does (N,)."""
    covered, latent = torch.zeros(len(states)), torch.zeros(len(states), dtype=torch.long)
    at = 0
    for part in blocks(states):
        hit = _decoded(backbone, plugin, part) == part.target[:, None]
        covered[at : at + len(part)], latent[at : at + len(part)] = hit.any(-1).float(), hit.float().argmax(-1)
        at += len(part)
    return covered, latent


def moved(states: HiddenStates, device: torch.device) -> HiddenStates:
    """The positions on a device."""
    return HiddenStates(**{name: value.to(device) for name, value in vars(states).items()})


@torch.no_grad()
def measure(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> dict:
    """What the options are worth, on held-out solutions: each figure for `all` and for `uncertain` positions.

    coverage: some option decodes to the gold token. distinct_tokens: how many different tokens the K options
    decode to. prior_/encoder_token_accuracy: their first choice decodes to the gold token. kl: of the encoder
    to the prior, in nats. usage: perplexity of the prior's mean choice, 1 to K. decision_share: positions with
    more than one distinct token.
    """
    weight = backbone.head.weight.detach()
    decoded = _decoded(backbone, plugin, states)
    prior, encoder = [], []
    for rows in torch.arange(len(states)).split(2048):
        batch = moved(states.select(rows), backbone.device)
        prior.append(plugin.prior_logits(batch.hidden).log_softmax(-1).cpu())
        encoder.append(plugin.encoder_logits(batch.hidden, weight[batch.gold]).log_softmax(-1).cpu())
    log_prior, log_q = torch.cat(prior), torch.cat(encoder)
    hit = decoded == states.target[:, None]
    distinct = canonical(decoded).sum(-1).float()
    figures = {
        "coverage": hit.any(-1).float(),
        "distinct_tokens": distinct,
        "prior_token_accuracy": hit.gather(1, log_prior.argmax(-1, keepdim=True))[:, 0].float(),
        "encoder_token_accuracy": hit.gather(1, log_q.argmax(-1, keepdim=True))[:, 0].float(),
        "kl": (log_q.exp() * (log_q - log_prior)).sum(-1),
        "backbone_token_accuracy": (states.target == 0).float(),
        "decision_share": (distinct > 1).float(),
    }
    groups = {"all": torch.ones(len(states), dtype=torch.bool), "uncertain": states.entropy > UNCERTAIN_NATS}
    report: dict = {k: {g: float(v[m].mean()) for g, m in groups.items()} for k, v in figures.items()}
    usage = {g: log_prior[m].exp().mean(0) for g, m in groups.items()}
    report["usage"] = {g: float(torch.exp(-(u * u.clamp_min(1e-9).log()).sum())) for g, u in usage.items()}
    report["num_positions"] = {g: int(m.sum()) for g, m in groups.items()}
    return report
