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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ollm_rl.common.cost import count
from ollm_rl.common.locate import dotted_name
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import whole_lines
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.policies import Critic, choose
from ollm_rl.options.value import Value
from ollm_rl.oracle.config import VALUED, SearchConfig
from ollm_rl.oracle.deployed import Deployed
from ollm_rl.oracle.search import Branch, Frontier, Search, new_frontier
from ollm_rl.oracle.tree import Policy, TreeSearch
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.base import BaseSession
from ollm_rl.session.local import Session
from ollm_rl.session.value import give_values
from ollm_rl.tasks import Problem

WIDTHS = {"beam": 8, "best_of_n": 8}
MOST_TEXTS = 16  # of a search that asks for no verdict


class Oracle:
    """Search with a policy's log-probabilities.

    >>> searches = ol.Oracle(session, agent.policy, budget=500).solve(session.problems("test", 50))
    >>> sum(search.solution is not None for search in searches)

    Args:
        policy: log-probabilities (n, K) of hidden states and masks, such as a `LatentPolicy` or an agent's `policy`.
        search, budget, width: of `SearchConfig`, which also has the other settings.
        critic: of `puct`, see there. value: a learned verifier, of judge=value and weighted_vote.
        texts: a problem's search ends with so many solved texts, no two the same.

    Attributes:
        occupancy: mean share of `slots` that a decode step of the last tree search in this process used.
    """

    def __init__(
        self,
        session: BaseSession,
        policy: Policy,
        search: str | type[Frontier] = SearchConfig.search,
        budget: int = SearchConfig.budget,
        width: int | None = SearchConfig.width,
        critic: Critic | None = None,
        value: Value | None = None,
        texts: int = 1,
        **settings: Any,
    ):
        if not callable(policy):
            raise ConfigurationError(
                f"policy={policy!r} gives no log-probabilities of latents to search with; expected an agent's policy (agents over "
                "the vocabulary and random have none) or ollm_rl.options.policies.LatentPolicy.from_prior(session.plugin)"
            )
        if isinstance(search, type):  # of the user's own, as its name
            search = dotted_name(search)
        settings |= {"search": search, "budget": budget, "width": width}
        self.config = config = SearchConfig.of(settings, "the oracle")
        if config.search == "teacher_forced":
            raise ConfigurationError(
                "oracle.search='teacher_forced' is no search; call ollm_rl.oracle.teacher.teacher_forced"
            )
        if texts < 1:
            raise ConfigurationError(f"oracle: texts={texts}; expected at least 1")
        if config.judge in VALUED and value is None:
            raise ConfigurationError(
                f"oracle.judge={config.judge} needs a learned verifier; expected value=ol.learn_value(session, agent), or on the command line "
                "the directory of one (oracle.value=)"
            )
        if config.give_up and (value is None or value.beginnings is None):
            raise config.refuse(
                "give_up",
                "0: the learned verifier has learned from whole texts only; train one with value.beginnings=8",
            )
        self.session, self.policy, self.texts, self.value = session, policy, texts, value
        self.search, self.budget = config.search, config.budget
        self.width = WIDTHS.get(config.search, 32) if config.width is None else config.width
        self.most = MOST_TEXTS if config.max_tries is None and config.judge != "verdict" else config.max_tries
        self.critic = critic if config.search == "puct" else None
        self._new_frontier()  # one of the user's own is looked up now, and not on a worker
        self.occupancy: float | None = None

    @property
    def name(self) -> str:
        """The search and, where that is not the verdict, what judges; as in file names."""
        judge = self.config.judge
        return self.search if judge == "verdict" else f"{self.search}_{judge}"

    def solve(self, problems: Sequence[Problem], seed: int = 0, store: Path | None = None) -> list[Search]:
        """Search all problems; the searches in their order.

        Args:
            store: a file of finished searches: those in it are not searched again, and others are added.
        """
        searches = [self._search_of(p, Frontier()) for p in problems]
        records = whole_lines(store) if store is not None else []
        if store is not None and store.exists():  # without the half line that a kill may have left
            store.write_text("".join(json.dumps(record) + "\n" for record in records))
        done = {at: record for record in records if (at := _place_of(record, problems)) is not None}
        for at, record in done.items():
            searches[at].restore(record)
        # By place: several problems may have one id.
        open_ones = [(at, p) for at, p in enumerate(problems) if at not in done]
        deadline = None if self.config.max_seconds is None else time.time() + self.config.max_seconds
        with track(f"oracle {self.search}", len(searches), "problems", done=len(done)) as bar:
            for record in self.session.map(_search, open_ones, self, seed, deadline):
                searches[record["position"]].restore(record)
                if self.search != "best_of_n":  # whose texts are episodes, and counted as such
                    count(searches[record["position"]].tried, searches[record["position"]].spent)
                if store is not None:
                    with store.open("a") as out:
                        out.write(json.dumps(record) + "\n")
                ended = sum(s.solution is not None for s in searches)
                bar.advance(1, f"{ended} {'solved' if self.config.judge == 'verdict' else 'answered'}")
        return searches

    def solve_from(self, problem: Problem, tokens: Sequence[int], latents: Sequence[int], seed: int = 0) -> Search:
        """Search the texts of one problem that begin with `tokens`, chosen by `latents` (as in `Episode`), with the model in this process.

        Raises:
            ConfigurationError: the search does without verdicts: a learned verifier reads the states of whole texts.
        """
        if self.config.judge != "verdict":
            raise self.config.refuse("judge", "verdict, to search from the middle of a text")
        search = self._search_of(problem, self._new_frontier())
        search.opening = Branch(list(tokens), list(latents))
        deadline = None if self.config.max_seconds is None else time.time() + self.config.max_seconds
        for _ in self._run([search], seed, deadline):
            pass
        return search

    def records(
        self, problems: Sequence[tuple[int, Problem]], seed: int, deadline: float | None
    ) -> Iterator[dict[str, Any]]:
        """Search these problems here; what `Search.record` gives, with their `position`, in the order in which they end.

        Args:
            problems: with their places among all that are searched.
        """
        searches = [self._search_of(p, self._new_frontier()) for _, p in problems]
        places = {id(s): at for s, (at, _) in zip(searches, problems, strict=True)}
        for search in self._run(searches, seed, deadline):
            yield {"position": places[id(search)], **search.record()}

    def _run(self, searches: list[Search], seed: int, deadline: float | None) -> Iterator[Search]:
        """The searches, run here, each yielded when it has ended."""
        limits = self.budget, self.width, self.config.slots, self.config.keep_gib
        assert isinstance(self.session, Session)  # here is where the model is
        tree = TreeSearch(
            self.session, self.policy, self._open, *limits, self.critic, self._look, self.value is not None,
            self.value.beginnings if self.value is not None and self.config.give_up else None, self.config.give_up,
        )  # fmt: skip
        yield from (
            self._best_of_n(searches, seed, deadline) if self.search == "best_of_n" else tree.run(searches, deadline)
        )
        self.occupancy = tree.rows / (tree.steps * tree.slots) if tree.steps else None

    def _new_frontier(self) -> Frontier:
        if self.search == "best_of_n":
            return Frontier()
        return new_frontier(self.config)

    def _search_of(self, problem: Problem, frontier: Frontier) -> Search:
        if self.config.judge == "verdict":
            return Search(problem, frontier)
        return Deployed(problem, frontier, judge=self.config.judge, accept=self.config.accept, most=self.most)

    def _look(self, episodes: list[Episode]) -> list[float]:
        """What ended texts are worth to the search: their rewards or, where no verdict may be used, how likely they are to be right."""
        assert isinstance(self.session, Session)
        if self.config.judge == "verdict":
            self.session.judge(episodes, self.session.prompter)
            return [e.reward for e in episodes]
        self.session.judge.read(episodes)
        if self.value is not None:
            give_values(self.value, episodes)
        return [e.value or 0.0 for e in episodes]

    def _open(self, search: Search) -> bool:
        wanted = not search.is_settled(self.texts, self.config.stop_when_solved)
        left = self.most is None or search.tried + search.given_up < self.most
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
            asked = [s for s in still for _ in range(s.wave(self.width))]
            requests = [
                Request(s.problem, int(draws[id(s)].integers(2**31)), opening=tuple(s.opening.tokens)) for s in asked
            ]
            verdict = self.config.judge == "verdict"
            episodes = self.session.rollout(requests, torch.inference_mode()(act), keep_hidden=False, judged=verdict)
            if not verdict and self.value is not None:
                give_values(self.value, episodes)
            for search, episode in zip(asked, episodes, strict=True):
                new = len(episode.tokens) - len(search.opening.tokens)
                if not self._open(search):  # it came with the text that ended it
                    if not verdict:
                        search.spent = min(search.spent + new, self.budget)
                    continue
                whole = search.spent + new <= self.budget
                search.spent = min(search.spent + new, self.budget)
                if whole:
                    search.found(episode, [])
            yield from [s for s in still if not self._open(s)]
            still = [s for s in still if self._open(s)]


def _search(
    session: Session, problems: Sequence[tuple[int, Problem]], oracle: Oracle, seed: int, deadline: float | None
) -> Iterator[dict[str, Any]]:
    """For `Session.map`; on a cluster, the oracle's session is the worker's."""
    return oracle.records(problems, seed, deadline)


def _place_of(record: dict[str, Any], problems: Sequence[Problem]) -> int | None:
    """Which of `problems` a stored search is of; None if that cannot be said.

    A record without `position`, of an earlier release, says it by an id that only one problem has.
    """
    name, at = record["problem_id"], record.get("position")
    if at is not None:
        return at if at < len(problems) and problems[at].id == name else None
    places = [i for i, problem in enumerate(problems) if problem.id == name]
    return places[0] if len(places) == 1 else None
