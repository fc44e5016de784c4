"""The training of a reader: first, and alone.

With a net that turns [h; g] into one bias on h, the reader learns to say the next token of the solutions, by cross-entropy through the
frozen head on the shortlist. Then it stands still, so that options, prior, policies and controls read the same stored states,
and conversions that differ in their options share it.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.distributed import processes
from ollm_rl.common.finite import check_weights
from ollm_rl.common.progress import track
from ollm_rl.common.spent import counted, spent
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.hidden_cache import cached_hidden_states
from ollm_rl.options.hidden_states import HiddenStates, HiddenStore, blocks, num_batches, shuffled
from ollm_rl.options.modules import mlp
from ollm_rl.options.optimization import LOG_EVERY, REMEDY, Progress, Trained, optimizer_of, step
from ollm_rl.options.quality import UNCERTAIN_NATS, bias_size, moved, shortlist_logits
from ollm_rl.options.reader import Reader
from ollm_rl.options.reading import read
from ollm_rl.options.sequences import (
    RecomputedTexts,
    StoredTexts,
    TextBatch,
    Texts,
    in_order,
    num_text_batches,
    text_batches,
)
from ollm_rl.options.standardize import Standardize
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter

VERSION = "v3"  # of what the same settings make
FIT_TEXTS = 256  # that the mean and deviation of the layers' states are taken from


class Guess(nn.Module):
    """A reader with one bias on h, by which it is trained: (N, d) and g (N, r) -> (N, 1, d)."""

    def __init__(self, backbone: Backbone, reader: Reader | None, width: int):
        super().__init__()
        size = backbone.hidden_size
        self.reader = reader
        self.standardize = Standardize(size)
        self.net = mlp(size + (reader.width if reader is not None else 0), width, size, 1)

    def forward(self, hidden: Tensor, g: Tensor | None) -> Tensor:
        x = self.standardize(hidden)
        bias: Tensor = self.net(x if g is None else torch.cat([x, g.to(x.dtype)], -1))
        return bias[:, None]


def reader_key(
    backbone: Backbone, prompter: Prompter, train: list[Problem], heldout: list[Problem], config: ConversionConfig
) -> str:
    """The reader's name in the cache. Plug-ins have it in theirs: what was begun on one reader does not go on over another."""
    sizes = {k: v for k, v in asdict(config.plugin).items() if k.startswith("reader_")}
    fit = {k: v for k, v in asdict(config).items() if k.startswith("reader_")}
    fit |= {k: getattr(config, k) for k in ("batch_size", "weight_decay", "easy_keep_prob", "seed", "bias_penalty")}
    text = [(prompter.own(p), p.solution) for p in train + heldout]
    return key_of(
        backbone.fingerprint, str(backbone.dtype), prompter.prefix, text, sizes, fit, config.plugin.shortlist, VERSION
    )


def cached_reader(
    backbone: Backbone, prompter: Prompter, train: list[Problem], heldout: list[Problem], config: ConversionConfig,
    log_metrics: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[Reader, dict[str, Any]]:  # fmt: skip
    """The reader of these solutions and settings, and its report: from the cache, or trained now.

    The report has, for `all` and `uncertain` positions of held-out solutions, the token accuracy and the cross-entropy (nats) of
    one best guess per position, `with` the reader and `without` it.

    Raises:
        TrainingError: a loss or a weight is not finite any more.
    """
    path = cache_dir() / "readers" / reader_key(backbone, prompter, train, heldout, config)
    us = processes()
    with made_by_one(path):
        if not (path / "reader.json").exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)  # of its first weights
                reader = Reader(backbone.hidden_size, config.plugin, backbone.geometry)
            stores = [_stored(backbone, prompter, problems, config, reader.layers) for problems in (train, heldout)]
            if us.is_main:
                keep = path.with_suffix(".training")
                with counted(path):
                    texts = [
                        texts_for(backbone, prompter, problems, config, reader.layers, store)
                        for problems, store in zip((train, heldout), stores, strict=True)
                    ]
                    report = _trained(backbone, prompter, reader, texts, stores, config, Progress(keep, log_metrics))
                weights = {name: value.cpu().contiguous() for name, value in reader.state_dict().items()}
                save_file(weights, path / "reader.safetensors")
                (path / "reader.json").write_text(json.dumps({**report, "seconds": spent(path)}) + "\n")
                shutil.rmtree(keep, ignore_errors=True)
            us.wait()
    reader = Reader(backbone.hidden_size, config.plugin, backbone.geometry)
    reader.load_state_dict(load_file(path / "reader.safetensors"))
    return reader.to(backbone.device).eval(), json.loads((path / "reader.json").read_text())


def _stored(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], config: ConversionConfig, layers: Sequence[int]
) -> HiddenStore:
    """The positions of solutions, with the layers' states of all tokens if those are to be stored."""
    kept = layers if config.reader_states == "stored" else ()
    return cached_hidden_states(backbone, prompter, problems, config.plugin.shortlist, kept)


def texts_for(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], config: ConversionConfig, layers: Sequence[int],
    store: HiddenStore | None = None,
) -> Texts:  # fmt: skip
    """Texts with the states of layers at every token, as `config.reader_states` wants them."""
    if config.reader_states == "recomputed":
        return RecomputedTexts(backbone, prompter, problems, config.plugin.shortlist, layers)
    return StoredTexts(store or _stored(backbone, prompter, problems, config, layers), prompter, problems)


def _trained(
    backbone: Backbone, prompter: Prompter, reader: Reader, texts: Sequence[Texts], stores: Sequence[HiddenStore],
    config: ConversionConfig, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Train `reader`, and a guess without one; what both are worth on the second of `texts` and `stores`."""
    size, keep = config.batch_size, config.easy_keep_prob
    train, heldout = texts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        plain = Guess(backbone, None, config.plugin.decoder_width)
        with_reader = Guess(backbone, reader, config.plugin.decoder_width)
        some = train.some(0, FIT_TEXTS)
        reader.standardize.fit(torch.cat([text.taps for text in some if text.taps is not None]))
        for guess in (plain, with_reader):
            guess.standardize.fit(torch.cat([text.states.hidden for text in some]))
            guess.to(backbone.device)
        steps = num_text_batches(train, size)
        _train_guess(backbone, with_reader, lambda g: text_batches(train, size, g, keep), steps, config, progress)
        found = {"with": _worth(backbone, with_reader, in_order(heldout))}
        _train_guess(
            backbone, plain, lambda g: (TextBatch.plain(part) for _, part in shuffled(stores[0], size, g, keep)),
            num_batches(stores[0], size, keep), config, Progress(),
        )  # fmt: skip
        found["without"] = _worth(backbone, plain, map(TextBatch.plain, blocks(stores[1])))
    check_weights("the reader", reader, REMEDY)
    return found


def _train_guess(
    backbone: Backbone, guess: Guess, epoch_of: Callable[[torch.Generator], Iterable[TextBatch]],
    per_epoch: int, config: ConversionConfig, progress: Progress,
) -> None:  # fmt: skip
    """Cross-entropy on the batches that `epoch_of` gives for every epoch, about `per_epoch` of them."""
    generator = torch.Generator().manual_seed(config.seed)
    epochs, name = config.reader_epochs, "reader" if guess.reader is not None else "without reader"
    rate, decay = config.reader_learning_rate, config.weight_decay
    optimizer, schedule = optimizer_of(guess.parameters(), rate, decay, epochs * per_epoch, muon=True)
    trained = Trained(guess, optimizer, schedule, generator)
    done = progress.restore("reader", trained, epochs)
    if guess.reader is not None:
        guess.reader.dropout(config.reader_dropout)
    guess.train()
    with track(name, epochs * per_epoch, "steps", done=done * per_epoch) as bar:
        for epoch in range(done, epochs):
            for batch in epoch_of(generator):
                loss, size = _loss(backbone, guess, batch)
                step(loss + config.bias_penalty * size, optimizer, schedule)
                bar.advance(1, f"loss {loss.item():.3f}")
                if bar.done % LOG_EVERY == 0:
                    progress.log(bar.done, {"reader/loss": loss.item(), "reader/bias": size.item()})
            progress.save("reader", epoch + 1, trained)
    guess.eval()


def _logits(backbone: Backbone, guess: Guess, batch: TextBatch) -> tuple[Tensor, Tensor, HiddenStates]:
    """The guess's logits (N, S + 1), its biases (N, 1, d), and the positions on the device."""
    states = moved(batch.states, backbone.device)
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.dtype == torch.bfloat16):
        g = None
        if guess.reader is not None:
            g = read(guess.reader, replace(batch, taps=batch.taps.to(backbone.device)))
        biases = guess(states.hidden, g)
    return shortlist_logits(backbone, states)(biases)[:, 0], biases, states


def _loss(backbone: Backbone, guess: Guess, batch: TextBatch) -> tuple[Tensor, Tensor]:
    logits, biases, states = _logits(backbone, guess, batch)
    weight = batch.weight.to(logits.device)
    losses = F.cross_entropy(logits, states.target, reduction="none")
    return (losses * weight).sum() / weight.sum(), bias_size(states, biases)


@torch.no_grad()
def _worth(backbone: Backbone, guess: Guess, batches: Iterable[TextBatch]) -> dict[str, dict[str, float]]:
    """Token accuracy and cross-entropy of the guess on whole batches, for `all` and `uncertain` positions."""
    right, losses, entropy = [], [], []
    for batch in batches:
        logits, _, states = _logits(backbone, guess, batch)
        right.append((logits.argmax(-1) == states.target).float().cpu())
        losses.append(F.cross_entropy(logits, states.target, reduction="none").cpu())
        entropy.append(states.entropy.cpu())
    uncertain = torch.cat(entropy) > UNCERTAIN_NATS
    groups = {"all": torch.ones_like(uncertain), "uncertain": uncertain}
    figures = {"token_accuracy": torch.cat(right), "nll": torch.cat(losses)}
    return {name: {g: float(v[m].mean()) for g, m in groups.items()} for name, v in figures.items()}
