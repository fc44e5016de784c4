"""The verifier: is the final answer of a text equal to the gold one?

Plain numbers and answers that are written alike are judged here, exactly. Everything else goes to worker processes
with a time and a memory limit (`ollm_rl.reward.sandbox`). math-verify's own time-out is a SIGALRM, which does nothing outside
the main thread; a process can always be stopped.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.answers import extract_answer
from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.reward.sandbox import WorkerPool

MAX_ANSWER = 2_000  # characters; a longer "answer" is not one
CACHED_VERDICTS = 100_000
TIMEOUT_S = 2.0  # of one symbolic comparison


@dataclass(frozen=True)
class Verdict:
    """`reason`: equal, different, no_answer, unparsable, timeout or too_large."""

    correct: bool
    reason: str
    answer: str | None


class Verifier:
    """Checks final answers; a context manager that ends its workers. Safe to share between threads.

    >>> with ol.Verifier() as verifier:
    ...     verifier.check(gold="1/2", text="so it is \\\\boxed{0.5}").correct

    Args:
        timeout_s: limit of one symbolic comparison, in seconds. A verdict takes at most 0.5 s more; the first one
            also waits for the workers' start, about 3 s.
        num_workers: comparisons at a time in `check_many`; the number of processors by default.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, num_workers: int | None = None):
        if timeout_s <= 0:
            raise ConfigurationError(f"timeout_s={timeout_s}; expected a positive number of seconds")
        self.timeout_s, self.num_workers = timeout_s, num_workers or os.cpu_count() or 1
        self._cache: dict[tuple[str, str], Verdict] = {}
        self._pool = WorkerPool()  # started by the first question to it, which may never come

    def check(self, gold: str, text: str) -> Verdict:
        """Judge one text against one gold answer."""
        verdict = self._at_once(gold, answer := extract_answer(text))
        if verdict is None:
            assert answer is not None
            verdict = self._ask(gold, answer)
        return verdict

    def check_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Judge (gold, text) pairs, in order; symbolic ones in parallel and equal ones once."""
        asked = [(gold, extract_answer(text)) for gold, text in pairs]
        found = [self._at_once(gold, answer) for gold, answer in asked]
        open_ = list(dict.fromkeys(q for q, verdict in zip(asked, found, strict=True) if verdict is None))
        if open_:
            with ThreadPoolExecutor(self.num_workers) as threads:
                verdicts = dict(zip(open_, threads.map(lambda q: self._ask(q[0], q[1] or ""), open_), strict=True))
            found = [verdicts[q] if v is None else v for q, v in zip(asked, found, strict=True)]
        return [v for v in found if v is not None]

    def understand_many(self, golds: Sequence[str]) -> list[str]:
        """`equal` for every gold answer that is understood, as words or formulas; else the reason why only the very
        same text would be accepted."""

        def understands(gold: str) -> str:
            return "equal" if _normal(gold)[1] is not None else self._pool.ask(gold, None, self.timeout_s)

        with ThreadPoolExecutor(self.num_workers) as threads:
            return list(threads.map(understands, golds))

    def _at_once(self, gold: str, answer: str | None) -> Verdict | None:
        """The verdict, if no worker is needed for it."""
        if answer is None:
            return Verdict(False, "no_answer", None)
        if (known := self._cache.get((gold, answer))) is not None:
            return known
        if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
            same = answer.strip() == gold.strip()
            return Verdict(same, "equal" if same else "too_large", answer[:80])
        (left, a), (right, b) = _normal(gold), _normal(answer)
        if left == right:
            return Verdict(bool(left), "equal" if left else "unparsable", answer)
        if a is not None and b is not None:
            return Verdict(a == b, "equal" if a == b else "different", answer)
        return None

    def _ask(self, gold: str, answer: str) -> Verdict:
        reason = self._pool.ask(gold, answer, self.timeout_s)
        verdict = Verdict(reason == "equal", reason, answer)
        if len(self._cache) >= CACHED_VERDICTS:
            self._cache.clear()
        self._cache[gold, answer] = verdict
        return verdict

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.timeout_s, self.num_workers)

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@lru_cache(maxsize=10_000)
def _normal(text: str) -> tuple[str, Fraction | None]:
    form = normal_form(text)
    return form, plain_number(form)
