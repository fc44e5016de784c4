"""The tables of a comparison beside that of its rows, the same in the terminal, the report and the documents; the terminal has the chief ones."""

from ollm_rl.evaluation.comparison import WINDOW
from ollm_rl.evaluation.overview import Text, num, share_cell
from ollm_rl.evaluation.records import Difference, PairedTest, Sampled
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import PooledRow
from ollm_rl.report.cost import cost_table


def all_tables(results: Results) -> list[Text]:
    """The rows, and all that there are figures for."""
    cost = cost_table(results)
    return [results.table(), *comparison_tables(results), *breakdown_tables(results), *([cost] if cost else [])]


def short_tables(results: Results) -> tuple[list[Text], list[str]]:
    """Those that say who is better, why and what it cost, for the terminal; titles of the others."""
    details = [t for t in (_degeneration(results.pooled), _samples(results), _where(results)) if t is not None]
    left_out = [t.title for t in [*details, *breakdown_tables(results)]]
    return [t for t in all_tables(results) if t.title not in left_out], left_out


def comparison_tables(results: Results) -> list[Text]:
    """What there are figures for: learning, degeneration, out of distribution, tests, what latents do differently."""
    pooled = results.pooled
    parts = (
        _learning(pooled),
        _totals(pooled),
        _degeneration(pooled),
        _general(pooled),
        _variants(pooled),
        _hand_over(pooled),
        _samples(results),
        _verification(results),
        _choices(results),
        _searches(results),
        _tests(results),
        _changes(results),
        _where(results),
    )
    return [table for table in parts if table is not None]


def _learning(pooled: list[PooledRow]) -> Text | None:
    rows = [r for r in pooled if r.train_episodes]
    if len(rows) < 2 and not any(r.before and len(r.seeds) > 1 for r in rows):
        return None
    body = []
    for r in rows:
        seeds = len(r.seeds)
        body.append([
            r.agent,
            share_cell(r.before),
            share_cell(r),
            num(r.train_episodes, 0),
            _reached(r.episodes_to_threshold, r.episodes_to_threshold_reached, seeds),
            num(r.train_seconds, 0),
            _reached(r.seconds_to_threshold, r.seconds_to_threshold_reached, seeds),
            num(r.setup_seconds, 0),
            num(r.area_under_curve),
        ])  # fmt: skip
    threshold = next((r.threshold for r in rows if r.threshold is not None), None)
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


def _reached(value: float | None, reached: int, seeds: int) -> str:
    return f"in {reached} of {seeds}" if value is None else num(value, 0)


def _degeneration(pooled: list[PooledRow]) -> Text | None:
    rows = [r for r in pooled if r.kl_from_start is not None or r.length_change is not None]
    if not rows:
        return None
    names = (
        ("no_answer_rate", "no answer"),
        ("repetition_rate", "repetition"),
        ("foreign_script_rate", "foreign script"),
    )
    body = []
    for r in rows:
        pairs = [(getattr(r, name), getattr(r.before, name, None)) for name, _ in names]
        cells = [num(now) + (f" ({before:.3f})" if before is not None else "") for now, before in pairs]
        change = "-" if r.length_change is None else f"{r.length_change:+.0%}"
        body.append([r.agent, *cells, num(r.mean_length, 1), change, num(r.kl_from_start, 2)])
    return Text(
        "Degeneration",
        "Shares of greedy texts, before training in brackets; tokens of a text and their change; nats an episode between the "
        "trained agent and what it began as (on its own sampled texts).",
        ["agent", *[title for _, title in names], "length", "change", "KL"],
        body,
    )


def _totals(pooled: list[PooledRow]) -> Text | None:
    rows = [r for r in pooled if r.total_seconds is not None or r.trainable_parameters]
    if len(rows) < 2:
        return None
    body = [
        [r.agent, share_cell(r), num(r.trainable_parameters, 0), num(r.total_seconds, 0), num(r.train_seconds, 0)]
        for r in rows
    ]
    return Text(
        "From nothing",
        "Numbers that were trained (adapter, plug-in and policy), and seconds of all fits, of conversion and of learning from rewards; "
        "evaluations are left out. Of what several agents share, each has all.",
        ["agent", "accuracy", "trained", "seconds in all", "of these, learning"],
        body,
    )


def _general(pooled: list[PooledRow]) -> Text | None:
    rows = [r for r in pooled if r.general]
    if not rows:
        return None
    body, first = [], rows[0].general
    assert first is not None
    for r in rows:
        assert r.general is not None
        found, low, high = r.general, *r.general.loss_change_ci95
        change = found.loss - found.backbone_loss
        body.append(
            [r.agent, num(found.loss), f"{change:+.3f} [{low:+.3f}, {high:+.3f}]", num(found.kl), num(found.same_token)]
        )
    return Text(
        "General texts",
        f"What agents make of {first.n_texts} texts that have nothing to do with the task ({first.n_tokens} tokens): nats a token, against "
        f"the untouched backbone, whose loss is {first.backbone_loss:.3f}. A latent policy's distribution is the mixture of its options.",
        ["agent", "loss", "change [95% interval]", "KL from the backbone", "same greedy token"],
        body,
    )


def _variants(pooled: list[PooledRow]) -> Text | None:
    rows = [r for r in pooled if r.ood]
    if not rows:
        return None
    names = list(rows[0].ood)
    marks = {"yes": " WORSE", "perhaps": " (worse?)", "no": ""}
    body = []
    for r in rows:
        cells = []
        for name in names:
            found = r.ood.get(name)
            before = f" from {found.before:.3f}" if found and found.before is not None else ""
            cells.append(share_cell(found) + before + marks[(found and found.worse) or "no"])
        body.append([r.agent, *cells])
    n = rows[0].ood[names[0]].n
    return Text(
        "Out of distribution",
        f"Greedy accuracy on variants of the task that nobody trained on (n = {n} each), and from where training took it. WORSE: "
        "the 95% interval of the change lies below zero; worse?: only its middle does.",
        ["agent", *names],
        body,
    )


def _tests(results: Results) -> Text | None:
    if not results.tests:
        return None
    kinds = [kind for kind in PairedTest.KINDS if kind != "reward" or any(test.reward for test in results.tests)]
    body = []
    for test in results.tests:
        cells = [" - ".join(reversed(test.agents)), str(test.n)]
        for kind in kinds:
            found = getattr(test, kind)
            if found is None:
                cells += ["-", "-"]
            else:
                cells += [_difference(found), "<0.001" if found.p < 0.001 else f"{found.p:.3f}"]
        body.append(cells)
    graded = "; reward: of the mean reward of greedy texts" if "reward" in kinds else ""
    return Text(
        "Paired differences",
        f"Of accuracy on the same problems{graded}; with the 95% interval and two-sided p-value of a paired bootstrap (10,000 resamples "
        "of problems; not corrected for the number of pairs; what seeds of training vary is not in them).",
        ["agents", "n", *(title for kind in kinds for title in (kind, "p"))],
        body,
    )


def _changes(results: Results) -> Text | None:
    body = []
    for r in results.rows:
        if r.changes and r.changes.most_common:
            said = ", ".join(f"{_quoted(a)} → {_quoted(b)} {n}" for a, b, n in r.changes.most_common[:5])
            body.append([r.agent, str(r.seed), str(r.changes.decisions), f"{r.changes.changed:.1%}", said])
    if not body:
        return None
    return Text(
        "What learned latents do differently",
        "At the decision points of the greedy test texts: how often the agent says another token than the prior's likeliest, and "
        "which instead of which, how many times.",
        ["agent", "seed", "decisions", "changed", "most often"],
        body,
    )


def _where(results: Results) -> Text | None:
    body = []
    for r in results.rows:
        if r.changes and any(r.changes.by_quarter or ()):
            said = ", ".join(f"{_quoted(token)} {share:.0%} of {n}" for token, n, share in (r.changes.after or ())[:5])
            body.append([r.agent, str(r.seed), *(f"{share:.1%}" for share in r.changes.by_quarter or ()), said])
    if not body:
        return None
    return Text(
        "Where learned latents decide",
        "The share of decisions at which the agent says another token than the prior's likeliest, by quarter of a text's decisions, and "
        "after which tokens; “(beginning)” is where a text has none yet.",
        ["agent", "seed", "1st quarter", "2nd", "3rd", "4th", "after"],
        body,
    )


def _hand_over(pooled: list[PooledRow]) -> Text | None:
    rows = [r for r in pooled if r.hand_over]
    if not rows:
        return None
    names = list(rows[0].hand_over)
    prior = next((r for r in pooled if r.agent == "prior"), None)
    body = []
    for r in rows:
        start = r.before or prior
        gain = None if start is None or r is prior else r.accuracy - start.accuracy
        cells = []
        for name in names:
            found = r.hand_over.get(name)
            kept = (
                ""
                if found is None or not gain or start is None
                else f", {(found.accuracy - start.accuracy) / gain:.0%}"
            )
            cells.append(share_cell(found) + kept)
        body.append([r.agent, *cells, share_cell(r)])
    return Text(
        "Handing over to the prior",
        "Greedy accuracy where the agent chooses at the first decisions of a text only (their number, or their share in its own text), and "
        "the prior afterwards; behind it, how much of the agent's gain over where it began is kept.",
        ["agent", *(f"after {name}" for name in names), "never"],
        body,
    )


def _samples(results: Results) -> Text | None:
    rows = [row for row in results.pooled or results.rows if row.distinct_answers is not None]
    if not rows:
        return None
    ks = sorted({k for row in rows for k in row.sampled})
    body = []
    for row in rows:
        found = [row.sampled.get(k, Sampled()) for k in ks]
        figures = [num(v) for each in found for v in (each.pass_, each.maj)]
        body.append([row.agent, num(row.distinct_answers, 2), num(row.text_distance, 2), *figures])
    return Text(
        "Several texts a problem",
        "Different answers of a problem's sampled texts, and how different its texts are (the share of pairs of neighbouring tokens that "
        "another text does not have); the share of problems that some of k texts solves, and that the answer of most of them solves, "
        "estimated from all texts. Of equally frequent answers that of the likelier texts counts.",
        ["agent", "answers", "distance", *(f"{name}@{k}" for k in ks for name in ("pass", "maj"))],
        body,
    )


def _verification(results: Results) -> Text | None:
    body = []
    for row in results.pooled or results.rows:
        if (v := row.value) is None:
            continue
        low, high = v.auroc_ci95
        brier = f"{v.brier:.3f} ({v.brier_of_mean:.3f})"
        body.append(
            [
                row.agent,
                f"{v.n_mixed} of {v.n_problems}",
                "verifier",
                f"{v.auroc:.3f} [{low:.2f}, {high:.2f}]",
                "",
                brier,
            ]
        )
        for name, rival in v.rivals.items():
            body.append([row.agent, "", name, f"{rival.auroc:.3f}", _difference(rival.above), ""])
    if not body:
        return None
    return Text(
        "The learned verifier",
        "AUROC within the problems that have right and wrong texts: the share of pairs of a right and a wrong text in which the right one "
        "scores higher, with 95% intervals (bootstrap over problems); below it, what else could choose among texts. Brier score: the mean "
        "squared error, in brackets that of saying the mean verdict.",
        ["agent", "problems", "by", "AUROC", "verifier above it", "Brier"],
        body,
    )


def _choices(results: Results) -> Text | None:
    body = []
    for row in results.pooled or results.rows:
        if (v := row.value) is None:
            continue
        k = v.samples
        for choice, solved, over_vote, over_greedy in (
            ("greedy", v.greedy, None, None),
            (f"vote of {k}", v.maj, None, None),
            (f"weighted vote of {k}", v.weighted_maj, v.weighted_over_maj, v.weighted_over_greedy),
            (f"best of {k}", v.best_of, v.best_over_maj, v.best_over_greedy),
            (f"any of {k}, by the verdict", v.any_of, None, None),
        ):
            above = ["" if each is None else _difference(each) for each in (over_vote, over_greedy)]
            body.append([row.agent, choice, num(solved), *above])
    if not body:
        return None
    return Text(
        "Choosing without the verdict",
        "The share of problems solved by the greedy text, by the answer of most of the sampled texts, by that of the largest sum of the "
        "verifier's values, by the text of the largest value, and by any of them; paired differences with 95% intervals.",
        ["agent", "choice", "solved", "above the vote", "above greedy"],
        body,
    )


def _searches(results: Results) -> Text | None:
    rows = [(row, row.search) for row in results.pooled or results.rows if row.search is not None]
    if not any("/" in search.search for _, search in rows):  # the verdict judged all of them
        return None
    body = []
    for row, search in rows:
        budget = "-" if search.budget is None else f"{search.budget:,}"
        body.append([search.search, share_cell(row), num(search.mean_tokens, 0), num(search.mean_tried, 1), budget])
    return Text(
        "Searches and what they cost",
        "<search>/<judge>: no verdict was asked. Generated tokens and texts a problem, means.",
        ["search", "solved", "tokens", "texts", "budget"],
        body,
    )


def _difference(found: Difference) -> str:
    low, high = found.ci95
    return f"{found.mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _quoted(token: str) -> str:
    return f"“{repr(token)[1:-1]}”"


def breakdown_tables(results: Results) -> list[Text]:
    """A table for every column that problems differ in: a row a value, a column an agent."""
    parts = {r.agent: r.breakdown for r in results.pooled or results.rows}
    tables = []
    for column in dict.fromkeys(c for part in parts.values() for c in part):
        body = []
        for name in dict.fromkeys(name for part in parts.values() for name in part.get(column, {})):
            shares = [part.get(column, {}).get(name) for part in parts.values()]
            n = max(share.n for share in shares if share)
            body.append([name, str(n), *map(share_cell, shares)])
        tables.append(Text(f"Accuracy by {column}", "", [column, "n", *parts], body))
    return tables
