"""The rollout engine: many episodes at once through one KV cache. The only decode path of the project.

`RolloutEngine` keeps a compact batch of active rows. `admit` prefills prompts (each distinct one once) into
free rows, `advance` feeds one token per row and recomputes hidden states and options, `release` frees rows,
`select` also forks them. `rollout` drives these for whole episodes with a policy; the environments and the oracle
drive them themselves.

Episodes of one problem that have said the same so far are one row: a group of GRPO or the samples of pass@k begin
as one, and a row is forked where they first choose differently. Most positions are forced and policies are often
sure, so a group of 8 costs about as much as 2 or 3 episodes (`docs/log.md`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ollm_rl.attention import KVCache
from ollm_rl.errors import ConfigurationError
from ollm_rl.hidden_cache import prefill_prefix
from ollm_rl.plugin import OptionLM, Options
from ollm_rl.prompts import Prompter
from ollm_rl.tasks import Problem
from ollm_rl.trajectory import Episode

# (hidden (m, d), mask (m, K), uniforms (m,)) -> (latents (m,), log-probabilities (m,))
Act = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def choose(log_probs: Tensor, deterministic: bool, uniforms: Tensor | None) -> Tensor:
    """Latents (n,) from log-probabilities (n, K): the likeliest, or by inverse transform of `uniforms`."""
    if deterministic:
        return log_probs.argmax(-1)
    if uniforms is None:
        uniforms = torch.rand(len(log_probs), device=log_probs.device)
    cumulative = log_probs.exp().cumsum(-1)
    z = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return z.clamp_max(log_probs.shape[1] - 1)


@dataclass
class Request:
    """One episode to be generated: the problem, the seed of its random numbers, and a policy of its own if it has one."""

    problem: Problem
    seed: int = 0
    act: Act | None = None


class RolloutEngine:
    """Steps up to `num_slots` episodes at once.

    Attributes:
        hidden: (n, d), what the head reads, of the n active rows.
        logits: (n, vocab), the backbone's own next-token logits.
        options: their K options.
        num_tokens: tokens run through decode steps since the engine was made, not counting prompts; those that
            several episodes share count once.
    """

    def __init__(
        self,
        lm: OptionLM,
        prompter: Prompter,
        num_slots: int = 128,
        max_new_tokens: int = 48,
        max_prompt_tokens: int = 64,
    ):
        if num_slots < 1 or max_new_tokens < 1:
            raise ConfigurationError(
                f"engine: expected at least one slot and one new token, got num_slots={num_slots}, "
                f"max_new_tokens={max_new_tokens}"
            )
        self.lm, self.prompter, self.backbone = lm, prompter, lm.backbone
        self.num_slots, self.max_new_tokens = num_slots, max_new_tokens
        self.prefix = prefill_prefix(self.backbone, prompter.prefix)
        self._allocate(max_prompt_tokens)
        self.num_tokens = 0
        self.clear()

    def _allocate(self, max_prompt_tokens: int) -> None:
        self.kv = KVCache(self.num_slots, max_prompt_tokens + self.max_new_tokens, self.prefix)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def free(self) -> int:
        return self.num_slots - len(self.lengths)

    def clear(self) -> None:
        """Drop all active rows."""
        d, v, k = self.backbone.hidden_size, self.backbone.vocab_size, self.lm.num_options
        empty = torch.zeros(0, dtype=torch.long, device=self.device)
        self.lengths = empty  # own tokens written per row
        self.hidden = torch.zeros(0, d, dtype=self.backbone.dtype, device=self.device)
        self.logits = torch.zeros(0, v, dtype=self.backbone.dtype, device=self.device)
        self.options = Options(empty.new_zeros(0, k), torch.zeros(0, k, dtype=torch.bool, device=self.device))

    def make_room(self, max_prompt_tokens: int) -> None:
        """Grow the cache if it is too small for such prompts; active rows are lost then."""
        if max_prompt_tokens > self.kv.capacity - self.max_new_tokens:
            self.clear()
            self._allocate(max_prompt_tokens)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[list[int]]) -> None:
        """Append one row per prompt (tokens after the shared prefix); equal prompts are prefilled once."""
        if len(prompts) > self.free:
            raise ConfigurationError(f"{len(prompts)} prompts for {self.free} free slots; raise engine.num_slots")
        self.replace(self._extend(len(prompts)), prompts)

    @torch.inference_mode()
    def restore(self, kept: KVCache, rows: Tensor, lengths: Tensor, tokens: Tensor) -> None:
        """Append one row per kept one: the first `lengths` (m,) own tokens of `kept`'s `rows` (m,), then `tokens`."""
        new = self._extend(len(rows))
        self.kv.copy_rows(kept, rows, new, int(lengths.max()))
        self.lengths[new] = lengths
        self.advance(tokens, new if len(new) < len(self.lengths) else None)

    def _extend(self, n: int) -> Tensor:
        """Append n blank rows; their numbers."""
        first = len(self.lengths)
        self.lengths = torch.cat([self.lengths, self.lengths.new_zeros(n)])
        self.hidden = torch.cat([self.hidden, self.hidden.new_zeros(n, self.hidden.shape[1])])
        self.logits = torch.cat([self.logits, self.logits.new_zeros(n, self.logits.shape[1])])
        old, k = self.options, self.lm.num_options
        self.options = Options(
            torch.cat([old.tokens, old.tokens.new_zeros(n, k)]), torch.cat([old.mask, old.mask.new_zeros(n, k)])
        )
        return torch.arange(first, first + n, device=self.device)

    @torch.inference_mode()
    def replace(self, rows: Tensor, prompts: Sequence[list[int]]) -> None:
        """Start active `rows` (m,) anew with these prompts."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        longest = max(map(len, distinct))
        if longest > self.kv.capacity - self.max_new_tokens:
            if len(rows) < len(self.lengths):
                raise ConfigurationError(
                    f"a prompt of {longest} tokens does not fit; set engine.max_prompt_tokens to at least {longest}"
                )
            self._allocate(longest)
        lengths = torch.tensor([len(p) for p in distinct], device=self.device)
        tokens = torch.zeros(len(distinct), longest, dtype=torch.long)
        for row, prompt in enumerate(distinct):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        scratch = KVCache(len(distinct), longest, self.prefix)
        positions = torch.arange(longest, device=self.device).expand(len(distinct), -1)
        everywhere = self.backbone.hidden(tokens.to(self.device), positions, scratch)
        hidden = everywhere[torch.arange(len(distinct), device=self.device), lengths - 1]
        place = {prompt: row for row, prompt in enumerate(distinct)}
        source = torch.tensor([place[tuple(p)] for p in prompts], device=self.device)
        self.kv.copy_rows(scratch, source, rows, longest)
        self._look(rows, hidden, lengths[source], source)

    @torch.inference_mode()
    def advance(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Append one token (m,) to each of `rows` (m,), by default (in order) to all, and look at the new states."""
        at = torch.arange(len(self.lengths), device=self.device) if rows is None else rows
        hidden = self.backbone.hidden(tokens[:, None], self.lengths[at, None], self.kv, rows)[:, 0]
        self._look(at, hidden, self.lengths[at] + 1)
        self.num_tokens += len(tokens)

    def _look(self, rows: Tensor, hidden: Tensor, lengths: Tensor, source: Tensor | None = None) -> None:
        """Compute logits and options of `hidden` (m, d), and store its states (those named by `source`) in `rows`."""
        logits = self.backbone.logits(hidden)
        options = self.lm.options(hidden, logits)
        new = [hidden, logits, options.tokens, options.mask]
        if source is not None:
            new = [tensor[source] for tensor in new]
        if source is None and len(rows) == len(self.lengths):  # every row advanced: nothing to keep, nothing to copy
            self.hidden, self.logits, self.options, self.lengths = hidden, logits, options, lengths
            return
        for mine, theirs in zip(
            (self.lengths, self.hidden, self.logits, self.options.tokens, self.options.mask),
            [lengths, *new],
            strict=True,
        ):
            mine[rows] = theirs

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Keep these active rows, in this order; a row named twice is forked. Only moved rows are copied."""
        self._move(rows)
        self.hidden, self.logits = self.hidden[rows], self.logits[rows]
        self.options = Options(self.options.tokens[rows], self.options.mask[rows])

    def _move(self, rows: Tensor) -> None:
        """`select` for keys and values only: enough where `advance` comes next and overwrites the rest."""
        target = torch.arange(len(rows), device=self.device)
        moved = rows != target
        if moved.any():
            longest = int(self.lengths[rows[moved]].max())
            self.kv.copy_rows(self.kv, rows[moved], target[moved], longest)
        self.lengths = self.lengths[rows]

    def release(self, done: Tensor) -> Tensor:
        """Free the rows where `done` (n,) is True by moving the last rows into the holes; return the new order."""
        keep = (~done).nonzero()[:, 0]
        order = keep.clone()
        holes = done[: len(keep)].nonzero()[:, 0]
        if len(holes):
            order = torch.arange(len(keep), device=self.device)
            order[holes] = keep[keep >= len(keep)]
        self.select(order)
        return order

    def rollout(
        self,
        requests: Sequence[Request],
        act: Act,
        skip_forced: bool = True,
        keep_hidden: bool = True,
        from_logits: bool = False,
    ) -> Iterator[tuple[Request, Episode]]:
        """Generate one episode per request, yielded with it as they end; others take their places.

        Args:
            act: chooses latents for requests without a policy of their own; see `Act`. Policies are asked at
                decision points only if `skip_forced`.
            keep_hidden: keep the hidden states at decision points (for learning).
            from_logits: `act` reads the backbone's logits (n, vocab) at every position and gives tokens, not latents.
        """
        self.clear()
        waiting = list(reversed([(r, self.prompter.encode(r.problem)) for r in requests]))
        self.make_room(max((len(p) for _, p in waiting), default=0))
        shared: list[list[_Row]] = []  # the episodes of each engine row
        while waiting or shared:
            free = self.num_slots - sum(map(len, shared))  # any episode may come to need a row of its own
            # Refill in chunks: a prefill of one prompt costs almost as much as one of ten.
            if waiting and (not shared or free >= min(len(waiting), max(1, self.num_slots // 8))):
                shared += self._begin([waiting.pop() for _ in range(min(free, len(waiting)))])
            rows = [row for group in shared for row in group]
            at = torch.tensor([i for i, group in enumerate(shared) for _ in group], device=self.device)
            if from_logits:
                asked = torch.zeros_like(at, dtype=torch.bool)
                latents = torch.zeros_like(at)
                tokens = self._choose(rows, self.logits[at], self.options.mask[at], act)[0]
            else:
                asked = self.options.decision[at] if skip_forced else torch.ones_like(at, dtype=torch.bool)
                latents = self._ask(rows, at, asked.nonzero()[:, 0], act, keep_hidden)
                tokens = self.options.tokens[at, latents]
            for row, token, z, was_asked in zip(rows, tokens.tolist(), latents.tolist(), asked.tolist(), strict=True):
                row.append(token, z if was_asked else -1, self.backbone.eos_ids)
                if row.episode.stop:
                    yield row.request, row.finish(self.prompter)
            shared = self._fork(shared)

    def _begin(self, new: Sequence[tuple[Request, list[int]]]) -> list[list["_Row"]]:
        """Admit requests with their prompts, those of one prompt as one row."""
        together: dict[tuple[int, ...], list[_Row]] = {}
        for request, prompt in new:
            together.setdefault(tuple(prompt), []).append(_Row(request, self.max_new_tokens))
        self.admit([list(prompt) for prompt in together])
        return list(together.values())

    @torch.inference_mode()
    def _fork(self, shared: list[list["_Row"]]) -> list[list["_Row"]]:
        """Advance every row by its episodes' last token: drop ended episodes, fork rows whose episodes differ."""
        branches: dict[tuple[int, int], list[_Row]] = {}
        for i, group in enumerate(shared):
            for row in group:
                if not row.episode.stop:
                    branches.setdefault((i, row.episode.tokens[-1]), []).append(row)
        # A row's first branch stays in its place, so that only the others are copied.
        stay = {i: (i, token) for i, token in reversed(branches) if i < len(branches)}
        settled = set(stay.values())
        others = iter([key for key in branches if key not in settled])
        order = [stay[i] if i in stay else next(others) for i in range(len(branches))]
        if order:
            source, tokens = torch.tensor(order, device=self.device).unbind(1)
            self._move(source)
            self.advance(tokens)
        else:
            self.clear()
        return [branches[key] for key in order]

    def _choose(self, rows: list["_Row"], seen: Tensor, mask: Tensor, act: Act) -> tuple[Tensor, Tensor]:
        """What the episodes' policies choose, `act` where they have none: latents (n,) and log-probabilities (n,)."""
        uniforms = torch.tensor([row.uniform() for row in rows], device=self.device)
        acts = [row.request.act or act for row in rows]
        if len(set(acts)) == 1:
            return acts[0](seen, mask, uniforms)
        z, log_probs = torch.zeros(len(rows), dtype=torch.long, device=self.device), torch.zeros_like(uniforms)
        for each in dict.fromkeys(acts):
            mine = torch.tensor([i for i, other in enumerate(acts) if other is each], device=self.device)
            z[mine], log_probs[mine] = each(seen[mine], mask[mine], uniforms[mine])
        return z, log_probs

    def _ask(self, rows: list["_Row"], at: Tensor, who: Tensor, act: Act, keep_hidden: bool) -> Tensor:
        """Latents (n,) of all episodes: what their policies choose for the episodes `who`, zero elsewhere."""
        latents = torch.zeros(len(rows), dtype=torch.long, device=self.device)
        if len(who):
            asked = [rows[i] for i in who.tolist()]
            hidden, mask = self.hidden[at[who]], self.options.mask[at[who]]
            z, log_probs = self._choose(asked, hidden, mask, act)
            latents[who] = z
            for j, row in enumerate(asked):
                row.decide(hidden[j] if keep_hidden else None, mask[j], z[j], log_probs[j])
        return latents


class _Row:
    """An episode under way; it shares an engine row with those that have said the same."""

    def __init__(self, request: Request, max_new_tokens: int):
        self.request = request
        self.episode = Episode(request.problem, request.seed)
        self.max_new_tokens = max_new_tokens
        self.uniforms = np.random.default_rng(request.seed).random(max_new_tokens, dtype=np.float32)
        self.hidden: list[Tensor] = []
        self.mask: list[Tensor] = []
        self.z: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def uniform(self) -> float:
        """The random number of the current position: it depends on the episode's seed only."""
        return float(self.uniforms[len(self.episode.tokens)])

    def decide(self, hidden: Tensor | None, mask: Tensor, z: Tensor, log_prob: Tensor) -> None:
        if hidden is not None:
            self.hidden.append(hidden)
        self.mask.append(mask)
        self.z.append(z)
        self.log_probs.append(log_prob)

    def append(self, token: int, latent: int, eos_ids: list[int]) -> None:
        episode = self.episode
        episode.tokens.append(token)
        episode.latents.append(latent)
        if token in eos_ids:
            episode.stop = "eos"
        elif len(episode.tokens) == self.max_new_tokens:
            episode.stop = "length"

    def finish(self, prompter: Prompter) -> Episode:
        episode = self.episode
        if self.z:
            episode.hidden = torch.stack(self.hidden) if self.hidden else None
            episode.mask, episode.z = torch.stack(self.mask), torch.stack(self.z)
            episode.log_probs = torch.stack(self.log_probs)
        episode.text = prompter.decode(episode.tokens)
        return episode
