"""The results for people: a table for the terminal and one self-contained `report.html`."""

import base64
import html
from collections import Counter
from pathlib import Path

from ollm_rl.common.run_dir import stored_json
from ollm_rl.evaluation.comparison import replays_of, trial_dir
from ollm_rl.evaluation.metrics import samples_of
from ollm_rl.report.plots import draw
from ollm_rl.report.style import STYLE
from ollm_rl.report.tables import Text, breakdown_tables, comparison_tables, num_pooled, results_table

FIRST = "headroom"  # the plot that says most in one look


def write_report(root: Path, results: dict, config: str = "") -> Path:
    """Write `plots/*.png` and `report.html` of an experiment or a run; the page needs no other file."""
    plots = draw(root, results)
    name = f"{results['backbone']} on {results['task']}"
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        '<p class="note">Every accuracy is one greedy answer per problem, with its ',
    ]
    parts.append(f"95% Wilson interval.{_sampling_note(results)}</p>")
    parts += [_image(plot) for plot in plots if plot.stem == FIRST]
    parts += ["<h2>Results</h2>", _html_table(results_table(results), num_pooled(results))]
    parts += [_verdicts_note(results), _oracle_note(results)]
    parts += map(_text_html, comparison_tables(results))
    parts += [_text_html(Text(f"By {field}", "", head, body)) for field, head, body in breakdown_tables(results)]
    parts += [_image(plot) for plot in plots if plot.stem != FIRST]
    parts.append(_options_html(results.get("conversion") or {}))
    parts.append(
        '<h2>Episodes, token by token</h2><p class="note">Shaded tokens are decision points: the options disagreed there. '
        "The number under a token is the latent that was picked (a dash: all options gave this token, or nobody was asked); "
        "orange where the prior gave it less than 10%. Point at a token for what each option would have said, and how "
        "likely the prior finds it.</p>"
    )
    for row in results["rows"]:
        stored = trial_dir(row, root) / (replays_of(row["agent"]) if "search" in row else "replays.json")
        episodes = stored_json(stored) if stored.exists() else []
        if episodes:
            parts.append(f"<h3>{html.escape(row['agent'])}, seed {row['seed']}</h3>")
            parts += [_episode_html(e) for e in episodes]
    if config:
        parts.append(f"<h2>Configuration</h2><pre>{html.escape(config)}</pre>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>{"".join(parts)}</html>\n'
    )
    path = root / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _sampling_note(results: dict) -> str:
    ks = samples_of(results["rows"])
    if not ks:
        return ""
    said = " and ".join(map(str, ks))
    return (
        f" avg@k (their mean accuracy), pass@k (some is right) and maj@k (the answer that most of them give is right) come from "
        f"k = {said} sampled answers per problem."
    )


def _image(plot: Path) -> str:
    data = base64.b64encode(plot.read_bytes()).decode()
    return f'<p><img alt="{plot.stem.replace("_", " ")}" src="data:image/png;base64,{data}"></p>'


def _html_table(text: Text, bold: int = 0) -> str:
    """A table, its first `bold` rows emphasised."""
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in text.head)
    rows = (_html_row(row, ' class="all"' if i < bold else "") for i, row in enumerate(text.body))
    return f"<table><tr>{titles}</tr>{''.join(rows)}</table>"


def _html_row(cells: list[str], attributes: str) -> str:
    """A row of a table, intervals in small print."""
    shown = [html.escape(c).replace(" [", ' <span class="ci">[').replace("]", "]</span>") for c in cells]
    return f"<tr{attributes}>" + "".join(f"<td>{c}</td>" for c in shown) + "</tr>"


def _text_html(text: Text) -> str:
    note = f'<p class="note">{html.escape(text.note)}</p>' if text.note else ""
    return f"<h2>{html.escape(text.title)}</h2>{note}{_html_table(text)}"


def _verdicts_note(results: dict) -> str:
    """How many greedy answers of all seeds got which verdict."""
    counts: dict[str, Counter] = {}
    for row in results["rows"]:
        if row.get("verdicts"):
            counts.setdefault(row["agent"], Counter()).update(row["verdicts"])
    lines = []
    for agent, verdicts in counts.items():
        said = ", ".join(f"{n} {verdict.replace('_', ' ')}" for verdict, n in verdicts.most_common())
        lines.append(html.escape(f"{agent}: {said}."))
    return f'<p class="note">Verdicts on the greedy answers. {" ".join(lines)}</p>' if lines else ""


def _oracle_note(results: dict) -> str:
    rows = [r for r in results["rows"] if r["agent"] == "oracle"]
    if not rows:
        return _teacher_note(results)
    row = next((r for r in results.get("pooled", []) if r["agent"] == "oracle"), rows[0])  # means over the seeds
    return (
        f'<p class="note">The oracle ({rows[0]["search"]}) may look at the verdict: its accuracy is the share of problems for '
        f"which it found a right answer within {rows[0]['budget']} generated tokens ({row['mean_tokens']:.0f} on average, "
        f"{row['mean_tried']:.1f} texts). It bounds what choosing latents could reach, lucky guesses included. {_deviations(rows[0])}</p>"
        + _teacher_note(results)
    )


def _deviations(row: dict) -> str:
    found = row.get("deviations") or row.get("departures")  # their name in earlier releases
    if not found:
        return ""
    where = "" if found["position"] is None else f", half of them before {found['position'][1]:.0%} of the text"
    return (
        f"Solved texts (seed {row['seed']}) depart from the policy's first choice {found['mean']:.1f} times ({found['none']:.0%} never)"
        f"{where}; their choices have a log-probability of {found['log_prob']:.1f} nats."
    )


def _teacher_note(results: dict) -> str:
    rows = [r for r in results["rows"] if r.get("search") == "teacher_forced"]
    said = " ".join(
        f"{r['agent'].removeprefix('teacher_forced_')}: {r['exact_reproduction']:.3f} of {r['n_problems']} solutions said to "
        f"the token, {r['tokens_reproduced']:.4f} of their tokens, answers right in {r['accuracy']:.3f}."
        for r in rows
    )
    why = (
        "Teacher forcing asks whether the options can say one given text, the gold solution: one token that no option says "
        "ends it. A search needs any text with the right answer, so it can be ahead where options lack words, and it "
        "needs luck or a good policy where they do not."
    )
    return f'<p class="note">{why} {html.escape(said)}</p>' if rows else ""


def _options_html(conversion: dict) -> str:
    figures = [k for k, v in conversion.items() if isinstance(v, dict) and "uncertain" in v]
    if not figures:
        return ""
    rows = "".join(
        f"<tr><td>{k.replace('_', ' ')}</td><td>{conversion[k]['all']:.4g}</td><td>{conversion[k]['uncertain']:.4g}</td></tr>"
        for k in figures
    )
    return (
        '<h2>The options</h2><p class="note">On held-out solutions; uncertain positions are those where the backbone\'s '
        f"entropy exceeds 0.5 nats.</p><table><tr><th></th><th>all positions</th><th>uncertain</th></tr>{rows}</table>"
    )


def _episode_html(episode: dict) -> str:
    tokens = []
    for step in episode["steps"]:
        text = step["token"].replace("\n", "⏎\n")
        if step["latent"] < 0 or len(step["options"]) < 2:
            tokens.append(f'<span class="t">{html.escape(text)}<small>–</small></span>')
        else:
            tokens.append(_decision_html(step, text))
    solved = episode["reward"] >= 1.0
    verdict = "solved" if solved else _failure(episode)
    return (
        f'<div class="episode {"solved" if solved else "failed"}"><div class="problem">{html.escape(episode["problem"])}'
        f' <b>{verdict}</b></div><div class="trace">{"".join(tokens)}</div></div>'
    )


def _failure(episode: dict) -> str:
    """Why it failed: what was answered, and the verdict on it."""
    given, why = episode.get("answer"), episode.get("verdict", "")
    said = f"it answers {given}" if given else "it gives no answer"
    cut = ", cut off by the token budget" if episode.get("stop") == "length" else ""
    reason = f", {why.replace('_', ' ')}" if why not in ("", "different", "no_answer") else ""
    return html.escape(f"failed ({said}{reason}{cut}; the answer is {episode['gold']})")


def _decision_html(step: dict, text: str) -> str:
    others, picked_probability = [], 0.0
    for z, token, probability in sorted(step["options"], key=lambda option: -option[2]):
        same = token == step["token"]
        picked_probability += probability if same else 0.0
        shown = html.escape(repr(token)[1:-1])
        others.append(f'<div class="{"picked" if same else ""}">{z}: “{shown}” {probability:.1%}</div>')
    rare = " rare" if picked_probability < 0.1 else ""
    return (
        f'<span class="t d{rare}" tabindex="0">{html.escape(text)}<small>{step["latent"]}</small>'
        f'<span class="o">{"".join(others)}</span></span>'
    )
