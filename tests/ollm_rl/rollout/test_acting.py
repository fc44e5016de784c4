"""An agent's `predict` as the engine asks it: what it may give."""

import pytest
import torch

from ollm_rl.errors import ConfigurationError
from ollm_rl.rollout.acting import PolicyAdapter


class Says:
    """Whose answer is given."""

    acts_on_logits = False

    def __init__(self, answer):
        self.answer = answer

    def predict(self, hidden, deterministic=True):
        return self.answer


ASKED = torch.zeros(3, 8), torch.ones(3, 5, dtype=torch.bool), torch.zeros(3)


@pytest.mark.parametrize("answer", [[0, 1, 4], torch.tensor([4, 4, 4], dtype=torch.int8)])
def test_latents_are_taken_from_any_list_or_tensor(answer):
    z, log_probs = PolicyAdapter(Says(answer), True)(*ASKED)
    assert z.tolist() == list(answer) and z.dtype == torch.long and log_probs.shape == (3,)


@pytest.mark.parametrize("answer", [[0, 1, 5], [0, -1, 0], [0, 1], [[0], [1], [2]], [0.0, 1.0, 2.0]])
def test_anything_else_is_refused_by_the_agents_name(answer):
    with pytest.raises(ConfigurationError, match=r"Says.predict gave values from .*; expected 3 integers below 5"):
        PolicyAdapter(Says(answer), True)(*ASKED)
