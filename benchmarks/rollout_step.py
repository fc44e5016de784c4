"""A decode step beside its matrix products.

`benchmarks/rollout.py --sections step` calls this. A step is what the engine does for one token a row: the prior chooses among the
options, and body, reader, head and options look at the token. Its products are plain `torch.nn.functional.linear` calls of every weight
that it uses, those of plug-in, reader and prior included, in their precisions.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.prior import Prior
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.session.local import Session

ROWS = (1, 8, 32, 64, 128)
CONTEXT = 240  # tokens behind a step


def step(
    session: Session, repeats: int = 5, rows: tuple[int, ...] = ROWS, context: int = CONTEXT, steps: int = 5
) -> dict:
    """Milliseconds of a step at a context of so many tokens, medians of `repeats` in alternation.

    `shared`: the task's examples, which all rows share, are a part of the context; `own`: all of it is each row's own.
    `uncompiled`: `shared` without compiled functions and packed weights. `ratio_to_products` is how many times their products' time
    steps take, the median over repetitions.
    """
    return {str(n): _at(session, n, repeats, context, steps) for n in rows}


@torch.inference_mode()
def _at(session: Session, rows: int, repeats: int, context: int, steps: int) -> dict[str, Any]:
    backbone, prefix = session.backbone, len(session.prompter.prefix)
    engine = RolloutEngine(session.lm, session.prompter, num_slots=rows, max_new_tokens=1, max_prompt_tokens=context)
    engine.admit([[3 + i % 100] * 8 for i in range(rows)])
    act, uniforms = PolicyAdapter(Prior(session), deterministic=False), torch.full((rows,), 0.5)
    weights, inputs = _weights(session), {}
    for weight in weights:
        inputs[weight.shape[1], weight.dtype] = torch.randn(rows, weight.shape[1]).to(weight.dtype)

    def products() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1], weight.dtype], weight)

    def stepped(own: int) -> None:
        engine.lengths = torch.full_like(engine.lengths, own)
        z, _ = act(engine.hidden, engine.options.mask, uniforms)
        engine.advance(engine.options.tokens.gather(1, z[:, None])[:, 0])

    def uncompiled() -> None:
        kept, backbone.compiled = backbone.compiled, False
        stepped(max(8, context - prefix))
        backbone.compiled = kept

    peers: dict[str, Callable[[], None]] = {
        "products": products,
        "shared": lambda: stepped(max(8, context - prefix)),
        "own": lambda: stepped(context),
        "uncompiled": uncompiled,
    }
    for peer in peers.values():
        peer()
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, peer in peers.items():
            taken[name].append(_seconds(peer, steps))
    ratios = {
        name: median(a / b for a, b in zip(taken[name], taken["products"], strict=True))
        for name in peers
        if name != "products"
    }
    return {"ms": {name: round(1e3 * median(found), 2) for name, found in taken.items()}, "ratio_to_products": ratios}


def _seconds(run: Callable[[], None], steps: int) -> float:
    """Median seconds of some runs, one after the other."""
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)


def _weights(session: Session) -> list[Tensor]:
    """Of all products of a step."""
    backbone, plugin, reader = session.backbone, session.lm.plugin, session.lm.reader
    parts: list[Any] = [backbone.body, backbone.head, plugin.decoder, plugin.prior]
    if reader is not None:
        parts.append(reader)
    return [m.weight.detach() for part in parts for m in part.modules() if isinstance(m, nn.Linear)]
