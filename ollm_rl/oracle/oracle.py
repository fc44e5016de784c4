"""Searches over latents, all problems side by side in one engine.

A tree search follows a branch to its end by the policy's first choices (`beam` lets the likeliest of a problem's texts
go on instead) and leaves the other choices in a frontier, which says what is followed next; see `ollm_rl.oracle.search`.
`best_of_n` samples the policy. A problem stops when it is solved or its budget is spent.

Budgets count generated tokens, and a search never generates more. Keys and values of the texts of open searches
are kept, so that a branch goes on where it left its parent. Where the memory for it (`keep_gib`) is used up, a
branch's beginning is prefilled again; those tokens are counted apart (`recomputed`).

What a search of one problem looks at depends on that problem only, not on which others are searched beside it: its texts
go in *waves* that start and step together, one text first, more once that did not help.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ollm_rl.engine import stay_in_place
from ollm_rl.errors import ConfigurationError
from ollm_rl.oracle.kept import KeptTexts
from ollm_rl.oracle.search import FRONTIERS, Branch, Choice, Frontier, Search, new_frontier
from ollm_rl.progress import track
from ollm_rl.rollout import REFILL, Request, choose
from ollm_rl.tasks import Problem
from ollm_rl.trajectory import Episode
from ollm_rl.workspace import Workspace

Policy = Callable[[Tensor, Tensor], Tensor]  # hidden (n, d), mask (n, K) -> log-probabilities (n, K)
SEARCHES = (*FRONTIERS, "best_of_n")


@dataclass(eq=False)
class _Row:
    """A text in the engine."""

    branch: Branch
    row: int  # of the engine
    fresh: bool = False  # put back from kept keys and values: its last token has to be run through first


@dataclass(eq=False)
class _Wave:
    """Texts of one problem that were begun together."""

    search: Search
    rows: list[_Row]


class Oracle:
    """Search with a policy's log-probabilities.

    Args:
        policy: such as `LatentPolicy`.
        search: `best_first`, `puct`, `beam`, `exhaustive` or `best_of_n`.
        budget: generated tokens per problem.
        width: most texts of one problem that are followed at the same time.
        keep_gib: memory for keys and values of texts that branches go on from.
        bonus: of `best_first`, see `BestFirst`; exploration: of `puct`.
        max_tries: texts per problem that the verifier is asked about, or None.
        max_seconds: for all problems; then every search stops with what it has. None: no limit.
        stop_when_solved: a problem's search ends with the first solved text; else it goes on for the shortest one.
    """

    def __init__(
        self,
        workspace: Workspace,
        policy: Policy,
        search: str = "best_first",
        budget: int = 1000,
        width: int = 8,
        keep_gib: float = 2.0,
        bonus: float = 0.0,
        exploration: float = 1.5,
        max_tries: int | None = None,
        max_seconds: float | None = None,
        stop_when_solved: bool = True,
    ):
        if search not in SEARCHES:
            raise ConfigurationError(f"oracle.search={search!r}; expected one of {', '.join(SEARCHES)}")
        if budget < 1 or width < 1:
            raise ConfigurationError(f"oracle: expected budget and width of at least 1, got {budget} and {width}")
        self.workspace, self.policy = workspace, policy
        self.search, self.budget, self.width, self.keep_gib = search, budget, width, keep_gib
        self.bonus, self.exploration = bonus, exploration
        self.max_tries, self.max_seconds, self.stop_when_solved = max_tries, max_seconds, stop_when_solved
        self.steps = self.rows = 0  # decode steps of tree searches, and the rows that they had in all

    @property
    def occupancy(self) -> float | None:
        """Mean share of the engine's slots that a decode step of a tree search used."""
        return self.rows / (self.steps * self.workspace.engine.num_slots) if self.steps else None

    def solve(self, problems: Sequence[Problem], seed: int = 0, store: Path | None = None) -> list[Search]:
        """Search all problems; the searches in their order.

        Args:
            store: a file of finished searches: those in it are not searched again, and others are added.
        """
        searches = [Search(p, self._new_frontier()) for p in problems]
        done = _stored(store)
        for search in searches:
            if search.problem.id in done:
                search.restore(done[search.problem.id])
        open_ones = [s for s in searches if s.problem.id not in done]
        deadline = None if self.max_seconds is None else time.monotonic() + self.max_seconds
        with track(f"oracle {self.search}", len(searches), "problems", done=len(done)) as bar:
            run = (
                self._best_of_n(open_ones, seed, deadline)
                if self.search == "best_of_n"
                else self._tree(open_ones, deadline)
            )
            for search in run:
                if store is not None:
                    with store.open("a") as out:
                        out.write(json.dumps(search.record()) + "\n")
                solved = sum(s.solution is not None for s in searches)
                bar.advance(1, f"{solved} solved")
        return searches

    def _new_frontier(self) -> Frontier:
        return Frontier() if self.search == "best_of_n" else new_frontier(self.search, self.bonus, self.exploration)

    def _open(self, search: Search) -> bool:
        wanted = search.solution is None or not self.stop_when_solved
        left = self.max_tries is None or search.tried < self.max_tries
        return wanted and left and search.spent < self.budget

    # tree searches --------------------------------------------------------------------------------------------

    def _tree(self, searches: list[Search], deadline: float | None) -> Iterator[Search]:
        """All searches, each yielded when it has ended."""
        space, engine = self.workspace, self.workspace.engine
        self.prompts = {id(s): space.prompter.encode(s.problem) for s in searches}
        engine.make_room(max(map(len, self.prompts.values()), default=0))
        engine.clear()
        self.kept: KeptTexts | None = None
        for search in searches:
            search.frontier.push(Branch())
        waiting, waves = deque(searches), list[_Wave]()
        while waiting or waves:
            if deadline is not None and time.monotonic() > deadline:
                yield from [*(wave.search for wave in waves), *waiting]
                break
            waves += self._begin(waiting, waves)
            with torch.inference_mode():
                on, ended = self._choose(waves)
            self._judge(ended)
            over = [wave for wave in waves if not self._open(wave.search)]
            dropped = {id(row) for wave in over for row in wave.rows}  # what they would say does not matter any more
            for wave in over:
                wave.rows = []
            self._keep([(s, row) for s, row, _ in ended if row.branch.left and self._open(s)])
            self._advance([(row, token) for row, token in on if id(row) not in dropped])
            for wave in [w for w in waves if not w.rows]:
                waves.remove(wave)
                if self._open(wave.search) and len(wave.search.frontier):
                    waiting.append(wave.search)
                    continue
                if self.kept is not None:
                    self.kept.forget(wave.search)
                yield wave.search
        engine.clear()
        self.kept = None

    def _begin(self, waiting: deque[Search], waves: list[_Wave]) -> list[_Wave]:
        """Waves of waiting searches, put into the engine as long as they find room."""
        engine = self.workspace.engine
        beam = self.search == "beam"
        taken = self.width * len(waves) if beam else len(engine.lengths)
        free = engine.num_slots - taken
        if not waiting or (waves and free < max(1, engine.num_slots // REFILL)):
            return []
        begun: list[_Wave] = []
        while waiting:
            search = waiting[0]
            most = min(self.width if beam and search.tried else 1 + search.tried // 2, self.width, len(search.frontier))
            need = min(self.width, engine.num_slots) if beam else min(most, engine.num_slots)
            if need > free:
                break
            waiting.popleft()
            free -= need
            branches: list[Branch] = []
            while len(branches) < min(most, need) and len(search.frontier) and search.spent < self.budget:
                branches.append(search.frontier.pop())
                search.spent += bool(branches[-1].tokens)  # the token in which it differs from its parent
            begun.append(_Wave(search, [_Row(b, -1) for b in branches]))
        self._place(begun)
        return begun

    def _place(self, waves: list[_Wave]) -> None:
        """Give every new text its engine row: from kept keys and values, or by a prefill of all its tokens."""
        engine = self.workspace.engine
        rows = [(wave.search, row) for wave in waves for row in wave.rows]
        kept = [(s, r) for s, r in rows if r.branch.parent is not None and r.branch.parent.kept is not None]
        anew = [(s, r) for s, r in rows if r.branch.parent is None or r.branch.parent.kept is None]
        if anew:
            first = len(engine.lengths)
            engine.admit([self.prompts[id(s)] + r.branch.tokens for s, r in anew], room=0)
            for i, (search, row) in enumerate(anew):
                row.row = first + i
                search.recomputed += max(0, len(row.branch.tokens) - 1)  # its last token is a new one
        if kept:
            assert self.kept is not None
            sources = [r.branch.parent.kept for _, r in kept if r.branch.parent is not None]
            lengths = [len(self.prompts[id(s)]) + len(r.branch.tokens) - 1 for s, r in kept]
            new = self.kept.restore([s for s in sources if s is not None], lengths)
            for at, (_, row) in zip(new.tolist(), kept, strict=True):
                row.row, row.fresh = at, True

    def _choose(self, waves: list[_Wave]) -> tuple[list[tuple[_Row, int]], list[tuple[Search, _Row, str]]]:
        """One token for every text: rows that go on with their tokens, and rows that have ended."""
        engine = self.workspace.engine
        options, log_probs = engine.options, self.policy(engine.hidden, engine.options.mask)
        self._scores, self._best = log_probs.tolist(), log_probs.argmax(-1).tolist()
        self._tokens, self._masks = options.tokens.tolist(), options.mask.tolist()
        self._ranks = log_probs.argsort(-1, descending=True).argsort(-1).tolist()
        self._deciding = options.decision.tolist()
        on: list[tuple[_Row, int]] = []
        ended: list[tuple[Search, _Row, str]] = []
        for wave in waves:
            step = self._beam_step if wave.search.frontier.beam else self._first_choices
            on += step(wave, ended)
        return on, ended

    def _first_choices(self, wave: _Wave, ended: list) -> list[tuple[_Row, int]]:
        """The policy's first choice for every text of a wave; the others are left in the frontier."""
        search, on = wave.search, []
        for row in wave.rows:
            if not row.fresh and not self._ended(row.branch):
                if search.spent >= self.budget:
                    row.branch.stop = "budget"
                else:
                    i = row.row
                    taken = self._best[i]
                    if self._deciding[i]:
                        others = [self._child(row, z) for z in self._allowed(i) if z != taken]
                        choice = self._choice(row, taken)
                        search.frontier.leave(row.branch, others, choice)
                        row.branch.extend(self._tokens[i][taken], taken, choice)
                    else:
                        row.branch.extend(self._tokens[i][taken], -1, None)
                    search.spent += 1
            row.fresh = False
            if self._ended(row.branch):
                ended.append((search, row, row.branch.stop))
            else:
                on.append((row, row.branch.tokens[-1]))
        wave.rows = [row for row, _ in on]
        return on

    def _beam_step(self, wave: _Wave, ended: list) -> list[tuple[_Row, int]]:
        """The `width` likeliest texts with one more token; those of the others that differ are left in the frontier."""
        search = wave.search
        on: list[tuple[_Row, int] | None] = []
        candidates: list[tuple[float, int, int, _Row]] = []
        for order, row in enumerate(wave.rows):
            if row.fresh or self._ended(row.branch):  # the latter: a branch that is one token and at its end
                row.fresh = False
                if self._ended(row.branch):
                    ended.append((search, row, row.branch.stop))
                else:
                    on.append((row, row.branch.tokens[-1]))
                continue
            for z in self._allowed(row.row):
                score = self._scores[row.row][z] if self._deciding[row.row] else 0.0
                candidates.append((-(row.branch.log_prob + score), order, z, row))
        candidates.sort(key=lambda c: c[:3])
        room = min(self.width - len(on), max(0, self.budget - search.spent))
        chosen, left = candidates[:room], candidates[room:]
        search.spent += len(chosen)
        going: dict[int, list[tuple[int, _Row]]] = {}
        for _, _, z, row in chosen:
            going.setdefault(id(row), []).append((z, row))
        over = search.spent >= self.budget
        for _, _, z, row in left:
            if self._deciding[row.row]:
                search.frontier.push(self._child(row, z))
            elif id(row) not in going and not over:  # forced, and let go: it waits with this token
                search.frontier.push(self._child(row, z, forced=True))
        for _, _, _, row in {id(c[3]): c for c in left}.values():
            if id(row) not in going:
                row.branch.stop = "budget" if over else "pruned"
                ended.append((search, row, row.branch.stop))
        for pairs in going.values():
            for z, row in pairs[1:]:  # before the first, which grows in place
                on.append(self._moved(search, _Row(self._child(row, z), row.row), ended))
            z, row = pairs[0]
            i = row.row
            choice = self._choice(row, z) if self._deciding[i] else None
            row.branch.extend(self._tokens[i][z], z if choice else -1, choice)
            on.append(self._moved(search, row, ended))
        going_on = [pair for pair in on if pair is not None]
        wave.rows = [row for row, _ in going_on]
        return going_on

    def _moved(self, search: Search, row: _Row, ended: list) -> tuple[_Row, int] | None:
        if self._ended(row.branch):
            ended.append((search, row, row.branch.stop))
            return None
        return row, row.branch.tokens[-1]

    def _allowed(self, i: int) -> list[int]:
        return [z for z, allowed in enumerate(self._masks[i]) if allowed]

    def _choice(self, row: _Row, z: int) -> Choice:
        return Choice(len(row.branch.tokens), self._ranks[row.row][z], self._scores[row.row][z])

    def _child(self, row: _Row, z: int, forced: bool = False) -> Branch:
        token = self._tokens[row.row][z]
        if not forced:
            return row.branch.child(token, z, self._choice(row, z))
        return row.branch.child(token, -1, None)

    def _ended(self, branch: Branch) -> bool:
        if not branch.stop and branch.tokens:
            if branch.tokens[-1] in self.workspace.engine.eos_ids:
                branch.stop = "eos"
            elif len(branch.tokens) >= self.workspace.engine.max_new_tokens:
                branch.stop = "length"
        return bool(branch.stop)

    def _judge(self, ended: list[tuple[Search, _Row, str]]) -> None:
        """Verdicts on the whole texts among those that ended, in one call."""
        whole = [(search, row.branch) for search, row, stop in ended if stop in ("eos", "length")]
        episodes = [
            Episode(
                s.problem, 0, list(b.tokens), list(b.latents), b.stop, text=self.workspace.prompter.decode(b.tokens)
            )
            for s, b in whole
        ]
        if episodes:
            self.workspace.judge(episodes)
        for (search, branch), episode in zip(whole, episodes, strict=True):
            search.frontier.ended(branch, episode.reward)
            if self._open(search):
                search.found(episode, list(branch.choices))

    def _keep(self, texts: list[tuple[Search, _Row]]) -> None:
        if not texts:
            return
        if self.kept is None:
            self.kept = KeptTexts(self.workspace.engine, self.keep_gib)
        self.kept.keep([(search, row.branch, row.row) for search, row in texts])

    def _advance(self, on: list[tuple[_Row, int]]) -> None:
        """Run the chosen tokens through the model; rows that have ended are dropped."""
        engine = self.workspace.engine
        if not on:
            engine.clear()
            return
        order = stay_in_place([row.row for row, _ in on])
        pairs = torch.tensor([(on[i][0].row, on[i][1]) for i in order], device=engine.device)
        for place, i in enumerate(order):
            on[i][0].row = place
        engine.fork(pairs[:, 0], pairs[:, 1])
        self.steps += 1
        self.rows += len(on)

    # best of n ------------------------------------------------------------------------------------------------

    def _best_of_n(self, searches: list[Search], seed: int, deadline: float | None) -> Iterator[Search]:
        def act(hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = self.policy(hidden, mask)
            z = choose(log_probs, False, uniforms)
            return z, log_probs.gather(1, z[:, None])[:, 0]

        draws = {id(s): np.random.default_rng([seed, *s.problem.id.encode()]) for s in searches}
        still = list(searches)
        while still:
            if deadline is not None and time.monotonic() > deadline:
                yield from still
                return
            requests = [Request(s.problem, int(draws[id(s)].integers(2**31))) for s in still for _ in range(self.width)]
            episodes = self.workspace.rollout(requests, torch.inference_mode()(act), keep_hidden=False)
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


def _stored(store: Path | None) -> dict[str, dict]:
    """Finished searches by problem; a kill may leave half a line at the end, which is dropped."""
    if store is None or not store.exists():
        return {}
    lines = [line for line in store.read_text().splitlines(keepends=True) if line.endswith("\n")]
    store.write_text("".join(lines))
    records = [json.loads(line) for line in lines]
    return {record["problem_id"]: record for record in records}
