"""Searches over latents, all problems side by side in one engine.

Tree searches are in `ollm_rl.oracle.tree`; `best_of_n` samples the policy. A problem stops when it is solved or its
budget is spent.

Budgets count generated tokens, and a search never generates more. Keys and values of the texts of open searches
are kept, so that a branch goes on where it left its parent. Where the memory for it (`keep_gib`) is used up, a
branch's beginning is prefilled again; those tokens are counted apart (`recomputed`).
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import whole_lines
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.policies import Critic, choose
from ollm_rl.oracle.search import FRONTIERS, Frontier, Search, new_frontier
from ollm_rl.oracle.tree import Policy, TreeSearch
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem

SEARCHES = (*FRONTIERS, "best_of_n")
WIDTHS = {"beam": 8, "best_of_n": 8}


class Oracle:
    """Search with a policy's log-probabilities.

    Args:
        policy: such as `LatentPolicy`.
        search: `best_first`, `puct`, `beam`, `exhaustive` or `best_of_n`.
        budget: generated tokens per problem.
        width: most texts of one problem that are followed at the same time, by default 8 of `beam` and `best_of_n` and
            32 of the others.
        slots: most texts of all problems that a tree search follows at the same time.
        keep_gib: memory for keys and values of texts that branches go on from.
        deviation_penalty, length_penalty: of `best_first`, see `BestFirst`; exploration: of `puct`.
        critic: of `puct`, see there.
        max_tries: texts per problem that the verifier is asked about, or None.
        max_seconds: for all problems; then every search stops with what it has. None: no limit.
        stop_when_solved: a problem's search ends with the first solved text, or with `texts` of them, no two the same;
            else it goes on for the shortest one.

    Attributes:
        occupancy: mean share of `slots` that a decode step of the last tree search in this process used.
    """

    def __init__(
        self,
        session: Session,
        policy: Policy,
        search: str = "best_first",
        budget: int = 1000,
        width: int | None = None,
        slots: int = 64,
        keep_gib: float = 2.0,
        deviation_penalty: float = 0.0,
        length_penalty: float = 1.0,
        exploration: float = 1.5,
        critic: Critic | None = None,
        max_tries: int | None = None,
        max_seconds: float | None = None,
        stop_when_solved: bool = True,
        texts: int = 1,
    ):
        if search not in SEARCHES:
            raise ConfigurationError(f"oracle.search={search!r}; expected one of {', '.join(SEARCHES)}")
        width = WIDTHS.get(search, 32) if width is None else width
        least = {"budget": budget, "width": width, "slots": slots, "texts": texts}
        for name, value in least.items():  # with none of them a search would wait for ever
            if not value >= 1:
                raise ConfigurationError(f"oracle.{name}={value}; expected at least 1")
        self.session, self.policy = session, policy
        self.search, self.budget, self.width, self.keep_gib = search, budget, width, keep_gib
        self.slots, self.deviation_penalty, self.length_penalty, self.exploration = (
            slots,
            deviation_penalty,
            length_penalty,
            exploration,
        )
        self.critic = critic if search == "puct" else None
        self.max_tries, self.max_seconds, self.stop_when_solved = max_tries, max_seconds, stop_when_solved
        self.texts = texts
        self.occupancy: float | None = None

    def solve(self, problems: Sequence[Problem], seed: int = 0, store: Path | None = None) -> list[Search]:
        """Search all problems; the searches in their order.

        Args:
            store: a file of finished searches: those in it are not searched again, and others are added.
        """
        searches = [Search(p, Frontier()) for p in problems]
        records = whole_lines(store) if store is not None else []
        if store is not None and store.exists():  # without the half line that a kill may have left
            store.write_text("".join(json.dumps(record) + "\n" for record in records))
        done = {at: record for record in records if (at := _place_of(record, problems)) is not None}
        for at, record in done.items():
            searches[at].restore(record)
        # By place: several problems may have one id.
        open_ones = [(at, p) for at, p in enumerate(problems) if at not in done]
        deadline = None if self.max_seconds is None else time.time() + self.max_seconds
        with track(f"oracle {self.search}", len(searches), "problems", done=len(done)) as bar:
            for record in self.session.map(_search, open_ones, self, seed, deadline):
                searches[record["position"]].restore(record)
                if store is not None:
                    with store.open("a") as out:
                        out.write(json.dumps(record) + "\n")
                solved = sum(s.solution is not None for s in searches)
                bar.advance(1, f"{solved} solved")
        return searches

    def records(self, problems: Sequence[tuple[int, Problem]], seed: int, deadline: float | None) -> Iterator[dict]:
        """Search these problems here; what `Search.record` gives, with their `position`, in the order in which they end.

        Args:
            problems: with their places among all that are searched.
        """
        searches = [Search(p, self._new_frontier()) for _, p in problems]
        places = {id(s): at for s, (at, _) in zip(searches, problems, strict=True)}
        limits = self.budget, self.width, self.slots, self.keep_gib
        tree = TreeSearch(self.session, self.policy, self._open, *limits, self.critic)
        run = self._best_of_n(searches, seed, deadline) if self.search == "best_of_n" else tree.run(searches, deadline)
        for search in run:
            yield {"position": places[id(search)], **search.record()}
        self.occupancy = tree.rows / (tree.steps * tree.slots) if tree.steps else None

    def _new_frontier(self) -> Frontier:
        if self.search == "best_of_n":
            return Frontier()
        return new_frontier(self.search, self.deviation_penalty, self.length_penalty, self.exploration)

    def _open(self, search: Search) -> bool:
        wanted = len(search.solutions) < self.texts or not self.stop_when_solved
        left = self.max_tries is None or search.tried < self.max_tries
        return wanted and left and search.spent < self.budget

    def _best_of_n(self, searches: list[Search], seed: int, deadline: float | None) -> Iterator[Search]:
        def act(hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = self.policy(hidden, mask)
            z = choose(log_probs, False, uniforms)
            return z, log_probs.gather(1, z[:, None])[:, 0]

        draws = {id(s): np.random.default_rng([seed, *s.problem.id.encode()]) for s in searches}
        still = list(searches)
        while still:
            if deadline is not None and time.time() > deadline:
                yield from still
                return
            requests = [Request(s.problem, int(draws[id(s)].integers(2**31))) for s in still for _ in range(self.width)]
            episodes = self.session.rollout(requests, torch.inference_mode()(act), keep_hidden=False)
            for i, episode in enumerate(episodes):
                search = still[i // self.width]
                if not self._open(search):
                    continue
                whole = search.spent + len(episode.tokens) <= self.budget
                search.spent = min(search.spent + len(episode.tokens), self.budget)
                if whole:
                    search.found(episode, [])
            yield from [s for s in still if not self._open(s)]
            still = [s for s in still if self._open(s)]


def _search(
    session: Session, problems: Sequence[tuple[int, Problem]], oracle: Oracle, seed: int, deadline: float | None
) -> Iterator[dict]:
    """For `Session.map`; on a cluster, the oracle's session is the worker's."""
    return oracle.records(problems, seed, deadline)


def _place_of(record: dict, problems: Sequence[Problem]) -> int | None:
    """Which of `problems` a stored search is of; None if that cannot be said.

    A record without `position`, of an earlier release, says it by an id that only one problem has.
    """
    name, at = record["problem_id"], record.get("position")
    if at is not None:
        return at if at < len(problems) and problems[at].id == name else None
    places = [i for i, problem in enumerate(problems) if problem.id == name]
    return places[0] if len(places) == 1 else None
