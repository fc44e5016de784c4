"""A task whose right latent is readable from h, for learners from rewards: one decision an episode, about six latents."""

import torch

from ollm_rl.options.policies import Sampling
from ollm_rl.rollout.judge import Judge
from ollm_rl.rollout.sampler import Request


class RightLatent(Judge):
    """1.0 if the latent is 0 or 1, as the first coordinate of the hidden state says: in all states these two differ."""

    def __init__(self, space):
        super().__init__(len)
        self.middle = self._hidden(space)[:, 0].median()

    @staticmethod
    def _hidden(space):
        engine = space.new_engine(num_slots=16)
        engine.admit([space.prompter.encode(p) for p in space.problems("train", 16, 0)])
        return engine.hidden.float()

    def right(self, hidden):
        return (hidden.float()[:, 0] > self.middle).long()

    def __call__(self, episodes):
        for e in episodes:
            e.reward = 0.0 if e.z is None else float(self.right(e.hidden)[0] == e.z[0])


def identity(space, monkeypatch):
    """`space` with that task: a text is one token."""
    monkeypatch.setattr(space, "judge", RightLatent(space))
    monkeypatch.setattr(space, "engine_settings", {"num_slots": 128, "max_new_tokens": 1})
    space.__dict__.pop("engine", None)
    return space


def accuracy(space, policy) -> float:
    """Share of decisions whose likeliest latent is the right one, on problems that nobody learned from."""
    episodes = space.rollout([Request(p, i) for i, p in enumerate(space.problems("test", 200, 9))], Sampling(policy))
    with torch.no_grad():
        hits = [
            policy(e.hidden, e.mask).argmax(-1)[0] == space.judge.right(e.hidden)[0]
            for e in episodes
            if e.z is not None
        ]
    return float(torch.stack(hits).float().mean())
