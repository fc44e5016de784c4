"""The plots of a run: learning curves, solved share against budget, and where the gaps between agents are."""

import json
from pathlib import Path

PALETTE = ("#1f5fa8", "#c8553d", "#3a7d44", "#7a4fa3", "#b8860b", "#4a4a4a")


def draw(root: Path, results: dict) -> list[Path]:
    """Write `plots/*.png` of an experiment; the files that there was data for."""
    import matplotlib

    matplotlib.use("Agg")
    (root / "plots").mkdir(exist_ok=True)
    return [p for p in (_learning(root, results), _budget(root, results), *_gaps(root, results)) if p is not None]


def _figure(xlabel: str, ylabel: str):
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=130, layout="constrained")
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return path


def _learning(root: Path, results: dict) -> Path | None:
    """Training reward against episodes, one line a seed; greedy accuracies of the others as level lines."""
    figure, axes = _figure("training episodes", "share solved")
    learners = 0
    for row in results["rows"]:
        path = root / f"{row['agent']}-{row['seed']}" / "metrics.jsonl"
        path = path if path.exists() else root / "metrics.jsonl"
        lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
        lines = [x for x in lines if "reward" in x]
        if not lines or not row.get("train_episodes"):
            continue
        colour, learners = PALETTE[learners % len(PALETTE)], learners + 1
        x, y = [m["train_episodes"] for m in lines], [m["reward"] for m in lines]
        smooth = [sum(y[max(0, i - 2) : i + 1]) / len(y[max(0, i - 2) : i + 1]) for i in range(len(y))]
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=1)
        axes.plot(x, smooth, color=colour, linewidth=2, label=f"{row['agent']}, seed {row['seed']} (training, sampled)")
        low, high = row["accuracy_ci95"]
        error = [[row["accuracy"] - low], [high - row["accuracy"]]]
        name = f"{row['agent']}, seed {row['seed']} (held out, greedy)"
        axes.errorbar(x[-1] * 1.02, row["accuracy"], yerr=error, fmt="o", color=colour, capsize=3, label=name)
    level = [r for r in results.get("pooled", results["rows"]) if not r.get("train_episodes")]
    for i, row in enumerate(level):
        colour = PALETTE[-1 - i % len(PALETTE)]
        axes.axhline(row["accuracy"], color=colour, linestyle="--", linewidth=1.3)
        axes.annotate(
            f"{row['agent']} {row['accuracy']:.2f}", (0.005, row["accuracy"] + 0.012), color=colour,
            xycoords=("axes fraction", "data"), fontsize=9,
        )  # fmt: skip
    if not learners:
        return None
    axes.set_title(f"Learning to choose latents: {results['backbone']} on {results['task']}", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.94))
    return _save(figure, root / "plots" / "learning_curve.png")


def draw_curves(curves: dict[str, list[dict]], title: str, path: Path) -> Path:
    """Solved share against budget, one line a search, written to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    figure, axes = _curves(curves)
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _save(figure, path)


def _curves(curves: dict[str, list[dict]]):
    figure, axes = _figure("generated tokens per problem (budget)", "share solved")
    for colour, (name, curve) in zip(PALETTE, curves.items(), strict=False):
        x = [p["budget"] for p in curve]
        axes.plot(x, [p["solved"] for p in curve], "o-", color=colour, label=f"oracle: {name}")
        axes.fill_between(x, [p["ci95"][0] for p in curve], [p["ci95"][1] for p in curve], color=colour, alpha=0.15)
    axes.set_xscale("log")
    return figure, axes


def _budget(root: Path, results: dict) -> Path | None:
    """Solved share against the oracle's budget in tokens, with the 95% band."""
    curves = results.get("curves")
    if not curves:
        return None
    figure, axes = _curves(curves)
    for i, row in enumerate(r for r in results["rows"] if r.get("pass_at_8") is not None):
        colour = PALETTE[(len(curves) + i) % len(PALETTE)]
        tokens = 8 * row["mean_length"]
        axes.plot([tokens], [row["pass_at_8"]], "s", color=colour, label=f"{row['agent']}, seed {row['seed']}: pass@8")
    axes.set_title(f"What could the best latents reach? {results['backbone']} on {results['task']}", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
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
    figure, axes = _figure(field, "share solved")
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        cells = row["breakdown"].get(field, {})
        known = [(x, cells[name]) for x, name in enumerate(names) if name in cells]
        at = [x + (i - (len(rows) - 1) / 2) * width for x, _ in known]
        y = [cell["accuracy"] for _, cell in known]
        error = [[cell["accuracy"] - cell["accuracy_ci95"][0] for _, cell in known],
                 [cell["accuracy_ci95"][1] - cell["accuracy"] for _, cell in known]]  # fmt: skip
        colour = PALETTE[i % len(PALETTE)]
        axes.errorbar(at, y, yerr=error, fmt="o", color=colour, capsize=2, markersize=5, label=row["agent"])
    axes.set_xticks(range(len(names)), [f"{name}\nn = {counts[name]}" for name in names], fontsize=8)
    axes.set_title(f"Where is the headroom? {results['backbone']} on {results['task']}, by {field}", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, root / "plots" / f"by_{field}.png")
