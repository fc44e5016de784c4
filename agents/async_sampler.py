"""Groups of episodes that workers sample while the learner learns, so that a slow episode holds nobody up."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ollm_rl.errors import ConfigurationError
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Act, Request
from ollm_rl.tasks import Problem


class AsyncGroupSampler:
    """Keeps workers busy with groups of `num_generations` episodes, and hands over those that are ready first.

    At most `max_staleness` updates lie between the policy of an episode and the learner's; older ones are dropped. So that
    few are, no more than `max_staleness` updates' worth is under way, in units of half a worker's share: one that a worker
    is at and one that waits for it, which takes less than an update even if one is slow.

    Args:
        session: whose rollouts run beside this process (`submit`, `finished`).
        groups: that an update learns from.
        first: number of the first group; all randomness of a group follows from the seed and its number.

    Attributes:
        drawn: groups begun so far. dropped: episodes that were too old.
    """

    def __init__(self, session: Any, problems: Sequence[Problem], groups: int, num_generations: int, first: int = 0):
        chunk = session.chunk_of(groups * num_generations)
        if num_generations > chunk:
            raise ConfigurationError(
                f"{chunk} episodes for a worker are no whole group of agent.num_generations={num_generations}; raise "
                "rollout.chunk or agent.problems_per_iteration, or lower rollout.num_workers"
            )
        self.session, self.problems = session, problems
        self.groups, self.size, self.drawn = groups, num_generations, first
        self.per_unit = max(1, chunk // 2 // num_generations)
        self.max_staleness = session.max_staleness
        self.dropped = 0
        self._under_way: dict[int, int] = {}  # groups by ticket
        self._ready: deque[tuple[int, list[Episode]]] = deque()  # with the version of their policy

    def take(self, version: int, act: Callable[[], Act], still_wanted: int) -> tuple[list[Episode], float]:
        """Episodes of `groups` groups, none older than allowed, and how many updates old they are on average.

        Args:
            version: updates done so far. act: gives the policy of now, if more has to be begun.
            still_wanted: groups until the end of training, these included: no more are begun.
        """
        taken: list[tuple[int, list[Episode]]] = []
        while len(taken) < self.groups:
            self._begin(version, act, still_wanted - len(taken))
            if not self._ready:
                ticket, episodes = self.session.finished()
                self._under_way.pop(ticket)
                for at in range(0, len(episodes), self.size):
                    group = episodes[at : at + self.size]
                    self._ready.append((group[0].policy_version or 0, group))
            made, group = self._ready.popleft()
            if version - made > self.max_staleness:
                self.dropped += len(group)
            else:
                taken.append((made, group))
        lag = float(np.mean([version - made for made, _ in taken]))
        return [episode for _, group in taken for episode in group], lag

    def _begin(self, version: int, act: Callable[[], Act], still_wanted: int) -> None:
        wanted = still_wanted - len(self._ready)
        ahead = min(self.max_staleness * self.groups, wanted)
        missing, per_unit = ahead - sum(self._under_way.values()), self.per_unit
        if missing < min(per_unit, ahead) or missing <= 0:
            return
        requests = []
        for _ in range(missing):
            draw = np.random.default_rng((self.session.seed, 1, self.drawn))
            self.drawn += 1
            problem = self.problems[int(draw.integers(len(self.problems)))]
            requests += [Request(problem, int(s)) for s in draw.integers(2**31, size=self.size)]
        tickets = self.session.submit(requests, act(), version=version, chunk=per_unit * self.size)
        for i, ticket in enumerate(tickets):
            self._under_way[ticket] = min(per_unit, missing - i * per_unit)
