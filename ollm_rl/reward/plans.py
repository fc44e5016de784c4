"""Whether a text is a right plan, by the rules of its task: any right plan counts, not the one of the data.

The rules stand in the problem's column `plan`. Texts are read line by line in linear time; numbers are integers of few digits, and
nothing is evaluated but by the parser here.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.answers import extract_answer, texts_of

MOST_LINES, MOST_CHARACTERS = 1_000, 50_000
DIRECTIONS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}


class Plan:
    """1.0 if the text is a plan that the rules accept, 0.5 for a way that is not the shortest where that was asked for, else 0.0.

    For problems of planning tasks only. The scores are those of reasoning_gym.

    >>> session = ol.Session(backbone, plugin, ol.make_task("shortest_path"), reward=ol.Plan())
    """

    __name__ = "plan"
    settings: dict[str, Any] = {}

    @staticmethod
    def stated(text: str) -> str | None:
        """What a text says, for votes: its final answer, or else all of it."""
        return extract_answer(text) or " ".join(text.split()) or None

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        *,
        log_extra: Callable[..., Any] | None = None,
        **columns: Sequence[Any],
    ) -> list[float]:
        if "plan" not in columns:
            raise ConfigurationError(
                f"reward=plan judges problems of planning tasks ({', '.join(RULES)}), which have a column 'plan'"
            )
        texts = texts_of(completions)
        found = [judged(text, rules) for text, rules in zip(texts, columns["plan"], strict=True)]
        if log_extra is not None:
            log_extra("verdict", [verdict for verdict, _ in found])
            log_extra("answer", [answer for _, answer in found])
        return [{"right": 1.0, "detour": 0.5}.get(verdict, 0.0) for verdict, _ in found]


def judged(text: str, rules: dict[str, Any]) -> tuple[str, str | None]:
    """A verdict (`right`, `detour`, `unfinished`, `impossible` or `no_plan`) and the plan in short.

    Args:
        rules: of the problem; `kind` is one of `RULES`.
    """
    if len(text) > MOST_CHARACTERS:
        return "no_plan", None
    return RULES[rules["kind"]](text.strip().split("\n")[:MOST_LINES], rules)


def moved(rules: dict[str, Any], place: Sequence[int], direction: str) -> tuple[int, int] | None:
    """Where a step from a cell leads; None out of the grid and into a wall."""
    by = DIRECTIONS[direction]
    r, c = place[0] + by[0], place[1] + by[1]
    rows, columns = rules["size"]
    return (r, c) if 0 <= r < rows and 0 <= c < columns and [r, c] not in rules["walls"] else None


def _path(lines: list[str], rules: dict[str, Any]) -> tuple[str, str | None]:
    place: tuple[int, int] | None = tuple(rules["start"])
    steps = [word for line in lines if (word := line.partition(" ")[0]) in DIRECTIONS]
    if not steps:
        return "no_plan", None
    plan = " ".join(steps)
    for step in steps:
        assert place is not None
        place = moved(rules, place, step)
        if place is None:
            return "impossible", plan
    if list(place or ()) != list(rules["goal"]):
        return "unfinished", plan
    return "detour" if len(steps) > rules.get("moves", len(steps)) else "right", plan


_JUG_MOVE = re.compile(r"(fill|empty|pour) ([A-Z])(?:->([A-Z]))?(?:: .*)?")


def poured(rules: dict[str, Any], state: Sequence[int], move: str) -> tuple[int, ...] | None:
    """What jugs hold after a move; None if there is no such move."""
    found = _JUG_MOVE.fullmatch(move)
    if found is None or (found[1] == "pour") != (found[3] is not None):
        return None
    sizes, new = rules["sizes"], list(state)
    places = [ord(name) - ord("A") for name in found.group(2, 3) if name is not None]
    if max(places) >= len(sizes) or len(set(places)) < len(places):
        return None
    if found[1] == "pour":
        i, j = places
        amount = min(new[i], sizes[j] - new[j])
        new[i], new[j] = new[i] - amount, new[j] + amount
    else:
        new[places[0]] = sizes[places[0]] if found[1] == "fill" else 0
    return tuple(new)


def _jugs(lines: list[str], rules: dict[str, Any]) -> tuple[str, str | None]:
    state: tuple[int, ...] = (0,) * len(rules["sizes"])
    steps = [line.partition(":")[0].strip() for line in lines if line.startswith(("fill", "empty", "pour"))]
    if not steps:
        return "no_plan", None
    plan = ", ".join(steps)
    for step in steps:
        after = poured(rules, state, step)
        if after is None:
            return "impossible", plan
        state = after
    return "right" if rules["target"] in state else "unfinished", plan


_TOKEN = re.compile(r"\s*(?:(\d{1,9})|(.))", re.DOTALL)


def _countdown(lines: list[str], rules: dict[str, Any]) -> tuple[str, str | None]:
    said = extract_answer("\n".join(lines))
    if said is None:
        return "no_plan", None
    said = said.replace(r"\times", "*").replace(r"\cdot", "*").replace("×", "*").replace("−", "-").strip("$ ")
    try:
        value, used = _evaluated(said)
    except ValueError:
        return "impossible", said[:200]
    if sorted(used) != sorted(rules["numbers"]):
        return "impossible", said[:200]
    return "right" if value == rules["target"] else "unfinished", said[:200]


def _evaluated(text: str) -> tuple[int, list[int]]:
    """The value of an expression of integers with + - * and parentheses, and the numbers in it.

    Raises:
        ValueError: it is none, or longer than 200 characters.
    """
    if len(text) > 200:
        raise ValueError("too long")
    tokens = [(number, other) for number, other in _TOKEN.findall(text) if number or other.strip()][::-1]
    used: list[int] = []

    def take() -> tuple[str, str]:
        if not tokens:
            raise ValueError("ends early")
        return tokens.pop()

    def atom() -> int:
        number, other = take()
        if number:
            used.append(int(number))
            return int(number)
        if other != "(":
            raise ValueError(other)
        value = whole()
        if take()[1] != ")":
            raise ValueError("no closing parenthesis")
        return value

    def product() -> int:
        value = atom()
        while tokens and tokens[-1][1] == "*":
            take()
            value *= atom()
        return value

    def whole() -> int:
        value = product()
        while tokens and tokens[-1][1] in ("+", "-"):
            sign = 1 if take()[1] == "+" else -1
            value += sign * product()
        return value

    value = whole()
    if tokens:
        raise ValueError("goes on")
    return value, used


RULES: dict[str, Callable[[list[str], dict[str, Any]], tuple[str, str | None]]] = {
    "path": _path, "jugs": _jugs, "countdown": _countdown,
}  # fmt: skip
