"""The HTML page and the terminal table of `ollm-rl inspect`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ollm_rl.evaluation.inspection import Meaning, Position
from ollm_rl.report.pages import visible, write_page
from ollm_rl.tasks import Problem


def write_inspection(
    path: Path,
    title: str,
    facts: str,
    problems: list[Problem],
    positions: list[list[Position]],
    meanings: list[Meaning],
) -> Path:
    """Write the page; it needs no other file."""
    every = [p for solution in positions for p in solution]
    points = [p for p in every if p.decision]
    return write_page(
        path,
        "inspection.html.j2",
        title=title,
        facts=facts,
        num_tokens=len(every),
        num_points=len(points),
        covered=_share(points, lambda p: p.covered),
        prior=_share(points, lambda p: p.prior == p.token),
        encoder=_share(points, lambda p: p.encoder_token == p.token),
        solutions=list(zip(problems, positions, strict=True)),
        meanings=meanings,
    )


def _share(points: list[Position], true: Callable[[Position], bool]) -> str:
    return f"{sum(map(true, points)) / max(1, len(points)):.1%}"


def prompt_table(record: dict[str, Any], whose: str = "the prior") -> Table:
    """The answer to a prompt, token by token, for the terminal."""
    table = Table(
        "token", "latent", "what the options say (latent: token, prior)", title=f"the greedy answer of {whose}"
    )
    for step in record["steps"]:
        offered = sorted(step["options"], key=lambda option: -option[2])
        said = (
            ", ".join(f"{z}: {_plain(text)} {p:.1%}" for z, text, p in offered) if len(offered) > 1 else "all the same"
        )
        table.add_row(_plain(step["token"]), str(step["latent"]) if step["latent"] >= 0 else "–", said)
    return table


def _plain(text: str) -> str:
    return escape(visible(text))
