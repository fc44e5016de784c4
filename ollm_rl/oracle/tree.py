"""Tree searches of many problems side by side in one engine.

A branch is followed to its end by the policy's first choices (a beam lets the likeliest of a problem's texts go on instead),
and the other choices are left in the problem's frontier, which says what is followed next; see `ollm_rl.oracle.search`.

What a search of one problem looks at depends on that problem only, not on which others are searched beside it: its texts
go in *waves* that start and step together, one text first, more once that did not help.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ollm_rl.options.enumeration import NO_LATENT, Options
from ollm_rl.options.policies import Critic
from ollm_rl.options.value import Value
from ollm_rl.oracle.kv_store import KeptTexts
from ollm_rl.oracle.search import Branch, Choice, Frontier, Search
from ollm_rl.rollout.engine import stay_in_place
from ollm_rl.rollout.episode import EOS, LENGTH, Episode, stop_reason
from ollm_rl.rollout.sampler import REFILL
from ollm_rl.session.local import Session

PATIENCE = 4  # texts that are followed one by one; after them, a wave has as many as were tried since

Policy = Callable[[Tensor, Tensor], Tensor]  # hidden (n, d), mask (n, K) -> log-probabilities (n, K)


@dataclass(eq=False)
class _Row:
    """A text in the engine."""

    branch: Branch
    row: int = -1  # of the engine
    fresh: bool = False  # put back from kept keys and values: its last token has to be run through first


@dataclass(eq=False)
class _Wave:
    """Texts of one problem that were begun together, those that have ended left out."""

    search: Search
    rows: list[_Row]


class _Step:
    """What every engine row could say next, and how likely the policy finds it: plain lists, for many small looks."""

    def __init__(self, options: Options, log_probs: Tensor, values: Tensor | None):
        self.tokens, self.masks, self.latents = options.tokens.tolist(), options.mask.tolist(), options.latents.tolist()
        self.scores, self.best = log_probs.tolist(), log_probs.argmax(-1).tolist()
        self.values = [0.0] * len(self.tokens) if values is None else values.tolist()
        self.ranks = log_probs.argsort(-1, descending=True).argsort(-1).tolist()

    def allowed(self, i: int) -> list[int]:
        return [z for z, allowed in enumerate(self.masks[i]) if allowed]

    def said(self, row: _Row, z: int) -> tuple[int, int, Choice | None]:
        """Token, latent and choice of a text that goes on with latent z: as `Branch.child` and `extend` take them."""
        i = row.row
        token, latent = self.tokens[i][z], self.latents[i][z]
        if latent == NO_LATENT:
            return token, latent, None
        return token, latent, Choice(len(row.branch.tokens), self.ranks[i][z], self.scores[i][z])


class TreeSearch:
    """All searches of one call.

    Args:
        is_open: whether a search goes on; budget, width, slots, keep_gib and critic as in `Oracle`.
        look: what ended texts are worth. reads: it looks at the texts' `features`.
        beginnings, give_up: how likely texts are to be right that are not at their end, and from where on one is left.

    Attributes:
        steps, rows: decode steps so far, and the rows that they had in all.
    """

    def __init__(
        self,
        session: Session,
        policy: Policy,
        is_open: Callable[[Search], bool],
        budget: int,
        width: int,
        slots: int,
        keep_gib: float,
        critic: Critic | None,
        look: Callable[[list[Episode]], list[float]],
        reads: bool,
        beginnings: Value | None,
        give_up: float,
    ):
        self.session, self.engine, self.policy = session, session.engine, policy
        self.is_open, self.budget, self.width = is_open, budget, width
        self.slots, self.keep_gib, self.critic = slots, keep_gib, critic
        self.look, self.reads = look, reads
        self.beginnings, self.give_up = beginnings, give_up
        self.steps = self.rows = 0
        self.prompts: dict[int, list[int]] = {}  # by id of the search
        self.kept: KeptTexts | None = None

    def run(self, searches: list[Search], deadline: float | None) -> Iterator[Search]:
        """The searches, each yielded when it has ended; at the deadline all that are left."""
        engine = self.engine
        self.prompts = {id(s): self.session.prompter.encode(s.problem) for s in searches}
        engine.clear()
        engine.make_room(max(map(len, self.prompts.values()), default=0))
        self.slots = min(self.slots, engine.num_slots)
        self.width = min(self.width, self.slots)
        for search in searches:
            search.frontier.push(search.opening)
        waiting, waves = deque(searches), list[_Wave]()
        while waiting or waves:
            if deadline is not None and time.time() > deadline:
                yield from [*(wave.search for wave in waves), *waiting]
                break
            waves += self._begin(waiting, waves)
            ended = self._choose(waves)
            self._judge(ended)
            for wave in waves:
                if not self.is_open(wave.search):
                    wave.rows = []  # what they would say does not matter any more
            self._keep([(s, row) for s, row in ended if row.branch.left and self.is_open(s)])
            self._advance([row for wave in waves for row in wave.rows])
            for wave in [w for w in waves if not w.rows]:
                waves.remove(wave)
                if self.is_open(wave.search) and len(wave.search.frontier):
                    waiting.append(wave.search)
                    continue
                if self.kept is not None:
                    self.kept.forget(wave.search)
                wave.search.frontier = Frontier()  # its branches are not looked at any more
                yield wave.search
        engine.clear()

    def _begin(self, waiting: deque[Search], waves: list[_Wave]) -> list[_Wave]:
        """Waves of waiting searches, put into the engine as long as they find room; a beam reserves its width."""
        free = self.slots - sum(self.width if w.search.frontier.beam else len(w.rows) for w in waves)
        if not waiting or (waves and free < max(1, self.slots // REFILL)):
            return []
        begun: list[_Wave] = []
        while waiting:
            search = waiting[0]
            beam, frontier = search.frontier.beam, search.frontier
            most = self.width if beam and search.tried else min(max(1, search.tried - PATIENCE), self.width)
            most = most if beam else search.wave(most)
            need = self.width if beam else min(most, len(frontier))
            if need > free:
                break
            waiting.popleft()
            free -= need
            rows: list[_Row] = []
            while len(rows) < most and len(frontier) and search.spent < self.budget:
                branch = frontier.pop()
                search.spent += branch.parent is not None  # the token in which it differs from its parent
                rows.append(_Row(branch))
            begun.append(_Wave(search, rows))
        self._place(begun)
        return begun

    def _place(self, waves: list[_Wave]) -> None:
        """Give every new text its engine row: from kept keys and values, or by a prefill of all its tokens."""
        engine, anew, kept = self.engine, [], []
        for wave in waves:
            for row in wave.rows:
                parent = row.branch.parent
                if parent is None or parent.kept is None:
                    anew.append((wave.search, row))
                else:
                    kept.append((wave.search, row, parent.kept))
        if anew:
            first = len(engine.lengths)
            engine.admit([self.prompts[id(s)] + r.branch.tokens for s, r in anew], room=0)
            for i, (search, row) in enumerate(anew):
                row.row = first + i
                # Its last token is a new one, unless nothing was generated yet.
                search.recomputed += len(row.branch.tokens) - (row.branch.parent is not None)
        if kept:
            assert self.kept is not None
            lengths = [len(self.prompts[id(s)]) + len(r.branch.tokens) - 1 for s, r, _ in kept]
            new = self.kept.restore([source for _, _, source in kept], lengths)
            for at, (_, row, _) in zip(new.tolist(), kept, strict=True):
                row.row, row.fresh = at, True

    @torch.inference_mode()
    def _choose(self, waves: list[_Wave]) -> list[tuple[Search, _Row]]:
        """One more token for every text of the waves; those that have ended, which their waves lose."""
        options = self.engine.options
        log_probs = self.policy(self.engine.hidden, options.mask)
        values = None if self.critic is None else self.critic(self.engine.hidden)
        states = self.engine.hidden.float().cpu() if self.reads else self.engine.hidden
        step = _Step(options, log_probs, values)
        ended: list[tuple[Search, _Row]] = []
        for wave in waves:
            ready = [row for row in wave.rows if not row.fresh and not self._ended(row.branch)]
            for row in ready if self.reads else ():
                row.branch.read(states[row.row])
            if self.beginnings is not None:
                self._give_up(wave.search, ready, states, step)
                ready = [row for row in ready if not row.branch.stop]
            others = [row for row in wave.rows if row.fresh or self._ended(row.branch)]
            for row in others:
                row.fresh = False
            choose = self._beam_step if wave.search.frontier.beam else self._first_choices
            rows = choose(wave.search, ready, step, self.width - len(others)) + others
            ended += [(wave.search, row) for row in rows if self._ended(row.branch)]
            wave.rows = [row for row in rows if not self._ended(row.branch)]
        return ended

    def _give_up(self, search: Search, rows: list[_Row], states: Tensor, step: _Step) -> None:
        """Texts that stand before a decision and are unlikely to be right end here; never before the search has a whole one."""
        rows = [row for row in rows if step.latents[row.row][step.best[row.row]] != NO_LATENT]
        if not rows:
            return
        assert self.beginnings is not None
        begun = torch.stack([row.branch.begun(states[row.row]) for row in rows])
        for row, likely in zip(rows, self.beginnings(begun.to(self.engine.device)).tolist(), strict=True):
            branch, state = row.branch, states[row.row]
            branch.decided = state if branch.decided is None else branch.decided + state
            if search.tried and likely < self.give_up:
                branch.stop = "given_up"
                search.given_up += 1
                search.frontier.ended(branch, likely)

    def _first_choices(self, search: Search, rows: list[_Row], step: _Step, room: int) -> list[_Row]:
        """The policy's first choice for every text; the others are left in the frontier."""
        for row in rows:
            if search.spent >= self.budget:
                row.branch.stop = "budget"
                continue
            token, latent, choice = step.said(row, step.best[row.row])
            if choice is not None:
                others = [row.branch.child(*step.said(row, z)) for z in step.allowed(row.row) if z != latent]
                search.frontier.leave(row.branch, others, choice, step.values[row.row])
            row.branch.extend(token, latent, choice)
            search.spent += 1
        return rows

    def _beam_step(self, search: Search, rows: list[_Row], step: _Step, room: int) -> list[_Row]:
        """The `room` likeliest texts with one more token; of the others, what is not on its way waits in the frontier."""
        scores = [
            (
                -row.branch.log_prob - (0.0 if step.latents[row.row][z] == NO_LATENT else step.scores[row.row][z]),
                order,
                z,
            )
            for order, row in enumerate(rows)
            for z in step.allowed(row.row)
        ]
        ranked = [(rows[order], z) for _, order, z in sorted(scores)]
        room = min(room, self.budget - search.spent)
        chosen, let_go = ranked[:room], ranked[room:]
        search.spent += len(chosen)
        for row, z in let_go:
            search.frontier.push(row.branch.child(*step.said(row, z)))
        going = {id(row): [z for other, z in chosen if other is row] for row in rows}
        texts: list[_Row] = []
        for row in rows:
            latents = going[id(row)]
            texts += [_Row(row.branch.child(*step.said(row, z)), row.row) for z in latents[1:]]
            texts.append(row)
            if latents:  # after its forks: it grows in place
                row.branch.extend(*step.said(row, latents[0]))
            else:
                row.branch.stop = "budget" if search.spent >= self.budget else "pruned"
        return texts

    def _ended(self, branch: Branch) -> bool:
        if not branch.stop and branch.tokens:
            tokens, engine = branch.tokens, self.engine
            branch.stop = stop_reason(tokens[-1], len(tokens), engine.eos_ids, engine.max_new_tokens)
        return bool(branch.stop)

    def _judge(self, ended: list[tuple[Search, _Row]]) -> None:
        """Verdicts on the whole texts among those that ended, in one call."""
        whole = [(search, row.branch) for search, row in ended if row.branch.stop in (EOS, LENGTH)]
        decode = self.session.prompter.decode
        episodes = [
            Episode(s.problem, 0, list(b.tokens), list(b.latents), b.stop, text=decode(b.tokens)) for s, b in whole
        ]
        for (_, branch), episode in zip(whole, episodes, strict=True):
            branch.tell(episode)
        worth = self.look(episodes) if episodes else []
        for (search, branch), episode, worth_it in zip(whole, episodes, worth, strict=True):
            search.frontier.ended(branch, worth_it)
            if self.is_open(search):
                search.found(episode, list(branch.choices))

    def _keep(self, texts: list[tuple[Search, _Row]]) -> None:
        if texts and self.kept is None:
            self.kept = KeptTexts(self.engine, self.keep_gib)
        if self.kept is not None:
            self.kept.keep([(search, row.branch, row.row) for search, row in texts])

    def _advance(self, rows: list[_Row]) -> None:
        """Run the texts' last tokens through the model; engine rows of no text are dropped."""
        if not rows:
            self.engine.clear()
            return
        rows = [rows[i] for i in stay_in_place([row.row for row in rows])]
        pairs = torch.tensor([(row.row, row.branch.tokens[-1]) for row in rows], device=self.engine.device)
        for place, row in enumerate(rows):
            row.row = place
        self.engine.fork(pairs[:, 0], pairs[:, 1])
        self.steps += 1
        self.rows += len(rows)
