"""An option LM: a frozen backbone with a plug-in, hidden states in, options out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ollm_rl.models.attention import KVCache
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.config import BackboneConfig
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.modules import PlugIn, canonical, checkpoint_dir

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


class OptionLM:
    """A frozen backbone with a plug-in: tokens in, states and options out.

    Attributes:
        reader: the plug-in's, in the backbone's precision; None if it has none.
    """

    def __init__(self, backbone: Backbone, plugin: PlugIn):
        self.backbone, self.plugin = backbone, plugin.to(backbone.device)
        own = plugin.reader
        self.reader = None if own is None else own.frozen(backbone.dtype, backbone.device)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: str = BackboneConfig.dtype, device: str = BackboneConfig.device
    ) -> "OptionLM":
        """The plug-in in `path` (a directory or a hub id) with the backbone, and its revision, that it was made for.

        Raises:
            CheckpointError: no plug-in there, or the backbone of that name is another one now.
            BackboneError: the backbone cannot be loaded.
        """
        path = checkpoint_dir(path)
        made_for = PlugIn.from_pretrained(path)
        backbone = load_backbone(made_for.backbone, dtype, device, made_for.revision)
        return cls(backbone, PlugIn.from_pretrained(path, backbone))

    def save_pretrained(self, path: str | Path) -> None:
        """Write plug-in, configuration and tokenizer; `AutoModelForCausalLM.from_pretrained` reads it too."""
        self._ordinary().save_pretrained(path)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload what `save_pretrained` writes; arguments as in transformers (`private`, `token`, `revision`, ...)."""
        return str(self._ordinary().push_to_hub(repo_id, **kwargs))

    def _ordinary(self) -> Any:
        from ollm_rl.options.hf import OptionLMForCausalLM  # it builds on this module

        return OptionLMForCausalLM.of(self.backbone, self.plugin)

    @property
    def num_options(self) -> int:
        return self.plugin.num_options

    def states(
        self, tokens: Tensor, positions: Tensor, kv: KVCache, rows: Tensor | None = None, span: int | None = None
    ) -> Tensor:
        """What the plug-in and policies read, (n, t, s), after new tokens; arguments as in `Backbone.hidden`."""
        return self.backbone.hidden(tokens, positions, kv, rows, span, self.reader)

    def last_states(self, texts: Sequence[Sequence[int]], kv: KVCache, rows: Tensor) -> Tensor:
        """What they read, (n, s), after the last token of whole texts, which are written into `rows` (n,)."""
        return torch.stack([states[-1] for states in self.backbone.texts(texts, kv, rows, self.reader)])

    @torch.inference_mode()
    def options(self, hidden: Tensor, logits: Tensor | None = None) -> Options:
        """Enumerate the options of states (n, s), on the shortlist.

        An option's logit is what the head gives for the hidden state plus the head row times the bias, then capped as
        the architecture has it; so a zero decoder gives exactly the backbone's choice. `logits` (n, vocab) are the
        backbone's, if they are known.
        """
        if logits is None:
            logits = self.backbone.logits(hidden)
        top, ids = self.backbone.likeliest(logits, self.plugin.config.shortlist)
        if self.backbone.changes_logits:  # the bias comes before the cap
            own = hidden[:, : self.backbone.hidden_size]
            top = torch.bmm(self.backbone.head_rows(ids), own[:, :, None])[..., 0]
        tokens = ids.gather(1, self.option_logits(hidden, top, ids).argmax(-1))
        return Options(tokens, canonical(tokens))

    def option_logits(self, hidden: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
        """Logits (n, K, S) float32 of the K options on the tokens `ids` (n, S), for which the head gives `logits`."""
        rows = self.backbone.head_rows(ids)
        bias = self.plugin.biases(hidden).to(rows.dtype)
        return self.backbone.after_head(torch.bmm(bias, rows.transpose(1, 2)).float() + logits[:, None].float())
