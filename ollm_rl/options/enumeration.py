"""The options of states, enumerated: which token each latent says, and which latents say the same."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ollm_rl.models.backbone import Backbone
from ollm_rl.options.modules import PlugIn, canonical

NO_LATENT = -1  # on record for a token that was nobody's choice among latents


@dataclass
class Options:
    """What the K options of n states decode to.

    Attributes:
        tokens: (n, K) int64, each option's most likely token.
        mask: (n, K) bool, False where a lower-numbered option already decodes to the same token.
    """

    tokens: Tensor
    mask: Tensor

    @property
    def decision(self) -> Tensor:
        """(n,) bool: the options decode to more than one token; elsewhere the position is forced, and any says the same."""
        return self.mask[:, 1:].any(-1)

    @property
    def latents(self) -> Tensor:
        """(n, K) int64: what is on record as the latent of a token that an option gives: its number, or `NO_LATENT` if forced."""
        numbers = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return torch.where(self.decision[:, None], numbers, NO_LATENT)

    def ranked(self, row: int, log_probs: Tensor) -> list[tuple[int, int, float]]:
        """Latent, token and log-probability of what can be said in one row, the likeliest first; `log_probs` (K,) of its latents."""
        tokens, likely = self.tokens[row].tolist(), log_probs.tolist()
        found = [(z, tokens[z], likely[z]) for z in self.mask[row].nonzero()[:, 0].tolist()]
        return sorted(found, key=lambda option: -option[2])


def enumerate_options(backbone: Backbone, plugin: PlugIn, hidden: Tensor, logits: Tensor | None = None) -> Options:
    """Enumerate the options of states (n, s), on the shortlist.

    An option's logit is what the head gives for the hidden state plus the head row times the bias, then capped as
    the architecture has it; so a zero decoder gives exactly the backbone's choice. `logits` (n, vocab) are the
    backbone's, if they are known.
    """
    if logits is None:
        logits = backbone.logits(hidden)
    top, ids = backbone.likeliest(logits, plugin.config.shortlist)
    if backbone.changes_logits:  # the bias comes before the cap
        own = hidden[:, : backbone.hidden_size]
        top = torch.bmm(backbone.head_rows(ids), own[:, :, None])[..., 0]
    tokens = ids.gather(1, option_logits(backbone, plugin, hidden, top, ids).argmax(-1))
    return Options(tokens, canonical(tokens))


def option_logits(backbone: Backbone, plugin: PlugIn, hidden: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    """Logits (n, K, S) float32 of the K options on the tokens `ids` (n, S), for which the head gives `logits`."""
    rows = backbone.head_rows(ids)
    bias = plugin.biases(hidden).to(rows.dtype)
    return backbone.after_head(torch.bmm(bias, rows.transpose(1, 2)).float() + logits[:, None].float())
