"""Accuracy against all seconds from nothing, of every arm whose figures are published, in whichever run it was measured.

    python -m benchmarks.costs benchmarks/results/headline.json     # plots/headline_costs.png, a panel for each task

`published.py` draws it too. A line leads from an arm before RL (a hollow mark) to the same arm after RL. Controls are left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ollm_rl.report.drawing import log_axis, save
from ollm_rl.report.pages import PALETTE

# Beginnings of the names of arms, what they are called in the legend, and their colours.
KINDS = (
    ("lora_", "LoRA-RL", PALETTE[1]),
    ("fitted_", "latents over a backbone that LoRA fitted", PALETTE[2]),
    ("shortlist_head", "tokens of the shortlist", PALETTE[3]),
    ("", "latents over the frozen backbone", PALETTE[0]),
)
CONTROLS = ("steer", "first_decisions", "best_prefix", "rank1", "tiny_lora")


def draw(published: dict[str, Any], path: Path) -> Path | None:
    """The plot, or None where no arm says what it took.

    Args:
        published: by task the arms over all seeds (`pooled`), as `results/headline.json` has them.
    """
    from matplotlib import pyplot as plt

    tasks = {task: learners(found) for task, found in published.items() if isinstance(found, dict) and learners(found)}
    if not tasks:
        return None
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(4.6 * len(tasks), 4.4), dpi=130, layout="constrained", sharey=True, squeeze=False
    )
    named: dict[str, Any] = {}
    for axes, (task, arms) in zip(panels[0], tasks.items(), strict=True):
        for row in arms:
            _, kind, colour = next(each for each in KINDS if row["agent"].startswith(each[0]))
            x, y, (low, high) = row["total_seconds"], row["accuracy"], row["accuracy_ci95"]
            begun, before = x - row.get("train_seconds", 0), row["before"]["accuracy"]
            axes.plot([begun, x], [before, y], "-", color=colour, linewidth=1.3, alpha=0.7)
            axes.plot(begun, before, "o", color=colour, markerfacecolor="white", markersize=5)
            named[kind] = axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", color=colour, capsize=3)
            axes.annotate(row["agent"], (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7, color=colour)
        log_axis(axes)
        left, right = axes.get_xlim()
        axes.set(title=task, xlabel="seconds from nothing", xlim=(left, right * 1.5), ylim=(0, 1.02))  # room for names
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("share solved; hollow: before RL")
    figure.legend([*named.values()], [*named], loc="outside lower center", ncol=len(named), frameon=False, fontsize=9)
    return save(figure, path)


def learners(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms of a task that learn from rewards and say what they took."""
    arms = [row for row in found.get("pooled", []) if row.get("total_seconds") and row.get("before")]
    return [row for row in arms if not any(control in row["agent"] for control in CONTROLS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "plots")
    given = parser.parse_args()
    print(draw(json.loads(given.figures.read_text()), given.out / f"{given.figures.stem}_costs.png"))


if __name__ == "__main__":
    main()
