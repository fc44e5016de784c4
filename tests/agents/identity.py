"""A task whose right latent is readable from h, for learners from rewards: one decision an episode, ten latents."""

import torch

from agents.base import Sampling
from ollm_rl.judges import Judge
from ollm_rl.rollout import Request


class RightLatent(Judge):
    """1.0 if the decision is the one that two coordinates of its hidden state name."""

    def __init__(self, space):
        super().__init__(len)
        hidden = self._hidden(space)
        self.middle = hidden[:, :2].median(0).values

    @staticmethod
    def _hidden(space):
        engine = space.new_engine(num_slots=16)
        engine.admit([space.prompter.encode(p) for p in space.problems("train", 16, 0)])
        return engine.hidden.float()

    def right(self, hidden):
        above = (hidden.float()[:, :2] > self.middle).long()
        return above[:, 0] + 2 * above[:, 1]

    def __call__(self, episodes):
        for e in episodes:
            e.reward = 0.0 if e.z is None else float(self.right(e.hidden)[0] == e.z[0])


def identity(space, monkeypatch):
    """`space` with that task: all its options differ, so that any latent can be chosen, and a text is one token."""
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
