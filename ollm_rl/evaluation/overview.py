"""Results in one look: the table of agents and seeds, and the plot of where every agent stands."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ollm_rl.evaluation.records import Sampled, Share
from ollm_rl.evaluation.rows import AgentRow, PooledRow, Row, Scores

FIGURES = ("avg", "pass", "maj")  # of sampled answers


@dataclass
class Text:
    """A table of text, the first `bold` rows emphasised."""

    title: str
    note: str
    head: list[str]
    body: list[list[str]] = field(default_factory=list)
    bold: int = 0

    def to_rich(self, notes: bool = False) -> Table:
        """For the terminal; with `notes` the note stands below."""
        table = Table(title=self.title, caption=escape(self.note) if notes else None, caption_justify="left")
        for i, title in enumerate(self.head):
            table.add_column(title, justify="right" if i else "left")
        for i, row in enumerate(self.body):
            table.add_row(*map(escape, row), style="bold" if i < self.bold else None)
            if i == self.bold - 1:
                table.add_section()
        return table

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=1000).print(self.to_rich())
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def num(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def share_cell(found: Scores | Share | None) -> str:
    """An accuracy with its interval: of a row, of what was measured before, or of a part of the problems."""
    if found is None:
        return "-"
    low, high = found.accuracy_ci95
    return f"{found.accuracy:.3f} [{low:.2f}, {high:.2f}]"


def sample_counts(rows: Sequence[AgentRow]) -> list[int]:
    """The largest number of samples k of every row that has figures of some, in order."""
    return sorted({max(row.sampled) for row in rows if row.sampled})


def shown_pooled(pooled: Sequence[PooledRow]) -> list[PooledRow]:
    """The pooled rows, if they say more than the rows: of several seeds."""
    return list(pooled) if any(len(p.seeds) > 1 for p in pooled) else []


def results_table(title: str, rows: Sequence[Row], pooled: Sequence[PooledRow] = ()) -> Text:
    """A row per agent and seed, after the pooled ones if there are several seeds.

    What an agent was before it learned has a row of its own, unless another row is the same (the prior's), or pooled ones and tables of
    each task say it.
    """
    pooled = shown_pooled(pooled)
    ks = sample_counts([*pooled, *rows])
    tasks = any(row.task for row in rows)
    head = [*(["task"] if tasks else []), "agent", "seed", "n", "accuracy"]
    head += [f"{figure}@{k}" for k in ks for figure in FIGURES]
    before = {} if pooled or tasks else {id(row): row.before for row in rows if row.before and not _is_shown(row, rows)}
    graded = any(is_graded(row) for row in [*pooled, *rows, *before.values()])
    head += ["reward"] if graded else []
    head += ["episodes", "train s", "no ans.", "repet.", "foreign"]
    body = []
    named: list[tuple[Scores, str, str, str]] = [(row, row.agent, "", f"all {len(row.seeds)}") for row in pooled]
    for row in rows:
        if id(row) in before:
            named.append((before[id(row)], f"{row.agent} before", "", str(row.seed)))
        named.append((row, row.agent, row.task or "", str(row.seed)))
    for scores, agent, task, seed in named:
        cells = [*([task] if tasks else []), agent, seed, str(scores.n_problems), share_cell(scores)]
        # Figures of another number of samples are no more comparable than those of another column.
        for found in [scores.sampled.get(k, Sampled()) for k in ks]:
            cells += [num(v) for v in (found.avg, found.pass_, found.maj)]
        cells += [_reward_cell(scores)] if graded else []
        cells += [num(getattr(scores, name, 0), 0) for name in ("train_episodes", "train_seconds")]
        cells += [num(v) for v in (scores.no_answer_rate, scores.repetition_rate, scores.foreign_script_rate)]
        body.append(cells)
    return Text(title, _results_note(ks, graded), head, body, len(pooled))


def _results_note(ks: Sequence[int], graded: bool) -> str:
    """What the columns of the results are."""
    said = [
        "accuracy: the share of n test problems whose greedy text is right, with its 95% Wilson interval; an oracle's or a search's is the "
        "share for which it found a right text."
    ]
    if ks:
        said.append(
            f"Of k = {' and '.join(map(str, ks))} sampled texts a problem, avg@k is the share that is right, pass@k the share of problems with a right one, maj@k that of "
            "problems whose most frequent answer is right."
        )
    if graded:
        said.append("reward: the mean of greedy texts.")
    said.append(
        "episodes, train s: what learning from rewards took. no ans., repet., foreign: shares of greedy texts without an answer, that repeat "
        "themselves, with letters of another script than the problem's."
    )
    return " ".join(said)


def _is_shown(row: Row, rows: Sequence[Row]) -> bool:
    """Whether what an agent was before it learned is another row: it began as that agent."""
    assert row.before is not None
    facts = (row.before.accuracy, row.before.mean_length)
    return any(
        other.seed == row.seed and (other.accuracy, other.mean_length) == facts for other in rows if other is not row
    )


def is_graded(row: Scores) -> bool:
    """Whether rewards were others than 0 and 1: accuracy is the share of solved texts, and says little of them."""
    if row.mean_reward_ci95 is not None:  # which other rewards alone have
        return True
    return row.mean_reward is not None and abs(row.mean_reward - row.accuracy) > 1e-9  # of results without intervals


def _reward_cell(row: Scores) -> str:
    """The mean reward with its interval, where that was measured."""
    if row.mean_reward_ci95 is None:
        return num(row.mean_reward)
    low, high = row.mean_reward_ci95
    return f"{num(row.mean_reward)} [{low:.2f}, {high:.2f}]"


def draw_overview(title: str, rows: Sequence[AgentRow], path: Path) -> Path:
    """Every agent in one look: greedy accuracy before and after training, best of k, and how far the oracle gets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sorted(rows, key=lambda r: r.accuracy)
    k = max(sample_counts(rows), default=0)  # agents with fewer samples have no bar
    figure, axes = plt.subplots(figsize=(8.2, 0.52 * len(rows) + 1.5), dpi=130, layout="constrained")
    labels = []
    for y, row in enumerate(rows):
        colour = "#3a7d44" if row.agent == "oracle" else "#1f5fa8" if row.train_episodes else "#4a4a4a"
        axes.plot(row.accuracy_ci95, [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.plot([row.accuracy], [y], "o", color=colour, markersize=8)
        axes.annotate(f"{row.accuracy:.3f}", (row.accuracy, y + 0.22), color=colour, ha="center", fontsize=8)
        if row.before:
            axes.plot([row.before.accuracy], [y], "o", markersize=7, markerfacecolor="white", color=colour)
            arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.6}
            axes.annotate("", (row.accuracy, y), (row.before.accuracy, y), arrowprops=arrow)
        if (best := row.sampled.get(k, Sampled()).pass_) is not None:
            axes.plot([best], [y], "|", color="#c8553d", markersize=14, markeredgewidth=2)
        labels.append(f"{row.agent}\n{row.train_episodes:,.0f} episodes" if row.train_episodes else row.agent)
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set(xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.3))
    axes.set_xlabel(
        f"share solved, n = {rows[0].n_problems}   (dot: greedy, ring: before training"
        + (f", red bar: best of {k})" if k else ")")
    )
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    figure.savefig(path)
    plt.close(figure)
    return path
