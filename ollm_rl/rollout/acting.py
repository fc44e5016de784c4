"""An agent's `predict` as the policy that the engine asks."""

import inspect
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ollm_rl.errors import ConfigurationError
from ollm_rl.options.policies import LatentPolicy


class Predicts(Protocol):
    """What is needed of an agent."""

    @property
    def acts_on_logits(self) -> bool: ...

    @property
    def predict(self) -> Callable[..., Tensor]: ...


class PolicyAdapter:
    """An agent's `predict` as the engine's policy.

    `mask`, `uniforms` and, for agents over the vocabulary, `logits` are handed over only if the agent takes them:
    `predict(hidden, deterministic=...)` is all that an agent needs. Log-probabilities are those of the agent's `policy`, or of
    the logits that tokens were drawn from; where there is neither, they are given as zero.
    """

    def __init__(self, agent: Predicts, deterministic: bool):
        accepted = inspect.signature(agent.predict).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self.agent, self.deterministic = agent, deterministic
        if callable(sees := getattr(agent, "sees", None)):
            self.sees = sees  # see `Act`
        self.seen = "logits" if agent.acts_on_logits else "mask"
        self.takes = [k for k in (self.seen, "uniforms") if anything or k in accepted]

    def __eq__(self, other: object) -> bool:
        """Adapters of one agent are one policy."""
        return (
            isinstance(other, PolicyAdapter) and self.agent is other.agent and self.deterministic == other.deterministic
        )

    def __hash__(self) -> int:
        return hash((id(self.agent), self.deterministic))

    def __call__(self, hidden: Tensor, seen: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        extra = {self.seen: seen, "uniforms": uniforms}
        wanted = {k: extra[k] for k in self.takes}
        z = torch.as_tensor(
            self.agent.predict(hidden, deterministic=self.deterministic, **wanted), device=hidden.device
        )
        most, n = seen.shape[1], len(hidden)
        if z.shape != (n,) or z.is_floating_point() or (n and not 0 <= int(z.min()) <= int(z.max()) < most):
            what = "tokens" if self.agent.acts_on_logits else "latents"
            gave = f"values from {z.min()} to {z.max()}" if z.numel() else "nothing"
            raise ConfigurationError(
                f"{type(getattr(self.agent, 'agent', self.agent)).__qualname__}.predict gave {gave} of shape {tuple(z.shape)} and type "
                f"{str(z.dtype).removeprefix('torch.')}; expected {n} integers below {most}, the {what} of {n} states"
            )
        return z.long(), self._log_probs(hidden, seen, z.long())

    @torch.inference_mode()
    def _log_probs(self, hidden: Tensor, seen: Tensor, z: Tensor) -> Tensor:
        unknown = torch.zeros(len(z), device=hidden.device)
        if self.agent.acts_on_logits:
            if self.deterministic:  # nobody asks, and a sum over the vocabulary is dear
                return unknown
            return torch.cat([
                row.gather(0, token[None]).float() - row.float().logsumexp(0)
                for row, token in zip(seen, z, strict=True)
            ])  # fmt: skip
        likely = self.log_probs(hidden, seen)
        return unknown if likely is None else likely.gather(1, z[:, None])[:, 0]

    @torch.inference_mode()
    def log_probs(self, hidden: Tensor, mask: Tensor) -> Tensor | None:
        """Log-probabilities (n, K) float32 of all latents by the agent's `policy`, of the states (n, d) that it sees; None if it has none."""
        policy = getattr(self.agent, "policy", None)
        if self.agent.acts_on_logits or not callable(policy):
            return None
        if isinstance(policy, LatentPolicy):
            likely: Tensor = policy(hidden, mask)
            return likely
        try:
            found = policy(hidden, mask)
        except (TypeError, ValueError, RuntimeError):  # of an agent from outside, which means something else by it
            return None
        return found.float() if isinstance(found, Tensor) and found.shape == mask.shape else None
