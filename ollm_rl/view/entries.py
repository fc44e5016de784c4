"""The table of all runs: a row for each agent and seed, whichever file of a comparison or of its parts has its figures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ollm_rl.common.run_dir import INSPECTION
from ollm_rl.view.runs import REPORT, TRAINING, TUNING, Facts, Folder, is_running, short


def entries(folders: Sequence[Folder], facts: Mapping[str, Facts], out: Path) -> list[dict[str, Any]]:
    """One dict per row of the table.

    Args:
        facts: by the name of a folder.
        out: where the page will be; links are from there.
    """
    by_name = {folder.name: folder for folder in folders}
    rows: dict[tuple[str, str, Any], dict[str, Any]] = {}
    for folder in folders:
        for row in facts[folder.name].rows:
            owner = row["directory"] if row["directory"] in by_name else folder.name
            key = (owner, row["agent"], row["seed"])
            if owner == folder.name or key not in rows:  # a run's own file says it best
                rows[key] = row
    taken = {owner for owner, _, _ in rows}
    parents = {above for folder in folders for above in _above(folder, by_name)}
    made = [_entry(by_name[owner], facts, by_name, out, row) for (owner, _, _), row in rows.items()]
    for folder in folders:
        has_own = bool(folder.rollouts) or facts[folder.name].curve
        wanted = has_own or folder.name not in parents or facts[folder.name].command == "tune"
        if folder.name not in taken and wanted and not _is_nothing(folder, facts[folder.name]):
            made.append(_entry(folder, facts, by_name, out, None))
    return made


def _is_nothing(folder: Folder, found: Facts) -> bool:
    """Another program's, or a file that says nothing."""
    return not (folder.rollouts or found.curve or found.task or found.backbone or found.command)


def _entry(
    folder: Folder, facts: Mapping[str, Facts], by_name: Mapping[str, Folder], out: Path, row: dict[str, Any] | None
) -> dict[str, Any]:
    own, above = facts[folder.name], [by_name[name] for name in _above(folder, by_name)]
    given = row or {}
    agent = given.get("agent") or own.agent
    shown = folder.path.resolve().name if folder.name == "." else folder.name
    command, done = _command(folder, own, [facts[f.name] for f in above]), bool(row)
    if own.command in ("convert", "inspect", "tune") and not done:
        done = own.command != "tune" or bool(own.agent and TUNING in folder.files)
    first = given["search"] and f"oracle_{given['search']}" if row else None
    newest = max((time for time, _ in folder.files.values()), default=0)
    pages = (f.path / name for f in (folder, *above) for name in (REPORT, INSPECTION) if name in f.inside)
    report = next(pages, None)
    return {
        "id": short(f"{folder.name}|{agent}|{given.get('seed')}")[:8],
        "run": folder.uid,
        "name": shown if _is_first(folder, own, agent) else f"{shown} ({agent})",
        "command": command,
        "task": given.get("task") or own.task or next((facts[f.name].task for f in above), None),
        "backbone": own.backbone or next((facts[f.name].backbone for f in above), None),
        "agent": None if own.command == "convert" else agent,
        "seed": given.get("seed", _seed(folder, agent, own)),
        **{key: given.get(key) for key in ("n", "accuracy", "low", "high", "before", "k", "avg", "pass")},
        "episodes": given.get("episodes") or own.episodes,
        "seconds": given.get("seconds") or own.seconds,
        "when": newest // 10**9,
        "state": "finished" if done else "running" if is_running(folder) else "interrupted",
        "curve": own.curve,
        "training": sum(name.startswith(f"rollouts/{TRAINING}") for name in folder.files),
        "first": first,
        "report": quote(os.fsencode(os.path.relpath(report, out))) if report else None,
    }


def _is_first(folder: Folder, own: Facts, agent: str | None) -> bool:
    """Whether a run is this agent's, or one of several that share its directory came before."""
    mine = [row["agent"] for row in own.rows if row["directory"] == folder.name]
    return not mine or agent == mine[0]


def _seed(folder: Folder, agent: str | None, own: Facts) -> int | None:
    """Parts of a comparison have theirs in the directory's name: `grpo-2`."""
    name, _, seed = folder.name.rpartition("/")[2].rpartition("-")
    return int(seed) if name == agent and seed.isdecimal() else own.seed


def _above(folder: Folder, by_name: Mapping[str, Folder]) -> list[str]:
    """The runs in whose directories it is, the nearest first."""
    parts = folder.name.split("/")
    names = ["/".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)] + ["."]
    return [name for name in names if name in by_name and name != folder.name]


def _command(folder: Folder, own: Facts, above: Sequence[Facts]) -> str | None:
    """The command that made it: that of the run above, if it is a part of that."""
    for parent in above:
        if parent.command == "tune":
            return "tune"
        if any(row["directory"] == folder.name for row in parent.rows):
            return "compare"
        if not (parent.rows or parent.curve or parent.episodes):  # begun, and without results yet
            return "compare"
    return own.command or ("train" if own.agent else None)
