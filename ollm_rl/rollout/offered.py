"""What the options offer at a row of the engine, for people to read: every token once, with the prior's probability."""

from dataclasses import dataclass

import torch

from ollm_rl.rollout.engine import RolloutEngine

BROKEN = "\ufffd"  # what a tokenizer makes of a part of a character


@dataclass(frozen=True)
class Offer:
    """A token that may come next.

    Attributes:
        latent: the lowest one whose option decodes to it.
        text: what the tokenizer makes of it alone (`piece`).
        prior: the prior's probability, which is that of the latent among those that `Options.mask` allows.
        ends: it ends the text.
    """

    latent: int
    token: int
    text: str
    prior: float
    ends: bool


@torch.inference_mode()
def offered(engine: RolloutEngine, row: int = 0) -> list[Offer]:
    """The tokens that the options of an active row decode to, in the order of their latents; one where the position is forced."""
    tokens, mask = engine.options.tokens[row], engine.options.mask[row : row + 1]
    prior = engine.lm.plugin.prior_logits(engine.hidden[row : row + 1], mask).float().softmax(-1)[0]
    ends = engine.eos_ids
    return [
        Offer(z, token, piece(engine, token), float(prior[z]), token in ends)
        for z, token, allowed in zip(range(len(tokens)), tokens.tolist(), mask[0].tolist(), strict=True)
        if allowed
    ]


def piece(engine: RolloutEngine, token: int) -> str:
    """A token as text; one that is only a part of a character, as the vocabulary has it."""
    tokenizer = engine.backbone.tokenizer
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if BROKEN in text else text
