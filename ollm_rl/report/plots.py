"""The plots of a run, beside those of learning: solved share against budget and texts, and where the gaps between agents are."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from ollm_rl.evaluation.overview import draw_overview
from ollm_rl.evaluation.records import Curves
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import AgentRow
from ollm_rl.report.drawing import colours_of, legend, log_axis, new_figure, save
from ollm_rl.report.learning_plots import costs, learning, total_seconds
from ollm_rl.report.pages import PALETTE


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the plots that there is data for to a folder; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(exist_ok=True)
    parts = (
        plot(results, folder)
        for plot in (learning, costs, total_seconds, _headroom, _decides, _budget, _samples, _reliability, _tokens)
    )
    return [p for p in (*parts, *_gaps(results, folder)) if p is not None]


def _headroom(results: Results, folder: Path) -> Path | None:
    rows = [r for r in results.pooled if not r.agent.startswith("oracle_")]
    if len(rows) < 3:
        return None
    return draw_overview(f"Where is the headroom? {results.backbone} on {results.task}", rows, folder / "headroom.png")


def _decides(results: Results, folder: Path) -> Path | None:
    """What is kept of a gain when the agent hands over to the prior, by the decision after which it does; and the share of decisions at which
    it says another token than the prior's likeliest, by quarter of a text's decisions."""
    from matplotlib import pyplot as plt

    pooled: Sequence[AgentRow] = results.pooled or results.rows
    handed = [row for row in pooled if row.hand_over]
    quarters: dict[str, list[Sequence[float]]] = {}
    for one in results.rows:
        if one.changes and any(one.changes.by_quarter or ()):
            quarters.setdefault(one.agent, []).append(one.changes.by_quarter or ())
    if not handed:
        return None
    colours = colours_of(results)
    names = list(handed[0].hand_over)
    parts = [each for each in ([n for n in names if float(n) >= 1], [n for n in names if float(n) < 1]) if each]
    figure, all_axes = plt.subplots(
        1, len(parts) + 1, figsize=(4.2 * len(parts) + 4, 4.2), dpi=130, layout="constrained"
    )
    *kept, changed = all_axes
    prior = next((row for row in pooled if row.agent == "prior"), None)
    for axes, part in zip(kept, parts, strict=True):
        for row in handed:
            shares = [row.before or prior, *(row.hand_over.get(name) for name in part), row]
            known = [(x, each) for x, each in enumerate(shares) if each is not None]
            at, colour = [x for x, _ in known], colours[row.agent]
            axes.plot(at, [each.accuracy for _, each in known], "o-", color=colour, label=row.agent)
            axes.fill_between(at, *zip(*(e.accuracy_ci95 for _, e in known), strict=True), color=colour, alpha=0.12)
        shown = [name if float(name) >= 1 else f"{float(name):.0%}" for name in part]
        axes.set_xticks(range(len(part) + 2), ["0", *shown, "all"])
        axes.set(xlabel="decisions the agent takes before the prior does", ylabel="greedy accuracy")
    for agent, seeds in quarters.items():
        mean = [sum(shares) / len(seeds) for shares in zip(*seeds, strict=True)]
        changed.plot(range(4), mean, "o-", color=colours[agent], label=agent)
    changed.set_xticks(range(4), ["1st", "2nd", "3rd", "4th"])
    changed.set(xlabel="quarter of a text's decisions", ylabel="share of decisions unlike the prior's")
    for axes in all_axes:
        axes.grid(alpha=0.25)
        axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
    kept[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(f"Where do learned latents decide? {results.backbone} on {results.task}", fontsize=11)
    return save(figure, folder / "decides.png")


def draw_curves(curves: Curves, title: str, path: Path) -> Path:
    """Solved share against budget, one line a search, written to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    figure, axes = _curves(curves, PALETTE)
    axes.set_title(title, fontsize=11)
    legend(axes, loc="lower right")
    return save(figure, path)


def _curves(curves: Curves, colours: Sequence[str]) -> tuple[Any, Any]:
    figure, axes = new_figure("generated tokens per problem (budget)", "share solved")
    for colour, (name, curve) in zip(cycle(colours), curves.items(), strict=False):
        x = [p.budget for p in curve]
        axes.plot(x, [p.solved for p in curve], "o-", color=colour, label=f"oracle: {name}")
        axes.fill_between(x, [p.ci95[0] for p in curve], [p.ci95[1] for p in curve], color=colour, alpha=0.15)
    axes.set_xscale("log")
    budgets = sorted({p.budget for curve in curves.values() for p in curve})
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.minorticks_off()
    return figure, axes


def _budget(results: Results, folder: Path) -> Path | None:
    """Solved share against the oracle's budget in tokens, with the 95% band."""
    if not results.curves:
        return None
    colours = colours_of(results)
    figure, axes = _curves(results.curves, [c for agent, c in colours.items() if agent.startswith("oracle")])
    rows = results.pooled or results.rows
    marked = [
        (row.agent, k, k * row.mean_length, sampled.pass_)
        for row in rows
        for k, sampled in row.sampled.items()
        if row.mean_length is not None and sampled.pass_ is not None
    ]
    for agent, k, tokens, solved in marked:
        axes.plot([tokens], [solved], "s", color=colours[agent], label=f"{agent}: pass@{k}")
    axes.set_title(f"What could the best latents reach? {results.backbone} on {results.task}", fontsize=11)
    legend(axes, **({"loc": "lower right"} if len(marked) < 4 else {}))
    return save(figure, folder / "solved_against_budget.png")


def _samples(results: Results, folder: Path) -> Path | None:
    """pass@k and maj@k against k with their 95% bands: does learning find new solutions, or repeat those that were there?"""
    several = any(len(row.seeds) > 1 for row in results.pooled)
    rows = [row for row in (results.pooled if several else results.rows) if len(row.sampled) > 1]
    if not rows:
        return None
    figure, axes = new_figure("texts per problem (k)", "share solved")
    colours = colours_of(results)
    for row in rows:
        ks, found = [*row.sampled], [*row.sampled.values()]
        for name, style in (("pass", "o-"), ("maj", "s--")):
            values = [getattr(each, {"pass": "pass_"}.get(name, name)) for each in found]
            if None in values:
                continue
            axes.plot(ks, values, style, color=colours[row.agent], markersize=4, label=f"{row.agent}: {name}@k")
            bands = [getattr(each, f"{name}_ci95") for each in found]
            if None not in bands:
                axes.fill_between(ks, *zip(*bands, strict=True), color=colours[row.agent], alpha=0.12)
    axes.set_xscale("log", base=2)
    ticks = sorted({k for row in rows for k in row.sampled})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_title(f"More samples: {results.backbone} on {results.task}, n = {rows[0].n_problems}", fontsize=11)
    legend(axes)
    return save(figure, folder / "samples.png")


def _reliability(results: Results, folder: Path) -> Path | None:
    """The share of right texts against what the learned verifier says of them."""
    rows = [(row.agent, row.value) for row in results.pooled or results.rows if row.value is not None]
    if not rows:
        return None
    figure, axes = new_figure(
        "how likely the learned verifier finds texts to be right (mean of a bin)", "share of them that are"
    )
    axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1)
    colours = colours_of(results)
    for agent, value in rows:
        said, true, counts = zip(*value.reliability, strict=True)
        axes.plot(said, true, color=colours[agent], linewidth=1.3)
        sizes = [20 + 180 * n / sum(counts) for n in counts]
        axes.scatter(
            said,
            true,
            s=sizes,
            color=colours[agent],
            label=f"{agent}: Brier {value.brier:.3f}, AUROC {value.auroc:.3f}",
        )
    axes.set(xlim=(0, 1.02))
    axes.set_title(f"The learned verifier: {results.backbone} on {results.task} (area: texts)", fontsize=11)
    legend(axes, loc="upper left")
    return save(figure, folder / "reliability.png")


def _tokens(results: Results, folder: Path) -> Path | None:
    """Accuracy against generated tokens a problem: without the verdict greedy, votes and searches, and what the verdict could reach."""

    several = any(len(row.seeds) > 1 for row in results.pooled)
    rows: Sequence[AgentRow] = results.pooled if several else results.rows
    found = [row for row in rows if row.search and row.search.mean_tokens and "/" in row.search.search]
    voting = [row for row in rows if len(row.sampled) > 1 and row.mean_sampled_length]
    if not found and not voting:
        return None
    figure, axes = new_figure("generated tokens per problem", "share solved")
    colours = colours_of(results)
    for row in voting:
        ks, colour, each = [*row.sampled], colours[row.agent], row.mean_sampled_length or 0.0
        if row.mean_length:
            axes.plot([row.mean_length], [row.accuracy], "*", color=colour, markersize=11, label=f"{row.agent}: greedy")
        curves = {"vote": {k: s.maj for k, s in row.sampled.items()}}
        if row.value is not None:
            curves |= {"weighted vote": dict(row.value.weighted_at), "best of n": dict(row.value.best_at)}
        for (name, curve), style in zip(curves.items(), ("s--", "o-", "^-"), strict=False):
            known = [(k * each, curve[k]) for k in ks if curve.get(k) is not None]
            if known:
                axes.plot(*zip(*known, strict=True), style, color=colour, markersize=4, label=f"{row.agent}: {name}")
        bound = [(k * each, s.pass_) for k, s in row.sampled.items() if s.pass_ is not None]
        axes.plot(*zip(*bound, strict=True), ":", color=colour, label=f"{row.agent}: with the verdict (pass@k)")
    for row, mark in zip(found, cycle("DPXvh<>d"), strict=False):
        assert row.search is not None
        axes.plot(
            [row.search.mean_tokens],
            [row.accuracy],
            mark,
            color=colours[row.agent],
            markersize=8,
            label=row.search.search,
        )
    for name, points in results.curves.items():
        axes.plot(
            [p.budget for p in points],
            [p.solved for p in points],
            ":",
            color="#4a4a4a",
            label=f"with the verdict: {name}",
        )
    log_axis(axes)
    axes.set_title(f"Without the verdict: {results.backbone} on {results.task}, n = {rows[0].n_problems}", fontsize=11)
    legend(axes)
    return save(figure, folder / "tokens.png")


def _gaps(results: Results, folder: Path) -> list[Path]:
    """Share solved by domain, difficulty and source, a mark for every agent: what a policy leaves to the oracle, and where."""
    rows = [r for r in results.pooled or results.rows if r.breakdown]
    fields = dict.fromkeys(field for row in rows for field in row.breakdown)
    return [_gap(results, folder, rows, field) for field in fields] if len(rows) > 1 else []


def _gap(results: Results, folder: Path, rows: Sequence[AgentRow], field: str) -> Path:
    counts: dict[str, int] = {}
    for row in rows:
        for name, cell in row.breakdown.get(field, {}).items():
            counts[name] = max(counts.get(name, 0), cell.n)
    names = sorted(counts, key=counts.__getitem__, reverse=True)[:12]  # the largest, in their own order
    names = [name for name in counts if name in names]
    colours = colours_of(results)
    figure, axes = new_figure(field, "share solved")
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        cells = row.breakdown.get(field, {})
        known = [(x, cells[name]) for x, name in enumerate(names) if name in cells]
        at = [x + (i - (len(rows) - 1) / 2) * width for x, _ in known]
        y = [cell.accuracy for _, cell in known]
        error = [[cell.accuracy - cell.accuracy_ci95[0] for _, cell in known],
                 [cell.accuracy_ci95[1] - cell.accuracy for _, cell in known]]  # fmt: skip
        colour = colours[row.agent]
        axes.errorbar(at, y, yerr=error, fmt="o", color=colour, capsize=2, markersize=5, label=row.agent)
    axes.set_xticks(range(len(names)), [f"{name}\nn = {counts[name]}" for name in names], fontsize=8)
    axes.set_title(f"Where is the headroom? {results.backbone} on {results.task}, by {field}", fontsize=11)
    legend(axes)
    return save(figure, folder / f"by_{field}.png")


def draw_tuning(result: Mapping[str, Any], folder: Path) -> Path:
    """Draw `tune.png`: the sampled accuracy of every trial of a tuning, or the greedy one if nothing was sampled, best first.

    Args:
        result: what `tune.json` has.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(exist_ok=True)
    figure_of = f"avg@{result['samples']}" if result["samples"] else "accuracy"
    rows = [row for row in result["rows"] if row.get(figure_of) is not None]
    colours = {agent: PALETTE[i % len(PALETTE)] for i, agent in enumerate(result["best"])}
    rows.sort(key=lambda row: ([*colours].index(row["agent"]), -row[figure_of]))
    from matplotlib import pyplot as plt

    labels = [", ".join(f"{k}={v}" for k, v in row["settings"].items()) or "defaults" for row in rows]
    width = 7.0 + 0.055 * max(map(len, labels), default=0)
    figure, axes = plt.subplots(figsize=(width, 0.28 * len(rows) + 1.5), dpi=130, layout="constrained")
    for y, row in enumerate(rows):
        colour, best = colours[row["agent"]], row["settings"] == result["best"][row["agent"]]
        if (interval := row.get(f"{figure_of}_ci95")) is not None:
            axes.plot(interval, [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.plot([row[figure_of]], [y], "*" if best else "o", color=colour, markersize=13 if best else 7)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for agent, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=agent)
    axes.set(
        xlim=(0, 1.02),
        xlabel=f"{figure_of} on split {result['split']}, n = {result['n']}, 95% intervals (star: chosen)",
    )
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Tuning: {result['backbone']} on {result['task']}, {result['episodes']} episodes each", fontsize=11)
    legend(axes)
    return save(figure, folder / "tune.png")
