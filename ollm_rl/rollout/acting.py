"""An agent's `predict` as the policy that the engine asks."""

import inspect
from typing import Any

import torch
from torch import Tensor


class PolicyAdapter:
    """An agent's `predict` as the engine's policy.

    `mask`, `uniforms` and, for agents over the vocabulary, `logits` are handed over only if the agent takes them:
    `predict(hidden, deterministic=...)` is all that an agent needs. Log-probabilities are not known here and given as zero.
    """

    def __init__(self, agent: Any, deterministic: bool):
        accepted = inspect.signature(agent.predict).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self.agent, self.deterministic = agent, deterministic
        self.seen = "logits" if getattr(agent, "acts_on_logits", False) else "mask"
        self.takes = [k for k in (self.seen, "uniforms") if anything or k in accepted]

    def __call__(self, hidden: Tensor, seen: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        extra = {self.seen: seen, "uniforms": uniforms}
        wanted = {k: extra[k] for k in self.takes}
        z = torch.as_tensor(
            self.agent.predict(hidden, deterministic=self.deterministic, **wanted), device=hidden.device
        )
        return z.long(), torch.zeros(len(z), device=hidden.device)
