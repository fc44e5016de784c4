"""The judge: rewards, answers and verdicts of finished episodes, from a reward function with TRL's signature."""

import asyncio
import inspect
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from copy import deepcopy
from functools import partial
from itertools import islice
from numbers import Real
from typing import Any

from ollm_rl.common.heartbeat import beat
from ollm_rl.common.locate import dotted_name, locate
from ollm_rl.errors import ConfigurationError, OLLMError, RewardError, did_you_mean, place_of
from ollm_rl.reward.answers import extract_answer
from ollm_rl.reward.functions import MathVerify, ReasoningGym
from ollm_rl.reward.plans import Plan
from ollm_rl.reward.python_tests import PythonTests
from ollm_rl.rollout.episode import Episode

OUR_REWARDS = (
    MathVerify,
    Plan,
    PythonTests,
    ReasoningGym,
)  # classes; agents remember by name that they were trained with one
LARGEST = 1e15  # of a reward: its square, and sums of those, are still numbers in float32


class Judge:
    """Fills in the rewards of episodes with a reward function of TRL's signature.

    Args:
        reward: the function.
        conversational: whether it expects messages (`completion[0]["content"]`) and not texts, as TRL hands over for
            conversational data sets.
        settings: what the reward was made from: its class or function under `_target_`, and its settings.

    Attributes:
        seconds: time spent in judging so far.
    """

    def __init__(
        self, reward: Callable[..., Any], conversational: bool = False, settings: dict[str, Any] | None = None
    ):
        self.reward, self.conversational = reward, conversational
        self.settings = settings or _settings_of(reward, conversational)
        self.seconds = 0.0
        function = reward.func if isinstance(reward, partial) else reward
        self.name = getattr(function, "__name__", type(function).__name__)
        try:
            parameters = inspect.signature(reward).parameters
        except (TypeError, ValueError):  # of some that are written in C
            parameters = {}  # type: ignore[assignment]
        self._takes_all = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes = set(parameters)

    def __call__(self, episodes: Sequence[Episode]) -> None:
        """Set `reward`, `answer` (the final answer that the text states, or what the reward function logs as `answer`) and, where the reward
        function logs it, `verdict`.

        An asynchronous function is awaited, in a thread of its own where a loop is running already, as in a notebook.

        Raises:
            RewardError: the function raised an error, which is the cause of this one.
            ConfigurationError: it did not return one finite number per episode.
        """
        if not episodes:
            return
        start = time.perf_counter()
        extra: dict[str, Any] = {}
        try:
            rewards = self._returned(episodes, extra)
            verdicts = list(extra.get("verdict", [""] * len(episodes)))
            answers = list(extra.get("answer", [extract_answer(e.text) for e in episodes]))
        except OLLMError:
            raise
        except Exception as error:
            if type(self.reward).__module__.startswith("ollm_rl."):  # ours: no user error
                raise
            raise RewardError(
                f"reward '{self.name}' raised {type(error).__name__}: {error}{place_of(error, __file__)}. It was called with "
                f"{len(episodes)} completions and expected to return a number for each; see docs/verifier.md."
            ) from error
        if len(verdicts) != len(episodes):
            raise self._wrong(f"logged {len(verdicts)} verdicts", len(episodes))
        if len(answers) != len(episodes):
            raise self._wrong(f"logged {len(answers)} answers", len(episodes))
        for episode, reward, verdict, answer in zip(episodes, rewards, verdicts, answers, strict=True):
            episode.reward, episode.judged, episode.verdict = reward or 0.0, reward is not None, str(verdict)
            episode.answer = None if answer is None else str(answer)
        self.seconds += time.perf_counter() - start
        beat()

    def _returned(self, episodes: Sequence[Episode], extra: dict[str, Any]) -> list[float | None]:
        """What the reward function makes of the episodes; what it logs goes to `extra`."""
        prompts: list[Any] = [e.problem.problem for e in episodes]
        completions: list[Any] = [e.text for e in episodes]
        if self.conversational:
            prompts = [[{"role": "user", "content": p}] for p in prompts]
            completions = [[{"role": "assistant", "content": c}] for c in completions]
        given: dict[str, Any] = _columns(episodes) | {
            "prompts": prompts, "completions": completions, "completion_ids": [list(e.tokens) for e in episodes],
            "log_extra": extra.__setitem__, "log_metric": lambda name, value: None,
        }  # fmt: skip
        returned = self.reward(**{k: v for k, v in given.items() if self._takes_all or k in self._takes})
        if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
            returned = _awaited(returned)
        return self._numbers(returned, len(episodes))

    def _numbers(self, returned: Any, n: int) -> list[float | None]:
        """The rewards as numbers; None is TRL's "does not apply to this example"."""
        single = isinstance(returned, str | bytes | Mapping | Set) or getattr(returned, "ndim", 1) == 0
        if single or not isinstance(returned, Iterable):
            raise self._wrong(f"returned {type(returned).__name__} {reprlib.repr(returned)}", n)
        values = [_scalar(r) for r in islice(returned, n + 1)]
        if len(values) != n:
            raise self._wrong(f"returned {'more' if len(values) > n else len(values)} values", n)
        for i, value in enumerate(values):
            good = isinstance(value, Real) and -LARGEST <= value <= LARGEST  # type: ignore[operator]  # NaN is not
            if value is not None and not good:
                raise self._wrong(f"returned {reprlib.repr(value)} as number {i + 1}", n)
        return [None if value is None else float(value) for value in values]

    def _wrong(self, what: str, n: int) -> ConfigurationError:
        return ConfigurationError(
            f"reward '{self.name}' {what}; expected a list of {n} finite numbers, one per completion, of at most {LARGEST:g} in size"
        )

    def close(self) -> None:
        if callable(close := getattr(self.reward, "close", None)):
            close()


def _settings_of(reward: Any, conversational: bool) -> dict[str, Any] | None:
    """As `make_judge` takes them: of our rewards and of functions that can be imported; None of others."""
    how = {"conversational": True} if conversational else {}
    if isinstance(reward, OUR_REWARDS):
        return {"_target_": dotted_name(type(reward)), **reward.settings, **how}
    if inspect.isfunction(reward) and "<" not in reward.__qualname__ and reward.__module__ != "__main__":
        return {"_target_": dotted_name(reward), **how}
    return None


def _scalar(value: Any) -> Any:
    """An array without axes as the number in it."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _awaited(returned: Any) -> Any:
    """What an awaitable, or an asynchronous generator, gives."""

    async def wait() -> Any:
        if inspect.isasyncgen(returned):
            return [value async for value in returned]
        return await returned

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, wait()).result()


def _columns(episodes: Sequence[Episode]) -> dict[str, list[Any]]:
    rows = [
        {**e.problem.extra, "id": e.problem.id, "problem": e.problem.problem, "answer": e.problem.answer,
         "solution": e.problem.solution} for e in episodes
    ]  # fmt: skip
    # Copies: a reward may change what it is given, and the problem comes again.
    return {name: [deepcopy(row.get(name)) for row in rows] for name in dict.fromkeys(k for row in rows for k in row)}


def judge_by(reward: Any) -> Judge:
    """A judge of what stands for a reward in Python: a function, an object that can be called, or `<module>.<name>` of one.

    Raises:
        ConfigurationError: it is none of these; a class has to be called first.
    """
    if isinstance(reward, str):
        return make_judge(locate(reward, "reward"), {})
    if inspect.isclass(reward):
        raise ConfigurationError(
            f"reward={reward.__qualname__} is a class; expected what it makes: {reward.__qualname__}(...)"
        )
    if not callable(reward):
        raise ConfigurationError(
            f"reward={reprlib.repr(reward)}; expected a function with TRL's signature, f(prompts, completions, **columns) -> list[float]"
        )
    return Judge(reward)


def make_judge(target: Any, settings: dict[str, Any]) -> Judge:
    """A judge from a class, a factory or a plain reward function, and its settings.

    A function that takes `completions` is the reward itself, with the settings as further arguments; anything else
    is called with the settings and returns the reward.

    Raises:
        ConfigurationError: it does not take one of the settings, or what comes out is no function.
    """
    given = {"_target_": dotted_name(target), **settings} if hasattr(target, "__qualname__") else None
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
    try:
        reward = partial(target, **settings) if itself and settings else target if itself else target(**settings)
    except OLLMError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"reward._target_={name} raised {type(error).__name__} when it was made: {error}{place_of(error, __file__)}. Check its settings, "
            f"{', '.join(settings) or 'of which it was given none'}."
        ) from error
    if not callable(reward):
        raise ConfigurationError(f"reward._target_={name} gives {type(reward).__name__}, expected a reward function")
    return Judge(reward, conversational, given)
