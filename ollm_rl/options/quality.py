"""What options decode to on stored positions, and what they are worth."""

from collections.abc import Callable

import torch
from torch import Tensor

from ollm_rl.models.backbone import Backbone
from ollm_rl.options.hidden_states import Blocks, HiddenStates, blocks
from ollm_rl.options.modules import PlugIn, canonical

UNCERTAIN_NATS = 0.5
COLLAPSED = 1.2  # distinct tokens at uncertain positions; below, the options are one
WHOLE_HEAD = 512  # held-out positions whose options are looked up in the whole vocabulary


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
        return backbone.after_head(logits).masked_fill(states.logits[:, None].isneginf(), float("-inf"))

    return logits_of


@torch.no_grad()
def shortlist_agreement(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> float:
    """Share of positions and options whose most likely token of the whole vocabulary is on the shortlist."""
    found = []
    for at in range(0, len(states), 32):
        part = moved(states.block(at, at + 32), backbone.device)
        biases = decoder_biases(backbone, plugin, part)
        whole = whole_logits(backbone, part, biases).argmax(-1)
        found.append((whole[..., None] == part.ids[:, None]).any(-1).float().mean(-1).cpu())
    return float(torch.cat(found).mean())


def bias_size(states: HiddenStates, biases: Tensor) -> Tensor:
    """Mean squared norm of biases (n, K, d), as a share of that of the hidden states."""
    own = states.hidden[:, : biases.shape[-1]].float()
    return biases.float().square().sum(-1).mean() / own.square().sum(-1).mean()


def whole_logits(backbone: Backbone, states: HiddenStates, biases: Tensor) -> Tensor:
    """Logits (n, K, vocabulary) of options whose biases (n, K, d) are given, before `Backbone.after_head`."""
    own = states.hidden[:, None, : backbone.hidden_size]
    return backbone.head((own + biases).to(backbone.head.weight.dtype))


@torch.no_grad()
def canonical_labels(backbone: Backbone, plugin: PlugIn, states: Blocks) -> tuple[Tensor, Tensor]:
    """Whether some option decodes to the gold token (N,) float, and the lowest-numbered that does (N,)."""
    covered, latent = torch.zeros(len(states)), torch.zeros(len(states), dtype=torch.long)
    at = 0  # written in place: small tensors kept between large temporaries would pin the heap
    for part in blocks(states):
        batch = moved(part, backbone.device)
        hit = option_logits(backbone, plugin, batch).argmax(-1) == batch.target[:, None]
        covered[at : at + len(part)], latent[at : at + len(part)] = hit.any(-1).float(), hit.float().argmax(-1)
        at += len(part)
    return covered, latent


def moved(states: HiddenStates, device: torch.device) -> HiddenStates:
    """The positions on a device."""
    return HiddenStates(**{name: value.to(device) for name, value in vars(states).items()})


@torch.no_grad()
def measure(backbone: Backbone, plugin: PlugIn, states: Blocks) -> dict:
    """What the options are worth, on held-out solutions: each figure for `all` and for `uncertain` positions.

    Options decode among the backbone's own shortlist, as in rollouts: a gold token that is not on it (gold_on_shortlist: the share
    that is) is one that no option says.

    coverage: some option decodes to the gold token. distinct_tokens: how many different tokens the K options
    decode to. prior_/encoder_token_accuracy: their first choice decodes to the gold token. nll: of the gold token under
    the mixture sum_z pi0(z | h) p(x | h, z), and backbone_nll: under the backbone, in nats, on the shortlist. kl: of the
    encoder to the prior, in nats. usage: perplexity of the prior's mean choice, 1 to K. decision_share: positions with
    more than one distinct token.
    """
    parts = [_metrics(backbone, plugin, moved(part, backbone.device)) for part in blocks(states)]
    figures = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    uncertain = figures.pop("entropy") > UNCERTAIN_NATS
    prior = figures.pop("prior")
    groups = {"all": torch.ones(len(states), dtype=torch.bool), "uncertain": uncertain}
    report: dict = {k: {g: float(v[m].mean()) for g, m in groups.items()} for k, v in figures.items()}
    usage = {g: prior[m].mean(0) for g, m in groups.items()}
    report["usage"] = {g: float(torch.exp(-(u * u.clamp_min(1e-9).log()).sum())) for g, u in usage.items()}
    report["num_positions"] = {g: int(m.sum()) for g, m in groups.items()}
    few = states.block(0, WHOLE_HEAD)
    report["shortlist_agreement"] = {"all": shortlist_agreement(backbone, plugin, few), "num_positions": len(few)}
    return report


def _metrics(backbone: Backbone, plugin: PlugIn, batch: HiddenStates) -> dict[str, Tensor]:
    """The figures of n positions (n,), their entropy, and the prior's probabilities (n, K)."""
    logits = option_logits(backbone, plugin, batch)
    own_size = logits.shape[-1] - 1  # what comes last is the gold token where the shortlist lacks it
    decoded, target = logits[..., :own_size].argmax(-1), batch.target[:, None]
    log_prior = plugin.prior_log_probs(batch.hidden)
    log_q = plugin.encoder_logits(batch.hidden, backbone.head.weight[batch.gold]).log_softmax(-1)
    log_p = logits.log_softmax(-1).gather(2, target[..., None].expand(-1, logits.shape[1], 1))[..., 0]
    own = backbone.after_head(batch.logits).masked_fill(batch.logits.isneginf(), float("-inf")).log_softmax(-1)
    hit, distinct = decoded == target, canonical(decoded).sum(-1).float()
    found = {
        "coverage": hit.any(-1).float(),
        "gold_on_shortlist": (batch.target < own_size).float(),
        "distinct_tokens": distinct,
        "prior_token_accuracy": hit.gather(1, log_prior.argmax(-1, keepdim=True))[:, 0].float(),
        "encoder_token_accuracy": hit.gather(1, log_q.argmax(-1, keepdim=True))[:, 0].float(),
        "nll": -(log_prior + log_p).logsumexp(-1),
        "kl": (log_q.exp() * (log_q - log_prior)).sum(-1),
        "backbone_token_accuracy": (batch.target == 0).float(),
        "backbone_nll": -own.gather(1, target)[:, 0],
        "decision_share": (distinct > 1).float(),
        "entropy": batch.entropy,
        "prior": log_prior.exp(),
    }
    return {name: value.cpu() for name, value in found.items()}
