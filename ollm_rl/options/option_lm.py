"""An option LM: a frozen backbone with a plug-in, hidden states in, options out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ollm_rl.models.attention import KVCache
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.config import BackboneConfig
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.enumeration import Options, enumerate_options, option_logits
from ollm_rl.options.modules import PlugIn, checkpoint_dir


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
        backbone = load_backbone(made_for.backbone, dtype, device, made_for.revision, adapter=made_for.adapter)
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
        """What the options of states (n, s) decode to, see `enumerate_options`."""
        return enumerate_options(self.backbone, self.plugin, hidden, logits)

    def option_logits(self, hidden: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
        """Logits (n, K, S) of the options on some tokens, see `ollm_rl.options.enumeration.option_logits`."""
        return option_logits(self.backbone, self.plugin, hidden, logits, ids)
