"""Keeping options to their shortlists.

Objectives see shortlists only, so nothing in them keeps an option from preferring a token that is on none: a rare one with
a long row of the head, or a digit where no digit is a candidate. On SmolLM2 0.9% of (position, option) pairs did. The
strongest tokens outside are therefore looked up in the whole vocabulary, at a few positions of every batch, and options
learn at more positions to leave the probability to their shortlists.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.models.backbone import Backbone
from ollm_rl.options.hidden_states import HiddenStates
from ollm_rl.options.quality import whole_logits

LOOKED_UP = 16  # positions of a batch, in the whole vocabulary
LEARNED = 4  # one in so many positions of a batch
KEPT = 1024  # tokens, the latest
COLUMNS = 128  # of which products have a multiple: few shapes, so that memory that held one fits the next


class OffShortlistPenalty:
    """The tokens outside of shortlists that options lately were closest to saying."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.tokens = torch.zeros(0, dtype=torch.long, device=backbone.device)

    def loss(self, states: HiddenStates, biases: Tensor, logits: Tensor) -> Tensor:
        """-log of the probability that options give to their shortlists rather than to outsiders: a mean.

        `biases` (n, K, d) and shortlist `logits` (n, K, S + 1) are of `states`. Both sides learn: were the shortlist's a constant, a bias could
        only flee from the outsiders that are known, to where others are, and would grow without end (docs/log.md).
        """
        self._look_up(states.block(0, LOOKED_UP), biases[:LOOKED_UP].detach())
        few = max(1, len(states) // LEARNED)
        states, tokens = states.block(0, few), self.tokens.unique()
        count = len(tokens)
        tokens = F.pad(tokens, (0, -count % COLUMNS))
        rows = self.backbone.head.weight.detach()[tokens]
        own = states.hidden[:, None, : self.backbone.hidden_size]
        hidden = (own + biases[:few]).to(rows.dtype)
        others = self.backbone.after_head((hidden @ rows.T).float())
        listed = (states.ids[:, :, None] == tokens).any(1)
        listed[:, count:] = True
        # Not -inf: where a position lists them all, that has no gradient.
        others = others.masked_fill(listed[:, None], -1e9).logsumexp(-1)
        return F.softplus(others - logits[:few].logsumexp(-1)).mean()

    @torch.no_grad()
    def _look_up(self, states: HiddenStates, biases: Tensor) -> None:
        whole = whole_logits(self.backbone, states, biases)
        listed = states.ids.long()[:, None].expand(-1, biases.shape[1], -1)
        strongest = whole.scatter(2, listed, float("-inf")).argmax(-1).flatten()
        self.tokens = torch.cat([self.tokens, strongest])[-KEPT:]
