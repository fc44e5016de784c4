"""What an episode leaves behind: its text, and hidden state, latent and log-probability at its decision points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ollm_rl.reward.config import SOLVED_AT
from ollm_rl.tasks import Problem

EOS, LENGTH = "eos", "length"  # why an episode ends: with its text, or cut off by its token budget


def stop_reason(token: int, num_tokens: int, eos_ids: Sequence[int], max_new_tokens: int) -> str:
    """Why a text of `num_tokens` generated tokens, `token` the last of them, ends: `EOS`, `LENGTH`, or "" if it goes on."""
    if token in eos_ids:
        return EOS
    return LENGTH if num_tokens >= max_new_tokens else ""


@dataclass
class Episode:
    """One solution of one problem.

    >>> [episode] = session.rollout([ol.Request(problem, seed=0)], act)
    >>> episode.text, episode.reward, episode.latents

    Attributes:
        problem: what was to be solved.
        seed: with the policy, determines the episode.
        tokens: generated token ids, the end-of-text token included where it was reached.
        latents: the latent of every token; -1 where the options agreed and nobody was asked.
        stop: `eos` (end of text) or `length` (token budget spent).
        hidden: (T, d), z: (T,), log_probs: (T,), mask: (T, K) at the T decision points that were kept. Of a policy over the vocabulary, every
            position is one, z is its token, and there is no mask.
        log_prob: of the whole text, summed over its decisions, all others being certain; None if nobody said it. lowest: that of its least
            likely decision.
        summary: (2, d) the state before its last token, and the mean of those before each of its tokens, forced ones too; what a
            learned verifier reads.
        text: what the tokens say. answer, reward, verdict: filled in by the judge; a verdict is a word such as
            `equal`, `different` or `no_answer`, empty if the judge gives none.
        solved_at: from which reward on it counts as solved. parts: of a reward that is a sum, what each of its rewards gave.
        judged: the reward function gave it a number; where it did not (None), the reward is 0 and nothing is learned from the episode.
        dropped_decisions: decision points that were not kept (`engine.kept_decisions`); those that were are an even sample.
        value: how likely a learned verifier finds it to be right, where there is one.
        policy_version: updates that the policy had seen, where rollouts run beside learning.
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
    log_prob: float | None = None
    lowest: float = 0.0
    summary: Tensor | None = None
    text: str = ""
    answer: str | None = None
    reward: float = 0.0
    solved_at: float = SOLVED_AT
    parts: dict[str, float] = field(default_factory=dict)
    judged: bool = True
    verdict: str = ""
    dropped_decisions: int = 0
    value: float | None = None
    policy_version: int | None = None

    def append(self, token: int, latent: int, eos_ids: Sequence[int], max_new_tokens: int) -> None:
        """One more token, after which the episode may have ended (`stop`)."""
        self.tokens.append(token)
        self.latents.append(latent)
        self.stop = stop_reason(token, len(self.tokens), eos_ids, max_new_tokens)

    @property
    def truncated(self) -> bool:
        """It was cut off by the token budget."""
        return self.stop == LENGTH

    @property
    def solved(self) -> bool:
        """The reward is one of a solved episode."""
        return self.reward >= self.solved_at

    @property
    def features(self) -> Tensor:
        """(2 d + 4,) what a learned verifier reads: `summary`, `log_prob`, `lowest`, and the logarithms of the text's length and of its
        number of decisions.

        Raises:
            ValueError: there is no summary.
        """
        if self.summary is None:
            raise ValueError("the episode has no summary of its states; expected one that the rollout engine made")
        return features_of(self.summary, self.log_prob or 0.0, self.lowest, len(self.tokens), self.num_decisions)

    def beginnings(self, most: int) -> Tensor:
        """(m, 2 d + 4) what a learned verifier reads of the text before each of m <= `most` decisions, evenly spread over all but the first.

        As `features`, but that the mean is of the states at decisions. No rows where states were not kept (`keep_hidden`), or not all.
        """
        total = self.num_kept
        if self.hidden is None or self.log_probs is None or total < 2 or self.dropped_decisions:
            return torch.empty(0, 0)
        at = torch.linspace(1, total - 1, min(most, total - 1)).round().long().tolist()
        places = [i for i, z in enumerate(self.latents) if z >= 0]
        states, log_probs = self.hidden.float(), self.log_probs.float()
        sums, likely, lowest = states.cumsum(0), log_probs.cumsum(0).tolist(), log_probs.cummin(0).values.tolist()
        return torch.stack(
            [
                features_of(torch.stack([states[i], sums[i] / (i + 1)]), likely[i - 1], lowest[i - 1], places[i] + 1, i)
                for i in at
            ]
        )

    @property
    def num_decisions(self) -> int:
        """Decision points, kept or not."""
        return self.num_kept + self.dropped_decisions

    @property
    def num_kept(self) -> int:
        """Decision points at which states are at hand."""
        return 0 if self.z is None else len(self.z)

    def to_dict(self) -> dict[str, Any]:
        """The episode as one JSON line of `rollouts/*.jsonl`."""
        return {
            "problem_id": self.problem.id,
            "problem": self.problem.problem,
            "gold": self.problem.answer,
            "text": self.text,
            "answer": self.answer,
            "reward": self.reward,
            "solved": self.solved,
            **({"rewards": self.parts} if self.parts else {}),
            "verdict": self.verdict,
            "stop": self.stop,
            "seed": self.seed,
            "log_prob": self.log_prob,
            **({} if self.value is None else {"value": self.value}),
            "policy_version": self.policy_version,
            "latents": self.latents,
            "tokens": self.tokens,
        }


def features_of(summary: Tensor, log_prob: float, lowest: float, num_tokens: int, num_decisions: int) -> Tensor:
    """(2 d + 4,) as `Episode.features`, of a text or of its beginning."""
    sizes = [log_prob, lowest, math.log(num_tokens), math.log1p(num_decisions)]
    return torch.cat([summary.flatten(), summary.new_tensor(sizes)])


@dataclass
class Decisions:
    """The decision points of many episodes, flattened to N rows, as a latent policy learns from them.

    hidden: (N, d), z: (N,), log_probs: (N,), mask: (N, K), owner: (N,) index of the episode. weight: (N,) how many of the
    episode's decision points each stands for.
    """

    hidden: Tensor
    z: Tensor
    log_probs: Tensor
    mask: Tensor
    owner: Tensor
    weight: Tensor

    @classmethod
    def of(cls, episodes: list[Episode]) -> "Decisions":
        names = ("hidden", "z", "log_probs", "mask")
        hidden, z, log_probs, mask = (torch.cat([getattr(e, n) for e in episodes]) for n in names)
        return cls(hidden, z, log_probs, mask, owners(episodes).to(z.device), represented(episodes).to(z.device))

    def __len__(self) -> int:
        return len(self.z)


def owners(episodes: Sequence[Episode]) -> Tensor:
    """(N,) the index of the episode that each decision belongs to."""
    counts = torch.tensor([e.num_kept for e in episodes])
    return torch.arange(len(episodes)).repeat_interleave(counts)


def represented(episodes: Sequence[Episode]) -> Tensor:
    """(N,) how many of its episode's decisions each kept one stands for."""
    return torch.tensor([e.num_decisions / e.num_kept for e in episodes for _ in range(e.num_kept)])


_PLAIN = (
    "seed",
    "stop",
    "text",
    "answer",
    "reward",
    "solved_at",
    "parts",
    "judged",
    "verdict",
    "dropped_decisions",
    "log_prob",
    "lowest",
)


def pack(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Episodes without their problems as few large arrays, to be sent elsewhere; hidden states keep their precision."""
    packed: dict[str, Any] = {name: [getattr(e, name) for e in episodes] for name in _PLAIN}
    packed["tokens"] = np.array([t for e in episodes for t in e.tokens], dtype=np.int32)
    packed["latents"] = np.array([z for e in episodes for z in e.latents], dtype=np.int16)
    packed["lengths"] = [len(e.tokens) for e in episodes]
    packed["counts"] = [e.num_kept for e in episodes]
    if episodes and all(e.summary is not None for e in episodes):
        packed["summary"] = torch.stack([_known(e.summary) for e in episodes]).cpu().numpy()
    deciding = [e for e in episodes if e.num_kept]
    if deciding:
        packed["z"] = torch.cat([_known(e.z) for e in deciding]).to(torch.int32).cpu().numpy()
        packed["log_probs"] = torch.cat([_known(e.log_probs) for e in deciding]).cpu().numpy()
        if deciding[0].mask is not None:
            packed["mask"] = np.packbits(torch.cat([_known(e.mask) for e in deciding]).cpu().numpy(), axis=1)
            packed["num_options"] = _known(deciding[0].mask).shape[1]
        if deciding[0].hidden is not None:
            hidden = torch.cat([_known(e.hidden) for e in deciding]).cpu()
            packed["dtype"] = str(hidden.dtype).removeprefix("torch.")
            packed["hidden"] = hidden.view(torch.uint8).numpy()  # numpy has no bf16
    return packed


def unpack(packed: dict[str, Any], problems: Sequence[Problem], device: torch.device | str = "cpu") -> list[Episode]:
    """What `pack` took apart, with the problems again."""
    episodes = []
    ends, stops = np.cumsum(packed["lengths"]), np.cumsum(packed["counts"])
    arrays = {}
    if "z" in packed:
        arrays["z"] = torch.from_numpy(packed["z"].astype(np.int64)).to(device)
        arrays["log_probs"] = torch.from_numpy(packed["log_probs"].copy()).to(device)
    if "mask" in packed:
        mask = np.unpackbits(packed["mask"], axis=1, count=packed["num_options"]).astype(bool)
        arrays["mask"] = torch.from_numpy(mask).to(device)
    if "hidden" in packed:
        hidden = torch.from_numpy(packed["hidden"].copy()).view(getattr(torch, packed["dtype"]))
        arrays["hidden"] = hidden.to(device)
    summaries = torch.from_numpy(packed["summary"].copy()).to(device) if "summary" in packed else None
    for i, problem in enumerate(problems):
        known: dict[str, Any] = {name: packed[name][i] for name in _PLAIN}
        own = slice(ends[i] - packed["lengths"][i], ends[i])
        at = slice(stops[i] - packed["counts"][i], stops[i])
        known |= {name: packed[name][own].tolist() for name in ("tokens", "latents")}
        if packed["counts"][i]:
            known |= {name: array[at] for name, array in arrays.items()}
        episodes.append(Episode(problem, summary=None if summaries is None else summaries[i], **known))
    return episodes


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
