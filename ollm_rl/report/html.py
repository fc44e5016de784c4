"""`report.html`: all that a run's directory holds on one page that needs no other file."""

import base64
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ollm_rl.common.run_config import today
from ollm_rl.common.run_dir import CONFIG, METRICS, RESULTS, SOLUTIONS, stored_json, whole_lines
from ollm_rl.errors import CheckpointError
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row
from ollm_rl.report.pages import verdict_text, write_page
from ollm_rl.report.plots import draw
from ollm_rl.report.tables import all_tables

FIRST = "headroom"  # the plot that says most in one look


def write_report(directory: str | Path) -> Path:
    """Write `plots/*.png` and `report.html` to the directory of a run, a search or a comparison; the path of the page.

    >>> ol.write_report("runs/notebook")

    A run that has no results yet is shown with its learning curve and its configuration; a comparison on several tasks with the table of
    all, and a page for each.

    Raises:
        CheckpointError: the directory holds no run, or a file in it is damaged.
    """
    root = Path(directory)
    if not any((root / name).exists() for name in (RESULTS, CONFIG, METRICS)):
        raise CheckpointError(
            f"{root} holds no run: it has no {RESULTS}, {CONFIG} or {METRICS}. Give the directory of a run, such as runs/first."
        )
    config = _configuration(root)
    done = (root / RESULTS).exists()
    results = Results.load(root) if done else _unfinished(root, config)
    whole = not results.tasks  # figures of several tasks are not put together
    conversion = results.conversion or (stored_json(p) if (p := root / "conversion.json").exists() else {})
    oracle = next((row for row in results.rows if row.agent == "oracle" and row.search and whole), None)
    pooled = next((row.search for row in results.pooled if row.agent == "oracle"), None)  # means over the seeds
    return write_page(
        root / "report.html",
        "report.html.j2",
        title=f"{results.backbone} on {results.task}",
        first=FIRST,
        plots=[_image(plot) for plot in draw(results, root / "plots")] if whole else [],
        tables=(all_tables(results) if whole else [results.table()]) if done else [],
        pages=[(task, write_report(root / task).relative_to(root).as_posix()) for task in results.tasks],
        verdicts=_verdicts(results) if whole else "",
        oracle=oracle and {"search": oracle.search, "seed": oracle.seed, "mean": pooled or oracle.search},
        teachers=[row for row in results.rows if row.teacher and whole],
        options=[
            (name.replace("_", " "), found)
            for name, found in conversion.items()
            if isinstance(found, dict) and "uncertain" in found
        ],
        sampled=_sampled([root, *(row.directory for row in results.rows if row.directory is not None)]),
        shown=[(f"{r.agent}, seed {r.seed}", episodes) for r in results.rows if whole and (episodes := _episodes(r))],
        config=OmegaConf.to_yaml(config) if config else "",
    )


def _configuration(root: Path) -> DictConfig:
    path = root / CONFIG
    return today(path.read_text(errors="replace"), str(path)) if path.exists() else OmegaConf.create()


def _unfinished(root: Path, config: DictConfig) -> Results:
    """What can be said of a run without results: its learning curve stands in a row of no problems."""

    def setting(key: str, default: str) -> str:
        return str(OmegaConf.select(config, key, default=default, throw_on_missing=False))

    curve = [line for line in whole_lines(root / METRICS) if line.get("train_episodes")]
    rows = []
    if curve:
        agent = setting("agent._target_", "agent").rsplit(".", 1)[-1]
        row = Row(agent=agent, n_problems=0, accuracy=0.0, accuracy_ci95=(0.0, 1.0), directory=root)
        row.train_episodes = curve[-1]["train_episodes"]
        rows.append(row)
    return Results(rows, setting("task.name", "?"), setting("backbone.name", "?"), directory=root)


def _image(plot: Path) -> dict[str, str]:
    return {"name": plot.stem, "data": base64.b64encode(plot.read_bytes()).decode()}


def _sampled(folders: list[Path]) -> dict[str, Any] | None:
    """How the solutions that the options were made from were sampled, if they were."""
    found = next((folder / SOLUTIONS for folder in folders if (folder / SOLUTIONS).exists()), None)
    return None if found is None else stored_json(found)


def _verdicts(results: Results) -> str:
    """How many greedy answers of all seeds got which verdict."""
    counts: dict[str, Counter[str]] = {}
    for row in results.rows:
        if row.verdicts:
            counts.setdefault(row.agent, Counter()).update(row.verdicts)
    said = {
        agent: ", ".join(f"{n} {verdict.replace('_', ' ')}" for verdict, n in found.most_common())
        for agent, found in counts.items()
    }
    return " ".join(f"{agent}: {verdicts}." for agent, verdicts in said.items())


def _episodes(row: Row) -> list[dict[str, Any]]:
    """The episodes of a row to look at, as the template shows them."""
    if row.directory is None or row.teacher or not (path := row.directory / row.replays).exists():
        return []
    return [
        {
            "problem": episode["problem"],
            "solved": episode.get("solved", episode["reward"] >= 1.0),
            "verdict": verdict_text(episode),
            "tokens": [_token(step) for step in episode["steps"]],
        }
        for episode in stored_json(path)
    ]


def _token(step: dict[str, Any]) -> dict[str, Any]:
    """A token, and where options disagreed what each would have said, the prior's likeliest first."""
    deciding = step["latent"] >= 0 and len(step["options"]) > 1
    offered = sorted(step["options"], key=lambda option: -option[2]) if deciding else []
    return {
        "text": step["token"].replace("\n", "⏎\n"),
        "latent": step["latent"],
        "rare": sum(prior for _, text, prior in offered if text == step["token"]) < 0.1,
        "options": [
            {"latent": z, "text": repr(text)[1:-1], "prior": prior, "picked": text == step["token"]}
            for z, text, prior in offered
        ],
    }
