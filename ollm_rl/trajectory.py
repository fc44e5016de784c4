"""What an episode leaves behind: its text, and hidden state, latent and log-probability at its decision points."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ollm_rl.tasks import Problem


@dataclass
class Episode:
    """One solution of one problem.

    Attributes:
        problem: what was to be solved.
        seed: with the policy, determines the episode.
        tokens: generated token ids, the end-of-text token included where it was reached.
        latents: the latent of every token; -1 where the options agreed and nobody was asked.
        stop: `eos` (end of text) or `length` (token budget spent).
        hidden: (T, d), z: (T,), log_probs: (T,), mask: (T, K) at the T decision points.
        text: what the tokens say. answer, reward, verdict: filled in by the judge; a verdict is a word such as
            `equal`, `different` or `no_answer`, empty if the judge gives none.
    """

    problem: Problem
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    latents: list[int] = field(default_factory=list)
    stop: str = ""
    hidden: Tensor | None = None
    z: Tensor | None = None
    log_probs: Tensor | None = None
    mask: Tensor | None = None
    text: str = ""
    answer: str | None = None
    reward: float = 0.0
    verdict: str = ""

    @property
    def solved(self) -> bool:
        """The full reward was given."""
        return self.reward >= 1.0

    @property
    def num_decisions(self) -> int:
        return 0 if self.z is None else len(self.z)

    def record(self) -> dict:
        """The episode as one JSON line of `rollouts/*.jsonl`."""
        return {
            "problem_id": self.problem.id,
            "problem": self.problem.problem,
            "gold": self.problem.answer,
            "text": self.text,
            "answer": self.answer,
            "reward": self.reward,
            "verdict": self.verdict,
            "stop": self.stop,
            "seed": self.seed,
            "latents": self.latents,
            "tokens": self.tokens,
        }


@dataclass
class Decisions:
    """The decision points of many episodes, flattened to N rows, as a latent policy learns from them.

    hidden: (N, d), z: (N,), log_probs: (N,), mask: (N, K), owner: (N,) index of the episode.
    """

    hidden: Tensor
    z: Tensor
    log_probs: Tensor
    mask: Tensor
    owner: Tensor

    @classmethod
    def of(cls, episodes: list[Episode]) -> "Decisions":
        owner = [torch.full((e.num_decisions,), i) for i, e in enumerate(episodes)]
        names = ("hidden", "z", "log_probs", "mask")
        hidden, z, log_probs, mask = (torch.cat([getattr(e, n) for e in episodes]) for n in names)
        return cls(hidden, z, log_probs, mask, torch.cat(owner))

    def __len__(self) -> int:
        return len(self.z)
