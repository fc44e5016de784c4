"""What the documents quote of a comparison over several tasks: its figures, its tables and its plots.

    python benchmarks/published.py runs/headline [--out benchmarks] [--note 'what a reader of the figures has to know']

Writes `results/<name>.json`, `<name>.md` (the tables that `ollm-rl compare` printed, as Markdown) and `plots/<name>_<task>_<plot>.png`,
and puts a table of all tasks between the lines `<!-- <name> -->` and `<!-- end of <name> -->` of `README.md`, if it has them.
"""

import argparse
import json
import shutil
from pathlib import Path

from ollm_rl.common.run_dir import whole_lines
from ollm_rl.evaluation.overview import Text
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.report.tables import all_tables

PLOTS = ("headroom", "learning_costs", "total_seconds")
LEFT_OUT = {
    "changes",
    "verdicts",
    "solved",
    "breakdown",
    "directory",
}  # of rows: long, and in the tables where they say something


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    name = given.run.name
    every = [Results.load(path.parent) for path in sorted(given.run.glob("*/results.json"))]
    tasks = {r.directory.name: r for r in every if r.directory and r.pooled}  # of a task, not of an agent and a seed
    (given.out / "results").mkdir(parents=True, exist_ok=True)
    (given.out / "plots").mkdir(exist_ok=True)
    whole = {task: found.to_dict() for task, found in tasks.items()}
    figures = {task: {key: _short(found[key]) for key in ("rows", "pooled", "tests")} for task, found in whole.items()}
    for task, results in tasks.items():
        for row, published in zip(results.rows, figures[task]["rows"], strict=True):
            published["right"] = right(row)
    made = {"command": f"python benchmarks/published.py {given.run}", "note": given.note}
    (given.out / "results" / f"{name}.json").write_text(json.dumps(made | figures, indent=1) + "\n")
    page = [
        f"# Tables of `{name}`",
        "",
        f"Written by `python benchmarks/published.py {given.run}`; figures in `results/{name}.json`.",
    ]
    for task, results in tasks.items():
        page += ["", f"## `{task}`"]
        for table in all_tables(results):
            page += ["", f"### {table.title}", "", *([table.note, ""] if table.note else []), *_markdown(table)]
        for plot in PLOTS:
            target = given.out / "plots" / f"{name}_{task}_{plot}.png"
            if not (drawn := given.run / task / "plots" / f"{plot}.png").exists():
                continue  # fewer than two learners
            shutil.copy(drawn, target)
            page += ["", f"![{plot.replace('_', ' ')}](plots/{target.name})"]
    (given.out / f"{name}.md").write_text("\n".join(page) + "\n")
    put_between(given.out / "README.md", name, in_one_table(tasks))
    print(given.out / f"{name}.md")


def right(row: Row) -> str:
    """Its greedy answers in the order of the problems, 1 for right and 0 for wrong: a later run can be compared with them, paired."""
    lines = whole_lines(row.directory / "rollouts" / "greedy.jsonl") if row.directory else []
    return "".join(str(int(line.get("solved", line["reward"] >= 1.0))) for line in lines)


def in_one_table(tasks: dict[str, Results]) -> list[str]:
    """A row for each agent on each task: accuracy before and after, of sampled texts, what it cost, and general texts."""
    rows = [row for results in tasks.values() for row in results.pooled]
    k = max((k for row in rows for k in row.sampled), default=0)
    head = ["task", "agent", "n", "before", "after", f"avg@{k}", f"pass@{k}", "seconds from nothing", "trained, million", "general texts"]  # fmt: skip
    lines = []
    for task, results in tasks.items():
        for row in results.pooled:
            low, high = row.accuracy_ci95
            sampled = row.sampled.get(k)
            lines.append([
                f"`{task}`", f"`{row.agent}`", str(row.n_problems), f"{row.before.accuracy:.2f}" if row.before else "",
                f"{row.accuracy:.2f} [{low:.2f}, {high:.2f}]", f"{sampled.avg:.2f}" if sampled else "", f"{sampled.pass_:.2f}" if sampled else "",
                f"{row.total_seconds:,.0f}" if row.total_seconds else "", f"{row.trainable_parameters / 1e6:.2f}" if row.trainable_parameters else "",
                f"{row.general.loss:.2f}" if row.general else "",
            ])  # fmt: skip
    return _markdown(Text("", "", head, lines))


def put_between(page: Path, name: str, lines: list[str]) -> None:
    """Lines in the place of those that stand between a page's two marks; pages without them stay."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    text = page.read_text() if page.exists() else ""
    if begin in text and end in text:
        before, after = text.split(begin)[0], text.split(end)[1]
        page.write_text(before + begin + "\n".join(["", *lines, "", end]) + after)


def _markdown(table: Text) -> list[str]:
    rows = [table.head, ["---"] * len(table.head), *table.body]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def _short(value):
    """Without what is long, and with six digits."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if k not in LEFT_OUT}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
