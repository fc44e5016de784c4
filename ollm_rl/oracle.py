"""The oracle: search over latents with the verifier at the leaves. What could the best latents reach?

`best_first` enumerates texts in the order of a policy's cumulative log-probability, without repeating one: from
every text found, the choices not taken at its decision points become branches; the likeliest branch is followed
to its end by the policy's first choices. `best_of_n` samples the policy. Both stop a problem when it is solved
or its token budget is spent, and all problems run side by side in one engine.

Budgets count generated tokens, and a search never generates more. Keys and values of the texts of open searches
are kept, so that a branch goes on where it left its parent. Where the memory for it (`keep_gib`) is used up, a
branch's beginning is prefilled again; those tokens are counted apart (`recomputed_tokens`).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ollm_rl.attention import KVCache
from ollm_rl.engine import RolloutEngine
from ollm_rl.errors import ConfigurationError
from ollm_rl.evaluation import breakdown, misbehaviour, wilson
from ollm_rl.progress import Bar, track
from ollm_rl.rollout import Request, choose
from ollm_rl.tasks import Problem
from ollm_rl.trajectory import Episode
from ollm_rl.workspace import Workspace

SEARCHES = ("best_first", "best_of_n")
CURVE = (25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


@dataclass
class Search:
    """One problem's search.

    Attributes:
        spent: generated tokens; when `solution` is set, those spent until it was found.
        tried: texts that were judged.
    """

    problem: Problem
    prompt: list[int]
    spent: int = 0
    recomputed: int = 0
    tried: int = 0
    solution: Episode | None = None
    frontier: list[tuple[float, int, "Branch"]] = field(default_factory=list)
    serial: int = 0  # breaks ties between equally likely branches

    def push(self, branch: "Branch") -> None:
        self.serial += 1
        heapq.heappush(self.frontier, (-branch.log_prob, self.serial, branch))

    def pop(self) -> "Branch":
        return heapq.heappop(self.frontier)[2]

    def open(self, budget: int) -> bool:
        return self.solution is None and self.spent < budget and bool(self.frontier)


@dataclass
class Branch:
    """A text under way: its tokens and latents so far, and the log-probability of its choices.

    Attributes:
        parent: the text that this one shares all tokens but its last with.
        kept: the row of `KeptTexts` that holds this text, once it has ended.
    """

    search: Search
    tokens: list[int]
    latents: list[int]
    log_prob: float
    parent: "Branch | None" = None
    stop: str = ""
    kept: int | None = None


class KeptTexts:
    """Keys and values of texts that have ended, while their searches are open.

    Args:
        engine: the one that the texts are generated in.
        gib: memory that may be used; a text that finds no room is not kept.
    """

    def __init__(self, engine: RolloutEngine, gib: float):
        self.engine = engine
        row = engine.kv.num_bytes // engine.kv.slots
        self.cache = KVCache(max(1, int(gib * 2**30 / row)), engine.kv.capacity, engine.prefix)
        self.free = list(range(self.cache.slots))
        self.owners: dict[int, list[int]] = {}  # id of a search -> its rows

    def keep(self, branches: Sequence[Branch], rows: Sequence[int]) -> None:
        """Copy engine rows, one per branch, as far as there is room."""
        taken = [self.free.pop() for _ in range(min(len(self.free), len(branches)))]
        for branch, row in zip(branches, taken, strict=False):
            branch.kept = row
            self.owners.setdefault(id(branch.search), []).append(row)
        if taken:
            source = torch.tensor(rows[: len(taken)], device=self.engine.device)
            longest = int(self.engine.lengths[source].max())
            self.cache.copy_rows(self.engine.kv, source, torch.tensor(taken, device=self.engine.device), longest)

    def forget(self, search: Search) -> None:
        """A search has ended: its rows are free, and its branches with them."""
        self.free += self.owners.pop(id(search), [])
        search.frontier.clear()


class Oracle:
    """Search with a policy's log-probabilities.

    Args:
        policy: hidden (n, d), mask (n, K) -> log-probabilities (n, K), such as `LatentPolicy`.
        search: `best_first` or `best_of_n`.
        budget: generated tokens per problem.
        width: branches of one problem that are followed at the same time.
        keep_gib: memory for keys and values of texts that branches go on from.
    """

    def __init__(
        self,
        workspace: Workspace,
        policy,
        search: str = "best_first",
        budget: int = 1000,
        width: int = 4,
        keep_gib: float = 2.0,
    ):
        if search not in SEARCHES:
            raise ConfigurationError(f"oracle.search={search!r}; expected one of {', '.join(SEARCHES)}")
        if budget < 1 or width < 1:
            raise ConfigurationError(f"oracle: expected budget and width of at least 1, got {budget} and {width}")
        self.workspace, self.policy = workspace, policy
        self.search, self.budget, self.width, self.keep_gib = search, budget, width, keep_gib
        self.kept: KeptTexts | None = None

    def solve(self, problems: Sequence[Problem], seed: int = 0) -> list[Search]:
        """Search all problems; the searches in their order."""
        prompter = self.workspace.prompter
        searches = [Search(p, prompter.encode(p)) for p in problems]
        with track(f"oracle {self.search}", len(searches), "problems") as bar:
            if self.search == "best_first":
                self._best_first(searches, bar)
            else:
                self._best_of_n(searches, seed, bar)
        return searches

    # best first -----------------------------------------------------------------------------------------------

    def _best_first(self, searches: list[Search], bar: Bar) -> None:
        engine = self.workspace.engine
        for search in searches:
            search.push(Branch(search, [], [], 0.0))
        engine.make_room(max(len(search.prompt) for search in searches))
        self.kept = None
        waiting = list(searches)
        while waiting:
            wave: list[Search] = []
            branches: list[Branch] = []
            for search in waiting:
                room = engine.num_slots - len(branches)
                if room <= 0:
                    break
                wave.append(search)
                branches += self._take(search, min(self.width, room))
            self._follow(branches)
            for branch in branches:
                self._judge(branch)
            again = [s for s in wave if s.open(self.budget)]
            for search in wave:
                if not search.open(self.budget) and self.kept is not None:
                    self.kept.forget(search)
            bar.advance(len(wave) - len(again), f"{sum(s.solution is not None for s in searches)} solved")
            # First choices of all problems come first; then few problems at a time, so that few texts are kept.
            rest = waiting[len(wave) :]
            waiting = rest + again if any(not s.tried for s in rest) else again + rest
        self.kept = None

    def _take(self, search: Search, most: int) -> list[Branch]:
        """The likeliest branches of a search, as many as its budget has a token for."""
        taken: list[Branch] = []
        while search.frontier and len(taken) < most and search.spent < self.budget:
            taken.append(search.pop())
            search.spent += bool(taken[-1].tokens)  # the token in which it differs from its parent
        return taken

    @torch.inference_mode()
    def _follow(self, branches: list[Branch]) -> None:
        """Run branches to their ends by first choices, leaving the other choices in the frontiers."""
        engine = self.workspace.engine
        active = self._start([b for b in branches if not self._ended(b)])
        while active:
            options, deciding = engine.options, engine.options.decision.tolist()
            log_probs = self.policy(engine.hidden, options.mask)
            best = log_probs.argmax(-1)
            chosen = options.tokens.gather(1, best[:, None])[:, 0]
            scores, latents, tokens = log_probs.tolist(), best.tolist(), options.tokens.tolist()
            masks = options.mask.tolist()
            for i, branch in enumerate(active):
                if branch.search.spent >= self.budget:
                    branch.stop = "budget"
                    continue
                if deciding[i]:
                    self._leave_others(branch, latents[i], tokens[i], scores[i], masks[i])
                    branch.log_prob += scores[i][latents[i]]
                branch.tokens.append(tokens[i][latents[i]])
                branch.latents.append(latents[i] if deciding[i] else -1)
                branch.search.spent += 1
            done = [self._ended(branch) for branch in active]
            if any(done):
                ended = [i for i, d in enumerate(done) if d]
                self._keep([active[i] for i in ended], ended)
                order = engine.release(torch.tensor(done, device=engine.device))
                active, chosen = [active[i] for i in order.tolist()], chosen[order]
            if active:
                engine.advance(chosen)

    def _start(self, branches: list[Branch]) -> list[Branch]:
        """Fill the engine with the branches' texts; the branches in the order of its rows."""
        engine = self.workspace.engine
        engine.clear()
        anew = [b for b in branches if b.parent is None or b.parent.kept is None]
        if anew:
            engine.admit([b.search.prompt + b.tokens for b in anew])
        for branch in anew:
            branch.search.recomputed += len(branch.tokens)
        kept = [(b, b.parent.kept) for b in branches if b.parent is not None and b.parent.kept is not None]
        if kept:
            assert self.kept is not None
            rows = torch.tensor([row for _, row in kept], device=engine.device)
            lengths = torch.tensor([len(b.search.prompt) + len(b.tokens) - 1 for b, _ in kept], device=engine.device)
            tokens = torch.tensor([b.tokens[-1] for b, _ in kept], device=engine.device)
            engine.restore(self.kept.cache, rows, lengths, tokens)
        return anew + [b for b, _ in kept]

    def _keep(self, branches: list[Branch], rows: list[int]) -> None:
        if self.kept is None:
            self.kept = KeptTexts(self.workspace.engine, self.keep_gib)
        self.kept.keep(branches, rows)

    def _leave_others(
        self, branch: Branch, taken: int, tokens: list[int], scores: list[float], mask: list[bool]
    ) -> None:
        for z, allowed in enumerate(mask):
            if allowed and z != taken:
                latents = [*branch.latents, z]
                other = Branch(branch.search, [*branch.tokens, tokens[z]], latents, branch.log_prob + scores[z], branch)
                branch.search.push(other)

    def _ended(self, branch: Branch) -> bool:
        if branch.tokens and branch.tokens[-1] in self.workspace.backbone.eos_ids:
            branch.stop = "eos"
        elif len(branch.tokens) >= self.workspace.engine.max_new_tokens:
            branch.stop = "length"
        return bool(branch.stop)

    def _judge(self, branch: Branch) -> None:
        search = branch.search
        if branch.stop == "budget":  # cut off in the middle: not a text
            return
        search.tried += 1
        episode = Episode(search.problem, 0, branch.tokens, branch.latents, branch.stop)
        episode.text = self.workspace.prompter.decode(branch.tokens)
        self.workspace.judge([episode])
        if episode.solved and search.solution is None:
            search.solution = episode

    # best of n ------------------------------------------------------------------------------------------------

    def _best_of_n(self, searches: list[Search], seed: int, bar: Bar) -> None:
        draw = np.random.default_rng((seed, len(searches)))

        def act(hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = self.policy(hidden, mask)
            z = choose(log_probs, False, uniforms)
            return z, log_probs.gather(1, z[:, None])[:, 0]

        still = list(searches)
        while still:
            requests = [Request(s.problem, int(draw.integers(2**31))) for s in still for _ in range(self.width)]
            episodes = self.workspace.rollout(requests, torch.inference_mode()(act), keep_hidden=False)
            for i, episode in enumerate(episodes):
                search = still[i // self.width]
                if search.solution is not None or search.spent >= self.budget:
                    continue
                whole = search.spent + len(episode.tokens) <= self.budget
                search.spent = min(search.spent + len(episode.tokens), self.budget)
                search.tried += whole
                search.solution = episode if whole and episode.solved else None
            left = [s for s in still if s.solution is None and s.spent < self.budget]
            bar.advance(len(still) - len(left), f"{sum(s.solution is not None for s in searches)} solved")
            still = left


def summarise(searches: Sequence[Search], search: str, budget: int) -> tuple[dict, list[dict]]:
    """The oracle's row of `results.json`, and its solved share at growing budgets."""
    n = len(searches)
    solved = [s for s in searches if s.solution is not None]
    row = {
        "agent": "oracle",
        "search": search,
        "n_problems": n,
        "budget": budget,
        "accuracy": len(solved) / max(n, 1),
        "accuracy_ci95": list(wilson(len(solved), n)),
        "avg_at_8": None,
        "pass_at_8": None,
        "mean_tokens": float(np.mean([s.spent for s in searches])),
        "recomputed_tokens": float(np.mean([s.recomputed for s in searches])),
        "mean_tried": float(np.mean([s.tried for s in searches])),
        **misbehaviour([s.solution for s in solved if s.solution is not None]),
        "train_episodes": 0,
        "train_tokens": 0,
        "train_seconds": 0.0,
        "breakdown": breakdown([(s.problem, s.solution is not None) for s in searches]),
    }
    curve = []
    for limit in [b for b in CURVE if b < budget] + [budget]:
        within = sum(s.spent <= limit for s in solved)
        curve.append({"budget": limit, "solved": within / max(n, 1), "ci95": list(wilson(within, n))})
    return row, curve
