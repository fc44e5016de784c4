"""Answers for many clients at once: one thread that owns the rollout engine, and admits and frees rows between its steps.

Rows work as in `ollm_rl.rollout.sampler`: answers to one prompt that have said the same so far are one row of the engine, which is
forked where they differ; the policy is asked at decision points only. What an answer says depends on its prompt, its seed and its
temperature, not on who else asks.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ollm_rl.errors import OLLMError
from ollm_rl.options.policies import LatentPolicy, choose
from ollm_rl.rollout.engine import RolloutEngine, stay_in_place
from ollm_rl.rollout.episode import LENGTH as CUT_OFF
from ollm_rl.rollout.episode import stop_reason
from ollm_rl.rollout.sampler import REFILL
from ollm_rl.serving.writing import Writer

log = logging.getLogger(__name__)

STOP, LENGTH, LATE, FAILED = "stop", "length", "late", "failed"  # why an answer ended
PATIENCE = 2  # steps for which a prompt waits for others: a prefill of one costs as much as one of ten


class QueueFull(Exception):
    """As many answers are asked for as may be."""


class Closed(Exception):
    """No more answers are begun."""


@dataclass(frozen=True)
class Said:
    """One token of an answer.

    Attributes:
        latent: that the policy chose; `NO_LATENT` where all options said the same.
        log_prob: of the token, at temperature 1; 0 where nobody had a choice.
        options: latent, token and log-probability of each, the likeliest first; empty if nobody asked for them, or had a choice.
    """

    token: int
    latent: int
    log_prob: float
    options: list[tuple[int, int, float]]


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        finish: why it ended; empty if it goes on. `STOP`: by its own end or a stop string. `LATE`: after its deadline.
    """

    text: str
    said: list[Said]
    finish: str = ""


@dataclass(eq=False)
class Job:
    """One answer that is asked for.

    Args:
        prompt: tokens, after the shared prefix if `shared`; at least one.
        max_tokens: of the answer, its end-of-text token included.
        deadline: by `time.monotonic`.
        told: is called in the engine's thread with what is new; once at the end unless the answer `streams`.
        explained: options are told with every decision.

    Attributes:
        begun, first: by `time.monotonic`, when it was asked for and when its first token was said.
        cancelled: nobody waits for it any more; to be set from any thread.
    """

    prompt: list[int]
    shared: bool
    max_tokens: int
    seed: int
    temperature: float
    stop: tuple[str, ...]
    deadline: float
    told: Callable[[Piece], None]
    streams: bool = False
    explained: bool = False
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    cancelled: bool = False
    finish: str = ""
    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writer: Writer | None = None
        self._uniforms = (
            np.random.default_rng(self.seed).random(self.max_tokens, dtype=np.float32) if self.temperature else None
        )

    def uniform(self) -> float:
        """The random number of the next position: as in episodes it depends on the seed only."""
        return 0.0 if self._uniforms is None else float(self._uniforms[len(self.said)])


class Batcher:
    """Answers jobs, many at once, in a thread of its own.

    Args:
        make_engine: makes the engine; with True the one whose prompts begin with the task's shared prefix, with False one without
            prefix. Both are made in the thread; the second when it is first needed.
        policy: who chooses.
        decode: tokens to text, without special tokens; called in the thread.
        max_queue: jobs that may wait for a row.

    Attributes:
        num_tokens: said so far, of all answers. alive: the thread runs.

    Raises:
        OLLMError: the engine cannot be made.
    """

    def __init__(
        self, make_engine: Callable[[bool], RolloutEngine], policy: LatentPolicy, decode: Callable[[list[int]], str], max_queue: int
    ):  # fmt: skip
        self.make_engine, self.policy, self.decode, self.max_queue = make_engine, policy, decode, max_queue
        self.num_tokens = 0
        self._lanes: dict[bool, _Lane] = {}
        self._changed = threading.Condition()
        self._arrived: deque[Job] = deque()
        self._unfinished, self._closing = 0, False
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._threads = torch.get_num_threads()  # a new thread would have as many as there are processors
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def slots(self) -> int:
        """Answers at once."""
        return self._lanes[True].engine.num_slots

    @property
    def waiting(self) -> int:
        """Jobs without a row."""
        return len(self._arrived) + sum(len(lane.waiting) for lane in list(self._lanes.values()))

    @property
    def active(self) -> int:
        """Answers under way."""
        return sum(lane.active for lane in list(self._lanes.values()))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of these jobs, or none.

        Raises:
            QueueFull: too many wait already. Closed: after `close`.
        """
        with self._changed:
            if self._closing or not self.alive:
                raise Closed
            if self._unfinished + len(jobs) > self.slots + self.max_queue:
                raise QueueFull
            self._unfinished += len(jobs)
            self._arrived.extend(jobs)
            self._changed.notify()

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more jobs, finish those that were taken, and end the thread; after `timeout_s` the rest is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for job in [*self._arrived, *(job for lane in list(self._lanes.values()) for job in lane.jobs)]:
                job.cancelled = True
            self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._lanes[True] = _Lane(self.make_engine(True), self)
        except BaseException as error:
            self._error = error
            return
        finally:
            self._ready.set()
        try:
            while self._take():
                for lane in list(self._lanes.values()):
                    try:
                        lane.step()
                    except Exception:  # answers under way are lost, those to come need not be
                        log.exception("serve: a step failed; %d answers are lost", lane.active)
                        lane.fail()
        finally:
            self._closing = True
            for lane in self._lanes.values():
                lane.fail()
            for job in self._arrived:
                self.end(job, FAILED)

    def _take(self) -> bool:
        """Hand what arrived to its lane, waiting for something to do; False if all is done."""
        with self._changed:
            while not self._arrived and not any(lane.jobs for lane in self._lanes.values()):
                if self._closing:
                    return False
                self._changed.wait()
            arrived = list(self._arrived)
            self._arrived.clear()
        for job in arrived:
            if job.streams or job.stop:
                job.writer = Writer(self.decode, job.stop)
            if job.shared not in self._lanes:
                try:
                    self._lanes[job.shared] = _Lane(self.make_engine(job.shared), self)
                except OLLMError:
                    log.exception("serve: no engine for prompts that begin otherwise than the task's")
                    self.end(job, FAILED)
                    continue
            self._lanes[job.shared].waiting.append(job)
        return True

    def end(self, job: Job, finish: str, text: str = "", said: Sequence[Said] = ()) -> None:
        """A job is done; whoever waits for it is told, with the last of its text and tokens if it streams."""
        job.finish = finish
        with self._changed:
            self._unfinished -= 1
        if job.writer is None:
            piece = Piece(self.decode([s.token for s in job.said]), job.said, finish)
        else:
            text += job.writer.end()
            job.finish = finish = (
                STOP if job.writer.stopped and finish == LENGTH else finish
            )  # the rest had a stop string
            piece = Piece(text, list(said), finish) if job.streams else Piece(job.writer.text, job.said, finish)
        tell(job, piece)


def tell(job: Job, piece: Piece) -> None:
    """Tell whoever waits, if somebody does."""
    if job.cancelled:
        return
    try:
        job.told(piece)
    except RuntimeError:  # the event loop that it was to go to has ended
        job.cancelled = True


class _Lane:
    """One engine, the jobs that have a row in it, and those that wait for one."""

    def __init__(self, engine: RolloutEngine, batcher: Batcher):
        self.engine, self.batcher = engine, batcher
        self.waiting: deque[Job] = deque()
        self.shared: list[list[Job]] = []  # the answers of each engine row
        self.waited = 0  # steps for which somebody has waited though there were rows
        engine.clear()

    @property
    def active(self) -> int:
        return sum(map(len, self.shared))

    @property
    def jobs(self) -> list[Job]:
        return [*self.waiting, *(job for group in self.shared for job in group)]

    def step(self) -> None:
        """Admit who waits, and let every row say one token."""
        self._drop_waiting()
        free = self.engine.num_slots - self.active
        n = min(len(self.waiting), free)
        if n and (not self.shared or n >= max(1, self.active // REFILL) or self.waited >= PATIENCE):
            self._begin([self.waiting.popleft() for _ in range(n)])
        self.waited = self.waited + 1 if self.waiting and free else 0
        if self.shared:
            self._say()
            self._fork()

    def fail(self) -> None:
        """Drop everything after an error."""
        for job in self.jobs:
            if not job.finish:
                self.batcher.end(job, FAILED)
        self.waiting.clear()
        self.shared = []
        self.engine.clear()

    def _drop_waiting(self) -> None:
        now, kept = time.monotonic(), deque[Job]()
        for job in self.waiting:
            if job.cancelled or now > job.deadline:
                self.batcher.end(job, LATE)
            else:
                kept.append(job)
        self.waiting = kept

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Admit jobs, those of one prompt as one row."""
        together: dict[tuple[int, ...], list[Job]] = {}
        for job in jobs:
            together.setdefault(tuple(job.prompt), []).append(job)
        self.shared += together.values()  # first, so that `fail` knows of them
        longest = max(map(len, together))
        most = max(len(job.prompt) + job.max_tokens for job in jobs)
        self.engine.admit([list(prompt) for prompt in together], most - longest)

    @torch.inference_mode()
    def _say(self) -> None:
        """One token of every answer."""
        engine, device = self.engine, self.engine.device
        jobs = [job for group in self.shared for job in group]
        at = torch.tensor([i for i, group in enumerate(self.shared) for _ in group], device=device)
        options = engine.options
        chosen = torch.zeros_like(at)
        likely = torch.zeros(len(at), device=device)
        explained: dict[int, list[tuple[int, int, float]]] = {}
        decided = options.decision.nonzero()[:, 0]
        if len(decided):
            log_probs = self.batcher.policy(engine.hidden[decided], options.mask[decided])
            place = torch.zeros(len(options.mask), dtype=torch.long, device=device)
            place[decided] = torch.arange(len(decided), device=device)
            who = options.decision[at].nonzero()[:, 0]
            asked = [jobs[i] for i in who.tolist()]
            mine = log_probs[place[at[who]]]
            chosen[who] = _choose(mine, asked)
            likely[who] = mine.gather(1, chosen[who, None])[:, 0]
            for i, job, row in zip(who.tolist(), asked, mine, strict=True):
                if job.explained:
                    explained[i] = options.ranked(int(at[i]), row)
        tokens, latents = options.tokens[at, chosen], options.latents[at, chosen]
        said = zip(jobs, tokens.tolist(), latents.tolist(), likely.tolist(), strict=True)
        for i, (job, token, latent, log_prob) in enumerate(said):
            self._told(job, Said(token, latent, log_prob, explained.get(i, [])))
        self.batcher.num_tokens += len(jobs)

    def _told(self, job: Job, said: Said) -> None:
        """Add a token to an answer; whoever streams it is told."""
        now = time.monotonic()
        if job.first is None:
            job.first = now
        job.said.append(said)
        if job.cancelled or now > job.deadline:
            self.batcher.end(job, LATE)
            return
        new = job.writer.add(said.token) if job.writer is not None else ""
        why = stop_reason(said.token, len(job.said), self.engine.eos_ids, job.max_tokens)
        if why or (job.writer is not None and job.writer.stopped):
            self.batcher.end(job, LENGTH if why == CUT_OFF else STOP, new, [said])
        elif job.streams:
            tell(job, Piece(new, [said]))

    @torch.inference_mode()
    def _fork(self) -> None:
        """Advance every row by its answers' last token: drop those that have ended, fork rows whose answers differ."""
        branches: dict[tuple[int, int], list[Job]] = {}
        for i, group in enumerate(self.shared):
            for job in group:
                if not job.finish:
                    branches.setdefault((i, job.said[-1].token), []).append(job)
        keys = list(branches)
        keys = [keys[i] for i in stay_in_place([row for row, _ in keys])]
        self.shared = [branches[key] for key in keys]
        if keys:
            source, tokens = torch.tensor(keys, device=self.engine.device).unbind(1)
            self.engine.fork(source, tokens)
        else:
            self.engine.clear()


def _choose(log_probs: Tensor, jobs: Sequence[Job]) -> Tensor:
    """Latents (n,) for log-probabilities (n, K), each at its job's temperature."""
    chosen = log_probs.argmax(-1)
    warm = [i for i, job in enumerate(jobs) if job.temperature]
    if warm:
        device = log_probs.device
        at = torch.tensor(warm, device=device)
        temperature = torch.tensor([jobs[i].temperature for i in warm], device=device)[:, None]
        scores = log_probs[at]
        # At temperature 1 to the last bit what episodes are drawn from; elsewhere the largest is 0, for all may be too small for float32.
        scores = torch.where(temperature == 1, scores, (scores - scores.amax(-1, keepdim=True)) / temperature)
        chosen[at] = choose(scores, False, torch.tensor([jobs[i].uniform() for i in warm], device=device))
    return chosen
