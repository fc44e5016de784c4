"""What all plots share: colours of agents, axes, legends, files."""

from pathlib import Path
from typing import Any

from ollm_rl.evaluation.results import Results
from ollm_rl.report.pages import PALETTE


def colours_of(results: Results) -> dict[str, str]:
    """A colour for every agent, the same in all plots."""
    agents = dict.fromkeys(row.agent for row in results.rows)
    return {agent: PALETTE[i % len(PALETTE)] for i, agent in enumerate(agents)}


def new_figure(xlabel: str, ylabel: str) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=130, layout="constrained")
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def log_axis(axes: Any) -> None:
    """A logarithmic horizontal axis with plain numbers, 1, 2 and 5 of each power of ten."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()


def legend(axes: Any, **where: Any) -> None:
    """Beside the axes, or where it is said."""
    axes.legend(frameon=False, fontsize=8, **(where or {"loc": "upper left", "bbox_to_anchor": (1, 1)}))


def save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return path
