"""The frozen backbone without its options: plain decoding over the whole vocabulary, for reference."""

import torch
from torch import Tensor

from agents.base import Agent
from ollm_rl.options.policies import choose


class PlainBackbone(Agent):
    """Greedy decoding, or sampling at temperature 1. Its `predict` reads logits (n, vocab) and gives tokens (n,)."""

    acts_on_logits = True

    def predict(
        self,
        hidden: Tensor,
        deterministic: bool = True,
        mask: Tensor | None = None,
        uniforms: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor:
        assert logits is not None
        if deterministic:
            return logits.argmax(-1)
        return sample(logits, uniforms)[0]


def sample(logits: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens (n,) at temperature 1 from logits (n, vocab), and their log-probabilities (n,)."""
    tokens, log_probs = [], []
    few = logits.split(16)  # float32 copies of all rows at once would leave the processor's cache
    for rows, u in zip(few, uniforms.split(16) if uniforms is not None else [None] * len(few), strict=True):
        scores = rows.float().log_softmax(-1)
        tokens.append(choose(scores, False, u))
        log_probs.append(scores.gather(1, tokens[-1][:, None])[:, 0])
    return torch.cat(tokens), torch.cat(log_probs)
