"""The verifier: is the final answer of a text equal to the gold one?

Plain numbers and identical answers are judged here, exactly. Everything else goes to math-verify in worker
processes, started afresh, that are killed when they overrun the limit. math-verify's own time-out is a SIGALRM,
which does nothing outside the main thread; a process can always be stopped.
"""

import contextlib
import json
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ollm_rl.answers import extract_answer, plain_number, strip_delimiters

MAX_ANSWER = 2_000  # characters; a longer "answer" is not one
MEMORY_LIMIT = 2 << 30  # bytes of address space of a worker
START_LIMIT_S = 60.0  # for a worker's imports, which are not the answer's fault


@dataclass(frozen=True)
class Verdict:
    """`reason`: equal, different, no_answer, unparsable, timeout or too_large."""

    correct: bool
    reason: str
    answer: str | None


class Verifier:
    """Checks final answers; a context manager that ends its workers.

    Args:
        timeout_s: limit of one symbolic comparison, in seconds.
        num_workers: processes for symbolic comparisons, started when first needed.
    """

    def __init__(self, timeout_s: float = 2.0, num_workers: int = 2):
        self.timeout_s, self.num_workers = timeout_s, num_workers
        self._cache: dict[tuple[str, str], Verdict] = {}
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._places = threading.Semaphore(num_workers)

    def check(self, gold: str, text: str) -> Verdict:
        """Judge one text against one gold answer."""
        answer = extract_answer(text)
        if answer is None:
            return Verdict(False, "no_answer", None)
        key = (gold, answer)
        if key not in self._cache:
            verdict = self._compare(gold, answer)
            if len(self._cache) > 100_000:
                self._cache.clear()
            self._cache[key] = verdict
        return self._cache[key]

    def check_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Judge (gold, text) pairs, in order; symbolic ones in parallel."""
        with ThreadPoolExecutor(self.num_workers) as pool:
            return list(pool.map(lambda pair: self.check(*pair), pairs))

    def _compare(self, gold: str, answer: str) -> Verdict:
        left, right = strip_delimiters(gold), strip_delimiters(answer)
        if len(right) > MAX_ANSWER:
            return Verdict(False, "too_large", answer[:80])
        if left == right:
            return Verdict(bool(left), "equal" if left else "unparsable", answer)
        a, b = plain_number(left), plain_number(right)
        if a is not None and b is not None:
            return Verdict(a == b, "equal" if a == b else "different", answer)
        reason = self._ask_worker(left, right)
        return Verdict(reason == "equal", reason, answer)

    def _ask_worker(self, gold: str, answer: str) -> str:
        with self._places:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
                if worker is None:
                    worker = _Worker()
                    self._all.append(worker)
            reason = worker.ask(gold, answer, self.timeout_s)
            with self._lock:
                if worker.alive:
                    self._idle.append(worker)
                else:
                    self._all.remove(worker)
            return reason

    def close(self) -> None:
        with self._lock:
            for worker in self._all:
                worker.kill()
            self._all, self._idle = [], []

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class _Worker:
    """A process that compares answers, one at a time.

    Not a `multiprocessing` one: that imports the caller's main module again, which may load a model.
    """

    def __init__(self):
        code = f"import sys; sys.path[:] = {sys.path!r}; from ollm_rl.symbolic import serve; serve({MEMORY_LIMIT})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self.ready = False
        self.alive = True

    def ask(self, gold: str, answer: str, timeout_s: float) -> str:
        try:
            if not self.ready:
                self.ready = self._line(START_LIMIT_S) is not None
                if not self.ready:
                    raise EOFError
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self.process.stdin.flush()
            if (reason := self._line(timeout_s)) is not None:
                return reason
        except (EOFError, OSError):  # it died of the answer: out of memory, or killed
            self.kill()
            return "unparsable"
        self.kill()
        return "timeout"

    def _line(self, timeout_s: float) -> str | None:
        """Its next word, or None if it does not come in time. It never says two at once, so nothing waits in a buffer."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line.decode().strip()

    def kill(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
