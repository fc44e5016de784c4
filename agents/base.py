"""What an agent is, and the small latent policy that the trained ones share.

An agent is any class that can be called with a `Workspace` and its settings, and has `learn`, `predict`, `save`
and `load`. It need not inherit from anything here; `docs/agents.md` shows one in a file of its own.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ollm_rl.common.finite import check_finite, check_weights
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.plugin import OptionLM, PlugIn, Standardize, mlp
from ollm_rl.rollout import choose
from ollm_rl.trajectory import Episode
from ollm_rl.workspace import Workspace


class Agent(ABC):
    """Base class: an agent that needs no learning implements `predict` only."""

    trains_on = False  # `learn` goes on from the run's last checkpoint to a larger limit, also once it had ended

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def learn(self, run: Run) -> dict:
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


def model_of(workspace: Workspace, agent: str) -> OptionLM:
    """The option LM, for agents that need it in this process.

    Raises:
        ConfigurationError: it is on Ray workers.
    """
    lm = getattr(workspace, "lm", None)
    if not isinstance(lm, OptionLM):
        raise ConfigurationError(f"agent={agent} needs the model in its own process; use rollout=local")
    return lm


class LatentPolicy(nn.Module):
    """pi(z | h): a small net on standardised hidden states that starts as the prior."""

    def __init__(self, hidden_size: int, width: int, num_options: int, depth: int = 2):
        super().__init__()
        self.hidden_size, self.width, self.num_options, self.depth = hidden_size, width, num_options, depth
        self.standardize = Standardize(hidden_size)
        self.net = mlp(hidden_size, width, num_options, depth)

    @classmethod
    def from_prior(cls, plugin: PlugIn) -> "LatentPolicy":
        """A copy of the plug-in's prior."""
        policy = cls(plugin.hidden_size, plugin.config.prior_width, plugin.num_options, plugin.config.prior_depth)
        policy.standardize.load_state_dict(plugin.standardize.state_dict())
        policy.net.load_state_dict(plugin.prior.state_dict())
        return policy.to(plugin.standardize.mean.device)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities (n, K) float32 of the latents; masked ones are practically impossible."""
        if hidden.device != self.standardize.mean.device:  # it was sent to where the engine is, or RLlib holds it
            with torch.inference_mode(False):
                self.to(hidden.device)
        logits = self.net(self.standardize(hidden)).float()
        return (logits if mask is None else logits.masked_fill(~mask, -1e9)).log_softmax(-1)

    def save_pretrained(self, path: str | Path, **facts) -> None:
        """Write `policy.safetensors` and `policy.json`; `facts` are kept in the latter."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / "policy.safetensors")
        names = ("hidden_size", "width", "num_options", "depth")
        sizes = {name: getattr(self, name) for name in names}
        (path / "policy.json").write_text(json.dumps({**sizes, **facts}, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, fingerprint: str = "") -> "LatentPolicy":
        """Load a policy.

        Raises:
            CheckpointError: nothing there, or it belongs to another backbone (if `fingerprint` is given).
        """
        path = Path(path)
        if not (path / "policy.json").is_file() or not (path / "policy.safetensors").is_file():
            raise CheckpointError(
                f"no latent policy in {path}: expected policy.json and policy.safetensors. "
                "Train one with `ollm-rl train agent=grpo`, or check agent.path."
            )
        facts = json.loads((path / "policy.json").read_text())
        if fingerprint and facts.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"the policy in {path} was trained on backbone '{facts.get('backbone')}' ({facts.get('fingerprint')}), "
                f"not on this one ({fingerprint}). Use that backbone, or train again."
            )
        policy = cls(facts["hidden_size"], facts["width"], facts["num_options"], facts.get("depth", 2))
        policy.load_state_dict(load_file(path / "policy.safetensors"))
        return policy


class Sampling:
    """A latent policy as the rollout engine asks for it: latents (m,) and their log-probabilities (m,).

    Nothing but the policy, for it may be sent to other machines.
    """

    def __init__(self, policy: LatentPolicy):
        self.policy = policy

    @torch.inference_mode()
    def __call__(self, hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = self.policy(hidden, mask)
        z = choose(log_probs, False, uniforms)
        return z, log_probs.gather(1, z[:, None])[:, 0]


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
        prior, found = LatentPolicy.from_prior(self.workspace.plugin), []
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
        backbone = self.workspace.backbone
        self.policy.save_pretrained(path, backbone=backbone.name, fingerprint=backbone.fingerprint)

    def load(self, path: str | Path) -> None:
        fingerprint = self.workspace.backbone.fingerprint
        self.policy = LatentPolicy.from_pretrained(path, fingerprint).to(self.workspace.backbone.device)
