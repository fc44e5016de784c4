r"""Conversion: training a plug-in on the hidden states of (problem, solution) pairs.

Two phases, both on cached hidden states and on a shortlist, so the backbone does not run.

1. The decoder minimises the exact expectation over all K options, sum_z q(z) CE_z, where CE_z is the
   cross-entropy of option z on the gold token. Who is responsible for the gold token, q, decides what the
   options become. Objective `cover` (default):

   * If some options already decode to the gold token, q is half the exact posterior pi0(z|h) p_z(x) and half the
     *canonical* option, the lowest-numbered that decodes to it.
   * If none does, the duplicate that is closest is recruited: an option that decodes to what a lower-numbered
     one gives anyway, so nothing is lost by moving it. Only where all K differ must the closest one move.
   * Option 0 also learns every gold token (weight `anchor`): it becomes the single best guess, which makes the
     prior's task easy, and the others become its alternatives.

   Objective `expected` is the paper's: q is the encoder's output, and the encoder is trained through it, with a
   penalty where its KL to the uniform distribution exceeds `kl_target` (0.2 nats).

2. Encoder and prior learn the canonical option of the gold token, the decoder being fixed. Because every token
   has one name, the prior is a distribution over *tokens*: its first choice is the most likely token, and not
   merely the largest share of a token's mass split over equal options.
"""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.backbone import Backbone
from ollm_rl.config import OBJECTIVES
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.hidden_cache import HiddenStates, cached_hidden_states, key_of
from ollm_rl.plugin import PlugIn, PlugInConfig, canonical
from ollm_rl.progress import track
from ollm_rl.prompts import Prompter
from ollm_rl.smollm2 import cache_dir
from ollm_rl.tasks import SPLITS, Task

log = logging.getLogger(__name__)
UNCERTAIN_NATS = 0.5


@dataclass(frozen=True)
class ConversionConfig:
    """Settings of a conversion.

    Attributes:
        objective: `cover` or `expected`, see the module's text.
        num_solutions, num_heldout: pairs to train on (split `sft`) and to report on (split `tune`).
        epochs, prior_epochs: passes of phase 1 and 2.
        hardness: share of the canonical option in q (objective `cover`).
        anchor: weight of option 0's cross-entropy on every gold token (objective `cover`).
        kl_target, kl_weight: of the encoder to the uniform distribution (objective `expected`).
    """

    objective: str = "cover"
    num_solutions: int = 4000
    num_heldout: int = 300
    epochs: int = 6
    prior_epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    prior_dropout: float = 0.1
    hardness: float = 0.3
    anchor: float = 1.0
    kl_target: float = 0.2
    kl_weight: float = 0.02
    seed: int = 0
    plugin: PlugInConfig = field(default_factory=PlugInConfig)

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ConfigurationError(f"convert.objective={self.objective!r}; expected one of {', '.join(OBJECTIVES)}")


def plugin_for(
    backbone: Backbone, prompter: Prompter, task: Task, config: ConversionConfig
) -> tuple[PlugIn, dict, Path]:
    """The plug-in of this backbone, task and configuration: from the cache, or converted now.

    Returns:
        the plug-in, its report (`conversion.json`) and its directory.
    """
    start = time.monotonic()
    train = task.problems("sft", config.num_solutions, config.seed)
    heldout = task.problems("tune", config.num_heldout, config.seed)
    for name, problems in (("sft", train), ("tune", heldout)):
        if not problems and not any(task.problems(s, 1) for s in SPLITS if s != "test"):
            raise DataError(
                f"all problems of task '{task.name}' are marked as test; conversion does not train on them. Convert on "
                "another task and come here with what it made: plugin.path=<directory>."
            )
        if not problems or any(p.solution is None for p in problems):
            raise DataError(
                f"conversion needs solutions, but task '{task.name}' has {len(problems)} problems in split '{name}', "
                "not all of them with a 'solution'. Give worked solutions, or a plug-in that exists (plugin.path=...)."
            )
    text = [(p.problem, p.solution) for p in train + heldout]
    key = key_of(backbone.fingerprint, str(backbone.dtype), prompter.prefix, text, asdict(config), "v1")
    path = cache_dir() / "plugins" / key
    if (path / "conversion.json").exists():
        log.info("plug-in: from the cache (%s)", path)
        return PlugIn.from_pretrained(path, backbone), json.loads((path / "conversion.json").read_text()), path
    states = cached_hidden_states(backbone, prompter, train, config.plugin.shortlist)
    seen = cached_hidden_states(backbone, prompter, heldout, config.plugin.shortlist)
    plugin = convert(backbone, states, config)
    report = measure(backbone, plugin, seen)
    report["trainable_share"] = plugin.num_parameters / (plugin.num_parameters + backbone.num_parameters)
    report |= {"objective": config.objective, "num_solutions": len(train), "seconds": time.monotonic() - start}
    plugin.save_pretrained(path)
    (path / "conversion.json").write_text(json.dumps(report, indent=2) + "\n")
    if report["distinct_tokens"]["uncertain"] < 1.2:
        log.warning("the options have collapsed: %.2f distinct tokens", report["distinct_tokens"]["uncertain"])
    return plugin, report, path


def convert(backbone: Backbone, states: HiddenStates, config: ConversionConfig) -> PlugIn:
    """Train a plug-in on N positions of solutions."""
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        names = (backbone.fingerprint, backbone.name, backbone.revision)
        plugin = PlugIn(backbone.hidden_size, config.plugin, *names).to(backbone.device)
        plugin.standardize.fit(states.hidden)
        plugin.token_scale.fill_(1 / float(backbone.head.weight.float().std()))
        _train_decoder(backbone, plugin, states, config, generator)
        _train_prior(backbone, plugin, states, config, generator)
    return plugin.eval()


def option_logits(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    """Logits of all options on the positions' shortlists: (n, K, S + 1) float32."""
    weight = backbone.head.weight.detach()
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
        bias = plugin.biases(states.hidden)
    rows = weight[states.ids.long()]
    logits = torch.bmm(bias.to(weight.dtype), rows.transpose(1, 2)).float() + states.logits[:, None]
    return backbone.cap(logits).masked_fill(states.logits[:, None].isneginf(), float("-inf"))


def _train_decoder(
    backbone: Backbone, plugin: PlugIn, states: HiddenStates, config: ConversionConfig, generator: torch.Generator
) -> None:
    weight = backbone.head.weight.detach()
    optimizer, schedule, batches = _optimizer(plugin.parameters(), len(states), config, config.epochs)
    with track("options", total=len(batches), unit="steps") as bar:
        order = torch.randperm(0)
        for step, (start, end) in enumerate(batches):
            if start == 0:
                order = torch.randperm(len(states), generator=generator)
            batch = _to(states.select(order[start:end]), backbone.device)
            logits = option_logits(backbone, plugin, batch)
            target = batch.target[:, None, None].expand(-1, logits.shape[1], 1)
            ce = -logits.log_softmax(-1).gather(2, target)[..., 0]  # (n, K)
            log_prior = plugin.prior_logits(batch.hidden).log_softmax(-1)
            log_q = plugin.encoder_logits(batch.hidden, weight[batch.gold]).log_softmax(-1)
            if config.objective == "cover":
                q, latent = _responsible(
                    logits.detach(), batch.target, ce.detach(), log_prior.detach(), config.hardness
                )
                learnt = F.one_hot(latent, plugin.num_options).float()
                loss = ((q * ce).sum(-1) + config.anchor * ce[:, 0]).mean() - (learnt * (log_prior + log_q)).sum(
                    -1
                ).mean()
            else:
                q = log_q.exp()
                kl = (q * (log_q + math.log(plugin.num_options))).sum(-1).mean()
                loss = (q * ce).sum(-1).mean() + config.kl_weight * F.relu(kl - config.kl_target)
                loss = loss - (q.detach() * log_prior).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plugin.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(1, f"loss {loss.item():.3f}" if step % 10 == 0 else "")


def _responsible(
    logits: Tensor, target: Tensor, ce: Tensor, log_prior: Tensor, hardness: float
) -> tuple[Tensor, Tensor]:
    """Objective `cover`: q (n, K) and the latent that encoder and prior shall learn (n,)."""
    tokens = logits.argmax(-1)
    hit = tokens == target[:, None]
    covered = hit.any(-1)
    # A duplicate costs nothing to move; among those, the closest one that the prior needs least.
    cost = ce + 100.0 * canonical(tokens) + 10.0 * log_prior.exp()
    latent = torch.where(covered, hit.float().argmax(-1), cost.argmin(-1))
    hard = F.one_hot(latent, logits.shape[1]).float()
    posterior = (log_prior - ce).softmax(-1)
    soft = hardness * hard + (1 - hardness) * posterior
    return torch.where(covered[:, None], soft, hard), latent


def _train_prior(
    backbone: Backbone, plugin: PlugIn, states: HiddenStates, config: ConversionConfig, generator: torch.Generator
) -> None:
    """Phase 2: fresh encoder and prior learn the canonical option, now that it stands still."""
    weight = backbone.head.weight.detach()
    plugin.prior, plugin.encoder = plugin.new_prior().to(backbone.device), plugin.new_encoder().to(backbone.device)
    parameters = [*plugin.prior.parameters(), *plugin.encoder.parameters()]
    covered, latent = canonical_labels(backbone, plugin, states)
    config = replace(config, batch_size=config.batch_size // 2)
    optimizer, schedule, batches = _optimizer(parameters, len(states), config, config.prior_epochs)
    with track("prior", total=len(batches), unit="steps") as bar:
        order = torch.randperm(0)
        for start, end in batches:
            if start == 0:
                order = torch.randperm(len(states), generator=generator)
            rows = order[start:end]
            batch = _to(states.select(rows), backbone.device)
            wanted, counts = latent[rows].to(backbone.device), covered[rows].to(backbone.device)
            with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
                x = F.dropout(plugin.standardize(batch.hidden), config.prior_dropout)
                gold = weight[batch.gold].float() * plugin.token_scale
                guesses = (plugin.prior(x), plugin.encoder(torch.cat([x, gold], -1)))
            losses = sum(F.cross_entropy(g.float(), wanted, reduction="none") for g in guesses)
            loss = (losses * counts).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.advance()


def canonical_labels(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> tuple[Tensor, Tensor]:
    """Whether some option decodes to the gold token (N,) float, and the lowest-numbered that does (N,)."""
    hit = _decoded(backbone, plugin, states) == states.target[:, None]
    return hit.any(-1).float(), hit.float().argmax(-1)


def _optimizer(parameters, n: int, config: ConversionConfig, epochs: int):
    """AdamW with a one-cycle schedule, and the (start, end) of every batch of every epoch."""
    batch = min(config.batch_size, n)
    batches = [(start, start + batch) for _ in range(epochs) for start in range(0, n - batch + 1, batch)]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=len(batches) + 1, pct_start=0.1
    )
    return optimizer, schedule, batches


def _to(states: HiddenStates, device: torch.device) -> HiddenStates:
    return HiddenStates(**{name: value.to(device) for name, value in vars(states).items()})


@torch.no_grad()
def _decoded(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    """(N, K): the place in the shortlist that each option decodes to."""
    parts = []
    for rows in torch.arange(len(states)).split(1024):
        batch = _to(states.select(rows), backbone.device)
        parts.append(option_logits(backbone, plugin, batch).argmax(-1).cpu())
    return torch.cat(parts)


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
        batch = _to(states.select(rows), backbone.device)
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
