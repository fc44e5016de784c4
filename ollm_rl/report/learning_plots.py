"""How agents learned, and what it cost: against episodes, tokens and seconds, and from nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollm_rl.evaluation.comparison import evaluation_curve, learning_curve, trailing
from ollm_rl.evaluation.metrics import share
from ollm_rl.evaluation.records import Share
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import PooledRow, Row
from ollm_rl.report.drawing import colours_of, legend, log_axis, new_figure, save


def learning(results: Results, folder: Path) -> Path | None:
    """Training reward against episodes, a thin line a seed, and held-out accuracy; greedy accuracies of the others as level lines."""
    learners = _learners(results)
    if not learners:
        return None
    figure, axes = new_figure("training episodes", "share solved")
    colours = colours_of(results)
    whole = {row.agent: row for row in results.pooled or results.rows}
    for i, (name, rows) in enumerate(learners.items()):
        colour, curves = colours[name], [learning_curve(row) for row in rows]
        for lines in curves:
            x = [m["train_episodes"] for m in lines]
            thin = trailing(lines) if len(curves) > 1 else [m["reward"] for m in lines]
            axes.plot(x, thin, color=colour, alpha=0.25, linewidth=1)
        x, mean, _, _ = over_seeds(curves, "train_episodes")
        axes.plot(x, mean, color=colour, linewidth=2, label=f"{name} (training, sampled)")
        evaluated = evaluated_shares(rows)
        if evaluated:
            at, shares = list(evaluated), list(evaluated.values())
            axes.plot(at, [s.accuracy for s in shares], "--o", color=colour, markersize=4, linewidth=1.5)
            axes.fill_between(at, *zip(*(s.accuracy_ci95 for s in shares), strict=True), color=colour, alpha=0.1)
        if (row := whole[name]).n_problems:
            error = [[row.accuracy - row.accuracy_ci95[0]], [row.accuracy_ci95[1] - row.accuracy]]
            end, style = x[-1] * (1.02 + 0.015 * i), "--o" if evaluated else "o"
            axes.errorbar(
                end, row.accuracy, yerr=error, fmt=style, color=colour, capsize=3, label=f"{name} (held out, greedy)"
            )
        elif evaluated:
            axes.plot([], [], "--o", color=colour, label=f"{name} (held out, greedy)")
    for row in results.pooled or results.rows:
        if not row.train_episodes and row.n_problems:
            colour = colours[row.agent]
            axes.axhline(row.accuracy, color=colour, linestyle="--", linewidth=1.3)
            axes.annotate(
                f"{row.agent} {row.accuracy:.2f}", (0.005, row.accuracy + 0.012), color=colour,
                xycoords=("axes fraction", "data"), fontsize=9,
            )  # fmt: skip
    axes.set_title(f"Learning curves: {results.backbone} on {results.task}", fontsize=11)
    inside = {"loc": "upper left", "bbox_to_anchor": (0, 0.94)}  # below the oracle's line
    legend(axes, **(inside if len(learners) < 3 else {}))
    return save(figure, folder / "learning_curve.png")


def _learners(results: Results) -> dict[str, list[Row]]:
    """The rows of those that learned and have a learning curve, by agent."""
    found: dict[str, list[Row]] = {}
    for row in results.rows:
        if row.train_episodes and learning_curve(row):
            found.setdefault(row.agent, []).append(row)
    return found


def evaluated_shares(rows: Sequence[Row]) -> dict[float, Share]:
    """Held-out accuracy by training episodes, where every seed was evaluated: over all of their problems."""
    curves = [{line["train_episodes"]: line for line in evaluation_curve(row)} for row in rows]
    found = {}
    for at in sorted(set(curves[0]).intersection(*curves)):
        lines = [curve[at] for curve in curves]
        n = sum(line["eval/n_problems"] for line in lines)
        found[at] = share(sum(line["eval/accuracy"] * line["eval/n_problems"] for line in lines), n)
    return found


def over_seeds(
    curves: list[list[dict[str, Any]]], key: str
) -> tuple[list[float], list[float], list[float], list[float]]:
    """`key` at every iteration that all seeds have, and the mean, lowest and highest of their trailing rewards there."""
    steps = min(map(len, curves))
    x = [sum(lines[i][key] for lines in curves) / len(curves) for i in range(steps)]
    at = list(zip(*(trailing(lines)[:steps] for lines in curves), strict=True))
    return x, [sum(values) / len(values) for values in at], list(map(min, at)), list(map(max, at))


def costs(results: Results, folder: Path) -> Path | None:
    """Training reward against episodes, generated tokens and seconds: mean of the seeds, and their range."""
    from matplotlib import pyplot as plt

    learners: dict[str, list[list[dict[str, Any]]]] = {}
    for row in results.rows:
        lines = learning_curve(row)
        if lines and all(key in lines[-1] for key in ("train_tokens", "train_seconds")):
            learners.setdefault(row.agent, []).append(lines)
    if len(learners) < 2 or not results.pooled:
        return None
    axes_of = (
        ("train_episodes", "training episodes"),
        ("train_tokens", "generated tokens"),
        ("train_seconds", "seconds"),
    )
    colours = colours_of(results)
    figure, all_axes = plt.subplots(1, 3, figsize=(12.5, 4.2), dpi=130, layout="constrained", sharey=True)
    thresholds = [r.threshold for r in results.rows if r.threshold is not None]
    for axes, (key, label) in zip(all_axes, axes_of, strict=True):
        for name, curves in learners.items():
            colour = colours[name]
            x, mean, low, high = over_seeds(curves, key)
            axes.plot(x, mean, color=colour, linewidth=2, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15)
        if thresholds:
            axes.axhline(sum(thresholds) / len(thresholds), color="#8a93a3", linestyle=":", linewidth=1.3)
        axes.set(xlabel=label, ylim=(0, 1.02))
        if key == "train_seconds":
            log_axis(axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("share solved in training (sampled)")
    all_axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(f"What learning costs: {results.backbone} on {results.task} (dotted: the threshold)", fontsize=11)
    return save(figure, folder / "learning_costs.png")


def against_seconds(results: Results, row: Row | PooledRow) -> tuple[list[float], list[float]]:
    """Seconds from nothing and greedy accuracy of an agent before its last: as it began, and as it was evaluated while it learned."""
    assert row.total_seconds is not None
    begun = row.total_seconds - row.train_seconds
    mine = [r for r in results.rows if r.agent == row.agent]
    curves = [{line["train_episodes"]: line for line in evaluation_curve(r)} for r in mine]
    points = {
        at: share_ for at, share_ in evaluated_shares(mine).items() if all("train_seconds" in c[at] for c in curves)
    }
    x = [begun + sum(c[at]["train_seconds"] for c in curves) / len(curves) for at in points]
    y = [each.accuracy for each in points.values()]
    if row.before is not None and begun > 0:
        x, y = [begun, *x], [row.before.accuracy, *y]
    return x, y


def total_seconds(results: Results, folder: Path) -> Path | None:
    """Greedy accuracy against all seconds from nothing, on a logarithmic axis: what was evaluated while agents learned (split `tune`), and
    at the end (a large mark, with its interval)."""
    whole = {row.agent: row for row in results.pooled or results.rows if row.total_seconds}
    if len(whole) < 2:
        return None
    figure, axes = new_figure("seconds from nothing (fits, conversion and learning)", "share solved")
    colours = colours_of(results)
    for name, row in whole.items():
        x, y = against_seconds(results, row)
        axes.plot([*x, row.total_seconds], [*y, row.accuracy], "-", color=colours[name], linewidth=1.5, alpha=0.8)
        axes.plot(x, y, ".", color=colours[name])
        error = [[row.accuracy - row.accuracy_ci95[0]], [row.accuracy_ci95[1] - row.accuracy]]
        axes.errorbar(row.total_seconds, row.accuracy, yerr=error, fmt="o", color=colours[name], capsize=3, label=name)
    log_axis(axes)
    axes.set_title(f"Accuracy against all seconds: {results.backbone} on {results.task}", fontsize=11)
    legend(axes)
    return save(figure, folder / "total_seconds.png")
