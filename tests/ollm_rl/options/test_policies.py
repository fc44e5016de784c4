"""A critic beside the policy."""

import pytest
import torch

from ollm_rl.config.compose import compose, preflight
from ollm_rl.errors import CheckpointError
from ollm_rl.options.policies import Critic


def test_a_critic_is_saved_with_its_backbone(tiny, tmp_path):
    critic, hidden = Critic.beside(tiny.plugin, 16), torch.randn(5, tiny.plugin.state_size)
    critic.save_pretrained(tmp_path, "one")
    assert torch.equal(Critic.from_pretrained(tmp_path, "one")(hidden), critic(hidden))
    with pytest.raises(CheckpointError, match="another backbone"):
        Critic.from_pretrained(tmp_path, "two")
    with pytest.raises(CheckpointError, match="no critic"):
        Critic.from_pretrained(tmp_path / "none", "one")
    with pytest.raises(CheckpointError, match="oracle.critic"):
        preflight(compose([f"oracle.critic={tmp_path / 'none'}"]))
