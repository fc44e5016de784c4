"""TRL's trainers as runs of ours: quiet, resumable, their figures in `metrics.jsonl`, and no slower on a CPU than need be."""

import functools
import json
import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.common.checkpoints import SEAL, newest_whole, seal
from ollm_rl.common.finite import check_weights
from ollm_rl.common.progress import Bar
from ollm_rl.errors import ConfigurationError
from ollm_rl.models.backbone import Backbone

# They take seconds to import: that is done where they are needed, but known to be possible before anything is trained.
if any(find_spec(name) is None for name in ("trl", "peft")):
    raise ConfigurationError("the LoRA agents need TRL and PEFT. Install them with `pip install 'ollm_rl[trl]'`.")


def common_settings(path: Path, backbone: Backbone, seed: int) -> dict[str, Any]:
    """What both trainers are told."""
    import datasets

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    datasets.disable_progress_bars()  # of mapping a few thousand lines
    return {
        "output_dir": str(path), "report_to": "none", "disable_tqdm": True, "seed": seed, "bf16": False,
        "use_cpu": backbone.device.type == "cpu", "gradient_checkpointing": False, "save_total_limit": 2,
        "dataloader_pin_memory": False,
    }  # fmt: skip


def score_few(backbone: Backbone) -> None:
    """On a CPU, spare the forward call that TRL's trainers use what nobody asks for.

    The head scores only the tokens that count. TRL does so on GPUs; elsewhere it scores every position of every prompt over the
    whole vocabulary, which took a third of the time here. Texts of about one length go through the body together, without
    the padding to the longest of all. And a prompt goes through it once, however many texts begin with it. Same figures, to
    rounding (`tests/agents/test_lora.py`).
    """
    from trl.trainer.utils import FusedCausalLMOutput

    model = backbone.model
    fused = model.forward

    def forward(self, *args, fused_lm_head=False, labels=None, num_items_in_batch=None, **kwargs):
        unusual = kwargs.get("output_router_logits")
        if not fused_lm_head or labels is None or labels.device.type != "cpu" or unusual:
            return fused(
                *args, fused_lm_head=fused_lm_head, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs
            )
        mask = labels[:, 1:] != -100
        begin = int(mask.any(0).long().argmax()) + 1  # of the prompts nothing is scored
        states = _states(self.base_model, begin, *args, **kwargs)[:, :-1]
        wanted = labels[:, 1:][mask]

        def score(some: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            scores = backbone.after_head(self.get_output_embeddings()(some).float()).log_softmax(-1)
            with torch.no_grad():
                entropy, best = -(scores.exp() * scores).sum(-1), scores.argmax(-1) == tokens
            return scores.gather(1, tokens[:, None])[:, 0], entropy, best

        # In parts of 12 MB: (tokens, vocabulary) as a whole made an update a seventh slower.
        parts = zip(states[mask].split(64), wanted.split(64), strict=True)
        few, entropy, top = (torch.cat(found) for found in zip(*(score(*part) for part in parts), strict=True))

        def placed(values: Tensor) -> Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        count = mask.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(
            loss=-few.sum() / count, log_probs=placed(few), entropy=placed(entropy), log_sum_sq_probs=None,
            mean_logits=None, is_top1=placed(top), label_mask=mask, aux_loss=None,
        )  # fmt: skip

    model.forward = MethodType(functools.wraps(type(model).forward)(forward), model)


TOGETHER = 8  # texts of about one length
LEAST_SHARED = 8  # tokens that a text is spared by what it shares


def _states(body: Any, begin: int, *args: Any, **kwargs: Any) -> Tensor:
    """The body's states (n, t, d), zero after the longest of the texts that went through it together.

    What texts begin with in common goes through it once: a prompt of several texts, or what all prompts have, whichever spares more.

    Args:
        begin: the first column of a token that is scored.
    """
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    others = any(isinstance(v, Tensor) for v in kwargs.values() if v is not ids and v is not mask)  # images, say
    if args or ids is None or mask is None or others:
        return body(*args, **{**kwargs, "use_cache": False}).last_hidden_state
    width = mask.shape[1]
    before, texts, prompt_of, shared = _shared(body, ids, mask, begin, kwargs)
    ends = (mask * torch.arange(1, width + 1)).amax(1).clamp_min(before + 1)  # padding before a text: it sets positions
    order, found = ends.argsort(), []
    for rows in order.split(TOGETHER):
        end = int(ends[rows].max())
        some = {**kwargs, "input_ids": ids[rows, before:end], "attention_mask": mask[rows, :end], "use_cache": False}
        if before:
            some |= {"past_key_values": _for_rows(shared, prompt_of[rows]), "use_cache": True}
        found.append(F.pad(body(**some).last_hidden_state, (0, 0, 0, width - end)))
    states = torch.cat(found)[order.argsort()]
    return torch.cat([texts[prompt_of], states], dim=1) if before else states


def _shared(body: Any, ids: Tensor, mask: Tensor, begin: int, kwargs: dict) -> tuple[int, Tensor, Tensor, Any]:
    """What rows begin with in common.

    Returns:
        How many columns, their states (u, columns, d) of each of u different ones, which of them each row has, and their keys and values.
        0 columns if that spares too little, or the body keeps something else than all keys and values.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    nothing = 0, ids, ids, None
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=body.config).layers):  # windows, or states
        return nothing
    both = torch.stack([ids, mask], dim=-1)
    same = int((both == both[:1]).all(-1).all(0).long().cumprod(0).sum())  # columns that all rows have in common
    found = [
        (columns, *both[:, :columns].flatten(1).unique(dim=0, return_inverse=True))
        for columns in (same, begin)
        if 0 < columns < ids.shape[1]
    ]

    def spared(found: tuple[int, Tensor, Tensor]) -> int:
        return (len(ids) - len(found[1])) * found[0]

    columns, unlike, which = max(found, key=spared, default=(0, ids, ids))
    if spared((columns, unlike, which)) < LEAST_SHARED * len(ids):
        return nothing
    tokens, seen = unlike.view(len(unlike), columns, 2).unbind(-1)
    out = body(**{**kwargs, "input_ids": tokens, "attention_mask": seen, "use_cache": True})
    return columns, out.last_hidden_state, which, out.past_key_values.layers


def _for_rows(layers: Any, rows: Tensor) -> Any:
    """Keys and values of what texts share, for each of these texts; gradients go through."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for at, layer in enumerate(layers):
        cache.update(layer.keys[rows], layer.values[rows], at)
    return cache


COUNTERS = "counters.json"  # in a trainer's checkpoint: what is counted besides its optimiser steps


def reporting(
    bar: Bar,
    log_metrics: Callable[[int, dict], object] | None,
    weights: Callable[[], dict[str, Tensor]],
    counters: dict[str, Any] | None = None,
) -> Any:
    """Progress and figures, as all our runs have them; the trainer itself is quiet. Checkpoints are sealed.

    Args:
        log_metrics: gets the optimiser step and its figures; if it returns False, training ends.
        weights: gives those that are trained; once they are not finite, training ends with a `TrainingError`.
        counters: kept in every checkpoint.
    """
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        seen = 0

        def on_log(self, args, state, control, logs=None, **_):
            check_weights("the adapter", weights())
            if log_metrics is None:
                return
            figures = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
            if log_metrics(state.global_step, figures) is False:
                control.should_training_stop = True

        def on_step_end(self, args, state, control, **_):
            if bar.unit == "steps":
                bar.advance(state.global_step - self.seen)
                self.seen = state.global_step

        def on_save(self, args, state, control, **_):
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if counters is not None:
                (folder / COUNTERS).write_text(json.dumps(counters))
            seal(folder)

    return Reporting()


def run_trainer(trainer: Any, checkpoint: tuple[int, Path] | None) -> None:
    """Train, from a checkpoint if there is one."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about the trainers' own defaults
        trainer.train(resume_from_checkpoint=str(checkpoint[1]) if checkpoint else None)


def last_checkpoint(path: Path) -> tuple[int, Path] | None:
    """Optimiser steps and directory of a trainer's last whole checkpoint; None before the first.

    One without a seal and without the trainer's state, which is written last, is of a kill while it was saved.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    folders = [f for f in path.glob("checkpoint-*") if f.name.rpartition("-")[2].isdecimal()]
    saved = [f for f in folders if (f / SEAL).exists() or (f / "trainer_state.json").exists()]
    found = newest_whole(sorted(saved, key=_steps, reverse=True))
    return (_steps(found), found) if found else None


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
