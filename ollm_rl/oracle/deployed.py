"""Searches that can be deployed: they choose a text without any verdict, by a learned verifier or by votes.

What they found is judged afterwards, like the greedy text of any other agent.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from ollm_rl.evaluation.votes import answer_key
from ollm_rl.oracle.search import Choice, Search
from ollm_rl.rollout.episode import Episode

PATIENCE = 2  # samples that are asked for one by one where a verifier judges; after them, as many as there were


@dataclass
class Deployed(Search):
    """One problem's search, and the text that it chose.

    Attributes:
        judge, accept: as in `SearchConfig`. most: texts that there will be at most; None where only the budget limits them.
        texts: all of them so far. chosen: of a search that was restored.
    """

    judge: str = "value"
    accept: float = 1.0
    most: int | None = None
    texts: list[Episode] = field(default_factory=list)
    chosen: Episode | None = None

    def __post_init__(self) -> None:
        self._keys: list[Hashable] = []  # of the texts' answers; None where there is none
        self._votes: dict[Hashable, float] = {}
        self._likely: dict[Hashable, float] = {}  # summed log-probabilities of the texts of an answer

    @property
    def solution(self) -> Episode | None:
        """The text that it gives as its answer; None if there is none."""
        return self.choose() if self.texts else self.chosen

    def found(self, episode: Episode, choices: list[Choice]) -> None:
        self.tried += 1
        self.texts.append(episode)
        key = None if episode.answer is None else answer_key(episode.answer)
        self._keys.append(key)
        if key is not None:
            vote = 1.0 if self.judge == "vote" else episode.value or 0.0
            self._votes[key] = self._votes.get(key, 0.0) + vote
            self._likely[key] = self._likely.get(key, 0.0) + (episode.log_prob or 0.0)

    def choose(self) -> Episode:
        """By the judge. Of a vote, of all texts that give the winning answer, the one of the largest value, or else the likeliest."""
        if self.judge == "value":
            return max(self.texts, key=lambda e: e.value or 0.0)
        if not self._votes:
            return max(self.texts, key=_liking)
        winner = max(self._votes, key=lambda key: (round(self._votes[key], 9), self._likely[key]))
        return max((e for e, key in zip(self.texts, self._keys, strict=True) if key == winner), key=_liking)

    def _lead(self) -> float:
        """Votes by which the first answer is ahead of the second."""
        first, second = [*sorted(self._votes.values(), reverse=True), 0.0, 0.0][:2]
        return first - second

    def _left(self) -> int:
        """Texts that there may still be."""
        assert self.most is not None
        return self.most - self.tried - self.given_up

    def is_settled(self, texts: int, stop_when_solved: bool) -> bool:
        """A text is accepted, or the texts that are left cannot change who wins."""
        if not self.texts or not stop_when_solved:
            return False
        if self.judge == "value":
            return max(e.value or 0.0 for e in self.texts) >= self.accept
        return self.most is not None and self._lead() > self._left()

    def wave(self, most: int) -> int:
        """So many that they can settle a vote, if they all say the same; where a verifier judges, few first."""
        left = most if self.most is None else max(1, self._left())
        if self.judge == "value":
            return min(most, left, max(1, self.tried - PATIENCE))
        if self.most is None:
            return most
        return min(most, left, max(1, int((left - self._lead()) // 2) + 1))

    def record(self) -> dict[str, Any]:
        chosen = self.solution
        kept = {**super().record(), "solutions": []}
        if chosen is not None:
            names = ("seed", "tokens", "latents", "stop", "text", "answer", "value", "log_prob", "lowest")
            decisions = {"dropped_decisions": chosen.num_decisions}  # none is kept
            kept["chosen"] = {name: getattr(chosen, name) for name in names} | decisions
        return kept

    def restore(self, record: dict[str, Any]) -> None:
        super().restore(record)
        if "chosen" in record:
            self.chosen = Episode(self.problem, **record["chosen"])


def _liking(episode: Episode) -> tuple[float, float]:
    return episode.value or 0.0, episode.log_prob or 0.0
