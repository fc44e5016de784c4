"""What an agent is, and the small latent policy that the trained ones share.

An agent is any class that can be called with a `Session` and its settings, and has `learn`, `predict`, `save`
and `load`. It need not inherit from anything here; `docs/agents.md` shows one in a file of its own.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.config import AgentConfig
from ollm_rl.common.finite import check_finite, check_weights
from ollm_rl.common.run_dir import Run
from ollm_rl.common.settings import Config
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.policies import LatentPolicy, choose
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.local import Session


class Agent(ABC):
    """Base class: an agent that needs no learning implements `predict` only."""

    trains_on = False  # `learn` goes on from the run's last checkpoint to a larger limit, also once it had ended

    config_class: ClassVar[type[Config]] = AgentConfig  # of its settings
    config: Any

    def __init__(self, session: Session, **settings: Any):
        self.session = session
        self.config = self.config_class.of(settings, f"agent {type(self).__name__}")

    def learn(self, run: Run) -> dict[str, Any]:
        """Train, writing metrics, rollouts and checkpoints to `run`.

        Returns:
            `train_episodes`, `train_tokens` and `train_seconds`.
        """
        return {"train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}

    @abstractmethod
    def predict(
        self, hidden: Tensor, deterministic: bool = True, mask: Tensor | None = None, uniforms: Tensor | None = None
    ) -> Tensor:
        """Choose latents (n,) for hidden states (n, d).

        Args:
            mask: (n, K) bool, False where a lower-numbered option decodes to the same token.
            uniforms: (n,) in [0, 1), the randomness to use, so that an episode depends on its seed only.
        """

    def save(self, path: str | Path) -> None:  # noqa: B027 (optional)
        """Write what was learned; nothing, for an agent that does not learn."""

    def load(self, path: str | Path) -> None:  # noqa: B027 (optional)
        """Read what `save` wrote."""


def digest(weights: Mapping[str, Tensor]) -> str:
    """Hash of named weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def model_of(session: Session, agent: str) -> OptionLM:
    """The option LM, for agents that need it in this process.

    Raises:
        ConfigurationError: it is on Ray workers.
    """
    lm = getattr(session, "lm", None)
    if not isinstance(lm, OptionLM):
        raise ConfigurationError(f"agent={agent} needs the model in its own process; use rollout=local")
    return lm


class PolicyAgent(Agent):
    """An agent that acts by a `LatentPolicy`."""

    policy: LatentPolicy

    @torch.inference_mode()
    def predict(
        self, hidden: Tensor, deterministic: bool = True, mask: Tensor | None = None, uniforms: Tensor | None = None
    ) -> Tensor:
        return choose(self.policy(hidden, mask), deterministic, uniforms)

    @torch.inference_mode()
    def divergence(self, episodes: Sequence[Episode]) -> list[float]:
        """KL in nats from the prior, summed over each episode's decision points."""
        prior, found = LatentPolicy.from_prior(self.session.plugin), []
        for e in episodes:
            if e.hidden is None:
                found.append(0.0)
                continue
            now, before = self.policy(e.hidden, e.mask), prior(e.hidden, e.mask)
            found.append(float((now.exp() * (now - before)).sum()))
        return found

    def identity(self) -> str:
        """Equal for agents that choose alike: evaluated once, before they learn, in a comparison. "": like no other."""
        how, policy = type(self).predict, getattr(self, "policy", None)
        if policy is None:
            return ""
        return f"{how.__module__}.{how.__qualname__} {type(policy).__name__} {digest(policy.state_dict())}"

    def save(self, path: str | Path) -> None:
        check_weights("the policy", self.policy)
        scale = self.policy.standardize
        with torch.no_grad():  # weights that are finite can be too large to calculate with
            check_finite("what the policy says", self.policy((scale.mean + scale.std)[None]))
        backbone = self.session.backbone
        self.policy.save_pretrained(path, backbone=backbone.name, fingerprint=backbone.fingerprint)

    def load(self, path: str | Path) -> None:
        fingerprint = self.session.backbone.fingerprint
        self.policy = LatentPolicy.from_pretrained(path, fingerprint).to(self.session.backbone.device)
