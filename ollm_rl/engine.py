"""The rollout engine: many episodes at once through one KV cache. The only decode path of the project.

`RolloutEngine` keeps a compact batch of active rows. `admit` prefills prompts (each distinct one once) into
free rows, `advance` feeds one token per row and recomputes hidden states and options, `release` frees rows,
`fork` duplicates them for tree search. `rollout` drives these for whole episodes with a policy; the
environments and the oracle drive them themselves.
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


@dataclass
class Request:
    """One episode to be generated: the problem and the seed of its random numbers."""

    problem: Problem
    seed: int = 0


class RolloutEngine:
    """Steps up to `num_slots` episodes at once.

    Attributes:
        hidden: (n, d), what the head reads, of the n active rows.
        logits: (n, vocab), the backbone's own next-token logits.
        options: their K options.
        num_tokens: tokens run through decode steps since the engine was made (prompts not counted).
    """

    def __init__(
        self, lm: OptionLM, prompter: Prompter, num_slots: int = 128, max_new_tokens: int = 48, max_prompt_tokens: int = 64
    ):
        if num_slots < 1 or max_new_tokens < 1:
            raise ConfigurationError(
                f"engine: expected at least one slot and one new token, got num_slots={num_slots}, "
                f"max_new_tokens={max_new_tokens}"
            )
        self.lm, self.prompter, self.backbone = lm, prompter, lm.backbone
        self.num_slots, self.max_new_tokens = num_slots, max_new_tokens
        self.prefix = prefill_prefix(self.backbone, prompter.prefix)
        self.max_prompt_tokens = 0
        self._allocate(max_prompt_tokens)
        self.num_tokens = 0
        self.clear()

    def _allocate(self, max_prompt_tokens: int) -> None:
        self.max_prompt_tokens = max_prompt_tokens
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
        self.options = Options(empty.view(0, 1).expand(0, k), torch.zeros(0, k, dtype=torch.bool, device=self.device))

    @torch.inference_mode()
    def admit(self, prompts: Sequence[list[int]]) -> None:
        """Append one row per prompt (tokens after the shared prefix); equal prompts are prefilled once."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        longest = max(map(len, distinct))
        if longest > self.max_prompt_tokens:
            if len(self.lengths):
                raise ConfigurationError(
                    f"a prompt of {longest} tokens does not fit into engine.max_prompt_tokens={self.max_prompt_tokens}"
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
        first = len(self.lengths)
        self.kv.copy_rows(scratch, source, torch.arange(first, first + len(prompts), device=self.device), longest)
        logits = self.backbone.logits(hidden)
        options = self.lm.options(hidden, logits)
        self.lengths = torch.cat([self.lengths, lengths[source]])
        self.hidden = torch.cat([self.hidden, hidden[source]])
        self.logits = torch.cat([self.logits, logits[source]])
        self.options = Options(
            torch.cat([self.options.tokens, options.tokens[source]]), torch.cat([self.options.mask, options.mask[source]])
        )

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> None:
        """Append one token (n,) to every active row and look at its new state."""
        self.hidden = self.backbone.hidden(tokens[:, None], self.lengths[:, None], self.kv)[:, 0]
        self.lengths = self.lengths + 1
        self.logits = self.backbone.logits(self.hidden)
        self.options = self.lm.options(self.hidden, self.logits)
        self.num_tokens += len(tokens)

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Keep these active rows, in this order; a row named twice is forked. Only moved rows are copied."""
        target = torch.arange(len(rows), device=self.device)
        moved = rows != target
        if moved.any():
            longest = int(self.lengths[rows[moved]].max())
            self.kv.copy_rows(self.kv, rows[moved], target[moved], longest)
        self.lengths, self.hidden, self.logits = self.lengths[rows], self.hidden[rows], self.logits[rows]
        self.options = Options(self.options.tokens[rows], self.options.mask[rows])

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
        self, requests: Sequence[Request], act: Act, skip_forced: bool = True, keep_hidden: bool = True
    ) -> Iterator[tuple[Request, Episode]]:
        """Generate one episode per request, yielded with it as they end; freed rows take the next request at once.

        Args:
            act: chooses latents; see `Act`. It is asked at decision points only if `skip_forced`.
            keep_hidden: keep the hidden states at decision points (for learning).
        """
        self.clear()
        waiting = list(reversed([(r, self.prompter.encode(r.problem)) for r in requests]))
        longest = max((len(p) for _, p in waiting), default=0)
        if longest > self.max_prompt_tokens:
            self._allocate(longest)
        rows: list[_Row] = []
        while waiting or rows:
            # Refill in chunks: a prefill of one prompt costs almost as much as one of ten.
            if waiting and (not rows or self.free >= min(len(waiting), max(1, self.num_slots // 8))):
                new = [waiting.pop() for _ in range(min(self.free, len(waiting)))]
                self.admit([prompt for _, prompt in new])
                rows += [_Row(request, self.max_new_tokens) for request, _ in new]
            asked = self.options.decision if skip_forced else torch.ones_like(self.lengths, dtype=torch.bool)
            latents = torch.zeros(len(rows), dtype=torch.long, device=self.device)
            at = asked.nonzero()[:, 0]
            if len(at):
                uniforms = torch.tensor([rows[i].uniform() for i in at.tolist()], device=self.device)
                hidden, mask = self.hidden[at], self.options.mask[at]
                z, log_probs = act(hidden, mask, uniforms)
                latents[at] = z
                for j, i in enumerate(at.tolist()):
                    rows[i].decide(hidden[j] if keep_hidden else None, mask[j], z[j], log_probs[j])
            tokens = self.options.tokens.gather(1, latents[:, None])[:, 0]
            for row, token, z, was_asked in zip(rows, tokens.tolist(), latents.tolist(), asked.tolist(), strict=True):
                row.append(token, z if was_asked else -1, self.backbone.eos_ids)
            done = torch.tensor([bool(row.episode.stop) for row in rows], device=self.device)
            if done.any():
                for row in rows:
                    if row.episode.stop:
                        yield row.request, row.finish(self.prompter)
                order = self.release(done)
                tokens = tokens[order]
                rows = [rows[i] for i in order.tolist()]
            if rows:
                self.advance(tokens)


class _Row:
    """An episode under way."""

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
