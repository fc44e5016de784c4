"""The plots of a run: learning curves, solved share against budget, and where the gaps between agents are."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from ollm_rl.evaluation.comparison import learning_curve, trailing
from ollm_rl.evaluation.metrics import sampled_metric, samples_of
from ollm_rl.report.style import PALETTE


def draw(root: Path, results: dict) -> list[Path]:
    """Write `plots/*.png` of an experiment; the files that there was data for."""
    import matplotlib

    matplotlib.use("Agg")
    (root / "plots").mkdir(exist_ok=True)
    parts = (_learning(root, results), _costs(root, results), _headroom(root, results), _budget(root, results))
    return [p for p in (*parts, *_gaps(root, results)) if p is not None]


def _colours(results: dict) -> dict[str, str]:
    """A colour for every agent, the same in all plots."""
    agents = dict.fromkeys(row["agent"] for row in results["rows"])
    return {agent: PALETTE[i % len(PALETTE)] for i, agent in enumerate(agents)}


def _figure(xlabel: str, ylabel: str):
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=130, layout="constrained")
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes, **where) -> None:
    """Beside the axes, or where it is said."""
    axes.legend(frameon=False, fontsize=8, **(where or {"loc": "upper left", "bbox_to_anchor": (1, 1)}))


def _save(figure, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return path


def _learning(root: Path, results: dict) -> Path | None:
    """Training reward against episodes, a thin line a seed; greedy accuracies of the others as level lines."""
    figure, axes = _figure("training episodes", "share solved")
    learners: dict[str, list[list[dict]]] = {}
    for row in results["rows"]:
        if row.get("train_episodes") and (lines := learning_curve(row, root)):
            learners.setdefault(row["agent"], []).append(lines)
    colours = _colours(results)
    whole = {row["agent"]: row for row in results.get("pooled") or results["rows"]}
    for i, (name, curves) in enumerate(learners.items()):
        colour, row = colours[name], whole[name]
        for lines in curves:
            x = [m["train_episodes"] for m in lines]
            thin = trailing(lines) if len(curves) > 1 else [m["reward"] for m in lines]
            axes.plot(x, thin, color=colour, alpha=0.25, linewidth=1)
        x, mean, _, _ = _over_seeds(curves, "train_episodes")
        axes.plot(x, mean, color=colour, linewidth=2, label=f"{name} (training, sampled)")
        low, high = row["accuracy_ci95"]
        error = [[row["accuracy"] - low], [high - row["accuracy"]]]
        end = x[-1] * (1.02 + 0.015 * i)
        axes.errorbar(
            end, row["accuracy"], yerr=error, fmt="o", color=colour, capsize=3, label=f"{name} (held out, greedy)"
        )
    level = [r for r in results.get("pooled", results["rows"]) if not r.get("train_episodes")]
    for row in level:
        colour = colours[row["agent"]]
        axes.axhline(row["accuracy"], color=colour, linestyle="--", linewidth=1.3)
        axes.annotate(
            f"{row['agent']} {row['accuracy']:.2f}", (0.005, row["accuracy"] + 0.012), color=colour,
            xycoords=("axes fraction", "data"), fontsize=9,
        )  # fmt: skip
    if not learners:
        return None
    axes.set_title(f"Learning curves: {results['backbone']} on {results['task']}", fontsize=11)
    inside = {"loc": "upper left", "bbox_to_anchor": (0, 0.94)}  # below the oracle's line
    _legend(axes, **(inside if len(learners) < 3 else {}))
    return _save(figure, root / "plots" / "learning_curve.png")


def _over_seeds(curves: list[list[dict]], key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """`key` at every iteration that all seeds have, and the mean, lowest and highest of their trailing rewards there."""
    steps = min(map(len, curves))
    x = [sum(lines[i][key] for lines in curves) / len(curves) for i in range(steps)]
    at = list(zip(*(trailing(lines)[:steps] for lines in curves), strict=True))
    return x, [sum(values) / len(values) for values in at], list(map(min, at)), list(map(max, at))


def _costs(root: Path, results: dict) -> Path | None:
    """Training reward against episodes, generated tokens and seconds: mean of the seeds, and their range."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    learners: dict[str, list[list[dict]]] = {}
    for row in results["rows"]:
        lines = learning_curve(row, root)
        if lines and all(key in lines[-1] for key in ("train_tokens", "train_seconds")):
            learners.setdefault(row["agent"], []).append(lines)
    if len(learners) < 2 or "pooled" not in results:
        return None
    axes_of = (
        ("train_episodes", "training episodes"),
        ("train_tokens", "generated tokens"),
        ("train_seconds", "seconds"),
    )
    colours = _colours(results)
    figure, all_axes = plt.subplots(1, 3, figsize=(12.5, 4.2), dpi=130, layout="constrained", sharey=True)
    thresholds = [r["threshold"] for r in results["rows"] if r.get("threshold") is not None]
    for axes, (key, label) in zip(all_axes, axes_of, strict=True):
        for name, curves in learners.items():
            colour = colours[name]
            x, mean, low, high = _over_seeds(curves, key)
            axes.plot(x, mean, color=colour, linewidth=2, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15)
        if thresholds:
            axes.axhline(sum(thresholds) / len(thresholds), color="#8a93a3", linestyle=":", linewidth=1.3)
        axes.set(xlabel=label, ylim=(0, 1.02))
        if key == "train_seconds":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("share solved in training (sampled)")
    all_axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(
        f"What learning costs: {results['backbone']} on {results['task']} (dotted: the threshold)", fontsize=11
    )
    return _save(figure, root / "plots" / "learning_costs.png")


def _headroom(root: Path, results: dict) -> Path | None:
    """Every agent in one look: greedy accuracy before and after training, best of k, and how far the oracle gets."""
    from matplotlib import pyplot as plt

    rows = [r for r in results.get("pooled", []) if not r["agent"].startswith("oracle_")]
    if len(rows) < 3:
        return None
    rows.sort(key=lambda r: r["accuracy"])
    k = max(samples_of(rows), default=0)  # agents with fewer samples have no bar
    figure, axes = plt.subplots(figsize=(8.2, 0.52 * len(rows) + 1.5), dpi=130, layout="constrained")
    labels = []
    for y, row in enumerate(rows):
        colour = "#3a7d44" if row["agent"] == "oracle" else "#1f5fa8" if row.get("train_episodes") else "#4a4a4a"
        low, high = row["accuracy_ci95"]
        axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.plot([row["accuracy"]], [y], "o", color=colour, markersize=8)
        axes.annotate(f"{row['accuracy']:.3f}", (row["accuracy"], y + 0.22), color=colour, ha="center", fontsize=8)
        if "before" in row:
            axes.plot([row["before"]["accuracy"]], [y], "o", markersize=7, markerfacecolor="white", color=colour)
            arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.6}
            axes.annotate("", (row["accuracy"], y), (row["before"]["accuracy"], y), arrowprops=arrow)
        if (best := sampled_metric(row, "pass", k)) is not None:
            axes.plot([best], [y], "|", color="#c8553d", markersize=14, markeredgewidth=2)
        episodes = row.get("train_episodes")
        labels.append(f"{row['agent']}\n{episodes:,.0f} episodes" if episodes else row["agent"])
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.3))
    axes.set_xlabel(
        f"share solved, n = {rows[0]['n_problems']}   (dot: greedy, ring: before training"
        + (f", red bar: best of {k})" if k else ")")
    )
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Where is the headroom? {results['backbone']} on {results['task']}", fontsize=11)
    return _save(figure, root / "plots" / "headroom.png")


def draw_curves(curves: dict[str, list[dict]], title: str, path: Path) -> Path:
    """Solved share against budget, one line a search, written to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    figure, axes = _curves(curves, PALETTE)
    axes.set_title(title, fontsize=11)
    _legend(axes, loc="lower right")
    return _save(figure, path)


def _curves(curves: dict[str, list[dict]], colours: Sequence[str]):
    figure, axes = _figure("generated tokens per problem (budget)", "share solved")
    for colour, (name, curve) in zip(cycle(colours), curves.items(), strict=False):
        x = [p["budget"] for p in curve]
        axes.plot(x, [p["solved"] for p in curve], "o-", color=colour, label=f"oracle: {name}")
        axes.fill_between(x, [p["ci95"][0] for p in curve], [p["ci95"][1] for p in curve], color=colour, alpha=0.15)
    axes.set_xscale("log")
    budgets = sorted({p["budget"] for curve in curves.values() for p in curve})
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.minorticks_off()
    return figure, axes


def _budget(root: Path, results: dict) -> Path | None:
    """Solved share against the oracle's budget in tokens, with the 95% band."""
    curves = results.get("curves")
    if not curves:
        return None
    colours = _colours(results)
    figure, axes = _curves(curves, [c for agent, c in colours.items() if agent.startswith("oracle")])
    rows = results.get("pooled") or results["rows"]
    marked = [(r, k) for r in rows for k in samples_of([r]) if sampled_metric(r, "pass", k) is not None]
    for row, k in marked:
        tokens, colour = k * row["mean_length"], colours[row["agent"]]
        axes.plot([tokens], [sampled_metric(row, "pass", k)], "s", color=colour, label=f"{row['agent']}: pass@{k}")
    axes.set_title(f"What could the best latents reach? {results['backbone']} on {results['task']}", fontsize=11)
    _legend(axes, **({"loc": "lower right"} if len(marked) < 4 else {}))
    return _save(figure, root / "plots" / "solved_against_budget.png")


def _gaps(root: Path, results: dict) -> list[Path]:
    """Share solved by domain, difficulty and source, a mark for every agent: what a policy leaves to the oracle, and where."""
    rows = [r for r in results.get("pooled") or results["rows"] if r.get("breakdown")]
    fields = dict.fromkeys(field for row in rows for field in row["breakdown"])
    return [_gap(root, results, rows, field) for field in fields] if len(rows) > 1 else []


def _gap(root: Path, results: dict, rows: list[dict], field: str) -> Path:
    counts: dict[str, int] = {}
    for row in rows:
        for name, cell in row["breakdown"].get(field, {}).items():
            counts[name] = max(counts.get(name, 0), cell["n"])
    names = sorted(counts, key=counts.__getitem__, reverse=True)[:12]  # the largest, in their own order
    names = [name for name in counts if name in names]
    colours = _colours(results)
    figure, axes = _figure(field, "share solved")
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        cells = row["breakdown"].get(field, {})
        known = [(x, cells[name]) for x, name in enumerate(names) if name in cells]
        at = [x + (i - (len(rows) - 1) / 2) * width for x, _ in known]
        y = [cell["accuracy"] for _, cell in known]
        error = [[cell["accuracy"] - cell["accuracy_ci95"][0] for _, cell in known],
                 [cell["accuracy_ci95"][1] - cell["accuracy"] for _, cell in known]]  # fmt: skip
        colour = colours[row["agent"]]
        axes.errorbar(at, y, yerr=error, fmt="o", color=colour, capsize=2, markersize=5, label=row["agent"])
    axes.set_xticks(range(len(names)), [f"{name}\nn = {counts[name]}" for name in names], fontsize=8)
    axes.set_title(f"Where is the headroom? {results['backbone']} on {results['task']}, by {field}", fontsize=11)
    _legend(axes)
    return _save(figure, root / "plots" / f"by_{field}.png")
