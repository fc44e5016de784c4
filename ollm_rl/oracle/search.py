"""One problem's search: the texts under way, and the order in which those not begun are looked at.

From every text, the options not taken at its decision points become branches. A frontier holds the branches that nobody
followed yet and says which is next; options that decode to the same token are one branch, so no text is found twice.
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ollm_rl.common.locate import locate
from ollm_rl.errors import ConfigurationError, place_of, with_traceback_of
from ollm_rl.oracle.config import SearchConfig
from ollm_rl.rollout.episode import Episode, features_of
from ollm_rl.tasks import Problem


class Choice(NamedTuple):
    """What was chosen at a decision point: the token's position, the policy's rank of the latent (0 is its first
    choice), and its log-probability."""

    position: int
    rank: int
    log_prob: float


@dataclass
class Branch:
    """A text: under way, ended, or (its last token not run through the model yet) waiting in a frontier.

    Attributes:
        latents: of every token; -1 where the options agreed.
        choices: at its decision points; log_prob: their sum.
        parent: the text that this one shares all tokens but its last with.
        kept: the row of `KeptTexts` that holds this text, once it has ended.
        states: (2, d) the state before its last token, and the sum of those before its tokens. decided: (d,) the sum of those at its decisions.
        left: some of its branches were left in the frontier.
        stop: `eos`, `length`, or `budget` for one that was cut off; `pruned` for one that a beam let go, `given_up` for one that a learned verifier finds wrong.
        node: where `Puct` has it.
    """

    tokens: list[int] = field(default_factory=list)
    latents: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    log_prob: float = 0.0
    parent: "Branch | None" = None
    kept: int | None = None
    states: Tensor | None = None
    decided: Tensor | None = None
    left: bool = False
    stop: str = ""
    node: "Node | None" = None

    def child(self, token: int, latent: int, choice: Choice | None) -> "Branch":
        """The text with one more token."""
        self.left = True
        text = Branch(list(self.tokens), list(self.latents), list(self.choices), self.log_prob, self)
        text.states, text.decided = self.states, self.decided
        text.extend(token, latent, choice)
        return text

    def read(self, state: Tensor) -> None:
        """The state (d,) before its next token."""
        total = state if self.states is None else self.states[1] + state
        self.states = torch.stack([state, total])  # a new one: branches off this text keep theirs

    def begun(self, state: Tensor) -> Tensor:
        """(2 d + 4,) what a learned verifier reads before the decision that state (d,) is for: a row of `Episode.beginnings`."""
        lowest = min((choice.log_prob for choice in self.choices), default=0.0)
        total = state if self.decided is None else self.decided + state
        mean = total / (len(self.choices) + 1)
        return features_of(torch.stack([state, mean]), self.log_prob, lowest, len(self.tokens) + 1, len(self.choices))

    def tell(self, episode: Episode) -> None:
        """What a learned verifier reads of an ended text (`Episode.features`)."""
        if self.states is not None:
            episode.summary = torch.stack([self.states[0], self.states[1] / len(self.tokens)])
        if self.choices:
            episode.log_prob, episode.lowest = self.log_prob, min(choice.log_prob for choice in self.choices)
            episode.z = torch.tensor([self.latents[choice.position] for choice in self.choices])

    def extend(self, token: int, latent: int, choice: Choice | None) -> None:
        """One more token, in place."""
        self.tokens.append(token)
        self.latents.append(latent)
        if choice is not None:
            self.choices.append(choice)
            self.log_prob += choice.log_prob


class Frontier:
    """Branches not begun yet; by itself, the latest first: `exhaustive`, depth first, without regard to the policy."""

    beam = False  # branches of a wave compete at every token, and the best `width` go on

    def __init__(self) -> None:
        self._branches: list[Branch] = []

    def __len__(self) -> int:
        return len(self._branches)

    def push(self, branch: Branch) -> None:
        self._branches.append(branch)

    def pop(self) -> Branch:
        return self._branches.pop()

    def leave(self, line: Branch, others: list[Branch], taken: Choice, value: float = 0.0) -> None:
        """A followed text made a choice, where a critic finds the text worth `value`: the others wait here."""
        for branch in others:
            self.push(branch)

    def ended(self, line: Branch, reward: float) -> None:
        """A followed text was judged."""


class BestFirst(Frontier):
    """The likeliest first, by the policy's cumulative log-probability.

    Args:
        deviation_penalty: nats that the text with fewest deviations so far is ahead by, per deviation: branches off the policy's
            own first text come before branches of branches.
        length_penalty: nats by which a branch that needs half of the tokens is ahead, over log 2. At 1 the order is by
            probability per token. What a branch needs is what the text that it leaves went on to say.
    """

    def __init__(self, deviation_penalty: float, length_penalty: float):
        super().__init__()
        self.deviation_penalty, self.length_penalty = deviation_penalty, length_penalty
        self._heap: list[tuple[float, int, Branch]] = []
        self._serial = 0  # breaks ties between equally likely branches
        self._left: dict[int, list[Branch]] = {}  # by id of a followed text: it has to end before they can be ranked

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, branch: Branch) -> None:
        deviations = sum(choice.rank > 0 for choice in branch.choices)
        parent = branch.parent
        needs = 1 if parent is None else max(1, len(parent.tokens) - len(branch.tokens) + 1)
        self._serial += 1
        cost = self.deviation_penalty * deviations + self.length_penalty * math.log(needs) - branch.log_prob
        heapq.heappush(self._heap, (cost, self._serial, branch))

    def pop(self) -> Branch:
        return heapq.heappop(self._heap)[2]

    def leave(self, line: Branch, others: list[Branch], taken: Choice, value: float = 0.0) -> None:
        self._left.setdefault(id(line), []).extend(others)

    def ended(self, line: Branch, reward: float) -> None:
        for branch in self._left.pop(id(line), []):
            self.push(branch)


class Beam(BestFirst):
    """Beam search; when a beam has ended without a solution, the next starts from the likeliest branches it let go."""

    beam = True


@dataclass
class Node:
    """A branch or a decision point in the tree of `Puct`: visits, summed rewards, and branches not begun below it.

    `estimate` counts as one more reward: what a critic finds the state worth.
    """

    parent: "Node | None" = None
    prior: float = 1.0
    visits: int = 0
    value: float = 0.0
    estimate: float = 0.0
    waiting: int = 0
    branch: Branch | None = None
    children: list["Node"] = field(default_factory=list)

    def up(self) -> "list[Node]":
        """Itself and all above."""
        path: list[Node] = []
        node: Node | None = self
        while node is not None:
            path.append(node)
            node = node.parent
        return path


class Puct(Frontier):
    """Monte Carlo tree search: at every decision point the child with the largest Q + c P sqrt(N) / (1 + n).

    P is the policy's probability, n and N are the visits of child and parent, Q the mean reward (Silver et al. 2017,
    "Mastering the game of Go without human knowledge"). A leaf's value is the verdict on the text that the policy's
    first choices make of it. If there is a critic, its value of the state is one reward more.
    """

    def __init__(self, exploration: float):
        super().__init__()
        self.exploration, self.root = exploration, Node()

    def __len__(self) -> int:
        return self.root.waiting

    def push(self, branch: Branch) -> None:
        self._hang(self.root, branch, 1.0)

    def pop(self) -> Branch:
        node = self.root
        while node.branch is None:
            scale = self.exploration * math.sqrt(node.visits + 1)
            node = max((c for c in node.children if c.waiting), key=lambda c: self._score(c, scale))
        branch, node.branch, branch.node = node.branch, None, node
        for above in node.up():
            above.visits += 1  # of those under way too, so that a wave spreads
            above.waiting -= 1
        return branch

    @staticmethod
    def _score(node: Node, scale: float) -> float:
        return (node.value + node.estimate) / max(node.visits, 1) + scale * node.prior / (1 + node.visits)

    def leave(self, line: Branch, others: list[Branch], taken: Choice, value: float = 0.0) -> None:
        at = line.node
        assert at is not None
        at.estimate = value
        for branch in others:
            self._hang(at, branch, math.exp(branch.choices[-1].log_prob), value)
        line.node = Node(at, math.exp(taken.log_prob), visits=1, estimate=value)
        at.children.append(line.node)

    def _hang(self, parent: Node, branch: Branch, prior: float, estimate: float = 0.0) -> None:
        node = Node(parent, prior, branch=branch, estimate=estimate)
        parent.children.append(node)
        for above in node.up():
            above.waiting += 1

    def ended(self, line: Branch, reward: float) -> None:
        assert line.node is not None
        for above in line.node.up():
            above.value += reward


FRONTIERS: dict[str, type[Frontier]] = {
    "exhaustive": Frontier, "best_first": BestFirst, "beam": Beam, "puct": Puct,
}  # fmt: skip


def new_frontier(config: SearchConfig) -> Frontier:
    """The frontier of a tree search: one of ours, or the user's own, whose class is called with `params`.

    Raises:
        ConfigurationError: there is no such class, it is no `Frontier`, or it does not take these settings.
    """
    if "." in config.search:
        return _own_frontier(config)
    kind = FRONTIERS[config.search]
    if kind is Puct:
        return Puct(config.exploration)
    return kind(config.deviation_penalty, config.length_penalty) if issubclass(kind, BestFirst) else kind()


def _own_frontier(config: SearchConfig) -> Frontier:
    kind = locate(config.search, "oracle.search")
    if not (isinstance(kind, type) and issubclass(kind, Frontier)):
        raise ConfigurationError(
            f"oracle.search={config.search} is no frontier; expected a class that inherits from ollm_rl.oracle.search.Frontier"
        )
    try:
        return Guarded(kind(**config.params), config.search)
    except Exception as error:
        raise ConfigurationError(
            f"oracle.search={config.search} raised {type(error).__name__} when it was made: {error}; check oracle.params"
        ) from error


class Guarded(Frontier):
    """A frontier of the user's own: its errors name it, and what it gives is checked."""

    def __init__(self, own: Frontier, name: str):
        self.own, self.name = own, name
        self.beam = own.beam

    def __len__(self) -> int:
        return int(self._asked("__len__"))

    def push(self, branch: Branch) -> None:
        self._asked("push", branch)

    def pop(self) -> Branch:
        before = len(self)
        branch = self._asked("pop")
        if not isinstance(branch, Branch):
            raise ConfigurationError(
                f"oracle.search={self.name}: pop() gave {type(branch).__name__}; expected a Branch"
            )
        if len(self) != before - 1:
            raise ConfigurationError(
                f"oracle.search={self.name}: pop() gave a branch that is still there; expected it to leave"
            )
        return branch

    def leave(self, line: Branch, others: list[Branch], taken: Choice, value: float = 0.0) -> None:
        self._asked("leave", line, others, taken, value)

    def ended(self, line: Branch, reward: float) -> None:
        self._asked("ended", line, reward)

    def _asked(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.own, method)(*args)
        except ConfigurationError:
            raise
        except Exception as error:
            told = ConfigurationError(
                f"oracle.search={self.name}: {method} raised {type(error).__name__}: {error}{place_of(error)}; see docs/oracle.md"
            )
            raise with_traceback_of(error, told) from error


@dataclass
class Search:
    """One problem's search and what it found.

    Attributes:
        spent: generated tokens. recomputed: tokens of texts that were run again because they were not kept.
        tried: texts that were judged; given_up: those that were left before their end; timeouts: those of them that the verifier did not get through.
        solutions: the solved texts, no two the same; the first was found when `solved_at` tokens were spent.
        choices: those of the first.
        opening: the text that all of its texts begin with; it costs nothing of the budget.
    """

    problem: Problem
    frontier: Frontier
    spent: int = 0
    recomputed: int = 0
    tried: int = 0
    given_up: int = 0
    timeouts: int = 0
    solutions: list[Episode] = field(default_factory=list)
    solved_at: int | None = None
    choices: list[Choice] = field(default_factory=list)
    opening: Branch = field(default_factory=Branch)

    @property
    def solution(self) -> Episode | None:
        """The first solved text."""
        return self.solutions[0] if self.solutions else None

    @property
    def shortest(self) -> Episode | None:
        return min(self.solutions, key=lambda e: len(e.tokens), default=None)

    def found(self, episode: Episode, choices: list[Choice]) -> None:
        """A text was judged."""
        self.tried += 1
        self.timeouts += episode.verdict == "timeout"
        if not episode.solved or any(episode.tokens == other.tokens for other in self.solutions):
            return
        if not self.solutions:
            self.solved_at, self.choices = self.spent, choices
        self.solutions.append(episode)

    def is_settled(self, texts: int, stop_when_solved: bool) -> bool:
        """Nothing more is looked for: it has so many solved texts, unless it goes on for the shortest."""
        return stop_when_solved and len(self.solutions) >= texts

    def wave(self, most: int) -> int:
        """How many texts to ask for next, of at most so many."""
        return most

    def record(self) -> dict[str, Any]:
        """What a resumed run needs."""
        names = ("spent", "recomputed", "tried", "given_up", "timeouts", "solved_at")
        return {
            "problem_id": self.problem.id, **{name: getattr(self, name) for name in names},
            "solutions": [_stored(e) for e in self.solutions], "choices": self.choices,
        }  # fmt: skip

    def restore(self, record: dict[str, Any]) -> None:
        """Take over what `record` gave."""
        for name in ("spent", "recomputed", "tried", "given_up", "timeouts", "solved_at"):
            setattr(self, name, record.get(name, 0))  # of an earlier release, nothing was given up
        self.choices = [Choice(*c) for c in record["choices"]]
        self.solutions = [Episode(self.problem, **stored) for stored in record["solutions"]]


def _stored(episode: Episode) -> dict[str, Any]:
    return {
        k: getattr(episode, k) for k in ("seed", "tokens", "latents", "stop", "text", "answer", "reward", "verdict")
    }
