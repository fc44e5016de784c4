"""Whether a text's Python function passes tests, in a sandbox: `pydantic-monty`, an interpreter of a subset of Python in Rust.

Code runs in worker processes of the interpreter's own, with limits on time, memory and recursion, and without files, network, clock
or any access to this process. What is called and what comes out are plain data, which are compared here: the code under test never
sees the tests, and an object of its own cannot claim to be equal to anything. Tests that are code themselves (`check(candidate)`, as
HumanEval has them) run in a second sandbox, to which the function is a call to the first.

What the subset lacks (docs/verifier.md has a list) is `unsupported`, and counts as wrong.
"""

import builtins
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import Config, setting
from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.answers import texts_of

MOST_CHARACTERS = 50_000  # of a text's code
ATTEMPTS = 2
CRASHED = "crashed"  # the worker died; no verdict yet
ABSENT = (
    "does not yet support",
    "not yet implemented",
    "not supported",
    "not implemented",
)  # in messages on what the subset lacks
_NO_ATTRIBUTE = re.compile(r"(?:module '(?P<module>\w+)'|'(?P<type>\w+)' object) has no attribute '(?P<name>\w+)'")
_NO_NAME = re.compile(r"name '(?P<name>\w+)' is not defined")


@dataclass(frozen=True)
class PythonTestsConfig(Config):
    """Of `PythonTests`."""

    section: ClassVar[str] = "reward"

    timeout_s: float = setting(
        2.0, "limit of one text's code and tests, in seconds: half for either", above=0, at_most=600
    )
    memory_mib: int = setting(256, "limit of what the code holds", at_least=1)
    recursion: int = setting(500, "depth of calls", at_least=1, at_most=100_000)


class PythonTests:
    """1.0 if the code of a text passes all tests of its problem, else 0.0.

    >>> reward = ol.PythonTests()
    >>> reward(completions=["def f(x):\n    return x + 1"], tests=[{"entry_point": "f", "calls": [[1], [2]], "expected": [2, 3]}])
    [1.0]

    The column `tests` has a dictionary: `entry_point`, the name of the function; `calls`, a list of argument lists, and `expected`, a list of
    results; or in place of both `check`, the code of a function `check(candidate)` with assertions. `prompt`, code that a text goes on with or
    whose imports and helpers it uses, is put before the text's code.

    Verdicts are `passed`, `failed`, `timeout`, `unsupported`, `no_code` and `infra`: the sandbox itself failed, which is nobody's fault; that
    reward is None, and such episodes take no part in learning.
    """

    config_class = PythonTestsConfig
    __name__ = "python_tests"

    def __init__(self, **settings: Any):
        try:
            import pydantic_monty  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "reward=python_tests needs the package pydantic-monty. Install it with `pip install 'ollm_rl[code]'`."
            ) from error
        self.config = PythonTestsConfig.of(settings, "reward python_tests")
        self.settings = asdict(self.config)
        self._sandbox: Any = None
        self._lock = threading.Lock()
        # As many texts at once as there are processors, whoever asks: each has two workers at most, and none waits for another's.
        self._at_once = threading.BoundedSemaphore(os.cpu_count() or 1)

    @staticmethod
    def stated(text: str) -> str | None:
        """What a text says, for votes: all of it."""
        return text.strip() or None

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        *,
        log_extra: Callable[..., Any] | None = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        if "tests" not in columns:
            raise ConfigurationError("reward=python_tests judges problems with a column 'tests'; see docs/verifier.md")
        texts = texts_of(completions)
        verdicts = self.check_many(list(zip(texts, columns["tests"], strict=True)))
        if log_extra is not None:
            log_extra("verdict", verdicts)
            log_extra("answer", [code_of(t, tests) for t, tests in zip(texts, columns["tests"], strict=True)])
        return [None if verdict == "infra" else float(verdict == "passed") for verdict in verdicts]

    def check_many(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Verdicts of (text, tests), in order."""
        with ThreadPoolExecutor(max(1, min(len(pairs), os.cpu_count() or 1))) as threads:
            return list(threads.map(lambda pair: self.check(*pair), pairs))

    def check(self, text: str, tests: dict[str, Any]) -> str:
        """The verdict on one text."""
        code = code_of(text, tests)
        if code is None:
            return "no_code"
        with self._at_once:
            for _ in range(ATTEMPTS):  # a worker that was killed from outside is no fault of the code
                if (verdict := self._run(code, tests)) != CRASHED:
                    return verdict
            return "failed"

    def _run(self, code: str, tests: dict[str, Any]) -> str:
        import pydantic_monty as monty

        try:
            with self._session() as session:
                last_call = time.monotonic() + self.config.timeout_s / 2  # begins no later: it may take the other half
                session.feed_run(code, print_callback=_silent)
                if "check" in tests:
                    return self._checked(session, tests, last_call)
                found = _call(session, tests["entry_point"], [(arguments, {}) for arguments in tests["calls"]])
                return "passed" if same(found, tests["expected"]) else "failed"
        except monty.MontyError as error:
            return _verdict(error)
        except (_NotPlain, RecursionError):
            return "failed"
        except (OSError, TimeoutError):  # no worker could be had
            return "infra"

    def _checked(self, session: Any, tests: dict[str, Any], last_call: float) -> str:
        """By code with assertions, in a sandbox of its own."""
        import pydantic_monty as monty

        raised: list[BaseException] = []

        def candidate(*arguments: Any, **named: Any) -> Any:
            try:
                if time.monotonic() > last_call:
                    raise TimeoutError
                return _call(session, tests["entry_point"], [(arguments, named)])[0]
            except BaseException as error:
                raised.append(error)
                raise ValueError("the function under test ended with an error") from error

        try:
            with self._session() as judge:
                # Tests may use what their prompt defines, and the function by its name.
                judge.feed_run((tests.get("prompt") or "") + "\n", print_callback=_silent)
                judge.feed_run(tests["check"], print_callback=_silent)
                judge.feed_run(
                    f"{tests['entry_point']} = candidate\ncheck(candidate)", print_callback=_silent,
                    external_lookup={"candidate": candidate},
                )  # fmt: skip
            return "passed"
        except monty.MontyError as error:
            if raised:
                if isinstance(raised[0], monty.MontyError):
                    return _verdict(raised[0])
                return "timeout" if isinstance(raised[0], TimeoutError) else "failed"
            return _verdict(error)

    @contextmanager
    def _session(self) -> Any:
        config = self.config
        limits = {
            "max_feed_duration_secs": config.timeout_s / 2, "max_memory": config.memory_mib << 20,
            "max_recursion_depth": config.recursion, "max_total_sleep_secs": 0.0, "max_suspensions": 100_000,
        }  # fmt: skip
        with self._pool().checkout(limits=limits, assert_message_annotations=False) as session:
            yield session

    def _pool(self) -> Any:
        with self._lock:
            if self._sandbox is None:
                import pydantic_monty as monty

                most = 2 * (os.cpu_count() or 1)  # a text may need two
                self._sandbox = monty.Monty(max_processes=most, checkout_timeout=30.0, feed_duration_limit_grace=0.3)
                self._sandbox.__enter__()
            return self._sandbox

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.settings,)

    def close(self) -> None:
        """End the sandbox's workers. It can be used again."""
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.__exit__(None, None, None)
                self._sandbox = None


def _again(settings: dict[str, Any]) -> PythonTests:
    return PythonTests(**settings)


class _NotPlain(Exception):
    """A function gave an object of its own."""


def _silent(stream: str, text: str) -> None:
    """What code prints goes nowhere."""


_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def code_of(text: str, tests: Mapping[str, Any]) -> str | None:
    """The code of a text: its last fenced block that defines the function, or the text itself if it does, both behind the `prompt`, whose imports and
    helpers it may use; or what goes on with the `prompt`."""
    if len(text) > MOST_CHARACTERS:
        return None
    defines = re.compile(rf"^[ \t]*(?:async )?def {re.escape(tests['entry_point'])}\b", re.MULTILINE)
    prompt = tests.get("prompt") or ""
    whole = [block for block in (text, *_FENCED.findall(text)) if defines.search(block)]
    if whole:
        return f"{prompt}\n{whole[-1]}" if prompt else str(whole[-1])
    return prompt + text if prompt and text.strip() else None


def _call(session: Any, name: str, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
    """What the sandbox's function returns for each of some calls (arguments, and those that are named), as plain data."""
    given: dict[str, Any] = {}
    code = []
    for i, (arguments, named) in enumerate(calls):
        given |= {f"_a{i}_": list(arguments), f"_k{i}_": dict(named)}
        code.append(f"{name}(*_a{i}_, **_k{i}_)")
    found: list[Any] = session.feed_run(f"[{', '.join(code)}]", inputs=given, print_callback=_silent)
    if not _is_plain(found):
        raise _NotPlain("an object of its own")
    return found


def _is_plain(value: Any) -> bool:
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(_is_plain(item) for item in value)
    return type(value) is dict and all(_is_plain(k) and _is_plain(v) for k, v in value.items())


def same(found: Any, expected: Any) -> bool:
    """Whether plain data are equal as Python has it; floats to 1e-9, and a tuple is as good as a list (JSON has no tuples)."""
    if (
        isinstance(found, float | int)
        and isinstance(expected, float | int)
        and (type(found) is float or type(expected) is float)
    ):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
    if type(found) in (list, tuple) and type(expected) in (list, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def _verdict(error: Any) -> str:
    """What an error of the sandbox says of the code."""
    import pydantic_monty as monty

    if isinstance(error, monty.MontyCrashedError):  # killed for time, or dead for want of memory
        return "timeout" if getattr(error, "timed_out", False) else CRASHED
    inner = error.exception() if hasattr(error, "exception") else error
    if isinstance(inner, TimeoutError):
        return "timeout"
    return "unsupported" if _is_lacking(inner, str(error)) else "failed"


def _is_lacking(error: BaseException, said: str) -> bool:
    """Whether an error is due to something that Python has and the subset has not."""
    if isinstance(error, NotImplementedError | ModuleNotFoundError) or any(part in said for part in ABSENT):
        return True
    if isinstance(error, NameError) and (found := _NO_NAME.search(said)) is not None:
        return hasattr(builtins, found["name"])
    if isinstance(error, AttributeError) and (found := _NO_ATTRIBUTE.search(said)) is not None:
        owner = sys.modules.get(found["module"]) if found["module"] else getattr(builtins, found["type"], None)
        return hasattr(owner, found["name"])
    return False
