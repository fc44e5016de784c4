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
from threading import Thread
from typing import Any

from ollm_rl.common.heartbeat import beat
from ollm_rl.common.locate import dotted_name, locate
from ollm_rl.common.settings import settings_of
from ollm_rl.errors import ConfigurationError, OLLMError, RewardError, place_of, with_traceback_of
from ollm_rl.reward.answers import extract_answer
from ollm_rl.reward.config import SOLVED_AT, RewardConfig
from ollm_rl.reward.functions import MathVerify, ReasoningGym
from ollm_rl.reward.plans import Plan
from ollm_rl.reward.python_tests import PythonTests
from ollm_rl.reward.taken import CONVERSATIONAL, check_settings, judges_itself
from ollm_rl.rollout.episode import Episode
from ollm_rl.tasks.base import Problem
from ollm_rl.tasks.prompts import Prompter

OUR_REWARDS = (
    MathVerify,
    Plan,
    PythonTests,
    ReasoningGym,
)  # classes; agents remember by name that they were trained with one
HOW = {"conversational": False, "solved_at": SOLVED_AT, "limit_s": None}  # what every judge has, and its defaults
PARTS = "rewards/"  # what a reward of several logs each of them under, before its name
PATIENCE_S = 5.0  # a reward that fails later than this is not asked again for which completion
LIMIT_S = 300.0  # of a call of a reward of one's own
ODD_TEXTS = ("", "?!")  # what a policy may say, and a reward has to take
LARGEST = 1e15  # of a reward: its square, and sums of those, are still numbers in float32


class Judge:
    """Fills in the rewards of episodes with a reward function of TRL's signature.

    >>> judge = ol.Judge(graded, solved_at=0.5, limit_s=60)
    >>> ol.Session(backbone, plugin, task, reward=judge)

    Args:
        reward: the function.
        conversational: whether it expects messages (`completion[0]["content"]`) and not texts, as TRL hands over for
            conversational data sets.
        settings: what the reward was made from: its class or function under `_target_`, and its settings.
        solved_at: from which reward on an episode counts as solved.
        limit_s: of one call, in seconds; None: of a reward of one's own `LIMIT_S`, of ours none.

    Attributes:
        seconds: time spent in judging so far.
    """

    def __init__(
        self,
        reward: Callable[..., Any],
        conversational: bool = False,
        settings: dict[str, Any] | None = None,
        solved_at: float = SOLVED_AT,
        limit_s: float | None = None,
    ):
        self.reward, self.conversational, self.solved_at = reward, conversational, solved_at
        self.limit_s = None if _is_ours(reward) and limit_s is None else limit_s or LIMIT_S
        how = {"conversational": conversational, "solved_at": solved_at, "limit_s": limit_s}
        self.settings = settings or _settings_of(reward, {key: how[key] for key in how if how[key] != HOW[key]})
        self.seconds = 0.0
        function = reward.func if isinstance(reward, partial) else reward
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, episodes: Sequence[Episode], prompter: Prompter | None = None) -> None:
        """Set `reward`, `answer` (the final answer that the text states, or what the reward function logs as `answer`) and, where the reward
        function logs it, `verdict`.

        An asynchronous function is awaited, in a thread of its own where a loop is running already, as in a notebook.

        Args:
            prompter: which made the prompts that the function is handed; without one, it is handed the problems.

        Raises:
            RewardError: the function raised an error, which is the cause of this one; `traceback` has the user's frames.
            ConfigurationError: it did not return one finite number per episode.
        """
        if not episodes:
            return
        start = time.perf_counter()
        extra: dict[str, Any] = {}
        try:
            rewards = self._returned(episodes, prompter, extra)
            verdicts = list(extra.get("verdict", [""] * len(episodes)))
            answers = list(extra.get("answer", [extract_answer(e.text) for e in episodes]))
        except OLLMError:
            raise
        except Exception as error:
            if _is_ours(self.reward):  # no user error
                raise
            told = RewardError(
                f"reward '{self.name}' raised {type(error).__name__}: {error}{place_of(error)}. It was called with "
                f"{len(episodes)} completions and expected to return a number for each; see docs/verifier.md."
                f"{self._culprit(episodes, prompter) if time.perf_counter() - start < PATIENCE_S else ''}"
            )
            raise with_traceback_of(error, told) from error
        if len(verdicts) != len(episodes):
            raise self._wrong(f"logged {len(verdicts)} verdicts", len(episodes))
        if len(answers) != len(episodes):
            raise self._wrong(f"logged {len(answers)} answers", len(episodes))
        for episode, reward, verdict, answer in zip(episodes, rewards, verdicts, answers, strict=True):
            episode.reward, episode.judged, episode.verdict = reward or 0.0, reward is not None, str(verdict)
            episode.answer = None if answer is None else str(answer)
            episode.solved_at = self.solved_at
        for name in [name for name in extra if name.startswith(PARTS)]:
            for episode, value in zip(episodes, extra[name], strict=True):
                if value is not None:
                    episode.parts[name.removeprefix(PARTS)] = float(value)
        self.seconds += time.perf_counter() - start
        beat()

    def try_out(self, problem: Problem, prompter: Prompter | None = None) -> None:
        """Ask a reward of the user's about `ODD_TEXTS` as answers to a problem, before anything long begins. Ours are not asked.

        Raises:
            RewardError, ConfigurationError: as a call does; training would end with the same, later.
        """
        if _is_ours(self.reward):
            return
        episodes = [Episode(problem, text=text) for text in ODD_TEXTS]
        if prompter is not None:
            for episode in episodes:
                episode.tokens = prompter.encode_solution(episode.text)
        self(episodes, prompter)

    def read(self, episodes: Sequence[Episode]) -> None:
        """Set `answer` from the texts alone: by the reward's `stated(text)`, if it has one, or else the final answer that the text states.

        The reward function is not asked, so there is no verdict: for whoever has to choose among texts without one.
        """
        stated: Callable[[str], str | None] = getattr(self.reward, "stated", extract_answer)
        try:
            answers = [stated(episode.text) for episode in episodes]
        except Exception as error:
            if _is_ours(self.reward):
                raise
            told = RewardError(
                f"reward '{self.name}': stated(text) raised {type(error).__name__}: {error}{place_of(error)}; expected a text, or None"
            )
            raise with_traceback_of(error, told) from error
        for episode, answer in zip(episodes, answers, strict=True):
            episode.answer = None if answer is None else str(answer)

    def _returned(
        self, episodes: Sequence[Episode], prompter: Prompter | None, extra: dict[str, Any]
    ) -> list[float | None]:
        """What the reward function makes of the episodes; what it logs goes to `extra`."""
        prompts = self._prompts([e.problem for e in episodes], prompter)
        completions: list[Any] = [e.text for e in episodes]
        if self.conversational:
            completions = [[{"role": "assistant", "content": c}] for c in completions]
        columns = _columns(episodes)
        set_before = self.reward.keywords if isinstance(self.reward, partial) else {}
        if twice := next((name for name in set_before if name in columns), None):
            raise ConfigurationError(
                f"reward.{twice} is set, and the data has a column '{twice}', which reward '{self.name}' is handed for each problem. "
                f"Leave reward.{twice} out, or give the column another name: 'task.columns={{<new name>: {twice}}}'."
            )
        given: dict[str, Any] = columns | {
            "prompts": prompts, "completions": completions, "completion_ids": [list(e.tokens) for e in episodes],
            "log_extra": extra.__setitem__, "log_metric": lambda name, value: None,
        }  # fmt: skip
        if self.limit_s is None:
            return self._numbers(called(self.reward, given), len(episodes))
        return self._numbers(self._within(partial(called, self.reward, given), len(episodes)), len(episodes))

    def _prompts(self, problems: list[Problem], prompter: Prompter | None) -> list[Any]:
        """What the model saw, as text or messages."""
        found: list[Any] = []
        for i, p in enumerate(problems):
            if i and p is problems[i - 1] and not self.conversational:
                found.append(found[-1])
            elif prompter is None or _is_ours(self.reward):  # ours do not look at it
                found.append([{"role": "user", "content": p.problem}] if self.conversational else p.problem)
            else:
                found.append((prompter.messages if self.conversational else prompter.text)(p.problem, p.turns))
        return found

    def _within(self, call: Callable[[], Any], n: int) -> Any:
        """What a call gives, if it ends within the limit; one that does not is left behind in its thread."""
        found: list[Any] = []

        def work() -> None:
            try:
                found.append((call(), None))
            except BaseException as error:
                found.append((None, error))

        thread = Thread(target=copy_context().run, args=(work,), daemon=True)
        thread.start()
        assert self.limit_s is not None
        end = time.monotonic() + self.limit_s
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            thread.join(min(left, 1.0))  # a signal is noticed between
            beat()
        if not found:
            raise ConfigurationError(
                f"reward '{self.name}' took more than {self.limit_s:g} s for {n} completions. Mend it, or give it longer: "
                "reward.limit_s=<seconds> (in Python ol.Judge(reward, limit_s=...))"
            )
        returned, error = found[0]
        if error is not None:
            raise error
        return returned

    def _culprit(self, episodes: Sequence[Episode], prompter: Prompter | None) -> str:
        """The completion that a reward fails for, found by halves; empty where it does not fail again."""
        several = list(episodes)
        while len(several) > 1:
            half = several[: len(several) // 2]
            several = half if self._fails(half, prompter) else several[len(half) :]
        if not several or not self._fails(several, prompter):
            return ""
        return f" It fails for {several[0].text!r:.300} (problem {several[0].problem.id})."

    def _fails(self, episodes: list[Episode], prompter: Prompter | None) -> bool:
        try:
            self._returned(episodes, prompter, {})
        except Exception:
            return True
        return False

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


def called(reward: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """What a reward returns for those of these arguments that it takes; what has to be awaited is."""
    try:
        parameters = inspect.signature(reward).parameters
    except (TypeError, ValueError):  # of some that are written in C
        parameters = {}  # type: ignore[assignment]
    takes_all = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    returned = reward(**{k: v for k, v in given.items() if takes_all or k in parameters})
    if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        returned = _awaited(returned)
    return returned


def _is_ours(reward: Any) -> bool:
    function = reward.func if isinstance(reward, partial) else reward
    return isinstance(function, OUR_REWARDS)


def _settings_of(reward: Any, how: Mapping[str, Any]) -> dict[str, Any] | None:
    """As `make_judge` takes them, with `how` it judges: of our rewards and of functions that can be imported; None of others."""
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


class Weighted:
    """The weighted sum of several rewards, each of which is logged by itself (`rewards/<name>/mean`), as TRL's trainers do with `reward_funcs`
    and `reward_weights`.

    >>> ol.Session(backbone, plugin, task, reward=ol.Weighted([ol.MathVerify(), brevity], weights=[1.0, 0.1]))

    A reward that gives None for a completion does not count there; if all of them do, neither does the completion.

    Args:
        functions: rewards, or `<module>.<name>` of them.
        weights: of each; None: all 1.
    """

    __name__ = "weighted"

    def __init__(self, functions: Sequence[Any], weights: Sequence[float] | None = None):
        if not functions or isinstance(functions, str):
            raise ConfigurationError(f"reward.functions={functions!r}; expected a list of rewards")
        self.judges = [judge_by(f) for f in functions]
        self.weights = [1.0] * len(self.judges) if weights is None else list(weights)
        numbers = [isinstance(w, Real) and not isinstance(w, bool) and -LARGEST <= w <= LARGEST for w in self.weights]  # type: ignore[operator]
        if len(numbers) != len(self.judges) or not all(numbers):
            raise ConfigurationError(
                f"reward.weights={weights}; expected {len(self.judges)} numbers, one for each of reward.functions"
            )
        names = [judge.name for judge in self.judges]
        self.names = [name if names.count(name) == 1 else f"{name}_{i + 1}" for i, name in enumerate(names)]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[..., Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        sums: list[float | None] = [None] * len(completions)
        for judge, weight, name in zip(self.judges, self.weights, self.names, strict=True):
            extra: dict[str, Any] = {}
            # Copies for each: a reward may change what it is given.
            shown = deepcopy({**columns, "prompts": prompts, "completions": completions})
            given = shown | {"log_extra": extra.__setitem__}
            rewards = judge._numbers(called(judge.reward, given), len(completions))
            sums = [
                total if reward is None else (total or 0.0) + weight * reward
                for total, reward in zip(sums, rewards, strict=True)
            ]
            if log_extra is not None:
                log_extra(f"{PARTS}{name}", rewards)
                for key in extra:
                    log_extra(key, extra[key])
        return sums

    def stated(self, text: str) -> str | None:
        """What a text says, for votes, by the first of the rewards that has `stated`."""
        stated = next((judge.reward.stated for judge in self.judges if hasattr(judge.reward, "stated")), extract_answer)
        found: str | None = stated(text)
        return found

    def close(self) -> None:
        for judge in self.judges:
            judge.close()


def judge_by(reward: Any) -> Judge:
    """A judge of what stands for a reward in Python: a function, an object that can be called, or `<module>.<name>` of one.

    Raises:
        ConfigurationError: it is none of these; a class has to be called first.
    """
    if isinstance(reward, str):
        return make_judge(locate(reward, "reward"), {})
    if isinstance(reward, list | tuple):
        return Judge(Weighted(list(reward)))
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
    conversational = bool(settings.pop(CONVERSATIONAL, False))
    how = RewardConfig.of({key: settings.pop(key) for key in settings_of(RewardConfig) if key in settings})
    name = getattr(target, "__qualname__", str(target))
    check_settings(target, settings)
    itself = judges_itself(target)
    try:
        reward = partial(target, **settings) if itself and settings else target if itself else target(**settings)
    except OLLMError:
        raise
    except Exception as error:
        told = ConfigurationError(
            f"reward {name} raised {type(error).__name__} when it was made: {error}{place_of(error)}. Check its settings, "
            f"{', '.join(settings) or 'of which it was given none'}."
        )
        raise with_traceback_of(error, told) from error
    if not callable(reward):
        raise ConfigurationError(f"reward {name} gives {type(reward).__name__}, expected a reward function")
    return Judge(reward, conversational, given, how.solved_at, how.limit_s)
