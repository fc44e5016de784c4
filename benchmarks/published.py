"""What the documents quote of a comparison over several tasks: its figures, its tables and its plots.

    python -m benchmarks.published runs/headline [--out benchmarks] [--note 'what a reader of the figures has to know']
    python -m benchmarks.published runs/equal_fits --into headline     # arms that were run on another day, into its figures
    python -m benchmarks.published benchmarks/results/headline.json    # the page's own tables and plots, from published figures

Writes `results/<name>.json`, `<name>.md` (the tables that `ollm-rl compare` printed, as Markdown) and `plots/<name>_<task>_<plot>.png`,
draws `plots/<name>_costs.png` of all arms (benchmarks/costs.py), and puts tables of all tasks into `README.md`: between the lines `<!-- <name> -->` and `<!-- end of <name> -->` accuracy and cost, between
those of `<name>_ood` accuracy out of distribution, where it has them.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.costs import draw
from ollm_rl.evaluation.comparison import solved, texts_of
from ollm_rl.evaluation.metrics import bootstrap
from ollm_rl.evaluation.overview import Text
from ollm_rl.evaluation.records import PairedTest
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
Figures = dict[str, dict[str, list[dict[str, Any]]]]  # by task: rows, pooled, tests
Asked = dict[int, list[str]]  # by seed: the texts of the problems
# The order of arms in tables; others come last.
ORDER = (
    "prior", "best_prefix", "steer", "first_decisions", "shortlist_head", "grpo", "grpo_long", "lora_sft", "lora_sft_2", "lora_sft_3",
    "lora_grpo", "lora_grpo_2", "lora_grpo_3", "fitted_prior", "fitted_best_prefix", "fitted_steer", "fitted_first_decisions",
    "fitted_grpo", "fitted_prior_3", "fitted_steer_3", "fitted_first_decisions_3", "fitted_shortlist_head_3", "fitted_grpo_3", "fitted_grpo_long_3",
)  # fmt: skip

MAIN = ("grpo", "grpo_long", "lora_grpo", "lora_grpo_2", "fitted_grpo")  # whose accuracy out of distribution is shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--into", help="published figures that get this run's arms")
    parser.add_argument(
        "--keep", nargs="*", default=[], help="arms of it whose published figures stay; their tests are added"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    page = given.out / "README.md"
    if given.run.suffix == ".json":
        put_tables(page, given.run.stem, json.loads(given.run.read_text()))
        return
    name = given.run.name
    every = [Results.load(path.parent) for path in sorted(given.run.glob("*/results.json"))]
    tasks = {r.directory.name: r for r in every if r.directory and r.pooled}  # of a task, not of an agent and a seed
    (given.out / "results").mkdir(parents=True, exist_ok=True)
    (given.out / "plots").mkdir(exist_ok=True)
    published = {"command": f"python -m benchmarks.published {given.run}", "note": given.note} | figures_of(tasks)
    target = given.into or name
    path = given.out / "results" / f"{target}.json"
    if given.into:
        published = with_arms(
            json.loads(path.read_text()), published, given.keep, {t: asked(r) for t, r in tasks.items()}
        )
    path.write_text(json.dumps(published, indent=1) + "\n")
    if not given.into:
        print(write_page(given.run, given.out, name, tasks))
    put_tables(page, target, published)


def figures_of(tasks: dict[str, Results]) -> Figures:
    whole = {task: found.to_dict() for task, found in tasks.items()}
    figures = {task: {key: _short(found[key]) for key in ("rows", "pooled", "tests")} for task, found in whole.items()}
    for task, results in tasks.items():
        for row, published in zip(results.rows, figures[task]["rows"], strict=True):
            published["right"] = right(row)
    return figures


def with_arms(
    before: dict[str, Any], new: dict[str, Any], keep: Sequence[str] = (), problems: Mapping[str, Asked] | None = None
) -> dict[str, Any]:
    """Published figures with the arms of another run, whose figures take the place of those of the same name.

    Args:
        keep: arms that were run again and answered the same, whose figures stay, such as seconds that were measured with less beside them.
        problems: of the other run, by task: its arms are compared with the published ones on them, where which of them these solved is known.
    """
    found = dict(before)
    found["command"] = f"{before['command']}; {new['command']}"
    found["note"] = " ".join(note for note in (before["note"], new["note"]) if note)
    for task in (key for key in new if isinstance(new[key], dict)):
        old = before.get(task, {"rows": [], "pooled": [], "tests": []})
        agents = {row["agent"] for row in new[task]["pooled"]} - {*keep}
        here: dict[str, Any] = {}
        for key in ("rows", "pooled"):
            stays = [row for row in old[key] if row["agent"] not in agents]
            here[key] = stays + [row for row in new[task][key] if row["agent"] in agents]
        for row in here["rows"]:
            again = next((r for r in new[task]["rows"] if (r["agent"], r["seed"]) == (row["agent"], row["seed"])), row)
            if again["accuracy"] != row["accuracy"]:
                raise SystemExit(f"{task}: {row['agent']}, seed {row['seed']}, answered otherwise; do not keep it")
            row["right"] = again.get("right", "")
        done = [{*test["agents"]} for test in new[task]["tests"]]
        tests = [test for test in old["tests"] if {*test["agents"]} not in done and not agents & {*test["agents"]}]
        others = {row["agent"] for row in here["pooled"]} - {row["agent"] for row in new[task]["pooled"]}
        pairs = [(one, other) for one in sorted(others) for other in sorted(agents)]
        across = [paired(here["rows"], *pair, (problems or {}).get(task, {})) for pair in pairs]
        here["tests"] = tests + new[task]["tests"] + [test for test in across if test]
        found[task] = here
    return found


def asked(results: Results) -> Asked:
    """The problems of each seed, in the order in which they were evaluated."""
    return {row.seed: [line["problem"] for line in texts_of(row, "greedy")] for row in results.rows}


def paired(rows: list[dict[str, Any]], one: str, other: str, problems: Asked) -> dict[str, Any]:
    """What `other` solves more than `one` greedily, from what is published of two runs; {} where that is not enough."""
    right = {(row["agent"], row["seed"]): row.get("right", "") for row in rows}
    seeds = sorted(seed for agent, seed in right if agent == other)
    parts = [(right.get((one, seed), ""), right[other, seed], problems.get(seed, [])) for seed in seeds]
    if any(not a or not len(a) == len(b) == len(texts) for a, b, texts in parts):
        return {}
    more = np.array([int(y) - int(x) for a, b, _ in parts for x, y in zip(a, b, strict=True)], dtype=float)
    found = bootstrap(more, [text for *_, texts in parts for text in texts])
    return _short(PairedTest(agents=[one, other], n=len(more), greedy=found).to_dict())


def write_page(run: Path, out: Path, name: str, tasks: dict[str, Results]) -> Path:
    """The tables and plots that a comparison printed, on a page of their own."""
    page = [
        f"# Tables of `{name}`",
        "",
        f"Written by `python -m benchmarks.published {run}`; figures in `results/{name}.json`.",
    ]
    for task, results in tasks.items():
        page += ["", f"## `{task}`"]
        for table in all_tables(results):
            page += ["", f"### {table.title}", "", *([table.note, ""] if table.note else []), *_markdown(table)]
        for plot in PLOTS:
            copy = out / "plots" / f"{name}_{task}_{plot}.png"
            if not (drawn := run / task / "plots" / f"{plot}.png").exists():
                continue  # fewer than two learners
            shutil.copy(drawn, copy)
            page += ["", f"![{plot.replace('_', ' ')}](plots/{copy.name})"]
    written = out / f"{name}.md"
    written.write_text("\n".join(page) + "\n")
    return written


def put_tables(page: Path, name: str, published: dict[str, Any]) -> None:
    """The page's own tables, and the plot of what they cost, of all published arms, in whichever run they were measured."""
    if page.exists() and f"<!-- {name} -->" in page.read_text():
        draw(published, page.parent / "plots" / f"{name}_costs.png")
    figures: Figures = {key: value for key, value in published.items() if isinstance(value, dict)}
    put_between(page, name, in_one_table(figures))
    put_between(page, f"{name}_ood", out_of_distribution(figures))


def right(row: Row) -> str:
    """Its greedy answers in the order of the problems, 1 for right and 0 for wrong: a later run can be compared with them, paired."""
    return "".join(str(int(solved(line))) for line in texts_of(row, "greedy"))


def ordered(pooled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(pooled, key=lambda row: ORDER.index(row["agent"]) if row["agent"] in ORDER else len(ORDER))


def in_one_table(figures: Figures) -> list[str]:
    """A row for each agent on each task: accuracy before and after, of sampled texts, what it cost, and general texts."""
    every = [row for found in figures.values() for row in found["pooled"]]
    k = max(
        (int(key.removeprefix("avg@")) for row in every for key in row if key.startswith("avg@") and key[4:].isdigit()),
        default=0,
    )
    head = ["task", "agent", "n", "before", "after", "by seed", f"avg@{k}", f"pass@{k}", "seconds from nothing", "trained, million", "general texts"]  # fmt: skip
    lines = []
    for task, found in figures.items():
        for row in ordered(found["pooled"]):
            low, high = row["accuracy_ci95"]
            seeds = [each["accuracy"] for each in found["rows"] if each["agent"] == row["agent"]]
            lines.append([
                f"`{task}`", f"`{row['agent']}`", str(row["n_problems"]), f"{row['before']['accuracy']:.2f}" if row.get("before") else "",
                f"{row['accuracy']:.2f} [{low:.2f}, {high:.2f}]", ", ".join(f"{a:.2f}" for a in seeds) if len(seeds) > 1 else "",
                _two(row.get(f"avg@{k}")), _two(row.get(f"pass@{k}")),
                f"{row['total_seconds']:,.0f}" if row.get("total_seconds") else "",
                _two(row["trainable_parameters"] / 1e6) if row.get("trainable_parameters") else "",
                _two(row["general"]["loss"]) if row.get("general") else "",
            ])  # fmt: skip
    return _markdown(Text("", "", head, lines))


def out_of_distribution(figures: Figures) -> list[str]:
    """A row for each variant of each task, a column for each of the learners in question."""
    there = {row["agent"] for found in figures.values() for row in found["pooled"] if row.get("ood")}
    agents = [agent for agent in MAIN if agent in there]
    lines = []
    for task, found in figures.items():
        of = {row["agent"]: row.get("ood") or {} for row in found["pooled"]}
        for variant in dict.fromkeys(name for each in of.values() for name in each):
            n = next(each[variant]["n"] for each in of.values() if variant in each)
            shares = [_two(of[a][variant]["accuracy"]) if variant in of.get(a, {}) else "" for a in agents]
            lines.append([f"`{task}`", variant, str(n), *shares])
    return _markdown(Text("", "", ["task", "variant", "n", *(f"`{a}`" for a in agents)], lines))


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


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
