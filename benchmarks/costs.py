"""Accuracy against all seconds from nothing, of every arm whose figures are published, in whichever run it was measured.

`python -m benchmarks.published benchmarks/results/headline.json` draws `plots/headline_costs.png`, a panel for each task. A line leads from an arm before RL (a hollow mark) to the same arm after RL. Controls are left out.
"""

from pathlib import Path
from typing import Any

from ollm_rl.report.drawing import log_axis, save
from ollm_rl.report.pages import PALETTE

# What is in the names of arms (the first that is), what they are called in the legend, and their colours.
KINDS = (
    ("shortlist_head", "tokens of the shortlist", PALETTE[3]),
    ("lora_", "LoRA-RL", PALETTE[1]),
    ("fitted_", "latents over a backbone that LoRA fitted", PALETTE[2]),
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
            kind, colour = kind_of(row["agent"])
            x, y, (low, high) = row["total_seconds"], row["accuracy"], row["accuracy_ci95"]
            begun, before = x - row.get("train_seconds", 0), row["before"]["accuracy"]
            axes.plot([begun, x], [before, y], "-", color=colour, linewidth=1.3, alpha=0.7)
            axes.plot(begun, before, "o", color=colour, markerfacecolor="white", markersize=5)
            named[kind] = axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", color=colour, capsize=3)
            axes.annotate(
                row["agent"],
                (x, y),
                xytext=(5, -4 if "shortlist" in row["agent"] else 3),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
        log_axis(axes)
        left, right = axes.get_xlim()
        axes.set(title=task, xlabel="seconds from nothing", xlim=(left, right * 1.5), ylim=(0, 1.02))  # room for names
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("share solved; hollow: before RL")
    figure.legend([*named.values()], [*named], loc="outside lower center", ncol=len(named), frameon=False, fontsize=9)
    return save(figure, path)


def kind_of(agent: str) -> tuple[str, str]:
    """What an arm is called in the legend, and its colour."""
    return next((kind, colour) for part, kind, colour in KINDS if part in agent)


def learners(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms of a task that learn from rewards and say what they took."""
    arms = [row for row in found.get("pooled", []) if row.get("total_seconds") and row.get("before")]
    return [row for row in arms if not any(control in row["agent"] for control in CONTROLS)]
