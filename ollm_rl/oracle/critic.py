"""V(h): how likely a text is to be solved in the end, as a learner of rewards came to think."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ollm_rl.errors import CheckpointError
from ollm_rl.plugin import PlugIn, Standardize, mlp


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
        critic = cls(plugin.hidden_size, width)
        critic.standardize.load_state_dict(plugin.standardize.state_dict())
        return critic.to(plugin.standardize.mean.device)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.net(self.standardize(hidden))[:, 0]

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
