"""Units of work on Ray actors that may die, hang or raise: every unit gives exactly one result.

A unit is a function that is called with what its worker made at the start (a session, usually). It must give the same
whenever it is run, for it is run again when its worker is lost. This file knows nothing of language models, and imports no
torch: a simulation of a cluster has many workers on one machine.
"""

import itertools
import logging
import os
import pickle
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from ollm_rl.cluster.config import RolloutConfig
from ollm_rl.errors import ConfigurationError, OLLMError, RewardError, WorkerError

log = logging.getLogger(__name__)
BEAT_S = 1.0  # between looks at workers
ANSWER_S = 10.0  # for a connection to a cluster's address
WAIT_S = 60.0  # until it is said that a worker waits for a place
_ours = False  # the cluster was started here, and has this machine only


def start_ray(address: str | None = None, num_cpus: int | None = None, show_workers: bool = False) -> None:
    """Join the cluster at `address`, that of the Ray job which this process is, or start one on this machine only.

    A cluster that happens to run on the machine is not joined unless it is named, and what is started here listens on
    loopback only.

    Args:
        num_cpus: of a cluster that is started here. show_workers: what workers print is printed here too.
    """
    global _ours
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _ours = address == "local"
    common: dict[str, Any] = {
        "logging_level": logging.WARNING, "configure_logging": False, "log_to_driver": show_workers,
    }  # fmt: skip
    if address != "local":
        _check_address(address)
        try:
            ray.init(address=address, **common)
        except ConnectionError as error:
            raise ConfigurationError(
                f"no Ray cluster answers at '{address}' ({error}). Start one (`ray start --head`), name another with "
                "rollout.address=, or use rollout.address=local."
            ) from error
        return
    # Ray keeps to loopback where it has no clusters, as on macOS: for its children by this variable, which it has read already
    # for this process.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **common)


def _check_address(address: str) -> None:
    """Whether somebody listens there: Ray's own attempts take minutes, and say nothing that names the setting.

    Raises:
        ConfigurationError: nobody does, within `ANSWER_S`.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"no Ray cluster answers at '{address}' ({error}). Start one (`ray start --head`), name another with "
            "rollout.address=, or use rollout.address=local."
        ) from error


def check_resources(wanted: Mapping[str, float]) -> None:
    """Whether some machine of the cluster has what one worker asks for; a cluster of several may still get such a machine.

    Raises:
        ConfigurationError: this machine, which is all of the cluster, has not.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(machine.get(kind, 0) >= n for kind, n in wanted.items()) for machine in machines):
        return
    asked = ", ".join(f"{n:g} {kind}" for kind, n in wanted.items() if n)
    most = ", ".join(f"{max(m.get(kind, 0) for m in machines):g} {kind}" for kind, n in wanted.items() if n)
    if _ours:
        raise ConfigurationError(
            f"a worker asks for {asked}; this machine has {most}. Lower rollout.num_gpus_per_worker or "
            "rollout.num_cpus_per_worker, or name a cluster with rollout.address=."
        )
    log.warning("a worker asks for %s; no machine of the cluster has that, at most %s. Waiting for one.", asked, most)


@dataclass(frozen=True)
class Failure:
    """A unit that was begun and gave no result. kind: `died`, `hung` or `raised`."""

    worker: int
    kind: str
    error: str


class _Worker:
    """The actor: one thread works on one unit after the other, another answers that it is alive."""

    def __init__(self, make: Callable[..., Any], *args: Any):
        self.make, self.args = make, args
        self.made: Any = None
        self.shared: dict[str, Any] = {}

    @ray.method(concurrency_group="work")
    def ready(self) -> bool:
        """Make it, in the thread that will work with it: OpenMP stops to spin, and a small operation takes seven times as
        long, once the threads of two masters are more than the processors."""
        self.made = self.make(*self.args)
        return True

    @ray.method(concurrency_group="work")
    def run(self, function: Callable, args: tuple, common: list) -> tuple[bytes, dict]:
        start = time.monotonic()
        values = [self._fetch(ref) for ref in common]
        fetched = time.monotonic()
        result = function(self.made, *values, *args)
        took = {"fetch_s": fetched - start, "work_s": time.monotonic() - fetched}
        return pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL), took

    @ray.method(concurrency_group="life")
    def pid(self) -> int:
        """The process, for whoever wants to look at it or to end it."""
        return os.getpid()

    @ray.method(concurrency_group="life")
    def heartbeat(self) -> int | None:
        """A number that grows while work goes on; None if nobody counts."""
        return getattr(self.made, "heartbeat", None)

    def _fetch(self, ref: Any) -> Any:
        """What a reference stands for; the last few are kept."""
        key = ref.hex()
        if key not in self.shared:
            while len(self.shared) > 3:
                self.shared.pop(next(iter(self.shared)))
            self.shared[key] = ray.get(ref)
        return self.shared[key]


@dataclass
class _Unit:
    ticket: int
    function: Callable
    args: tuple
    common: list


@dataclass
class _Place:
    """A worker as the pool sees it."""

    number: int
    actor: Any
    ready: Any  # reference, until it has started
    unit: _Unit | None = None
    scheduled: Any = None  # reference, until it has a place on a machine
    asked: float = field(
        default_factory=time.monotonic
    )  # when a place was asked for, or last said that it is waited for
    result: Any = None
    beat: Any = None
    heartbeat: int | None = None
    alive: float = field(default_factory=time.monotonic)  # when it was last seen to get on


@dataclass(frozen=True)
class Result:
    """What a unit gave. num_bytes: its size on the way back; fetch_s, work_s: seconds of getting what is common, and of work."""

    ticket: int
    value: Any
    num_bytes: int
    fetch_s: float
    work_s: float


class Pool:
    """Workers and the units that wait for them.

    Args:
        make: called with `args` in every worker that starts; references among the latter are resolved by Ray.
        num_cpus, num_gpus: of one worker; fractions share a GPU.
        hang_s: a worker that works but does not get on for so long is replaced. What gets on is counted by the attribute
            `heartbeat` of what `make` gave; without one, a worker only has to answer.
        max_failures: so many failures in a row end the run.

    Attributes:
        failures: of all units so far.

    Raises:
        ConfigurationError: no machine has the resources of a worker, and none will come.
        WorkerError: from `next`, `call` and `map`, too many failures in a row; the message has the first of them.
        RewardError: the last of these is a reward's.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        args: Sequence[Any] = (),
        num_workers: int = 1,
        num_cpus: float = RolloutConfig.num_cpus_per_worker,
        num_gpus: float = RolloutConfig.num_gpus_per_worker,
        hang_s: float = RolloutConfig.hang_s,
        max_failures: int = RolloutConfig.max_failures,
    ):
        self.make, self.args = make, tuple(args)
        self.hang_s, self.max_failures = hang_s, max_failures
        self._wanted = {"CPU": num_cpus, "GPU": num_gpus}
        check_resources(self._wanted)
        options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0}
        options["concurrency_groups"] = {"work": 1, "life": 1}
        self._actor_class = ray.remote(**options)(_Worker)
        self._waiting: deque[_Unit] = deque()
        self._tickets = itertools.count()
        self.failures: list[Failure] = []
        self._in_a_row = 0
        self._looked = 0.0
        self._places = [self._start(i) for i in range(num_workers)]

    def __len__(self) -> int:
        return len(self._places)

    def grow(self, num_workers: int, args: Sequence[Any]) -> None:
        """Have so many workers; new ones, also in the place of lost ones, are made with `args`."""
        self.args = tuple(args)
        self._places += [self._start(i) for i in range(len(self._places), num_workers)]

    def put(self, value: Any) -> Any:
        """A reference for `submit(common=[...])`: sent to every machine once, however many units use it."""
        return ray.put(value)

    def submit(self, function: Callable, *args: Any, common: Sequence[Any] = ()) -> int:
        """Queue `function(made, *values of common, *args)`; its ticket."""
        ticket = next(self._tickets)
        self._waiting.append(_Unit(ticket, function, args, list(common)))
        return ticket

    @property
    def pending(self) -> int:
        """Units without a result yet."""
        return len(self._waiting) + sum(place.unit is not None for place in self._places)

    def next(self) -> Result:
        """The next result, of whichever unit is ready first."""
        if not self.pending:
            raise RuntimeError("no unit was submitted")
        while True:
            self._assign()
            place_of = {p.result: p for p in self._places if p.result is not None}
            place_of |= {p.ready: p for p in self._places if p.ready is not None}
            ready, _ = ray.wait(list(place_of), num_returns=1, timeout=BEAT_S)
            for ref in ready:
                result = self._collect(place_of[ref])
                if result is not None:
                    return result
            self._look_after()

    def drop(self) -> None:
        """Forget all units under way; what workers have begun they end, for nobody."""
        self._waiting.clear()
        for place in self._places:
            place.unit = place.result = None

    def call(self, function: Callable, *args: Any, common: Sequence[Any] = ()) -> Any:
        """One unit by itself; its value."""
        return next(self.map(function, [args], common)).value

    def map(self, function: Callable, parts: Sequence[tuple], common: Sequence[Any] = ()) -> Iterator[Result]:
        """Results of `function(made, *values of common, *part)` for all parts, in their order."""
        assert not self.pending, "map while other units are under way"
        place = {self.submit(function, *part, common=common): i for i, part in enumerate(parts)}
        found: dict[int, Result] = {}
        for i in range(len(parts)):
            while i not in found:
                result = self.next()
                found[place[result.ticket]] = result
            yield found.pop(i)

    def close(self) -> None:
        for place in self._places:
            ray.kill(place.actor)
        self._places = []

    def _start(self, number: int) -> _Place:
        actor = self._actor_class.remote(self.make, *self.args)
        return _Place(number, actor, actor.ready.remote(), scheduled=actor.pid.remote())

    def _assign(self) -> None:
        for place in self._places:
            if self._waiting and place.unit is None and place.ready is None:
                unit = self._waiting.popleft()
                place.unit, place.heartbeat, place.alive = unit, None, time.monotonic()
                place.result = place.actor.run.remote(unit.function, unit.args, unit.common)

    def _collect(self, place: _Place) -> Result | None:
        """The result of a place whose reference is ready; None if it has just started, or failed."""
        starting = place.ready is not None
        try:
            value = ray.get(place.ready if starting else place.result)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if isinstance(cause, OLLMError) and not isinstance(cause, RewardError):
                raise cause from None  # a user error: the next worker would make it again; a reward may do better then
            self._failed(place, "raised", str(error), lost=starting, cause=cause)
            return None
        except ray.exceptions.RayError as error:
            self._failed(place, "died", str(error), lost=True)
            return None
        if starting:
            place.ready = None
            return None
        unit = place.unit
        assert unit is not None
        place.unit = place.result = None
        self._in_a_row = 0
        payload, took = value
        return Result(unit.ticket, pickle.loads(payload), len(payload), **took)

    def _look_after(self) -> None:
        """Replace workers that do not get on."""
        now = time.monotonic()
        if now - self._looked < BEAT_S:
            return
        self._looked = now
        for place in self._places:
            self._look_for_place(place, now)
            if place.unit is None:
                continue
            if place.beat is not None and ray.wait([place.beat], timeout=0)[0]:
                try:
                    heartbeat = ray.get(place.beat)
                except ray.exceptions.RayError:
                    continue  # its unit's reference will say so
                place.beat = None
                if heartbeat is None or heartbeat != place.heartbeat:
                    place.heartbeat, place.alive = heartbeat, now
            if place.beat is None:
                place.beat = place.actor.heartbeat.remote()
            if now - place.alive > self.hang_s:
                reason = f"no progress for {self.hang_s:g} s; raise rollout.hang_s if a step may take so long"
                self._failed(place, "hung", reason, lost=True)

    def _look_for_place(self, place: _Place, now: float) -> None:
        """Say it if a worker does not find a place."""
        if place.scheduled is None:
            return
        if ray.wait([place.scheduled], timeout=0)[0]:
            place.scheduled = None
        elif now - place.asked > WAIT_S:
            place.asked = now
            free = {kind: n for kind, n in ray.available_resources().items() if kind in ("CPU", "GPU")}
            log.warning(
                "worker %d has waited for a place for over %.0f s: it asks for %s, free are %s. The others go on without it.",
                place.number, WAIT_S, self._wanted, free,
            )  # fmt: skip

    def _failed(self, place: _Place, kind: str, error: str, lost: bool, cause: BaseException | None = None) -> None:
        """Count a failure, queue its unit anew and replace a lost worker."""
        self.failures.append(Failure(place.number, kind, error))
        self._in_a_row += 1
        if place.unit is not None:
            self._waiting.appendleft(place.unit)
        place.unit = place.result = None
        last = error.strip().splitlines()[-1] if error.strip() else ""
        log.warning("worker %d %s: %s; its work is done again", place.number, kind, last)
        if self._in_a_row >= self.max_failures:
            if isinstance(cause, RewardError):  # the user's, as in this process
                raise cause from None
            first = self.failures[-self._in_a_row]
            raise WorkerError(
                f"{self._in_a_row} failures of workers in a row. The first, of worker {first.worker}, which {first.kind}:\n"
                f"{first.error.strip()}\nMend that, then run the same command again to continue."
            )
        if lost:
            ray.kill(place.actor)
            self._places[self._places.index(place)] = self._start(place.number)
