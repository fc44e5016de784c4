"""Runs in a tree of directories: which there are, and what their files say of them.

A directory is a run's if it has one of the files that commands write. What is damaged or another program's is passed over with a note.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from ollm_rl.common.config_files import group_file, members
from ollm_rl.common.run_config import read
from ollm_rl.common.run_dir import CONFIG, CONVERSION, INSPECTION, METRICS, RESULTS, stored_json
from ollm_rl.common.run_lock import OWNER
from ollm_rl.errors import CheckpointError
from ollm_rl.evaluation.results import Results
from ollm_rl.evaluation.rows import Row

MARKER = "view.json"  # of a directory that `view` has written
TUNING, REPORT = "tune.json", "report.html"
FILES = (RESULTS, CONFIG, METRICS, CONVERSION, TUNING)
INSIDE = {"checkpoints", "policy", "plugin", "plots", "tensorboard", "rollouts"}  # of a run, and no runs
DEEPEST = 8  # directories below the first
TRAINING = "train_"


@dataclass
class Folder:
    """A directory with files of a run.

    Attributes:
        name: its path from the directory that is viewed, which itself is `.`.
        files: by path in it, modification time in nanoseconds and size of what is read.
        inside: the names of all that it holds.
    """

    path: Path
    name: str
    files: dict[str, tuple[int, int]]
    inside: frozenset[str] = frozenset()

    @property
    def rollouts(self) -> list[str]:
        """The files with episodes: those of evaluations, then those of training by iteration."""
        return sorted((f for f in self.files if f.startswith("rollouts/")), key=_order)

    @property
    def uid(self) -> str:
        """A short name for its data."""
        return short(self.name)

    def stamp(self, names: Iterable[str]) -> str:
        """Changes when one of these files does."""
        return short(json.dumps([[name, self.files.get(name)] for name in names]))


@dataclass
class Facts:
    """What a run's files say of it, as JSON can hold it.

    Attributes:
        rows: of `results.json`, each with `directory`, the path of its run from the directory that is viewed.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    task: str | None = None
    backbone: str | None = None
    agent: str | None = None
    seed: int | None = None
    episodes: float = 0
    seconds: float = 0.0
    curve: bool = False
    command: str | None = None
    foreign: bool = False
    notes: list[str] = field(default_factory=list)


def short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def set_of(name: str) -> str:
    """What the episodes of a file are called: `greedy`, `train_3`."""
    return Path(name).stem


def _order(name: str) -> tuple[int, int, str]:
    stem = set_of(name)
    number = stem.removeprefix(TRAINING)
    if stem.startswith(TRAINING) and number.isdecimal():
        return 2, int(number), stem
    return (0 if stem == "greedy" else 1), 0, stem


def find(root: Path) -> tuple[list[Folder], list[str]]:
    """The directories below `root`, itself included, that hold files of runs, and notes on what cannot be read."""
    found: list[Folder] = []
    notes: list[str] = []
    _visit(root, root, set(), found, notes)
    with_runs = {folder.name.split("/")[0] for folder in found}
    if "." not in with_runs:
        notes += [f"{name}: holds no run" for name in sorted(_directories(root)) if name not in with_runs]
    return found, notes


def _directories(root: Path) -> Iterator[str]:
    for path in root.iterdir():
        if not path.name.startswith(".") and path.is_dir() and not (path / MARKER).exists():
            yield path.name


def _visit(path: Path, root: Path, seen: set[str], found: list[Folder], notes: list[str]) -> None:
    real = os.path.realpath(path)
    if real in seen or len(path.relative_to(root).parts) > DEEPEST:
        return
    seen.add(real)
    try:
        with os.scandir(path) as listed:
            inside = {entry.name: entry for entry in listed}
        if MARKER in inside:
            return
        files = {name: _stat(inside[name]) for name in inside if _is_read(name) and inside[name].is_file()}
        if "rollouts" in inside and inside["rollouts"].is_dir():
            with os.scandir(path / "rollouts") as listed:
                files |= {f"rollouts/{e.name}": _stat(e) for e in listed if e.name.endswith(".jsonl") and e.is_file()}
    except OSError as error:
        notes.append(f"{path.relative_to(root).as_posix()}: cannot be read ({error.strerror})")
        return
    is_run = any(name in files for name in FILES) or any(name.startswith("rollouts/") for name in files)
    if is_run:
        found.append(Folder(path, path.relative_to(root).as_posix(), files, frozenset(inside)))
    for name, entry in sorted(inside.items()):
        if not name.startswith(".") and not (is_run and name in INSIDE) and entry.is_dir():
            _visit(path / name, root, seen, found, notes)


def _is_read(name: str) -> bool:
    return name in FILES or (name.startswith(("replays", "searches_")) and name.endswith((".json", ".jsonl")))


def _stat(entry: "os.DirEntry[str]") -> tuple[int, int]:
    stat = entry.stat()
    return stat.st_mtime_ns, stat.st_size


def facts_of(folder: Folder, root: Path) -> Facts:
    """Read the files of a run; what is damaged is left out, with a note."""
    facts = Facts()
    config: Mapping[str, Any] = {}
    if CONFIG in folder.files:
        try:
            config = read((folder.path / CONFIG).read_text(errors="replace"), CONFIG)
        except (CheckpointError, OmegaConfBaseException, OSError, RecursionError) as error:
            facts.notes.append(f"{CONFIG} is damaged ({str(error).splitlines()[0]:.120})")
    if not {"task.name", "backbone.name", "agent._target_"} & config.keys():
        facts.foreign = CONFIG in folder.files
        config = {}
    facts.task, facts.backbone = _text(config.get("task.name")), _text(config.get("backbone.name"))
    facts.agent, facts.seed = _agent(config.get("agent._target_")), _whole(config.get("seed"))
    lines, damaged = records(folder.path / METRICS) if METRICS in folder.files else ([], 0)
    if damaged:
        facts.notes.append(f"{METRICS}: {damaged} damaged lines are left out")
    for line in lines:
        facts.episodes = max(facts.episodes, _number(line.get("train_episodes")))
        facts.seconds = max(facts.seconds, _number(line.get("train_seconds")))
    facts.curve = len(lines) > 0
    if RESULTS in folder.files:
        try:
            results = Results.load(folder.path)
            facts.rows = [_row(row, folder.path, root) for row in results.rows]
            facts.task = _text(results.task or facts.task)
            facts.backbone = _text(results.backbone or facts.backbone)
        except (CheckpointError, AttributeError, IndexError, TypeError, ValueError) as error:
            facts.rows = []
            facts.notes.append(f"{RESULTS} is passed over ({str(error).splitlines()[0]:.160})")
    if CONVERSION in folder.files:
        try:
            stored_json(folder.path / CONVERSION)
        except CheckpointError:
            facts.notes.append(f"{CONVERSION} is damaged")
    if TUNING in folder.files:
        try:
            _tuned(facts, stored_json(folder.path / TUNING))
        except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
            facts.notes.append(f"{TUNING} is passed over ({str(error).splitlines()[0]:.120})")
    facts.command = facts.command or _command(folder, facts)
    return facts


def _row(row: Row, path: Path, root: Path) -> dict[str, Any]:
    """A row of the table, as far as `results.json` has it."""
    k = max(row.sampled, default=0)
    sampled = row.sampled.get(k)
    low, high = row.accuracy_ci95
    if not all(isinstance(value, int | float) for value in (row.accuracy, low, high)):
        raise ValueError(f"accuracy={row.accuracy!r:.40}; expected a number")
    return {
        "directory": Path(os.path.relpath(row.directory or path, root)).as_posix(),
        "task": _text(row.task), "agent": str(row.agent), "seed": _whole(row.seed), "n": _whole(row.n_problems),
        "accuracy": row.accuracy, "low": low, "high": high, "before": _known(row.before.accuracy) if row.before else None,
        "k": k or None, "avg": _known(sampled.avg) if sampled else None, "pass": _known(sampled.pass_) if sampled else None,
        "episodes": _number(row.train_episodes), "seconds": _number(row.train_seconds),
        "search": _text(row.search.search) if row.search else None,
    }  # fmt: skip


def _tuned(facts: Facts, found: Mapping[str, Any]) -> None:
    """Of a tuning: the trial that was best."""
    facts.command, facts.task, facts.backbone = "tune", _text(found["task"]), _text(found["backbone"])
    facts.agent = ", ".join(dict.fromkeys(str(row["agent"]) for row in found["rows"]))
    facts.episodes = sum(_number(row.get("train_episodes")) for row in found["rows"])
    facts.seconds = sum(_number(row.get("train_seconds")) for row in found["rows"])


def _command(folder: Folder, facts: Facts) -> str | None:
    """The command that made a run, from what it left."""
    if any(name.startswith("searches_") for name in folder.files) or any(row["search"] for row in facts.rows):
        return "oracle"
    if "trials" in folder.inside:
        return "tune"
    if facts.episodes or any(set_of(name).startswith(TRAINING) for name in folder.rollouts):
        return "train"
    if folder.rollouts or facts.rows:
        return "evaluate"
    if INSPECTION in folder.inside:
        return "inspect"
    return "convert" if "plugin" in folder.inside else None


def records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of JSON lines, and how many lines hold none. Half a line at its end is of a run that was killed or goes on."""
    found, damaged = [], 0
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    damaged += line.endswith("\n")
                    continue
                if isinstance(record, dict):
                    found.append(record)
                else:
                    damaged += 1
    except OSError:
        damaged += 1
    return found, damaged


def is_running(folder: Folder) -> bool:
    """Whether the process that has the run lives on this machine; of others' nothing is known."""
    if OWNER not in folder.inside or os.name != "posix":
        return False
    try:
        word, number, *_, host = (folder.path / OWNER).read_text().split()
        if word != "process" or host != socket.gethostname():
            return False
        os.kill(int(number), 0)
    except (OSError, ValueError):
        return False
    return True


@cache
def _agents() -> dict[str, str]:
    """Names of agents by their classes."""
    found: dict[str, str] = {}
    for name in members("agent"):
        found.setdefault(str(group_file("agent", name).get("_target_")), name)
    return found


def _agent(target: Any) -> str | None:
    return None if target is None else _agents().get(str(target), str(target).rpartition(".")[2])


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _known(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _number(value: Any) -> float:
    return _known(value) or 0
