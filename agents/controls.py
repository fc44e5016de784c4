"""Controls: the cheapest things that could explain what a policy has learned, with the same means and from the same start.

* `BestPrefix`: the prior behind the one fixed opening that pays best on training problems.
* `Steer`: GRPO may only add a constant vector to what the prior reads ("Small Vectors, Big Effects", arXiv 2509.06608).
* `FirstDecisions`: GRPO chooses at the first decisions of a text, the prior at all others.
* `Local`: what GRPO changes may depend on the last two tokens only.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import PolicyAgent
from agents.config import BestPrefixConfig, FirstDecisionsConfig, LocalConfig, SteerConfig
from agents.grpo import GRPO
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import CheckpointError, ConfigurationError, TrainingError
from ollm_rl.options.modules import digest, masked, mlp
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import RECENT, Request
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem

TOGETHER = 512  # episodes between two checkpoints of `BestPrefix`


class BestPrefix(PolicyAgent):
    """The prior behind a fixed opening: of those that its sampled texts begin with most often, the one that pays best.

    An opening is the beginning of a text up to some token of its first line. It is chosen by greedy answers to training problems; to begin
    with nothing is among the choices.
    """

    config_class = BestPrefixConfig
    config: BestPrefixConfig
    OPENING, TRIED = "opening.json", "tried.json"

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        self.policy = LatentPolicy.from_prior(session.plugin)
        self.opening: tuple[int, ...] = ()

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        problems = self.session.problems("train", self.config.num_problems, self.session.seed)
        latest = run.latest_checkpoint()
        run.truncate_metrics(latest[0] if latest else 0)
        tried = self._begin(problems) if latest is None else _Tried(**json.loads((latest[1] / self.TRIED).read_text()))
        # All openings of a problem together: its prompt is read once, and texts that say the same are one row of the engine.
        size = max(1, TOGETHER // len(tried.openings))
        with track("best_prefix", len(problems), "problems", tried.problems) as bar:
            for step, at in enumerate(range(0, len(problems), size), 1):
                if at < tried.problems:
                    continue
                self._try(problems[at : at + size], tried)
                run.log_metrics(step, {"reward": tried.best(), **tried.costs()})
                run.save_checkpoint(step, partial(self._write_tried, tried))
                bar.advance(min(size, len(problems) - at), f"best {tried.best():.3f}")
        if not any(tried.judged):
            raise TrainingError("the reward gave None for every answer behind every opening; check reward=")
        self.opening = tuple(tried.openings[int(np.argmax(tried.means()))])
        return tried.costs()

    def _begin(self, problems: Sequence[Problem]) -> "_Tried":
        """The openings to try."""
        start = time.monotonic()
        seeds = np.random.default_rng(self.session.seed).integers(2**31, size=len(problems)).tolist()
        free = [Request(p, s) for p, s in zip(problems, seeds, strict=True)]
        said = self.session.rollout(free, PolicyAdapter(self, False), keep_hidden=False)
        room = min(self.config.max_tokens, self.session.engine_settings["max_new_tokens"] - 1)
        begun = [e.tokens[: min(room, len(e.tokens) - 1)] for e in said]  # the last token may end the text
        openings = [(), *self.session.run_on_model(_frequent, begun, self.config.num_openings)]
        tokens = sum(len(e.tokens) for e in said)
        none = [0.0] * len(openings)
        return _Tried([*map(list, openings)], none, [0] * len(openings), 0, len(said), tokens, time.monotonic() - start)

    def _try(self, problems: Sequence[Problem], tried: "_Tried") -> None:
        """Greedy answers to some more problems behind all openings."""
        start, greedy = time.monotonic(), PolicyAdapter(self, True)
        asked = [Request(p, 0, greedy, opening=tuple(opening)) for p in problems for opening in tried.openings]
        found = self.session.rollout(asked, greedy, keep_hidden=False)
        for i, episode in enumerate(found):
            if episode.judged:
                tried.rewards[i % len(tried.openings)] += episode.reward
                tried.judged[i % len(tried.openings)] += 1
        tried.problems += len(problems)
        tried.episodes += len(found)
        tried.tokens += sum(len(e.tokens) for e in found)
        tried.seconds += time.monotonic() - start

    def _write_tried(self, tried: "_Tried", path: Path) -> None:
        (path / self.TRIED).write_text(json.dumps(asdict(tried)) + "\n")

    def request(self, problem: Problem, seed: int, deterministic: bool) -> Request:
        return Request(problem, seed, PolicyAdapter(self, deterministic), opening=self.opening)

    def identity(self) -> str:
        return f"{super().identity()} {self.opening}"

    def save_weights(self, path: Path) -> None:
        super().save_weights(path)
        text = self.session.run_on_model(_decoded, self.opening)
        (path / self.OPENING).write_text(json.dumps({"tokens": self.opening, "text": text}) + "\n")

    def load(self, path: str | Path) -> None:
        super().load(path)
        if not (found := Path(path) / self.OPENING).is_file():
            raise CheckpointError(f"no opening in {path}: expected {self.OPENING}. Train one with agent=best_prefix.")
        self.opening = tuple(json.loads(found.read_text())["tokens"])


@dataclass
class _Tried:
    """How far the choice of an opening is: for each, the sum of rewards over the first `problems`, and how many of its texts were judged."""

    openings: list[list[int]]
    rewards: list[float]
    judged: list[int]
    problems: int
    episodes: int
    tokens: int
    seconds: float

    def means(self) -> list[float]:
        """Of each opening; one that was never judged is behind all others."""
        return [total / n if n else -math.inf for total, n in zip(self.rewards, self.judged, strict=True)]

    def best(self) -> float:
        return max(self.means()) if any(self.judged) else 0.0

    def costs(self) -> dict[str, Any]:
        return {"train_episodes": self.episodes, "train_tokens": self.tokens, "train_seconds": self.seconds}


def _frequent(session: Session, texts: Sequence[Sequence[int]], most: int) -> list[tuple[int, ...]]:
    """The most frequent beginnings of texts, up to the end of the first line."""
    counts: Counter[tuple[int, ...]] = Counter()
    for tokens in texts:
        for length in range(1, len(tokens) + 1):
            opening = tuple(tokens[:length])
            counts[opening] += 1
            if "\n" in _decoded(session, opening):
                break
    return [opening for opening, _ in counts.most_common(most)]


def _decoded(session: Session, tokens: Sequence[int]) -> str:
    return session.prompter.decode(list(tokens))


WIDTH = 16  # of a token's embedding in `LocalPolicy`


class SteeredPolicy(LatentPolicy):
    """The prior on states to which a learned vector is added: pi0(z | h + v), or with a gate pi0(z | h + sigmoid(w h + b) v).

    States are standardised first. The prior's own weights stay as they are.
    """

    SIZES = (*LatentPolicy.SIZES, "gated")

    def __init__(self, hidden_size: int, width: int, num_options: int, depth: int = 2, *, gated: bool):
        super().__init__(hidden_size, width, num_options, depth)
        self.net.requires_grad_(False)
        self.gated = gated
        self.vector = nn.Parameter(torch.zeros(hidden_size))
        self.gate = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.gate.weight)

    def learned(self) -> list[nn.Parameter]:
        return [self.vector, *(self.gate.parameters() if self.gated else ())]

    def added(self) -> list[Tensor]:
        """What is zero where nothing is added."""
        return [self.vector]

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.standardize(hidden)
        strength = torch.sigmoid(self.gate(x)) if self.gated else 1.0
        return masked(self.net(x + strength * self.vector).float(), mask).log_softmax(-1)


class _Added(GRPO):
    """GRPO of what is added to a policy that stays as it is."""

    def identity(self) -> str:
        """Where nothing is added yet, that of the policy below: it need not be evaluated again."""
        if any(bool(each.any()) for each in self.policy.added()):  # type: ignore[operator]
            return super().identity()
        weights = self.policy.state_dict()
        below = {name: weights[name] for name in LatentPolicy.from_prior(self.session.plugin).state_dict()}
        return self.identity_of(LatentPolicy, below)


class Steer(_Added):
    """GRPO of a constant vector that is added to what the prior reads, or a gated one."""

    label = "steer"
    config_class = SteerConfig
    config: SteerConfig
    policy_class = SteeredPolicy

    def new_policy(self) -> LatentPolicy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.session.seed)
            return SteeredPolicy.from_prior(self.session.plugin, gated=self.config.gated)


class FirstDecisions(GRPO):
    """GRPO that chooses at the first `decisions` decisions of every text; the prior chooses at all others, and nothing is learned there."""

    label = "first_decisions"
    config_class = FirstDecisionsConfig
    config: FirstDecisionsConfig

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        if session.engine_settings.get("kept_decisions") is not None:
            raise ConfigurationError(
                "agent=first_decisions needs all of a text's decisions; set engine.kept_decisions=null"
            )
        if session.max_staleness:
            raise ConfigurationError(
                "agent=first_decisions hands every text over to the prior, which groups that are sampled ahead do not; set "
                "rollout.max_staleness=0"
            )
        self.then = {deterministic: Sampling(self.prior, deterministic) for deterministic in (False, True)}

    def rollout(self, requests: list[Request]) -> list[Episode]:
        for request in requests:
            request.hand_over, request.then = self.config.decisions, self.then[False]
        episodes = super().rollout(requests)
        for episode in episodes:
            for name in ("hidden", "z", "log_probs", "mask"):
                if (found := getattr(episode, name)) is not None:
                    setattr(episode, name, found[: self.config.decisions])
        return episodes

    def request(self, problem: Problem, seed: int, deterministic: bool) -> Request:
        mine, then = PolicyAdapter(self, deterministic), self.then[deterministic]
        return Request(problem, seed, mine, hand_over=self.config.decisions, then=then)

    def identity(self) -> str:
        """Where it is the policy that it hands over to, that policy's."""
        as_it_began = digest(self.policy.state_dict()) == digest(self.prior.state_dict())
        return super().identity() if as_it_began else f"{super().identity()} {self.config.decisions}"


class LocalPolicy(LatentPolicy):
    """log pi0(z | h) plus a learned function of the last two tokens.

    Its states are [h; the tokens], see `Act` in `ollm_rl.rollout.sampler`.
    """

    SIZES = (*LatentPolicy.SIZES, "vocab_size")

    def __init__(self, hidden_size: int, width: int, num_options: int, depth: int = 2, *, vocab_size: int):
        super().__init__(hidden_size, width, num_options, depth)
        self.vocab_size = vocab_size
        self.net.requires_grad_(False)
        self.tokens = nn.Embedding(vocab_size, RECENT * WIDTH)
        self.change = mlp(RECENT * WIDTH, width, num_options)
        nn.init.zeros_(self.change[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.change[-1].bias)  # type: ignore[arg-type]

    def learned(self) -> list[nn.Parameter]:
        return [*self.tokens.parameters(), *self.change.parameters()]

    def added(self) -> list[Tensor]:
        """What is zero where nothing is added."""
        return [self.change[-1].weight, self.change[-1].bias]  # type: ignore[list-item]

    def example(self) -> Tensor:
        return torch.nn.functional.pad(super().example(), (0, RECENT))

    def sees(self, hidden: Tensor, recent: Tensor) -> Tensor:
        """[h; tokens] (n, s + 2) float32, which holds every token's number exactly."""
        return torch.cat([hidden.float(), recent.float()], -1)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        state, recent = hidden[:, :-RECENT], hidden[:, -RECENT:].long()
        # Either place has its own part of a token's embedding.
        known = [self.tokens(recent[:, i]).chunk(RECENT, -1)[i] for i in range(RECENT)]
        change = self.change(torch.cat(known, -1))
        return masked((self.net(self.standardize(state)) + change).float(), mask).log_softmax(-1)


class Local(_Added):
    """GRPO of what is added to the prior's logits, a function of the last two tokens."""

    label = "local"
    config_class = LocalConfig
    config: LocalConfig
    policy_class = LocalPolicy

    def new_policy(self) -> LatentPolicy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.session.seed)
            return LocalPolicy.from_prior(self.session.plugin, vocab_size=self.session.backbone.vocab_size)

    def sees(self, hidden: Tensor, recent: Tensor) -> Tensor:
        return self.policy.sees(hidden, recent)  # type: ignore[operator]
