"""Latents drawn uniformly: what the options give without anybody choosing."""

import torch
from torch import Tensor

from agents.base import Agent
from ollm_rl.options.policies import choose


class Random(Agent):
    """Uniform over all K latents. It has no best guess, so `deterministic` makes no difference."""

    def predict(
        self, hidden: Tensor, deterministic: bool = True, mask: Tensor | None = None, uniforms: Tensor | None = None
    ) -> Tensor:
        k = self.session.plugin.num_options
        return choose(torch.zeros(len(hidden), k, device=hidden.device).log_softmax(-1), False, uniforms)
