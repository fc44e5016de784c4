"""The frozen backbone without its options: plain decoding over the whole vocabulary, for reference."""

from torch import Tensor

from agents.base import Agent
from ollm_rl.options.policies import sample_tokens


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
        return sample_tokens(logits, uniforms)[0]
