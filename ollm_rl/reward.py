"""The verifier: is the final answer of a text equal to the gold one?

Plain numbers and identical answers are judged here, exactly. Everything else goes to math-verify in worker
processes (`spawn`) that are killed when they overrun the limit. math-verify's own time-out is a SIGALRM,
which does nothing outside the main thread; a process can always be stopped.
"""

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

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
    """A process that compares answers, one at a time."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.alive = True

    def ask(self, gold: str, answer: str, timeout_s: float) -> str:
        try:
            if not self.ready:
                if not self.pipe.poll(START_LIMIT_S):
                    raise EOFError
                self.ready = bool(self.pipe.recv())
            self.pipe.send((gold, answer))
            if self.pipe.poll(timeout_s):
                return self.pipe.recv()
        except (EOFError, OSError):  # it died of the answer: out of memory, or killed
            self.kill()
            return "unparsable"
        self.kill()
        return "timeout"

    def kill(self) -> None:
        self.alive = False
        if self.process.is_alive():
            self.process.kill()
        self.process.join(1)
        self.pipe.close()


def _die_with_parent() -> None:
    """A parent that was killed cannot stop its workers, and a worker deep in sympy does not notice a closed pipe."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _serve(pipe: Connection) -> None:
    """Body of a worker process."""
    import logging
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    logging.disable(logging.CRITICAL)
    from ollm_rl.symbolic import compare

    pipe.send(True)
    while True:
        try:
            pipe.send(compare(*pipe.recv()))
        except EOFError:
            return
        except Exception:
            pipe.send("unparsable")
