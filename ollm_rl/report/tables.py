"""The tables of a comparison, as (title, note, head, rows of text): the terminal and the report print the same."""

from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from ollm_rl.evaluation.comparison import WINDOW
from ollm_rl.evaluation.metrics import sampled_metric, samples_of


@dataclass
class Text:
    """A table of text."""

    title: str
    note: str
    head: list[str]
    body: list[list[str]]


def comparison_tables(results: dict) -> list[Text]:
    """What there are figures for: learning, degeneration, out of distribution, tests, what latents do differently."""
    pooled = results.get("pooled") or []
    parts = (_learning(pooled), _degeneration(pooled), _variants(pooled), _tests(results), _changes(results))
    return [table for table in parts if table is not None]


def _learning(pooled: list[dict]) -> Text | None:
    rows = [r for r in pooled if r.get("train_episodes")]
    if len(rows) < 2 and not any("before" in r and len(r["seeds"]) > 1 for r in rows):
        return None
    body = []
    for r in rows:
        before = r.get("before")
        seeds = len(r["seeds"])
        body.append([
            r["agent"],
            _share(before) if before else "-",
            _share(r),
            _number(r["train_episodes"]),
            _reached(r, "episodes_to_threshold", seeds),
            _number(r["train_seconds"]),
            _reached(r, "seconds_to_threshold", seeds),
            _number(r.get("setup_seconds")),
            _number(r.get("area_under_curve"), 3),
        ])  # fmt: skip
    threshold = next((r["threshold"] for r in rows if r.get("threshold") is not None), None)
    said = "" if threshold is None else f" (here {threshold:.3f}, mean of the seeds)"
    return Text(
        "Learning from rewards",
        "Greedy accuracy before and after. The threshold of a seed is the prior's sampled accuracy plus half of its gap to "
        f"the best agent's{said}; it is reached once the mean training reward of the last {WINDOW} episodes is at least that. Set-up is "
        "fitting to solutions, where that is the agent's own. The area is the mean reward over the episodes that all had.",
        [
            "agent",
            "before",
            "after",
            "episodes",
            "episodes to threshold",
            "seconds",
            "seconds to threshold",
            "set-up s",
            "area",
        ],
        body,
    )


def _reached(row: dict, key: str, seeds: int) -> str:
    if row.get(key) is not None:
        return _number(row[key])
    return f"in {row.get(f'{key}_reached', 0)} of {seeds}"


def _degeneration(pooled: list[dict]) -> Text | None:
    rows = [r for r in pooled if "kl_from_start" in r or "length_change" in r]
    if not rows:
        return None
    names = (
        ("no_answer_rate", "no answer"),
        ("repetition_rate", "repetition"),
        ("foreign_script_rate", "foreign script"),
    )
    body = []
    for r in rows:
        before = r.get("before", {})
        cells = [f"{r[k]:.3f} ({before[k]:.3f})" if k in before else f"{r[k]:.3f}" for k, _ in names]
        change = f"{r['length_change']:+.0%}" if "length_change" in r else "-"
        body.append([r["agent"], *cells, f"{r['mean_length']:.1f}", change, _number(r.get("kl_from_start"), 2)])
    return Text(
        "Degeneration",
        "Shares of greedy texts, before training in brackets; tokens of a text and their change; nats an episode between the "
        "trained agent and what it began as (on its own sampled texts).",
        ["agent", *[title for _, title in names], "length", "change", "KL"],
        body,
    )


def _variants(pooled: list[dict]) -> Text | None:
    rows = [r for r in pooled if r.get("ood")]
    if not rows:
        return None
    names = list(rows[0]["ood"])
    marks = {"yes": " WORSE", "perhaps": " (worse?)", "no": ""}
    body = []
    for r in rows:
        cells = []
        for name in names:
            found = r["ood"].get(name)
            before = f" from {found['before']:.3f}" if found and "before" in found else ""
            cells.append("-" if found is None else _share(found) + before + marks[found.get("worse", "no")])
        body.append([r["agent"], *cells])
    n = rows[0]["ood"][names[0]]["n"]
    return Text(
        "Out of distribution",
        f"Greedy accuracy on variants of the task that nobody trained on (n = {n} each), and from where training took it. WORSE: "
        "the 95% interval of the change lies below zero; worse?: only its middle does.",
        ["agent", *names],
        body,
    )


def _tests(results: dict) -> Text | None:
    tests = results.get("tests") or []
    if not tests:
        return None
    body = []
    for test in tests:
        cells = [" - ".join(reversed(test["agents"])), str(test["n"])]
        for kind in ("greedy", "sampled"):
            if kind in test:
                low, high = test[f"{kind}_ci95"]
                p = test[f"{kind}_p"]
                cells += [f"{test[kind]:+.3f} [{low:+.3f}, {high:+.3f}]", "<0.001" if p < 0.001 else f"{p:.3f}"]
            else:
                cells += ["-", "-"]
        body.append(cells)
    return Text(
        "Paired differences",
        "Of accuracy on the same problems, with the 95% interval and two-sided p-value of a paired bootstrap (10,000 resamples "
        "of problems; not corrected for the number of pairs; what seeds of training vary is not in them).",
        ["agents", "n", "greedy", "p", "sampled", "p"],
        body,
    )


def _changes(results: dict) -> Text | None:
    rows = [r for r in results["rows"] if isinstance(r.get("changes"), dict) and r["changes"].get("most_common")]
    if not rows:
        return None
    body = []
    for r in rows:
        found = r["changes"]
        said = ", ".join(f"{_quoted(a)} → {_quoted(b)} {n}" for a, b, n in found["most_common"][:5])
        body.append([r["agent"], str(r["seed"]), str(found["decisions"]), f"{found['changed']:.1%}", said])
    return Text(
        "What learned latents do differently",
        "At the decision points of the greedy test texts: how often the agent says another token than the prior's likeliest, and "
        "which instead of which, how many times.",
        ["agent", "seed", "decisions", "changed", "most often"],
        body,
    )


def _quoted(token: str) -> str:
    return f"“{repr(token)[1:-1]}”"


def _share(found: dict) -> str:
    return "{:.3f} [{:.2f}, {:.2f}]".format(found["accuracy"], *found["accuracy_ci95"])


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


COLUMNS = (  # after accuracy come those of sampled answers
    ("agent", "agent"),
    ("seed", "seed"),
    ("n_problems", "n"),
    ("accuracy", "accuracy"),
    ("train_episodes", "episodes"),
    ("train_seconds", "train s"),
    ("no_answer_rate", "no ans."),
    ("repetition_rate", "repet."),
    ("foreign_script_rate", "foreign"),
)


def terminal_table(results: dict) -> Table:
    """Rows per agent and seed, after the pooled ones if there are several seeds."""
    text, pooled = results_table(results), num_pooled(results)
    table = _terminal(Text(text.title, "", text.head, []))
    for row in text.body[:pooled]:
        table.add_row(*map(escape, row), style="bold")
    table.add_section()
    for row in text.body[pooled:]:
        table.add_row(*map(escape, row))
    return table


def num_pooled(results: dict) -> int:
    """How many rows of the table, the first ones, are of several seeds."""
    pooled = results.get("pooled", [])
    return len(pooled) if any(len(p["seeds"]) > 1 for p in pooled) else 0


def results_table(results: dict) -> Text:
    """Rows per agent and seed, after the pooled ones if there are several seeds, as text."""
    pooled = results.get("pooled", [])[: num_pooled(results)]
    rows = [*({**p, "seed": f"all {len(p['seeds'])}"} for p in pooled), *results["rows"]]
    title = f"{results['task']} with {results['backbone']}, greedy accuracy with 95% interval"
    ks = samples_of(rows)
    sampled = [f"{figure}@{k}" for k in ks for figure in ("avg", "pass", "maj")]
    before = [title for _, title in COLUMNS].index("accuracy") + 1
    titles = [title for _, title in COLUMNS]
    # Figures of another number of samples are no more comparable than those of another column.
    body = [
        cells[:before] + _sampled_cells(row, ks) + cells[before:]
        for row, cells in zip(rows, map(_cells, rows), strict=True)
    ]
    return Text(title, "", titles[:before] + sampled + titles[before:], body)


def _sampled_cells(row: dict, ks: list[int]) -> list[str]:
    values = [sampled_metric(row, figure, k) for k in ks for figure in ("avg", "pass", "maj")]
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _cells(row: dict) -> list[str]:
    cells = []
    for key, _ in COLUMNS:
        value = row.get(key)
        if value is None:
            cells.append("-")
        elif key == "accuracy":
            low, high = row["accuracy_ci95"]
            cells.append(f"{value:.3f} [{low:.2f}, {high:.2f}]")
        elif key in ("train_seconds", "train_episodes"):
            cells.append(f"{value:.0f}")
        else:
            cells.append(f"{value:.3f}" if isinstance(value, float) else str(value))
    return cells


def breakdown_tables(results: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of a table for every column that problems differ in: a row a value, a column an agent."""
    rows = results.get("pooled") or results["rows"]
    parts = {r["agent"]: r.get("breakdown") or {} for r in rows}
    tables = []
    for field in dict.fromkeys(f for part in parts.values() for f in part):
        names = dict.fromkeys(name for part in parts.values() for name in part.get(field, {}))
        body = []
        for name in names:
            cells = [part.get(field, {}).get(name) for part in parts.values()]
            n = max(c["n"] for c in cells if c)
            body.append([name, str(n), *[_share_cell(c) for c in cells]])
        tables.append((field, [field, "n", *parts], body))
    return tables


def _share_cell(cell: dict | None) -> str:
    return "-" if cell is None else "{:.3f} [{:.2f}, {:.2f}]".format(cell["accuracy"], *cell["accuracy_ci95"])


def terminal_tables(results: dict) -> list[Table]:
    """The results, and their breakdowns."""
    tables = [terminal_table(results), *map(_terminal, comparison_tables(results))]
    for field, head, body in breakdown_tables(results):
        tables.append(_terminal(Text(f"accuracy by {field}", "", head, body)))
    return tables


def _terminal(text: Text) -> Table:
    table = Table(title=text.title)
    for i, title in enumerate(text.head):
        table.add_column(title, justify="right" if i else "left")
    for row in text.body:
        table.add_row(*map(escape, row))
    return table
