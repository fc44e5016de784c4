"""A task whose right latent is readable from h, for learners from rewards: one decision an episode, about six latents."""

import torch

from ollm_rl.options.policies import Sampling
from ollm_rl.rollout.judge import Judge
from ollm_rl.rollout.sampler import Request


class RightLatent(Judge):
    """1.0 if the latent is 0 on one side of the first coordinate's median, and another on the other: as the prior does not do it."""

    def __init__(self, session):
        super().__init__(len)
        engine = session.new_engine(num_slots=16)
        engine.admit([session.prompter.encode(p) for p in session.problems("train", 16, 0)])
        self.middle, self.above = engine.hidden.float()[:, 0].median(), True
        with torch.no_grad():
            by_prior = self.right(
                engine.hidden, session.plugin.prior_logits(engine.hidden, engine.options.mask).argmax(-1)
            )
        self.above = by_prior.float().mean() <= 0.5

    def right(self, hidden, z):
        return ((hidden.float()[:, 0] > self.middle) == (z == 0)) == self.above

    def __call__(self, episodes, prompter=None):
        for e in episodes:
            e.reward = 0.0 if e.z is None else float(self.right(e.hidden, e.z)[0])


def identity(session, monkeypatch):
    """`space` with that task: a text is one token."""
    monkeypatch.setattr(session, "judge", RightLatent(session))
    monkeypatch.setattr(session, "engine_settings", {"num_slots": 128, "max_new_tokens": 1})
    session.__dict__.pop("engine", None)
    return session


def accuracy(session, policy) -> float:
    """Share of decisions whose likeliest latent is the right one, on problems that nobody learned from."""
    episodes = session.rollout(
        [Request(p, i) for i, p in enumerate(session.problems("test", 200, 9))], Sampling(policy)
    )
    with torch.no_grad():
        hits = [
            session.judge.right(e.hidden, policy(e.hidden, e.mask).argmax(-1))[0] for e in episodes if e.z is not None
        ]
    return float(torch.stack(hits).float().mean())
