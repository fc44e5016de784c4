"""A session whose backbone is elsewhere: rollouts, and whatever else needs the model, run on Ray workers.

Only what is small travels: policies out, tokens, verdicts and the states at decision points back.
"""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ollm_rl.cluster.pool import Pool, start_ray
from ollm_rl.common.cost import count
from ollm_rl.common.progress import Bar
from ollm_rl.config.compose import Settings, to_dict
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.rollout.episode import Episode, pack, unpack
from ollm_rl.rollout.sampler import Act, Request, act_key
from ollm_rl.session.base import BaseSession, engine_settings
from ollm_rl.session.opening import open_in_worker, serialize_settings
from ollm_rl.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneFacts:
    """What a learner has to know of a backbone that is not in its process."""

    name: str
    fingerprint: str
    hidden_size: int
    vocab_size: int
    revision: str | None
    dtype: torch.dtype
    device: torch.device
    adapter: str | None = None

    @property
    def head(self) -> Any:
        raise ConfigurationError(
            f"backbone '{self.name}' is on Ray workers, not in this process. Use Session.run_on_model to run something there, "
            "or rollout=local."
        )

    model = tokenizer = head


@dataclass
class _Sent:
    """Traffic: of policies out (seconds), of episodes back (bytes)."""

    put_s: float = 0.0
    fetch_s: float = 0.0
    bytes: int = 0
    episodes: int = 0


class ClusterSession(BaseSession):
    """The session of a driver: rollouts, and whatever else needs the model, run on its workers.

    Args:
        settings: the whole configuration, from which workers make their own sessions.
        task: problems are drawn here, and sent.
        plugin: use this one, one of these sizes or from this directory, in place of the one that the settings stand for.
    """

    def __init__(
        self, settings: Settings, task: Task, seed: int = 0, plugin: PlugIn | PlugInConfig | str | None = None
    ):
        rollout = settings.config.rollout
        wanted = max(1, rollout.num_workers) * rollout.num_cpus_per_worker
        start_ray(rollout.address, num_cpus=max(2, int(wanted) + 1), show_workers=True)
        self.task, self.seed = task, seed
        self.engine_settings = engine_settings(task, to_dict(settings.config.engine))
        self.reward = to_dict(settings.config.reward)
        self.chunk, self.max_staleness = rollout.chunk, rollout.max_staleness
        self._most = 2 * settings.config.engine.num_slots  # more at once make no worker faster, and no bar smoother
        common = {
            "num_cpus": rollout.num_cpus_per_worker, "num_gpus": rollout.num_gpus_per_worker,
            "hang_s": rollout.hang_s, "max_failures": rollout.max_failures,
        }  # fmt: skip
        # One worker converts, or finds the plug-in; the others get it.
        self.serialized_settings = serialize_settings(settings)
        self.pool = Pool(open_in_worker, [self.serialized_settings, seed, plugin], 1, **common)
        facts, plugin = self.pool.call(_describe)
        assert isinstance(plugin, PlugIn)
        self.pool.grow(rollout.num_workers, [self.serialized_settings, seed, self.pool.put(plugin)])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backbone = BackboneFacts(**facts, device=device)
        self.plugin = plugin.to(device)
        self._under_way: dict[int, tuple[Sequence[Request], int | None]] = {}
        self._sent = _Sent()
        # Episodes of others, that came while `rollout` waited for its own.
        self._kept: deque[tuple[int, list[Episode]]] = deque()

    def rollout(
        self,
        requests: Sequence[Request],
        act: Act,
        skip_forced: bool = True,
        keep_hidden: bool = True,
        from_logits: bool = False,
        bar: Bar | None = None,
        judged: bool = True,
    ) -> list[Episode]:
        tickets = self.submit(requests, act, skip_forced, keep_hidden, from_logits, judged=judged)
        found: dict[int, list[Episode]] = {}
        while len(found) < len(tickets):
            ticket, episodes = self._next()
            if ticket not in tickets:
                self._kept.append((ticket, episodes))
                continue
            found[ticket] = episodes
            if bar is not None:
                bar.advance(len(episodes))
        return [episode for ticket in tickets for episode in found[ticket]]

    def submit(
        self,
        requests: Sequence[Request],
        act: Act,
        skip_forced: bool = True,
        keep_hidden: bool = True,
        from_logits: bool = False,
        version: int | None = None,
        chunk: int | None = None,
        judged: bool = True,
    ) -> list[int]:
        """Queue episodes; the tickets of the units of work under which `finished` gives them.

        Args:
            version: of the policy, for `Episode.policy_version`.
            chunk: episodes in a unit, by default as `chunk_of` has it.
        """
        size = chunk or self.chunk_of(len(requests))
        distinct: dict[Any, Act] = {}
        for each in [act, *(a for r in requests for a in (r.act, r.then) if a is not None)]:
            distinct.setdefault(act_key(each), each)
        acts, number = list(distinct.values()), {key: i for i, key in enumerate(distinct)}
        start = time.monotonic()
        common = [self.pool.put(acts)]
        self._sent.put_s += time.monotonic() - start
        tickets = []
        for at in range(0, len(requests), size):
            part = requests[at : at + size]
            named = [tuple(0 if a is None else number[act_key(a)] for a in (r.act, r.then)) for r in part]
            bare = [replace(r, act=None, then=None) for r in part]
            ticket = self.pool.submit(_roll, bare, named, skip_forced, keep_hidden, from_logits, judged, common=common)
            self._under_way[ticket] = (part, version)
            tickets.append(ticket)
        return tickets

    def chunk_of(self, episodes: int) -> int:
        """Episodes in a unit of work, of so many in all: `rollout.chunk`, or else a worker's share."""
        return self.chunk or min(self._most, -(-episodes // len(self.pool)))

    def finished(self) -> tuple[int, list[Episode]]:
        """The next chunk that is ready: its ticket and its episodes, with their rewards."""
        return self._kept.popleft() if self._kept else self._next()

    def _next(self) -> tuple[int, list[Episode]]:
        result = self.pool.next()
        chunk, version = self._under_way.pop(result.ticket)
        episodes = unpack(result.value, [r.problem for r in chunk], self.backbone.device)
        for episode in episodes:
            episode.policy_version = version
        count(len(episodes), sum(len(e.tokens) for e in episodes))
        sent = self._sent
        sent.bytes, sent.episodes = sent.bytes + result.num_bytes, sent.episodes + len(episodes)
        sent.fetch_s = max(sent.fetch_s, result.fetch_s)
        return result.ticket, episodes

    def drop(self) -> None:
        """Forget all episodes under way."""
        self.pool.drop()
        self._under_way.clear()
        self._kept.clear()

    def run_on_model(self, function: Callable, *args: Any) -> Any:
        return self.pool.call(_run, function, *args)

    def map(self, function: Callable, items: Sequence, *args: Any) -> Iterator:
        size = max(1, -(-len(items) // (4 * len(self.pool))))  # some parts for every worker: they take unequal times
        parts = [(items[i : i + size], *args) for i in range(0, len(items), size)]
        for result in self.pool.map(_listed, [(function, *part) for part in parts]):
            yield from result.value

    @property
    def engine(self) -> Any:
        raise ConfigurationError("the engine is on Ray workers; use rollout or run_on_model, or rollout=local")

    def metrics(self) -> dict[str, float]:
        """Traffic since this was last asked, and failures of workers so far."""
        sent, self._sent = self._sent, _Sent()
        counts = {kind: sum(f.kind == kind for f in self.pool.failures) for kind in ("died", "hung", "raised")}
        return {
            "ray/bytes_per_episode": sent.bytes / max(sent.episodes, 1), "ray/broadcast_s": sent.put_s + sent.fetch_s,
            **{f"ray/{kind}": n for kind, n in counts.items()},
        }  # fmt: skip

    def close(self) -> None:
        self.pool.close()


def settle(sent: Sequence[Any], device: torch.device) -> None:
    """Move the weights in what was sent to the device of the model that they will be asked beside.

    The driver that sent them may have another (a laptop drives workers with GPUs), and no `forward` moves itself. Weights are
    looked for in policies, in objects that have some (an agent, a search) and in objects that have those.
    """
    layer = list(sent)
    for _ in range(4):
        inner: list[Any] = []
        for value in layer:
            if isinstance(value, nn.Module):
                value.to(device)
            elif isinstance(value, MethodType):
                inner.append(value.__self__)
            elif not isinstance(value, BaseSession | type | ModuleType | Tensor):
                inner += getattr(value, "__dict__", {}).values()
        layer = inner


def _run(session: BaseSession, function: Callable, *args: Any) -> Any:
    settle(args, session.backbone.device)
    return function(session, *args)


def _listed(session: BaseSession, function: Callable, items: Sequence, *args: Any) -> list:
    return list(_run(session, function, items, *args))


def _describe(session: BaseSession) -> tuple:
    names = (field.name for field in fields(BackboneFacts) if field.name != "device")  # that is the learner's own
    facts = {name: getattr(session.backbone, name) for name in names}
    return facts, copy.deepcopy(session.plugin).cpu()


def _roll(
    session: BaseSession, acts: list[Act], requests: list[Request], named: list[tuple[int, int]], skip_forced: bool,
    keep_hidden: bool, from_logits: bool, judged: bool,
) -> dict:  # fmt: skip
    """A chunk of episodes, with their rewards if they are to be `judged`."""
    settle(acts, session.backbone.device)
    for request, (first, then) in zip(requests, named, strict=True):
        request.act, request.then = acts[first], acts[then]
    return pack(session.rollout(requests, acts[0], skip_forced, keep_hidden, from_logits, judged=judged))
