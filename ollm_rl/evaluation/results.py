"""`results.json`: what a run, a comparison or a call of `evaluate` found, as rows that can be printed, plotted and computed with.

    results = Results.load("runs/first")
    print(results)                                  # a table
    [row] = results.rows
    row.accuracy, row.sampled[8].pass_, row.before, row.directory
    results.to_pandas().groupby("agent")["accuracy"].mean()

`ollm_rl/evaluation/rows.py` has the rows.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ollm_rl.common.run_dir import RESULTS, stored_json, write_json
from ollm_rl.errors import CheckpointError
from ollm_rl.evaluation.overview import Text, draw_overview, results_table, shown_pooled
from ollm_rl.evaluation.records import Curves, PairedTest, Point, Sampled
from ollm_rl.evaluation.rows import PooledRow, Row, Scores

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Results", "Row", "Sampled", "Scores"]


@dataclass
class Results:
    """Rows, one per agent and seed, and what was concluded from them.

    Attributes:
        rows: `Row`s.
        pooled, tests: of a comparison: a row per agent over its seeds, and paired differences between agents.
        curves: by search, its solved share at growing budgets.
        conversion: what the options are worth (`conversion.json`).
        tasks: of a comparison on several tasks, the results of each; `rows` has all of them.
        directory: that they were read from or written to.
        extra: what the file has besides, of another release.
    """

    rows: list[Row]
    task: str = ""
    backbone: str = ""
    pooled: list[PooledRow] = field(default_factory=list)
    tests: list[PairedTest] = field(default_factory=list)
    curves: Curves = field(default_factory=dict)
    conversion: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, "Results"] = field(default_factory=dict)
    directory: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read the `results.json` of a directory.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        path = Path(directory) / RESULTS
        if not path.exists():
            raise CheckpointError(
                f"{directory} has no {RESULTS}; expected the directory of a run that is done. Repeat its command, which goes on from where "
                "it was, or give another directory."
            )
        found = stored_json(path)
        try:
            return cls.from_dict(found, path.parent)
        except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not hold results ({type(error).__name__}: {error}): the file was damaged, or is another program's. "
                "Restore it, or delete it and repeat the command, which makes it anew."
            ) from error

    def save(self, directory: str | Path) -> Path:
        """Write `results.json` to a directory, which is made where it is missing; the file's path."""
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        return write_json(self.directory / RESULTS, self.to_dict())

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], directory: Path | None = None) -> Self:
        """From the content of `results.json`, of this release or of an earlier one.

        Args:
            directory: that the rows' own are within.
        """
        found = dict(found)
        made = cls(
            [_row(row, directory) for row in found.pop("rows")],
            found.pop("task", ""),
            found.pop("backbone", ""),
            [PooledRow.from_dict(row) for row in found.pop("pooled", ())],
            [PairedTest.from_dict(test) for test in found.pop("tests", ())],
            {name: [Point.from_dict(p) for p in points] for name, points in found.pop("curves", {}).items()},
            found.pop("conversion", {}),
            {
                task: cls.from_dict(part, directory / task if directory else None)
                for task, part in found.pop("tasks", {}).items()
            },
            directory,
        )
        made.extra = found
        return made

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` has it."""
        found: dict[str, Any] = {"task": self.task, "backbone": self.backbone}
        found["rows"] = [{**row.to_dict(), **self._where(row)} for row in self.rows]
        if self.pooled:
            for row in found["rows"]:  # null: not reached
                row.update({k: row.get(k) for k in ("episodes_to_threshold", "seconds_to_threshold")})
            found["pooled"] = [row.to_dict() for row in self.pooled]
            found["tests"] = [test.to_dict() for test in self.tests]
        if self.curves:
            found["curves"] = {name: [p.to_dict() for p in points] for name, points in self.curves.items()}
        if self.conversion:
            found["conversion"] = self.conversion
        if self.tasks:
            found["tasks"] = {task: part.to_dict() for task, part in self.tasks.items()}
        return {**found, **self.extra}

    def _where(self, row: Row) -> dict[str, str]:
        """A row's directory, as seen from this one, if it is another: both can be moved together."""
        if row.directory is None or self.directory is None or row.directory == self.directory:
            return {}
        return {"directory": Path(os.path.relpath(row.directory, self.directory)).as_posix()}

    def table(self) -> Text:
        """The rows as a table, pooled ones first."""
        title = f"{self.task} with {self.backbone}, greedy accuracy with 95% interval"
        return results_table(title, self.rows, self.pooled)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        from pandas import DataFrame

        table = self.table()
        return str(DataFrame(table.body, columns=table.head).to_html(index=False, border=0))

    def to_pandas(self) -> "DataFrame":
        """A line per row, with the figures that are numbers, under their names in `results.json`.

        Intervals are two columns, as `accuracy_low` and `accuracy_high`; figures from before training are called `before_accuracy` and so on.
        """
        from pandas import DataFrame

        return DataFrame([_flat(row.to_dict()) for row in self.rows])

    def plot(self, path: str | Path) -> Path:
        """Draw greedy accuracies with their intervals, those before training, and pass@k, to a file whose ending says the format.

        Raises:
            ValueError: there are no rows.
        """
        if not self.rows:
            raise ValueError("there are no rows to plot; expected the results of an evaluation")
        return draw_overview(f"{self.backbone} on {self.task}", shown_pooled(self.pooled) or self.rows, Path(path))


def _row(found: Mapping[str, Any], root: Path | None) -> Row:
    row = Row.from_dict(found)
    row.directory = None if root is None else root / found["directory"] if "directory" in found else _guess(found, root)
    return row


def _guess(found: Mapping[str, Any], root: Path) -> Path:
    """Where the files of a row are that does not say it (it is alone in its directory, or of an earlier release)."""
    root = root / found.get("task", "")
    part = root / f"{'oracle' if 'search' in found else found['agent']}-{found.get('seed', 0)}"
    return part if part.exists() else root


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and words of a row's JSON, with intervals as two."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("_ci95") and value is not None:
            name = prefix + key.removesuffix("_ci95")
            found[f"{name}_low"], found[f"{name}_high"] = value
        elif key == "before":
            found |= _flat(value, "before_")
        elif not isinstance(value, dict | list) and key not in ("avg_at_8", "pass_at_8"):
            found[prefix + key] = value
    return found
