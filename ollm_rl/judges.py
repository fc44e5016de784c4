"""Rewards of finished episodes, with the signature of TRL: `f(prompts, completions, **columns) -> list[float]`.

A reward written for TRL runs here unchanged, and `MathVerify` runs in TRL's trainers. The columns are those of the
problem (`answer`, `solution`, `problem`, `id` and whatever its data set has), `completion_ids`, and TRL's `log_extra`.
"""

import asyncio
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ollm_rl.answers import extract_answer
from ollm_rl.errors import ConfigurationError, did_you_mean
from ollm_rl.reward import Verifier
from ollm_rl.trajectory import Episode


class MathVerify:
    """1.0 if the final answer equals the gold one, which stands in the column `answer`; else 0.0.

    Args:
        timeout_s: limit of one symbolic comparison, in seconds.
        column: where the gold answer is.
    """

    __name__ = "math_verify"  # TRL's trainers name rewards by it

    def __init__(self, timeout_s: float = 2.0, column: str = "answer"):
        self.verifier, self.column = Verifier(timeout_s), column

    def __call__(
        self,
        prompts: Sequence | None = None,
        completions: Sequence = (),
        *,
        log_extra: Callable | None = None,
        **columns,
    ) -> list[float]:
        if self.column not in columns:
            found = ", ".join(sorted(columns)) or "none"
            raise ConfigurationError(f"math_verify needs the column '{self.column}' with gold answers; found {found}")
        golds = [str(gold) for gold in columns[self.column]]
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        verdicts = self.verifier.check_many(list(zip(golds, texts, strict=True)))
        if log_extra is not None:
            log_extra("verdict", [v.reason for v in verdicts])
        return [float(v.correct) for v in verdicts]

    def close(self) -> None:
        self.verifier.close()


class ReasoningGym:
    """The score that the problem's own reasoning_gym data set gives, from 0 to 1; answers that are no mathematics too."""

    __name__ = "reasoning_gym"

    def __call__(self, prompts: Sequence | None = None, completions: Sequence = (), **columns) -> list[float]:
        import reasoning_gym

        if "metadata" not in columns:
            raise ConfigurationError("reward=reasoning_gym judges problems of task=reasoning_gym and chain_sum only")
        scores = []
        rows = zip(completions, columns["metadata"], columns["problem"], columns["answer"], strict=True)
        for completion, metadata, question, gold in rows:
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            score = reasoning_gym.get_score_answer_fn(metadata["source_dataset"])
            entry = {"question": question, "answer": gold, "metadata": metadata}
            scores.append(float(score(answer=extract_answer(text), entry=entry)))  # type: ignore[call-arg]
        return scores


class Judge:
    """Fills in the rewards of episodes with a reward function of TRL's signature.

    Args:
        reward: the function.
        conversational: whether it expects messages (`completion[0]["content"]`) and not texts, as TRL hands over for
            conversational data sets.

    Attributes:
        seconds: time spent in judging so far. num_judged: episodes so far.
    """

    def __init__(self, reward: Callable[..., Any], conversational: bool = False):
        self.reward, self.conversational = reward, conversational
        self.seconds, self.num_judged = 0.0, 0
        parameters = inspect.signature(reward).parameters
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes = set(parameters)

    def __call__(self, episodes: Sequence[Episode]) -> None:
        """Set `answer`, `reward` and, where the reward function says it, `verdict`.

        Raises:
            ConfigurationError: the function did not return one number per episode.
        """
        if not episodes:
            return
        start = time.perf_counter()
        extra: dict[str, Sequence] = {}
        prompts: list = [e.problem.problem for e in episodes]
        completions: list = [e.text for e in episodes]
        if self.conversational:
            prompts = [[{"role": "user", "content": p}] for p in prompts]
            completions = [[{"role": "assistant", "content": c}] for c in completions]
        columns: dict[str, Any] = _columns(episodes) | {"completion_ids": [e.tokens for e in episodes]}
        if not self._takes_all:
            columns = {k: v for k, v in columns.items() if k in self._takes}
        if "log_extra" in self._takes:
            columns["log_extra"] = extra.__setitem__
        rewards = self.reward(prompts=prompts, completions=completions, **columns)
        if inspect.iscoroutine(rewards):
            rewards = asyncio.run(rewards)
        self._check(rewards, len(episodes))
        verdicts = extra.get("verdict") or [""] * len(episodes)
        for episode, reward, verdict in zip(episodes, rewards, verdicts, strict=True):
            # None is TRL's "does not apply to this example"
            episode.reward = 0.0 if reward is None else float(reward)
            episode.answer, episode.verdict = extract_answer(episode.text), str(verdict)
        self.seconds += time.perf_counter() - start
        self.num_judged += len(episodes)

    def _check(self, rewards: Any, n: int) -> None:
        name = getattr(self.reward, "__name__", type(self.reward).__name__)
        try:
            bad = [r for r in rewards if not (r is None or math.isfinite(r))]
        except TypeError:
            raise ConfigurationError(
                f"reward '{name}' returned {rewards!r:.80}; expected a list of {n} numbers"
            ) from None
        if len(rewards) != n or bad:
            what = f"{bad[0]!r} among them" if bad else f"{len(rewards)} values"
            raise ConfigurationError(
                f"reward '{name}' returned {what}; expected {n} finite numbers, one per completion"
            )

    def close(self) -> None:
        if callable(close := getattr(self.reward, "close", None)):
            close()


def _columns(episodes: Sequence[Episode]) -> dict[str, list]:
    rows = [
        {**e.problem.extra, "id": e.problem.id, "problem": e.problem.problem, "answer": e.problem.answer,
         "solution": e.problem.solution} for e in episodes
    ]  # fmt: skip
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(k for row in rows for k in row)}


def make_judge(target: Any, settings: dict[str, Any]) -> Judge:
    """A judge from a class, a factory or a plain reward function, and its settings.

    A function that takes `completions` is the reward itself, with the settings as further arguments; anything else
    is called with the settings and returns the reward.

    Raises:
        ConfigurationError: it does not take one of the settings, or what comes out is no function.
    """
    settings = dict(settings)
    conversational = bool(settings.pop("conversational", False))
    name = getattr(target, "__qualname__", str(target))
    try:
        parameters: Mapping[str, Any] = {}
        parameters = inspect.signature(target).parameters
        itself = not inspect.isclass(target) and "completions" in parameters
        if itself:
            inspect.signature(target).bind_partial(**settings)
        else:
            inspect.signature(target).bind(**settings)
    except (TypeError, ValueError) as error:
        hint = "".join(did_you_mean(k, parameters) for k in settings if k not in parameters)
        expected = f"It takes {', '.join(parameters) or 'no settings'}."
        raise ConfigurationError(f"reward._target_={name}: {error}. {expected}{hint}") from error
    reward = partial(target, **settings) if itself and settings else target if itself else target(**settings)
    if not callable(reward):
        raise ConfigurationError(f"reward._target_={name} gives {type(reward).__name__}, expected a reward function")
    return Judge(reward, conversational)
