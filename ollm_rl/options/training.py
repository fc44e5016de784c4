"""The training of a plug-in on stored hidden states: options first, then the prior; see `ollm_rl.options.conversion`."""

import copy
import logging
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.common.finite import check_weights
from ollm_rl.common.progress import track
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.hidden_states import Blocks, num_batches, shuffled
from ollm_rl.options.modules import PlugIn, canonical
from ollm_rl.options.objectives import OBJECTIVES, KLController, Positions
from ollm_rl.options.optimization import LOG_EVERY, REMEDY, Progress, Trained, optimizer_of, step
from ollm_rl.options.quality import (
    COLLAPSED,
    UNCERTAIN_NATS,
    bias_size,
    canonical_labels,
    decoder_biases,
    moved,
    shortlist_logits,
)
from ollm_rl.options.reader import Reader
from ollm_rl.options.shortlist_loss import OffShortlistPenalty

log = logging.getLogger(__name__)
FIT_ROWS = 16_384  # positions that the inputs' mean and deviation are taken from


def convert(
    backbone: Backbone,
    states: Blocks,
    config: ConversionConfig,
    progress: Progress | None = None,
    reader: Reader | None = None,
) -> PlugIn:
    """Train a plug-in on N positions of solutions, whose states are [h; g] if `reader` has read the texts.

    Raises:
        TrainingError: a loss or a weight is not finite any more.
    """
    progress = progress or Progress()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        plugin = PlugIn.beside(backbone, config.plugin)
        if reader is not None:
            plugin.reader = copy.deepcopy(reader).requires_grad_(False)
        plugin.standardize.fit(states.block(0, FIT_ROWS).hidden)
        plugin.token_scale.fill_(1 / float(backbone.head.weight.float().std()))
        _train_decoder(backbone, plugin, states, config, generator, progress)
        _train_prior(backbone, plugin, states, config, generator, progress)
    check_weights("the plug-in", plugin, REMEDY)
    return plugin.eval()


def _train_decoder(
    backbone: Backbone,
    plugin: PlugIn,
    states: Blocks,
    config: ConversionConfig,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Phase 1: decoder, encoder and a first prior, by the objective."""
    weight = backbone.head.weight.detach()
    objective, controller = OBJECTIVES[config.objective], KLController(config.kl_target, config.kl_rate)
    per_epoch = num_batches(states, config.batch_size, config.easy_keep_prob)
    parameters = [p for name, p in plugin.named_parameters() if not name.startswith("reader.")]
    optimizer, schedule = optimizer_of(parameters, config.learning_rate, config.weight_decay, config.epochs * per_epoch)
    trained = Trained(plugin, optimizer, schedule, generator, controller)
    done = progress.restore("options", trained, config.epochs)
    with track("options", config.epochs * per_epoch, "steps", done=done * per_epoch) as bar:
        for epoch in range(done, config.epochs):
            penalty = OffShortlistPenalty(backbone)
            for _, part in shuffled(states, config.batch_size, generator, config.easy_keep_prob):
                batch = moved(part, backbone.device)
                at = Positions(
                    logits_of=shortlist_logits(backbone, batch),
                    biases=decoder_biases(backbone, plugin, batch),
                    target=batch.target,
                    log_prior=plugin.prior_log_probs(batch.hidden),
                    log_q=plugin.encoder_logits(batch.hidden, weight[batch.gold]).log_softmax(-1),
                )
                loss, kl, logits = objective(at, config, controller.weight)
                off_shortlist = (
                    penalty.loss(batch, at.biases, logits) if config.off_shortlist_penalty else loss.new_zeros(())
                )
                size = bias_size(batch, at.biases)
                loss = loss + config.off_shortlist_penalty * off_shortlist + config.bias_penalty * size
                controller.update(kl.item())
                step(loss, optimizer, schedule)
                bar.advance(1, f"loss {loss.item():.3f}, KL {kl.item():.2f}")
                if bar.done % LOG_EVERY == 0:
                    figures = {"loss": loss.item(), "kl": kl.item(), "kl_weight": controller.weight}
                    figures |= {"off_shortlist_penalty": off_shortlist.item(), "bias": size.item()}
                    progress.log(bar.done, {f"options/{name}": value for name, value in figures.items()})
            distinct = _check_collapse(logits, batch.entropy, config)
            progress.log(bar.done, {"options/epoch": epoch + 1, "options/distinct_tokens": distinct})
            progress.save("options", epoch + 1, trained)


def _check_collapse(logits: Tensor, entropy: Tensor, config: ConversionConfig) -> float:
    """Distinct tokens at uncertain positions of an epoch's last batch; a warning where the options say the same."""
    tokens = logits.argmax(-1)[entropy > UNCERTAIN_NATS]
    distinct = float(canonical(tokens).sum(-1).float().mean()) if len(tokens) else float("nan")
    if distinct < COLLAPSED:
        log.warning(
            "the options are collapsing: %.2f distinct tokens of %d at uncertain positions, so a choice between them "
            "means little. Try convert.objective=cover, a larger plugin.init_scale or more convert.epochs.",
            distinct, config.plugin.num_options,
        )  # fmt: skip
    return distinct


def _train_prior(
    backbone: Backbone,
    plugin: PlugIn,
    states: Blocks,
    config: ConversionConfig,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Phase 2: a fresh prior (and encoder) learns from options that stand still."""
    weight = backbone.head.weight.detach()
    plugin.prior = plugin.new_prior().to(backbone.device)
    parameters = list(plugin.prior.parameters())
    imitate = config.prior_target == "encoder"
    if not imitate:
        plugin.encoder = plugin.new_encoder().to(backbone.device)
        parameters += plugin.encoder.parameters()
    covered, latent = canonical_labels(backbone, plugin, states)
    config = replace(config, batch_size=max(1, config.batch_size // 2))
    steps = config.prior_epochs * num_batches(states, config.batch_size, config.easy_keep_prob)
    optimizer, schedule = optimizer_of(parameters, config.learning_rate, config.weight_decay, steps)
    trained = Trained(plugin, optimizer, schedule, generator)
    done = progress.restore("prior", trained, config.prior_epochs)
    per_epoch = steps // max(1, config.prior_epochs)
    with track("prior", steps, "steps", done=done * per_epoch) as bar:
        for epoch in range(done, config.prior_epochs):
            for rows, part in shuffled(states, config.batch_size, generator, config.easy_keep_prob):
                batch = moved(part, backbone.device)
                with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
                    x = F.dropout(plugin.standardize(batch.hidden), config.prior_dropout)
                    gold = weight[batch.gold].float() * plugin.token_scale
                    prior, encoder = plugin.prior(x).float(), plugin.encoder(torch.cat([x, gold], -1)).float()
                if imitate:
                    loss = F.cross_entropy(prior, encoder.detach().softmax(-1))
                else:
                    wanted, counts = latent[rows].to(backbone.device), covered[rows].to(backbone.device)
                    losses = sum(F.cross_entropy(guess, wanted, reduction="none") for guess in (prior, encoder))
                    loss = (losses * counts).mean()
                step(loss, optimizer, schedule)
                bar.advance()
                if bar.done % LOG_EVERY == 0:
                    progress.log(bar.done, {"prior/loss": loss.item()})
            progress.save("prior", epoch + 1, trained)
