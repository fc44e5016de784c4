"""The HTML page and the terminal table of `ollm-rl inspect`."""

import html
from pathlib import Path

from rich.table import Table

from ollm_rl.evaluation.inspection import Meaning, Position
from ollm_rl.report.style import STYLE
from ollm_rl.tasks import Problem

MORE_STYLE = """
.right{background:#dcefe0} .chosen{background:#fdeec4} .missed{background:#f6cfc6} .plain{color:#6a7485}
.o td{padding:.05rem .5rem;border:0;text-align:left} .legend .t{line-height:1.5}
.gold{color:#3a7d44;font-weight:700}
"""


def visible(text: str) -> str:
    """A token as HTML, with marks for its spaces and line ends."""
    return html.escape(text.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥"))


def write_page(
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
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">{html.escape(facts)}</p>',
        f"<p>{len(every)} gold tokens, {len(points)} of them at decision points, where the options say different things. "
        f"There some option says the gold token at {_share(points, lambda p: p.covered)}, the prior's first choice says it at "
        f"{_share(points, lambda p: p.prior == p.token)}, the encoder's pick at "
        f"{_share(points, lambda p: p.encoder_token == p.token)}.</p>",
        '<p class="legend"><span class="t right">the prior says it</span> <span class="t chosen">another option says it</span> '
        '<span class="t missed">no option says it</span> <span class="t plain">all options say the same</span> The number under '
        "a token is the latent that the encoder picks, given the gold token. Point at a token for all that the latents say.</p>",
        "<h2>Solutions, token by token</h2>",
    ]
    for problem, solution in zip(problems, positions, strict=True):
        trace = "".join(map(_token_html, solution))
        parts.append(
            f'<div class="episode"><div class="problem">{html.escape(problem.problem)}</div><div class="trace">{trace}</div></div>'
        )
    parts.append(
        '<h2>What each latent means</h2><p class="note">At decision points where the encoder\'s pick says the gold token. '
        "Typical tokens: how often it says them, and how many times as often as all latents together.</p>"
    )
    parts.append("<table><tr><th>latent</th><th>picked</th><th>typical tokens</th><th>for example</th></tr>")
    parts += [_meaning_html(m) for m in meanings]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{MORE_STYLE}</style>{"".join(parts)}</table></html>\n'
    )
    path.write_text(page, encoding="utf-8")
    return path


def _share(points: list[Position], true) -> str:
    return f"{sum(map(true, points)) / max(1, len(points)):.1%}"


def _token_html(p: Position) -> str:
    kind = "right" if p.prior == p.token else "chosen" if p.covered else "missed"
    if not p.decision and p.covered:
        return f'<span class="t plain">{visible(p.text)}<small>–</small></span>'
    rows = "".join(
        f'<tr class="{"gold" if token == p.token else ""}"><td>{z}</td><td>{visible(text)}</td><td>{probability:.1%}</td></tr>'
        for z, token, text, probability in sorted(p.options, key=lambda option: -option[3])
    )
    return (
        f'<span class="t {kind}" tabindex="0">{visible(p.text)}<small>{p.encoder}</small><span class="o">'
        f"<table><tr><td>latent</td><td>says</td><td>prior</td></tr>{rows}</table>entropy {p.entropy:.2f} nats</span></span>"
    )


def _meaning_html(m: Meaning) -> str:
    tokens = ", ".join(f"<b>{visible(t)}</b> {n}×, lift {lift:.1f}" for t, n, lift in m.tokens) or "never picked"
    contexts = "<br>".join(f"…{visible(before)}<b>{visible(token)}</b>" for before, token in m.contexts)
    style = 'style="text-align:left"'
    return f"<tr><td>{m.latent}</td><td>{m.picked:.1%}</td><td {style}>{tokens}</td><td {style}>{contexts}</td></tr>"


def prompt_table(record: dict) -> Table:
    """The answer to a prompt, token by token, for the terminal."""
    table = Table("token", "latent", "what the options say (latent: token, prior)", title="the prior's greedy answer")
    for step in record["steps"]:
        offered = sorted(step["options"], key=lambda option: -option[2])
        said = (
            ", ".join(f"{z}: {_plain(text)} {p:.1%}" for z, text, p in offered) if len(offered) > 1 else "all the same"
        )
        table.add_row(_plain(step["token"]), str(step["latent"]) if step["latent"] >= 0 else "–", said)
    return table


def _plain(text: str) -> str:
    return text.replace("\n", "⏎").replace(" ", "␣").replace("[", r"\[")
