"""Latent policies pi(z | h), and what is learned beside them from rewards: V(h)."""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ollm_rl.errors import CheckpointError
from ollm_rl.options.modules import PlugIn, masked, mlp
from ollm_rl.options.standardize import Standardize

log = logging.getLogger(__name__)


class LatentPolicy(nn.Module):
    """pi(z | h): a small net on standardised hidden states that starts as the prior."""

    SIZES: ClassVar[tuple[str, ...]] = ("hidden_size", "width", "num_options", "depth")

    def __init__(self, hidden_size: int, width: int, num_options: int, depth: int = 2):
        super().__init__()
        self.hidden_size, self.width, self.num_options, self.depth = hidden_size, width, num_options, depth
        self.standardize = Standardize(hidden_size)
        self.net = mlp(hidden_size, width, num_options, depth)

    @classmethod
    def from_prior(cls, plugin: PlugIn, **more: Any) -> Self:
        """A copy of the plug-in's prior; `more`: sizes that a subclass has besides."""
        config = plugin.config
        policy = cls(plugin.state_size, config.prior_width, plugin.num_options, config.prior_depth, **more)
        policy.standardize.load_state_dict(plugin.standardize.state_dict())
        policy.net.load_state_dict(plugin.prior.state_dict())
        return policy.to(plugin.standardize.mean.device)

    def learned(self) -> list[nn.Parameter]:
        """What learning changes."""
        return list(self.net.parameters())

    def example(self) -> Tensor:
        """A state (1, s) as `forward` takes it."""
        return (self.standardize.mean + self.standardize.std)[None]

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities (n, K) float32 of the latents; masked ones are practically impossible."""
        return masked(self.net(self.standardize(hidden)).float(), mask).log_softmax(-1)

    def save_pretrained(self, path: str | Path, **facts: Any) -> None:
        """Write `policy.safetensors` and `policy.json`; `facts` are kept in the latter."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / "policy.safetensors")
        sizes = {name: getattr(self, name) for name in self.SIZES}
        (path / "policy.json").write_text(json.dumps({**sizes, **facts}, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, fingerprint: str = "", plugin: str = "") -> Self:
        """Load a policy.

        Args:
            fingerprint: of the backbone that it is for. plugin: `PlugIn.digest` of the options that it is to choose among.

        Raises:
            CheckpointError: nothing there, or it belongs to another backbone or to other options (where these are given).
        """
        path = Path(path)
        if not (path / "policy.json").is_file() or not (path / "policy.safetensors").is_file():
            owner = json.loads((path / "agent.json").read_text()) if (path / "agent.json").is_file() else {}
            other = f" It holds an agent of class {owner['_target_']}: give agent={owner['_target_']}." if owner else ""
            raise CheckpointError(
                f"no latent policy in {path}: expected policy.json and policy.safetensors.{other} "
                "Train one with `ollm-rl train agent=grpo`, or check agent.path."
            )
        facts = json.loads((path / "policy.json").read_text())
        if fingerprint and facts.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"the policy in {path} was trained on backbone '{facts.get('backbone')}' ({facts.get('fingerprint')}), "
                f"not on this one ({fingerprint}). Use that backbone, or train again."
            )
        if plugin and facts.get("plugin") not in (None, plugin):
            said = f"the policy in {path} chooses among the options of another plug-in than this one"
            if not (
                path / "plugin"
            ).is_dir():  # a checkpoint: its run may have been converted again, with other roundings
                log.warning("%s; what it has learned may mean little here", said)
            else:
                raise CheckpointError(f"{said}. Use the one beside it: plugin.path={path / 'plugin'}, or train again.")
        policy = cls(**{"depth": 2, **{name: facts[name] for name in cls.SIZES if name in facts}})
        policy.load_state_dict(load_file(path / "policy.safetensors"))
        return policy


class Sampling:
    """A latent policy as the rollout engine asks for it: latents (m,) and their log-probabilities (m,).

    Nothing but the policy, for it may be sent to other machines.

    Args:
        deterministic: the likeliest latents.
    """

    def __init__(self, policy: LatentPolicy, deterministic: bool = False):
        self.policy, self.deterministic = policy, deterministic
        if callable(sees := getattr(policy, "sees", None)):
            self.sees = sees

    @torch.inference_mode()
    def __call__(self, hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = self.policy(hidden, mask)
        z = choose(log_probs, self.deterministic, uniforms)
        return z, log_probs.gather(1, z[:, None])[:, 0]


class Critic(nn.Module):
    """A small net on standardised hidden states: (n, d) -> (n,)."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.hidden_size, self.width = hidden_size, width
        self.standardize = Standardize(hidden_size)
        self.net = mlp(hidden_size, width, 1)

    @classmethod
    def beside(cls, plugin: PlugIn, width: int) -> "Critic":
        """A new one that standardises as the plug-in does."""
        critic = cls(plugin.state_size, width)
        critic.standardize.load_state_dict(plugin.standardize.state_dict())
        return critic.to(plugin.standardize.mean.device)

    def forward(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.net(self.standardize(hidden))
        return values[:, 0]

    def save_pretrained(self, path: str | Path, fingerprint: str) -> None:
        """Write `critic.safetensors` and `critic.json`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / "critic.safetensors")
        facts = {"hidden_size": self.hidden_size, "width": self.width, "fingerprint": fingerprint}
        (path / "critic.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, fingerprint: str) -> "Critic":
        """Load a critic.

        Raises:
            CheckpointError: nothing there, or it belongs to another backbone.
        """
        path = Path(path)
        if not (path / "critic.json").is_file() or not (path / "critic.safetensors").is_file():
            raise CheckpointError(
                f"no critic in {path}: expected critic.json and critic.safetensors, as `ollm-rl train agent=ppo` leaves "
                "them in its run's policy/. Check oracle.critic."
            )
        facts = json.loads((path / "critic.json").read_text())
        if facts["fingerprint"] != fingerprint:
            raise CheckpointError(f"the critic in {path} was trained on another backbone; use that one, or train again")
        critic = cls(facts["hidden_size"], facts["width"])
        critic.load_state_dict(load_file(path / "critic.safetensors"))
        return critic.eval().requires_grad_(False)


def choose(log_probs: Tensor, deterministic: bool, uniforms: Tensor | None) -> Tensor:
    """Latents (n,) from log-probabilities (n, K): the likeliest, or by inverse transform of `uniforms`."""
    if deterministic:
        return log_probs.argmax(-1)
    if uniforms is None:
        uniforms = torch.rand(len(log_probs), device=log_probs.device)
    cumulative = log_probs.exp().cumsum(-1)
    z = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return z.clamp_max(log_probs.shape[1] - 1)


def sample_tokens(logits: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens (n,) at temperature 1 from logits (n, vocab), and their log-probabilities (n,)."""
    tokens, log_probs = [], []
    for at in range(0, len(logits), 16):  # float32 copies of all rows at once would leave the processor's cache
        scores = logits[at : at + 16].float().log_softmax(-1)
        tokens.append(choose(scores, False, None if uniforms is None else uniforms[at : at + 16]))
        log_probs.append(scores.gather(1, tokens[-1][:, None])[:, 0])
    return torch.cat(tokens), torch.cat(log_probs)
