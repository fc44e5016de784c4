r"""Conversion: training a plug-in on the hidden states of (problem, solution) pairs.

Two phases, both on cached hidden states and on a shortlist, so the backbone does not run.

1. Decoder, encoder and prior learn by one of the objectives of `ollm_rl.objectives`. Options that collapse, so that a
   choice between them means nothing, are noticed after each epoch and said.

2. The prior is fitted anew, the decoder being fixed. With `prior_target=canonical` (default) it and a new encoder learn
   the canonical option of the gold token, the lowest-numbered that decodes to it. Because every token has one name, the prior is a distribution over *tokens*: its first choice is the most likely token, and not
   merely the largest share of a token's mass split over equal options. With `prior_target=encoder` it imitates the
   encoder of phase 1, as in the paper.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.backbone import Backbone
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.hidden_cache import Blocks, HiddenStates, blocks, cached_hidden_states, key_of, num_batches, shuffled
from ollm_rl.objectives import OBJECTIVES, KLController, Positions
from ollm_rl.plugin import PlugIn, PlugInConfig, canonical
from ollm_rl.progress import track
from ollm_rl.prompts import Prompter
from ollm_rl.smollm2 import cache_dir
from ollm_rl.tasks import SPLITS, Task

log = logging.getLogger(__name__)
UNCERTAIN_NATS = 0.5
FIT_ROWS = 16_384  # positions that the inputs' mean and deviation are taken from
COLLAPSED = 1.2  # distinct tokens at uncertain positions; below, the options are one


@dataclass(frozen=True)
class ConversionConfig:
    """Settings of a conversion.

    Attributes:
        objective: `cover`, `expected`, `em` or `gumbel`, see `ollm_rl.objectives`.
        prior_target: `canonical` or `encoder`, see the module's text.
        num_solutions, num_heldout: pairs to train on (split `sft`) and to report on (split `tune`).
        epochs, prior_epochs: passes of phase 1 and 2.
        easy_share: share of the positions of which the backbone is sure that an epoch looks at.
        hardness: share of the canonical option in q (objective `cover`).
        anchor: weight of option 0's cross-entropy on every gold token (objective `cover`).
        kl_target: of q to the uniform distribution, in nats, or None (all objectives but `cover`).
        kl_rate: how fast the weight moves that holds it.
        temperature: of the draw (objective `gumbel`).
    """

    objective: str = "cover"
    prior_target: str = "canonical"
    num_solutions: int = 4000
    num_heldout: int = 300
    epochs: int = 6
    prior_epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    prior_dropout: float = 0.1
    easy_share: float = 0.25
    hardness: float = 0.5
    anchor: float = 1.0
    kl_target: float | None = None
    kl_rate: float = 0.02
    temperature: float = 1.0
    seed: int = 0
    plugin: PlugInConfig = field(default_factory=PlugInConfig)

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ConfigurationError(f"convert.objective={self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        if self.kl_target is not None and (isinstance(self.kl_target, str) or not self.kl_target > 0):
            raise ConfigurationError(
                f"convert.kl_target={self.kl_target!r}; expected null or a positive number of nats"
            )
        if self.prior_target not in ("canonical", "encoder"):
            raise ConfigurationError(f"convert.prior_target={self.prior_target!r}; expected 'canonical' or 'encoder'")


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
    key = key_of(backbone.fingerprint, str(backbone.dtype), prompter.prefix, text, asdict(config), "v3")
    path = cache_dir() / "plugins" / key
    if (path / "conversion.json").exists():
        log.info("plug-in: from the cache (%s)", path)
        return PlugIn.from_pretrained(path, backbone), json.loads((path / "conversion.json").read_text()), path
    states = cached_hidden_states(backbone, prompter, train, config.plugin.shortlist)
    seen = cached_hidden_states(backbone, prompter, heldout, config.plugin.shortlist).all()
    plugin = convert(backbone, states, config)
    report = measure(backbone, plugin, seen)
    report["trainable_share"] = plugin.num_parameters / (plugin.num_parameters + backbone.num_parameters)
    report["collapsed"] = report["distinct_tokens"]["uncertain"] < COLLAPSED
    report |= {"objective": config.objective, "num_solutions": len(train), "seconds": time.monotonic() - start}
    plugin.save_pretrained(path)
    (path / "conversion.json").write_text(json.dumps(report, indent=2) + "\n")
    return plugin, report, path


def convert(backbone: Backbone, states: Blocks, config: ConversionConfig) -> PlugIn:
    """Train a plug-in on N positions of solutions."""
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        names = (backbone.fingerprint, backbone.name, backbone.revision)
        plugin = PlugIn(backbone.hidden_size, config.plugin, *names).to(backbone.device)
        plugin.standardize.fit(states.block(0, FIT_ROWS).hidden)
        plugin.token_scale.fill_(1 / float(backbone.head.weight.float().std()))
        _train_decoder(backbone, plugin, states, config, generator)
        _train_prior(backbone, plugin, states, config, generator)
    return plugin.eval()


def option_logits(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    """Logits of all options on the positions' shortlists: (n, K, S + 1) float32."""
    return _shortlist_logits(backbone, states)(_biases(backbone, plugin, states))


def _biases(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
        return plugin.biases(states.hidden)


def _shortlist_logits(backbone: Backbone, states: HiddenStates) -> Callable[[Tensor], Tensor]:
    """From biases (n, M, d) to logits (n, M, S + 1) float32 of the positions' shortlists."""
    rows = backbone.head_rows(states.ids).transpose(1, 2)

    def logits_of(bias: Tensor) -> Tensor:
        logits = torch.bmm(bias.to(rows.dtype), rows).float() + states.logits[:, None]
        return backbone.cap(logits).masked_fill(states.logits[:, None].isneginf(), float("-inf"))

    return logits_of


def _train_decoder(
    backbone: Backbone, plugin: PlugIn, states: Blocks, config: ConversionConfig, generator: torch.Generator
) -> None:
    weight = backbone.head.weight.detach()
    objective, controller = OBJECTIVES[config.objective], KLController(config.kl_target, config.kl_rate)
    per_epoch = num_batches(states, config.batch_size, config.easy_share)
    optimizer, schedule = _optimizer(plugin.parameters(), config, config.epochs * per_epoch)
    with track("options", total=config.epochs * per_epoch, unit="steps") as bar:
        for _, last, part in _epochs(states, config, config.epochs, generator):
            batch = _to(part, backbone.device)
            at = Positions(
                logits_of=_shortlist_logits(backbone, batch),
                biases=_biases(backbone, plugin, batch),
                target=batch.target,
                log_prior=plugin.prior_logits(batch.hidden).log_softmax(-1),
                log_q=plugin.encoder_logits(batch.hidden, weight[batch.gold]).log_softmax(-1),
            )
            loss, kl, logits = objective(at, config, controller.weight)
            controller.update(kl.item())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plugin.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(1, f"loss {loss.item():.3f}, KL {kl.item():.2f}")
            if last:
                _check_collapse(logits, batch.entropy, config)


def _epochs(
    states: Blocks, config: ConversionConfig, epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, bool, HiddenStates]]:
    """All batches of all epochs: (rows, whether it is the epoch's last one, positions)."""
    for _ in range(epochs):
        before = None
        for rows, batch in shuffled(states, config.batch_size, generator, config.easy_share):
            if before is not None:
                yield before[0], False, before[1]
            before = rows, batch
        if before is not None:
            yield before[0], True, before[1]


def _check_collapse(logits: Tensor, entropy: Tensor, config: ConversionConfig) -> None:
    """Warn where the options say the same; `logits` are of the last batch of an epoch."""
    tokens = logits.argmax(-1)[entropy > UNCERTAIN_NATS]
    distinct = float(canonical(tokens).sum(-1).float().mean()) if len(tokens) else float("nan")
    if distinct < COLLAPSED:
        log.warning(
            "the options are collapsing: %.2f distinct tokens of %d at uncertain positions, so a choice between them "
            "means little. Try convert.objective=cover, a larger plugin.init_scale or more convert.epochs.",
            distinct, config.plugin.num_options,
        )  # fmt: skip


def _train_prior(
    backbone: Backbone, plugin: PlugIn, states: Blocks, config: ConversionConfig, generator: torch.Generator
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
    steps = config.prior_epochs * num_batches(states, config.batch_size, config.easy_share)
    optimizer, schedule = _optimizer(parameters, config, steps)
    with track("prior", total=steps, unit="steps") as bar:
        for rows, _, part in _epochs(states, config, config.prior_epochs, generator):
            batch = _to(part, backbone.device)
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
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.advance()


def canonical_labels(backbone: Backbone, plugin: PlugIn, states: Blocks) -> tuple[Tensor, Tensor]:
    """Whether some option decodes to the gold token (N,) float, and the lowest-numbered that does (N,)."""
    covered, latent = torch.zeros(len(states)), torch.zeros(len(states), dtype=torch.long)
    at = 0
    for part in blocks(states):
        hit = _decoded(backbone, plugin, part) == part.target[:, None]
        covered[at : at + len(part)], latent[at : at + len(part)] = hit.any(-1).float(), hit.float().argmax(-1)
        at += len(part)
    return covered, latent


def _optimizer(parameters, config: ConversionConfig, steps: int):
    """AdamW whose rate rises for a tenth of the steps and falls to nothing along a cosine."""

    def factor(step: int) -> float:
        rise = max(1.0, 0.1 * steps)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))

    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _to(states: HiddenStates, device: torch.device) -> HiddenStates:
    return HiddenStates(**{name: value.to(device) for name, value in vars(states).items()})


@torch.no_grad()
def _decoded(backbone: Backbone, plugin: PlugIn, states: HiddenStates) -> Tensor:
    """(N, K): the place in the shortlist that each option decodes to."""
    return torch.cat([
        option_logits(backbone, plugin, _to(part, backbone.device)).argmax(-1).cpu() for part in blocks(states)
    ])  # fmt: skip


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
