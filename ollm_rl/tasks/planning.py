"""Planning tasks on problems of reasoning_gym, or like them: a move a line, and the state after it.

Any right plan counts (`reward=plan`). Solutions are of mixed quality, and no opening says of which: at every step, with probability
`careless_share`, the writer follows a habit that does not look at the goal, and otherwise makes the move that is best from where the text
stands. So solutions have detours, and all of them reach the goal. What a good policy has to learn is a decision at every step of the text.
"""

import itertools
import random
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

from ollm_rl.common.settings import setting
from ollm_rl.reward.plans import DIRECTIONS, Plan, moved, poured
from ollm_rl.tasks.base import Problem, format_answer
from ollm_rl.tasks.generated import ReasoningGym, WordedConfig

S = TypeVar("S", bound=Hashable)
ATTEMPTS = 50  # at a solution that is not too long


@dataclass(frozen=True)
class PlanningConfig(WordedConfig):
    """Of planning tasks."""

    careless_share: float = setting(
        0.6, "share of the steps of solutions that follow a habit in place of the best move", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class ShortestPathConfig(PlanningConfig):
    """Of `ShortestPath`."""

    name: str = setting("shortest_path", "which task it is, as `task=` says it; for tables and files")
    min_size: int = setting(5, "rows and columns, at least", at_least=2, at_most=10)
    max_size: int = setting(6, "rows and columns, at most", at_least=2, at_most=10)
    walls: float = setting(0.05, "share of blocked cells", at_least=0, at_most=0.9)
    min_moves: int = setting(6, "moves of the shortest way, at least", at_least=1)
    max_detour: int = setting(12, "moves of a solution beyond the shortest way, at most", at_least=0)
    wording: str = setting("{problem}", "what a problem says")
    max_new_tokens: int = setting(72, "token budget of an episode", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_size > self.max_size:
            raise self.refuse("min_size", f"at most task.max_size={self.max_size}")


@dataclass(frozen=True)
class JugsConfig(PlanningConfig):
    """Of `Jugs`."""

    name: str = setting("jugs", "which task it is, as `task=` says it; for tables and files")
    max_size: int = setting(12, "litres of the largest jug, at most", at_least=3, at_most=30)
    min_moves: int = setting(4, "moves of the shortest plan, at least", at_least=1)
    max_moves: int = setting(8, "moves of the shortest plan, at most", at_least=1)
    max_detour: int = setting(10, "moves of a solution beyond the shortest plan, at most", at_least=0)
    wording: str = setting("{problem}", "what a problem says")
    max_new_tokens: int = setting(160, "token budget of an episode", at_least=1)


@dataclass(frozen=True)
class CountdownConfig(PlanningConfig):
    """Of `Countdown`."""

    name: str = setting("countdown", "which task it is, as `task=` says it; for tables and files")
    min_numbers: int = setting(3, "numbers of a problem, at least", at_least=2, at_most=6)
    max_numbers: int = setting(3, "numbers of a problem, at most", at_least=2, at_most=6)
    max_value: int = setting(12, "largest of the numbers", at_least=2)
    max_target: int = setting(99, "largest target", at_least=2)
    max_tries: int = setting(4, "ways that a solution tries, at most", at_least=1)
    wording: str = setting(
        r"Make {problem}, each number once. Put the final expression in \boxed{}.", "what a problem says"
    )
    max_new_tokens: int = setting(112, "token budget of an episode", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_numbers > self.max_numbers:
            raise self.refuse("min_numbers", f"at most task.max_numbers={self.max_numbers}")


class Planning(ReasoningGym):
    """Problems whose solutions are plans; `Problem.extra` has the number of moves of the shortest as `difficulty`, those of the solution as
    `moves`, and what `reward=plan` judges by as `plan`. Problems are unique in `tune` and `test`."""

    default_reward = Plan
    config: Any

    @abstractmethod
    def own_part(self, item: dict[str, Any]) -> str:
        """What the wording does not say; it decides the split."""

    @abstractmethod
    def rules(self, item: dict[str, Any]) -> dict[str, Any]:
        """What `ollm_rl.reward.plans` judges by."""

    @abstractmethod
    def plan(self, item: dict[str, Any], draw: random.Random, careless: float) -> tuple[list[str], int, int]:
        """The lines of a solution, its moves, and those of the shortest."""

    def is_usable(self, item: dict[str, Any]) -> bool:
        """It can be solved, and is neither too easy nor too hard."""
        return True

    def _text(self, item: dict[str, Any]) -> str:
        return self.own_part(item)

    def _generate(self, seed: int, size: int) -> Iterator[dict[str, Any]]:
        return (item for item in super()._generate(seed, size) if self.is_usable(item))

    def _problem(self, item: dict[str, Any], id: str, split: str, styles: random.Random) -> Problem:
        careless = 0.0 if split == "examples" else self.config.careless_share
        lines, moves, shortest = self.plan(item, styles, careless)
        rules = self.rules(item)
        return Problem(
            id=id,
            problem=self.config.wording.replace("{problem}", self.own_part(item)),
            answer=str(item["answer"]),
            solution="\n".join(lines),
            extra={"difficulty": shortest, "moves": moves, "style": "steps" if moves == shortest else "detour", "plan": rules,
                   "metadata": item["metadata"]},
        )  # fmt: skip


def distances(goals: list[S], before: Callable[[S], Iterator[S]]) -> dict[S, int]:
    """Moves to the nearest goal of every state that leads to one, by breadth-first search backwards."""
    found, waiting = dict.fromkeys(goals, 0), deque(goals)
    while waiting:
        state = waiting.popleft()
        for earlier in before(state):
            if earlier not in found:
                found[earlier] = found[state] + 1
                waiting.append(earlier)
    return found


class ShortestPath(Planning):
    """Ways through a grid with walls, from reasoning_gym's `shortest_path`; the difficulty is the length of the shortest. As there, the shortest
    ones get the full reward, and others half of it.

    A careless step goes straight on; where that is not possible, the first of right, down, left, up that is, and back last.
    """

    ood_variants: ClassVar[dict[str, dict[str, Any]]] = {
        "larger grids": {"min_size": 7, "max_size": 7, "max_new_tokens": 120},
        "more walls": {"walls": 0.15},
    }
    config_class = ShortestPathConfig

    def _open(self, config: ShortestPathConfig) -> None:
        self.dataset = "shortest_path"
        low, high = config.min_size, config.max_size
        self.params = {"min_rows": low, "max_rows": high, "min_cols": low, "max_cols": high, "p_blocked": config.walls}

    def is_usable(self, item: dict[str, Any]) -> bool:
        return bool(len(item["metadata"]["solution"]) >= self.config.min_moves)

    def rules(self, item: dict[str, Any]) -> dict[str, Any]:
        cells = {(r, c): cell for r, row in enumerate(item["metadata"]["matrix"]) for c, cell in enumerate(row)}
        of = {kind: [list(place) for place, cell in cells.items() if cell == kind] for kind in "*#X"}
        rows, columns = len(item["metadata"]["matrix"]), len(item["metadata"]["matrix"][0])
        return {"kind": "path", "size": [rows, columns], "walls": of["X"], "start": of["*"][0], "goal": of["#"][0],
                "moves": len(item["metadata"]["solution"])}  # fmt: skip

    def own_part(self, item: dict[str, Any]) -> str:
        rules = self.rules(item)
        walls = " ".join(_place(wall) for wall in rules["walls"]) or "none"
        size = "x".join(map(str, rules["size"]))
        return f"Grid {size}, walls {walls}. Shortest way from {_place(rules['start'])} to {_place(rules['goal'])}."

    def plan(self, item: dict[str, Any], draw: random.Random, careless: float) -> tuple[list[str], int, int]:
        rules = self.rules(item)
        start, goal = tuple(rules["start"]), tuple(rules["goal"])

        def next_to(place: tuple[int, int]) -> Iterator[tuple[int, int]]:
            return (to for name in DIRECTIONS if (to := moved(rules, place, name)) is not None)

        left = distances([goal], next_to)
        most = left[start] + self.config.max_detour
        for attempt in itertools.count():
            share, place, last, lines = careless if attempt < ATTEMPTS else 0.0, start, "", list[str]()
            while place != goal and len(lines) < most:
                can = [name for name in DIRECTIONS if moved(rules, place, name) is not None]
                if draw.random() < share:
                    last = last if last in can else next((x for x in can if x != OPPOSITE.get(last)), can[0])
                else:
                    good = [x for x in can if left[moved(rules, place, x)] < left[place]]  # type: ignore[index]
                    last = last if last in good else good[0]
                place = moved(rules, place, last)  # type: ignore[assignment]
                lines.append(f"{last} {_place(place)}")
            if place == goal:
                return [*lines, "goal"], len(lines), left[start]
        raise AssertionError


OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up"}


def _place(place: Any) -> str:
    return f"{place[0]},{place[1]}"


class Jugs(Planning):
    """Three jugs to be filled, emptied and poured until one holds the target, as in reasoning_gym's `jugs`; the difficulty is the length of the
    shortest plan. (Its generator ties the jugs' sizes to the difficulty, which leaves a few dozen problems that are neither too easy nor too hard.)

    A careless step empties the first jug that is full and was not just filled, or pours the first that holds something into the next, or
    fills the first.
    """

    ood_variants: ClassVar[dict[str, dict[str, Any]]] = {
        "longer plans": {"min_moves": 9, "max_moves": 12, "max_new_tokens": 224}
    }
    config_class = JugsConfig

    def _open(self, config: JugsConfig) -> None:
        self.dataset, self.params = (
            "jugs",
            {"max_size": config.max_size, "min_moves": config.min_moves, "max_moves": config.max_moves},
        )

    def _generate(self, seed: int, size: int) -> Iterator[dict[str, Any]]:
        draw = random.Random(seed)
        for i in range(size):
            sizes = [draw.randint(3, self.config.max_size) for _ in range(3)]
            target = draw.randint(1, max(sizes))
            moves = _jug_distances(tuple(sizes), target).get((0, 0, 0))
            if moves is not None and self.config.min_moves <= moves <= self.config.max_moves:
                puzzle = {"jug_capacities": sizes, "target": target, "min_moves": moves}
                yield {"answer": str(target), "metadata": {"source_index": i, "puzzle": puzzle}}

    def rules(self, item: dict[str, Any]) -> dict[str, Any]:
        puzzle = item["metadata"]["puzzle"]
        return {"kind": "jugs", "sizes": list(puzzle["jug_capacities"]), "target": puzzle["target"]}

    def own_part(self, item: dict[str, Any]) -> str:
        rules = self.rules(item)
        sizes = ", ".join(f"{name} {size}" for name, size in zip("ABC", rules["sizes"], strict=True))
        return f"Jugs {sizes}. Get {rules['target']}."

    def plan(self, item: dict[str, Any], draw: random.Random, careless: float) -> tuple[list[str], int, int]:
        rules = self.rules(item)
        left = _jug_distances(tuple(rules["sizes"]), rules["target"])
        start = (0, 0, 0)
        most = left[start] + self.config.max_detour
        for attempt in itertools.count():
            share, last, lines = careless if attempt < ATTEMPTS else 0.0, "", list[str]()
            state: tuple[int, ...] = start
            while rules["target"] not in state and len(lines) < most:
                can = {name: to for name in JUG_MOVES if (to := poured(rules, state, name)) not in (None, state)}
                if draw.random() < share:
                    last = self._habit(rules, state, can, last)
                else:
                    last = min(can, key=lambda name: left[can[name]])
                state = can[last]
                lines.append(f"{last}: {' '.join(map(str, state))}")
            if rules["target"] in state:
                return [*lines, "done"], len(lines), left[start]
        raise AssertionError

    @staticmethod
    def _habit(rules: dict[str, Any], state: tuple[int, ...], can: dict[str, tuple[int, ...]], last: str) -> str:
        for i, name in enumerate("ABC"):
            if state[i] == rules["sizes"][i] and last != f"fill {name}" and f"empty {name}" in can:
                return f"empty {name}"
        return next((name for name in can if name.startswith("pour")), next(iter(can)))


JUG_MOVES = tuple(f"fill {x}" for x in "ABC") + tuple(
    f"pour {x}->{y}" for x, y in ("AB", "BC", "CA", "AC", "BA", "CB")
) + tuple(f"empty {x}" for x in "ABC")  # fmt: skip


@cache
def _jug_states(sizes: tuple[int, ...]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """The states that can be reached from empty jugs, and from which a move leads to each."""
    rules, start = {"sizes": list(sizes)}, (0,) * len(sizes)
    before: dict[tuple[int, ...], list[tuple[int, ...]]] = {start: []}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        for name in JUG_MOVES:
            if (to := poured(rules, state, name)) is not None and to != state:
                if to not in before:
                    before[to] = []
                    waiting.append(to)
                before[to].append(state)
    return before


@cache
def _jug_distances(sizes: tuple[int, ...], target: int) -> dict[tuple[int, ...], int]:
    before = _jug_states(sizes)
    return distances([state for state in before if target in state], lambda state: iter(before[state]))


OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "-": lambda a, b: a - b,
}


class Countdown(Planning):
    """A target to be made from numbers, each used once, from reasoning_gym, with + - *; the difficulty is how many operations that takes.

    One operation a line, with what is left, then the expression. A careless operation takes the first two numbers that are left, by an
    operation that is drawn; where the result is not the target, the solution says "no" and begins anew.
    """

    ood_variants: ClassVar[dict[str, dict[str, Any]]] = {
        "more numbers": {"min_numbers": 4, "max_numbers": 4, "max_new_tokens": 160},
        "larger numbers": {"max_value": 20},
    }
    config_class = CountdownConfig

    def _open(self, config: CountdownConfig) -> None:
        self.dataset = "countdown"
        self.params = {
            "min_numbers": config.min_numbers, "max_numbers": config.max_numbers, "min_value": 1, "max_value": config.max_value,
            "min_target": 2, "max_target": config.max_target, "operators": tuple(OPERATIONS),
        }  # fmt: skip

    def is_usable(self, item: dict[str, Any]) -> bool:
        return _reaches(tuple(item["metadata"]["numbers"]), item["metadata"]["target"])

    def rules(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"kind": "countdown", "numbers": list(item["metadata"]["numbers"]), "target": item["metadata"]["target"]}

    def own_part(self, item: dict[str, Any]) -> str:
        rules = self.rules(item)
        return f"{rules['target']} from {', '.join(map(str, rules['numbers']))}"

    def plan(self, item: dict[str, Any], draw: random.Random, careless: float) -> tuple[list[str], int, int]:
        rules = self.rules(item)
        numbers, target = tuple(rules["numbers"]), rules["target"]
        moves, lines = 0, list[str]()
        for attempt in range(self.config.max_tries):
            share = careless if attempt + 1 < self.config.max_tries else 0.0
            # A number and how it was made.
            left: list[tuple[int, str, bool]] = [(n, str(n), True) for n in numbers]
            while len(left) > 1:
                values = tuple(n for n, _, _ in left)
                ways = list(_ways(values))
                good = [way for way in ways if _reaches(_after(values, way), target)]
                if not good or draw.random() < share:
                    first = [way for way in ways if {way[0], way[2]} == {0, 1}]
                    way = draw.choice(first)
                else:
                    way = good[0]
                left = self._combined(left, way, lines)
                moves += 1
            if left[0][0] == target:
                return [*lines, format_answer(left[0][1])], moves, len(numbers) - 1
            lines.append("no")
        raise AssertionError

    @staticmethod
    def _combined(
        left: list[tuple[int, str, bool]], way: tuple[int, str, int], lines: list[str]
    ) -> list[tuple[int, str, bool]]:
        i, operation, j = way
        (a, x, single), (b, y, other) = left[i], left[j]
        made = OPERATIONS[operation](a, b)
        x, y = x if single or operation == "+" else f"({x})", y if other else f"({y})"
        rest = [each for k, each in enumerate(left) if k not in (i, j)]
        new = [(made, f"{x} {operation} {y}", False), *rest]
        lines.append(f"{a} {operation} {b} = {made}" + (f", {' '.join(str(n) for n, _, _ in new)}" if rest else ""))
        return new


def _ways(values: tuple[int, ...]) -> Iterator[tuple[int, str, int]]:
    """Two places and an operation whose result is at least 0."""
    for i, j in itertools.permutations(range(len(values)), 2):
        for operation in OPERATIONS:
            if (operation != "-" and i < j) or (operation == "-" and values[i] >= values[j]):
                yield i, operation, j


def _after(values: tuple[int, ...], way: tuple[int, str, int]) -> tuple[int, ...]:
    i, operation, j = way
    rest = tuple(n for k, n in enumerate(values) if k not in (i, j))
    return (OPERATIONS[operation](values[i], values[j]), *rest)


@cache
def _reaches(values: tuple[int, ...], target: int) -> bool:
    if len(values) == 1:
        return values[0] == target
    return any(_reaches(_after(values, way), target) for way in _ways(values))
