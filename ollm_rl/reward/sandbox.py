"""Worker processes with a time and a memory limit, which hold in any thread and in Ray actors alike.

One *fork server* per pool, a process of its own that has imported the symbolic comparison once, forks a worker for every
request: a worker that a hostile answer has killed is replaced in milliseconds. (It is not `multiprocessing`'s fork
server, which imports the caller's main module again.) A worker times itself: the kernel's alarm ends it wherever it
is stuck, and its socket, closing, says so.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref

MEMORY_LIMIT = 768 << 20  # bytes of address space of a worker
START_LIMIT_S = 60.0  # for the fork server's imports and its first formulas, which are not the answer's fault
LEAST_S = 0.05  # of a limit, where killed workers have used it up
GRACE_S = 0.3  # beyond the limit, before a worker that does not even die is given up
SLOW_S = 0.25  # after which a comparison gives way to others
ATTEMPTS = 5
SPARE = 4  # idle workers that are kept


class WorkerPool:
    """Comparisons in worker processes: as many at once as there are callers, so that none waits for another.

    Raises (from `ask`):
        RuntimeError: workers cannot be started at all, and why; or the pool was closed meanwhile.
    """

    def __init__(self, memory_limit: int = MEMORY_LIMIT):
        self.memory_limit = memory_limit
        self._server: _ForkServer | None = None
        self._idle: list[_Worker] = []
        self._generation = 0  # how often it was closed
        self._lock = threading.Lock()
        _POOLS.add(self)

    def ask(self, gold: str, answer: str | None, limit_s: float) -> str:
        """The reason of a verdict, or without an answer whether the gold is `understood`; `timeout` after `limit_s`.

        The first question starts the fork server (about 3 s of a processor); waiting for that does not count.
        A worker that was killed from outside is replaced and the question asked again; if they die `ATTEMPTS` times, it
        is the answer's doing, `too_large`.
        """
        generation, begin = self._generation, None
        for _ in range(ATTEMPTS):
            if generation != self._generation:
                raise RuntimeError("the verifier was closed while it judged")
            worker = self._take()
            try:
                worker.wait_until_ready()
                begin = begin or time.monotonic()
                left = limit_s - (time.monotonic() - begin)
                reason = worker.ask(gold, answer, max(left, LEAST_S))
            except EOFError:
                worker.close()
                if begin is not None and time.monotonic() - begin >= limit_s:
                    return "timeout"
                continue
            except BaseException:
                worker.close()
                raise
            if reason == "timeout" or worker.slowed:
                worker.close()
            else:
                self._give_back(worker)
            return reason
        return "too_large"

    def _take(self) -> "_Worker":
        with self._lock:
            while self._idle:
                if (worker := self._idle.pop()).alive:
                    return worker
                worker.close()
            if self._server is not None and not self._server.alive:
                self._server.close()
                self._server = None
            self._server = self._server or _ForkServer(self.memory_limit)
            return _Worker(self._server)

    def _give_back(self, worker: "_Worker") -> None:
        with self._lock:
            if worker.server is self._server and len(self._idle) < SPARE:
                self._idle.append(worker)
                return
        worker.close()

    def close(self) -> None:
        """End all workers, those at work too. The pool can be used again."""
        with self._lock:
            self._generation += 1
            for worker in self._idle:
                worker.close()
            self._idle = []
            if self._server is not None:
                self._server.close()
                self._server = None

    def _forget(self) -> None:
        """In a process that was forked off: the workers are the parent's, and the lock may be held by nobody who is
        here."""
        self._lock = threading.Lock()
        for worker in self._idle:
            worker.close()
        if self._server is not None:
            self._server.control.close()
        self._idle, self._server = [], None


_POOLS: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


def _forget_workers() -> None:
    for pool in list(_POOLS):
        pool._forget()


os.register_at_fork(after_in_child=_forget_workers)


class _ForkServer:
    """The process that forks workers; it and they end when this end of its socket closes, or on `close`."""

    def __init__(self, memory_limit: int):
        self.control, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        code = f"import sys; sys.path[:] = {[str(p) for p in sys.path]!r}; from ollm_rl.reward.sandbox import fork_server; fork_server({memory_limit})"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                start_new_session=True,  # Ctrl-C is the parent's to handle; the group can be ended as one
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def fork(self) -> socket.socket:
        """A socket to a new worker."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):  # a fork server that is gone shows when the worker is not there
            socket.send_fds(self.control, [b"f"], [theirs.fileno()])
        return ours

    def failure(self) -> str:
        """Its last words, if it ended by itself."""
        if self.alive or self.process.returncode < 0:
            return ""
        self.errors.seek(0)
        return self.errors.read()[-2000:].decode(errors="replace").strip() or f"exit code {self.process.returncode}"

    def close(self) -> None:
        if os is None or signal is None:  # the interpreter is ending, and what is open ends with it
            return
        self.control.close()
        if self.process.returncode is None:  # not reaped: the number of its group is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait()
        self.errors.close()


class _Worker:
    """A process that compares answers, one at a time."""

    def __init__(self, server: _ForkServer):
        self.server = server
        self.socket = server.fork()
        self.ready = self.slowed = False
        self.pid = 0

    @property
    def alive(self) -> bool:
        """While it is idle: it says nothing unasked, so what can be read is the end."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def wait_until_ready(self) -> None:
        if self.ready:
            return
        try:
            line = self._line(START_LIMIT_S)
        except EOFError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.process.wait(1.0)
            if failure := self.server.failure():
                raise RuntimeError(f"the verifier's workers do not start: {failure}") from None
            raise
        if line is None:
            raise RuntimeError(
                f"the verifier's workers did not start in {START_LIMIT_S:.0f} s; the machine is too busy"
            )
        self.ready, self.pid = True, int(line)

    def ask(self, gold: str, answer: str | None, limit_s: float) -> str:
        begin = time.monotonic()
        try:
            self.socket.sendall(json.dumps([gold, answer, limit_s]).encode() + b"\n")
            reason = self._line(min(SLOW_S, limit_s))
            if reason is None:  # let ordinary verdicts, which take milliseconds, go first
                self.slowed = True
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, self.pid, 15)
                reason = self._line(max(limit_s - SLOW_S, 0) + GRACE_S)
            return reason or "timeout"
        except (EOFError, OSError) as error:
            if time.monotonic() - begin >= limit_s * 0.95:
                return "timeout"
            raise EOFError from error

    def _line(self, limit_s: float) -> str | None:
        """Its next word, or None if it does not come in time. It says one at a time, so nothing stays in a buffer."""
        poll = select.poll()  # not `select`, which cannot watch descriptors above 1024
        poll.register(self.socket, select.POLLIN)
        if not poll.poll(limit_s * 1000):
            return None
        try:
            line = self.socket.recv(4096)
        except ConnectionError:
            line = b""
        if not line.endswith(b"\n"):
            raise EOFError
        return line.decode().strip()

    def close(self) -> None:
        self.socket.close()


# In the fork server and in the workers -------------------------------------------------------------------------------

_WARM_UP = (
    r"\frac{3\sqrt{3}}{2}-1", r"(x+1)^{2}(2k)!", r"n(n-2)2^{-n+1}", r"\binom{n}{2}+x_{1}y", r"\frac{\pi}{4}+e^{2}",
    r"x^{2}+4x+4", r"(x+2)^{2}", r"\sqrt[3]{2}\cdot 3", r"\log_{2}(3)\sin(x)", r"\lfloor\frac{n}{2}\rfloor",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\frac{x^{2}-1}{2(x+1)}", r"\frac{k!}{3k(k^{2}+4)}", r"(a+b)(a-b)-4xy",
    r"2^{n+1}-\frac{1}{2}n", r"\binom{40}{10}\binom{40}{20}^{3}", r"-\frac{1+\sqrt{5}}{2}", r"(2+\sqrt{3})\pi",
    r"\frac{\pi\sqrt{3}}{12}", r"3/4+2i", r"\arctan(2)+\ln(3)", r"|x-1|", r"\frac{2^{100}}{\binom{100}{50}}-1",
    r"\sum_{k=1}^{n}k", r"f(x)+1", r"-x_{1}", r"2x/3",
)  # fmt: skip


def fork_server(memory_limit: int) -> None:
    """Body of the fork server: forks a worker for every socket that comes in, until the parent is gone."""
    import gc
    import logging

    from ollm_rl.reward.compare import compare  # noqa: F401 - what the workers need is imported once, here
    from ollm_rl.reward.latex import parse

    logging.disable(logging.CRITICAL)
    for formula in _WARM_UP:  # the parser learns as it goes; workers inherit what it knows
        parse(formula)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: the kernel reaps what has ended
    control = socket.socket(fileno=os.dup(0))
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        except OSError:
            message, descriptors = b"", []
        if not message:
            os.killpg(0, signal.SIGKILL)
        if os.fork() == 0:
            control.close()
            try:
                _serve(socket.socket(fileno=descriptors[0]), memory_limit)
            finally:
                os._exit(0)
        os.close(descriptors[0])


def _serve(connection: socket.socket, memory_limit: int) -> None:
    """Body of a worker: a JSON line `[gold, answer, limit_s]` in, a line with the reason out, until the input ends."""
    import resource

    from ollm_rl.reward.compare import compare, understood

    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # whatever a library prints goes nowhere
        os.dup2(nothing, descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is doing
    connection.sendall(f"{os.getpid()}\n".encode())
    with connection.makefile("rb") as questions:
        for line in questions:
            gold, answer, limit_s = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            try:
                reason = understood(gold) if answer is None else compare(gold, answer)
            except MemoryError:
                reason = "too_large"
            except Exception:  # a mistake of the parser's or of ours, on an answer that nobody foresaw
                reason = "unparsable"
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(reason.encode() + b"\n")
