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

    @property
    def solution(self) -> Episode | None:
        """The text that it gives as its answer; None if there is none."""
        return self.choose() if self.texts else self.chosen

    @property
    def shortest(self) -> Episode | None:
        return self.solution

    def found(self, episode: Episode, choices: list[Choice]) -> None:
        self.tried += 1
        self.texts.append(episode)

    def choose(self) -> Episode:
        """By the judge. Of a vote, of all texts that give the winning answer, the one of the largest value, or else the likeliest."""
        if self.judge == "value":
            return max(self.texts, key=lambda e: e.value or 0.0)
        votes = self._votes()
        if not votes:
            return max(self.texts, key=_liking)
        likely: dict[Hashable, float] = {}
        for episode in self.texts:
            if episode.answer is not None:
                key = answer_key(episode.answer)
                likely[key] = likely.get(key, 0.0) + (episode.log_prob or 0.0)
        winner = max(votes, key=lambda key: (round(votes[key], 9), likely[key]))
        return max(
            (e for e in self.texts if e.answer is not None and answer_key(e.answer) == winner),
            key=_liking,
        )

    def _votes(self) -> dict[Hashable, float]:
        votes: dict[Hashable, float] = {}
        for episode in self.texts:
            if episode.answer is not None:
                vote = 1.0 if self.judge == "vote" else episode.value or 0.0
                key = answer_key(episode.answer)
                votes[key] = votes.get(key, 0.0) + vote
        return votes

    def is_settled(self, texts: int, stop_when_solved: bool) -> bool:
        """A text is accepted, or the texts that are left cannot change who wins."""
        if not self.texts:
            return False
        if self.judge == "value":
            return stop_when_solved and max(e.value or 0.0 for e in self.texts) >= self.accept
        if self.most is None:
            return False
        first, second = [*sorted(self._votes().values(), reverse=True), 0.0, 0.0][:2]
        return stop_when_solved and first - second > self.most - self.tried

    def wave(self, most: int) -> int:
        """So many that they can settle a vote, if they all say the same; where a verifier judges, few first."""
        if self.judge == "value":
            return min(most, max(1, self.tried - PATIENCE))
        if self.most is None:
            return most
        left = self.most - self.tried
        first, second = [*sorted(self._votes().values(), reverse=True), 0.0, 0.0][:2]
        return min(most, left, max(1, int((left - (first - second)) // 2) + 1))

    def record(self) -> dict[str, Any]:
        chosen = self.solution
        kept = {**super().record(), "solutions": []}
        if chosen is not None:
            names = ("seed", "tokens", "latents", "stop", "text", "answer", "value")
            kept["chosen"] = {name: getattr(chosen, name) for name in names}
        return kept

    def restore(self, record: dict[str, Any]) -> None:
        super().restore(record)
        if "chosen" in record:
            self.chosen = Episode(self.problem, **record["chosen"])


def _liking(episode: Episode) -> tuple[float, float]:
    return episode.value or 0.0, episode.log_prob or 0.0
