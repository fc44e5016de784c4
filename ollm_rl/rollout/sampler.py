"""Whole episodes from the engine: continuous batching, shared rows, policies asked at decision points only.

An episode that ends frees its slot for the next request, so the batch stays full however different lengths are.

Episodes of one problem that have said the same so far are one row: a group of GRPO or the samples of pass@k begin
as one, and a row is forked where they first choose differently. Most positions are forced and policies are often
sure, so a group of 8 costs about as much as 2 or 3 episodes (`docs/log.md`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ollm_rl.errors import ConfigurationError
from ollm_rl.options.enumeration import NO_LATENT
from ollm_rl.rollout.engine import RolloutEngine, stay_in_place
from ollm_rl.rollout.episode import Episode
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter

# (hidden (m, d), mask (m, K), uniforms (m,)) -> (latents (m,), log-probabilities (m,)). Policies over the vocabulary get the
# backbone's logits (m, vocab) in place of the mask, and give tokens. One that has `sees(hidden, recent)` is given what that makes of the
# states and of the last `RECENT` tokens (m, 2) of the texts, prompts included, in place of the states; so is who learns from its decisions.
Act = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
RECENT = 2
REFILL = 16  # slots are refilled when this part of them is free: a prefill of one prompt costs as much as one of ten


@dataclass
class Request:
    """One episode to be generated.

    >>> requests = [ol.Request(problem, seed) for problem in session.problems("train", 4) for seed in range(8)]

    Attributes:
        seed: of its random numbers, on which alone (and on the policy) the episode depends.
        act: a policy of its own.
        max_new_tokens: a token budget of its own, at most the engine's.
        opening: tokens that it begins with, which nobody chose; they count as tokens of the text.
        hand_over: from its decision of this number on (from 0) `then` chooses; None: never.
        then: that policy.
    """

    problem: Problem
    seed: int = 0
    act: Act | None = None
    max_new_tokens: int | None = None
    opening: tuple[int, ...] = ()
    hand_over: int | None = None
    then: Act | None = None


def act_key(act: Act) -> Any:
    """Equal for acts that are one policy: equal ones, such as a method taken from its object twice."""
    try:
        hash(act)
    except TypeError:
        return id(act)
    return act


def rollout(
    engine: RolloutEngine,
    requests: Sequence[Request],
    act: Act,
    skip_forced: bool = True,
    keep_hidden: bool = True,
    from_logits: bool = False,
) -> Iterator[tuple[int, Episode]]:
    """Generate one episode per request, yielded with the request's place as they end; others take their places.

    Args:
        act: chooses latents for requests without a policy of their own; see `Act`. Policies are asked at
            decision points only if `skip_forced`.
        keep_hidden: keep the hidden states at decision points (for learning).
        from_logits: `act` chooses tokens, at every position, with the backbone's logits before it; see `Act`. Episodes have
            them as `z`.

    Raises:
        ConfigurationError: a request wants more tokens than the engine, or its prompt more than the backbone, has room for.
    """
    most = max((r.max_new_tokens or 0 for r in requests), default=0)
    if most > engine.max_new_tokens:
        raise ConfigurationError(
            f"a request wants {most} new tokens; the engine has room for {engine.max_new_tokens}. "
            "Raise engine.max_new_tokens."
        )
    for request in requests:
        if len(request.opening) >= (request.max_new_tokens or engine.max_new_tokens):
            raise ConfigurationError(
                f"a request has an opening of {len(request.opening)} tokens, which leaves none of its budget; expected fewer"
            )
    engine.clear()
    waiting = [
        _Row(i, r, r.max_new_tokens or engine.max_new_tokens, engine.kept_decisions) for i, r in enumerate(requests)
    ][::-1]
    prompts = [engine.prompter.encode(r.problem) for r in requests]
    engine.make_room(max(map(len, prompts), default=0))
    yield from _Rollout(engine, prompts, act, skip_forced, keep_hidden, from_logits).run(waiting)


class _Rollout:
    """One call of `rollout`."""

    def __init__(
        self, engine: RolloutEngine, prompts: list[list[int]], act: Act, skip_forced: bool, keep_hidden: bool, from_logits: bool
    ):  # fmt: skip
        self.engine, self.prompts, self.act = engine, prompts, act
        self.skip_forced, self.keep_hidden, self.from_logits = skip_forced, keep_hidden, from_logits
        self.sums = torch.zeros(0, engine.hidden.shape[1], device=engine.device)  # of each engine row's states

    def run(self, waiting: list["_Row"]) -> Iterator[tuple[int, Episode]]:
        engine, prompts = self.engine, self.prompts
        shared: list[list[_Row]] = []  # the episodes of each engine row
        while waiting or shared:
            free = engine.max_rows - sum(map(len, shared))  # any episode may come to need a row of its own
            if waiting and (not shared or free >= min(len(waiting), max(1, engine.max_rows // REFILL))):
                n = engine.holds(len(prompts[row.place]) + len(row.episode.tokens) for row in waiting[: -free - 1 : -1])
                shared += self._begin([waiting.pop() for _ in range(n)])
            rows = [row for group in shared for row in group]
            at = torch.tensor([i for i, group in enumerate(shared) for _ in group], device=engine.device)
            self.sums = self.sums + engine.hidden
            everybody = self.from_logits or not self.skip_forced
            options = engine.options
            asked = torch.ones_like(at, dtype=torch.bool) if everybody else options.decision[at]
            chosen = self._ask(rows, at, asked.nonzero()[:, 0])
            if self.from_logits:
                tokens, latents = chosen, torch.full_like(chosen, NO_LATENT)
            else:
                tokens, latents = options.tokens[at, chosen], chosen if everybody else options.latents[at, chosen]
            for i, row, token, latent in zip(at.tolist(), rows, tokens.tolist(), latents.tolist(), strict=True):
                row.episode.append(token, latent, engine.eos_ids, row.max_new_tokens)
                if row.episode.stop:
                    num = len(row.episode.tokens) - len(row.request.opening)
                    row.episode.summary = torch.stack([engine.hidden[i].float(), self.sums[i] / num])
                    yield row.place, row.finish(engine.prompter)
            shared = self._fork(shared, waiting)

    def _begin(self, new: Sequence["_Row"]) -> list[list["_Row"]]:
        """Admit episodes with their prompts, those of one prompt as one row."""
        together: dict[tuple[int, ...], list[_Row]] = {}
        for row in new:
            together.setdefault(row.text(self.prompts), []).append(row)
        if together:
            longest = max(map(len, together))
            most = max(len(text) + rows[0].left for text, rows in together.items())
            self.engine.admit([list(text) for text in together], most - longest)
            blank = self.sums.new_zeros(self.sums.shape[1])
            begun = [blank if rows[0].sum is None else rows[0].sum for rows in together.values()]
            self.sums = torch.cat([self.sums, torch.stack(begun)])
        return list(together.values())

    @torch.inference_mode()
    def _fork(self, shared: list[list["_Row"]], waiting: list["_Row"]) -> list[list["_Row"]]:
        """Advance every row by its episodes' last token: drop ended episodes, fork rows whose episodes differ.

        Where the cache does not hold them all, the shortest wait, and are read anew, as far as they are, when there is room.
        """
        branches: dict[tuple[int, int], list[_Row]] = {}
        for i, group in enumerate(shared):
            for row in group:
                if not row.episode.stop:
                    branches.setdefault((i, row.episode.tokens[-1]), []).append(row)
        keys = list(branches)
        while self.engine.lacking([row for row, _ in keys]):
            shortest = min(keys, key=lambda key: len(branches[key][0].episode.tokens))
            keys.remove(shortest)
            for row in branches[shortest]:
                row.sum = self.sums[shortest[0]]
            waiting += branches[shortest]
        keys = [keys[i] for i in stay_in_place([row for row, _ in keys])]
        if keys:
            source, tokens = torch.tensor(keys, device=self.engine.device).unbind(1)
            self.engine.fork(source, tokens)
            self.sums = self.sums[source]
        else:
            self.engine.clear()
            self.sums = self.sums[:0]
        return [branches[key] for key in keys]

    def _choose(self, rows: list["_Row"], hidden: Tensor, seen: Tensor) -> tuple[Tensor | list[Tensor], Tensor, Tensor]:
        """What the episodes' policies choose, `act` where they have none: the states that they see (n of them), latents or tokens (n,),
        log-probabilities (n,)."""
        device = self.engine.device
        uniforms = torch.tensor([row.uniform() for row in rows], device=device)
        acts = [row.act or self.act for row in rows]
        with self.engine.profiler.part("policy"):
            together: dict[Any, list[int]] = {}
            for i, own in enumerate(acts):
                together.setdefault(act_key(own), []).append(i)
            if len(together) == 1:
                states = self._seen(acts[0], rows, hidden)
                return states, *acts[0](states, seen, uniforms)
            z, log_probs = torch.zeros(len(rows), dtype=torch.long, device=device), torch.zeros_like(uniforms)
            each: Tensor | list[Tensor] = hidden
            for places in together.values():
                mine, act = torch.tensor(places, device=device), acts[places[0]]
                states = self._seen(act, [rows[i] for i in places], hidden[mine])
                z[mine], log_probs[mine] = act(states, seen[mine], uniforms[mine])
                if hasattr(act, "sees"):  # of another size than other policies' states
                    each = [*each]
                    for i, state in zip(places, states, strict=True):
                        each[i] = state
            return each, z, log_probs

    def _seen(self, act: Act, rows: list["_Row"], hidden: Tensor) -> Tensor:
        """What a policy is given as states."""
        sees: Callable[[Tensor, Tensor], Tensor] | None = getattr(act, "sees", None)
        if sees is None:
            return hidden
        return sees(hidden, torch.tensor([row.recent(self.prompts) for row in rows], device=hidden.device))

    def _ask(self, rows: list["_Row"], at: Tensor, who: Tensor) -> Tensor:
        """What their policies choose (n,) for the episodes `who`, zero elsewhere."""
        chosen = torch.zeros(len(rows), dtype=torch.long, device=self.engine.device)
        if len(who):
            asked = [rows[i] for i in who.tolist()]
            seen = (self.engine.logits if self.from_logits else self.engine.options.mask)[at[who]]
            states, z, log_probs = self._choose(asked, self.engine.hidden[at[who]], seen)
            chosen[who] = z
            for j, (row, likely) in enumerate(zip(asked, log_probs.tolist(), strict=True)):
                row.decide(
                    states[j] if self.keep_hidden else None, None if self.from_logits else seen[j], z[j], log_probs[j]
                )
                row.count(likely)
        return chosen


class _Row:
    """An episode under way; it shares an engine row with those that have said the same."""

    def __init__(self, place: int, request: Request, max_new_tokens: int, kept: int | None = None):
        self.place, self.request, self.kept = place, request, kept
        self.episode = Episode(request.problem, request.seed)
        self.episode.tokens, self.episode.latents = list(request.opening), [NO_LATENT] * len(request.opening)
        self.max_new_tokens = max_new_tokens
        self.uniforms = np.random.default_rng(request.seed).random(max_new_tokens, dtype=np.float32)
        self.hidden: list[Tensor] = []
        self.mask: list[Tensor] = []
        self.z: list[Tensor] = []
        self.log_probs: list[Tensor] = []
        self.decided: list[int] = []  # which of its decisions they are
        self.num_decisions = 0
        self.sum: Tensor | None = None  # of its states, where it has to be read anew
        self.draw = np.random.default_rng((request.seed, 1)) if kept is not None else None

    @property
    def act(self) -> Act | None:
        """Its own policy at the decision that it has come to."""
        request = self.request
        handed = request.hand_over is not None and self.num_decisions >= request.hand_over
        return request.then if handed else request.act

    def recent(self, prompts: list[list[int]]) -> list[int]:
        """The last tokens of its text."""
        said = self.episode.tokens[-RECENT:]
        return [*prompts[self.place][len(said) - RECENT :], *said] if len(said) < RECENT else said

    @property
    def left(self) -> int:
        """Tokens that it may still get."""
        return self.max_new_tokens - len(self.episode.tokens)

    def text(self, prompts: list[list[int]]) -> tuple[int, ...]:
        """Its own tokens so far, prompt included."""
        return (*prompts[self.place], *self.episode.tokens)

    def uniform(self) -> float:
        """The random number of the current position: it depends on the episode's seed only."""
        return float(self.uniforms[len(self.episode.tokens)])

    def count(self, log_prob: float) -> None:
        """The log-probability of a decision, kept or not."""
        self.episode.log_prob = (self.episode.log_prob or 0.0) + log_prob
        self.episode.lowest = min(self.episode.lowest, log_prob)

    def decide(self, hidden: Tensor | None, mask: Tensor | None, z: Tensor, log_prob: Tensor) -> None:
        """Remember a decision: every one, or as many as are kept, an even sample of those so far (Vitter 1985, algorithm R)."""
        at, self.num_decisions = len(self.z), self.num_decisions + 1
        if self.draw is not None and self.kept is not None and self.num_decisions > self.kept:
            at = int(self.draw.integers(self.num_decisions))
            if at >= self.kept:
                return
        for mine, new in ((self.hidden, hidden), (self.mask, mask), (self.z, z), (self.log_probs, log_prob)):
            if new is not None:
                # Of what is kept for long a copy: a row of the step's tensor would keep all rows.
                mine[at : at + 1] = [new if self.draw is None else new.clone()]
        self.decided[at : at + 1] = [self.num_decisions]

    def finish(self, prompter: Prompter) -> Episode:
        episode = self.episode
        episode.dropped_decisions = self.num_decisions - len(self.z)
        if self.z:
            order = sorted(range(len(self.z)), key=self.decided.__getitem__)
            for name in ("hidden", "mask", "z", "log_probs"):
                found = getattr(self, name)
                setattr(episode, name, torch.stack([found[i] for i in order]) if found else None)
        episode.text = prompter.decode(episode.tokens)
        return episode
