"""The tables of a comparison, as (title, note, head, rows of text): the terminal and the report print the same."""

from dataclasses import dataclass

from ollm_rl.evaluation.comparison import WINDOW


@dataclass
class Text:
    """A table of text."""

    title: str
    note: str
    head: list[str]
    body: list[list[str]]


def comparison_tables(results: dict) -> list[Text]:
    """What there are figures for: learning, misbehaviour, out of distribution, tests, what latents do differently."""
    pooled = results.get("pooled") or []
    parts = (_learning(pooled), _misbehaviour(pooled), _variants(pooled), _tests(results), _changes(results))
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


def _misbehaviour(pooled: list[dict]) -> Text | None:
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
        "Misbehaviour",
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
