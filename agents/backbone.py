"""The frozen backbone without its options: plain decoding over the whole vocabulary, for reference."""

import torch
from torch import Tensor

from agents.base import Agent
from ollm_rl.rollout import choose


class PlainBackbone(Agent):
    """Greedy decoding, or sampling at temperature 1. Its `predict` reads logits (n, vocab) and gives tokens (n,)."""

    acts_on_logits = True

    def predict(
        self, hidden: Tensor, deterministic: bool = True, mask: Tensor | None = None, uniforms: Tensor | None = None
    ) -> Tensor:
        logits = hidden
        if deterministic:
            return logits.argmax(-1)
        rows = zip(logits.split(16), uniforms.split(16) if uniforms is not None else [None] * len(logits), strict=False)
        return torch.cat([choose(few.float().log_softmax(-1), False, u) for few, u in rows])
