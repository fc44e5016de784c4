"""Writing the page of `ollm-rl view`: a table of all runs, and their data beside it in files that it loads when they are needed.

<out>/index.html           the page
<out>/data/index.js        the table
<out>/data/<run>/          curves, configuration and episodes of a run; `manifest.json` says what they were made from
<out>/data/tokens-*.js     the texts of a backbone's tokens
"""

import json
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ollm_rl.common.folders import obstacle
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import CONFIG, METRICS, stored_json, write_json
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.report.pages import PALETTE, write_page
from ollm_rl.view.chunks import FORMAT, finite, store, write_script
from ollm_rl.view.config import ViewConfig
from ollm_rl.view.entries import entries
from ollm_rl.view.runs import CONVERSION, FILES, MARKER, Facts, Folder, facts_of, find, records, short
from ollm_rl.view.vocabulary import token_texts

MANIFEST = "manifest.json"


@dataclass
class View:
    """What was written.

    Attributes:
        page: its path. runs: rows of the table. episodes: in all files. written: files of data that are new.
        notes: what was passed over.
    """

    page: Path
    runs: int = 0
    episodes: int = 0
    written: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def write_view(
    directory: str | Path,
    out: str | Path | None = None,
    limit: int | None = None,
) -> View:
    """Write the page on the runs below a directory; what has not changed since the last time stays as it is.

    Args:
        out: where to; None: `view` in the directory.
        limit: most episodes of a file of rollouts.

    Raises:
        ConfigurationError: there is no such directory, it holds no run, or `out` cannot be written or is another program's.
    """
    began, root = time.monotonic(), Path(directory)
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "is not there"
        raise ConfigurationError(f"{_key('directory')}={root} {what}; expected one with runs in it, such as runs")
    target = Path(out) if out is not None else root / "view"
    folders, notes = find(root)
    known = {folder.name: _Data(folder, target / "data") for folder in folders}
    facts = {folder.name: known[folder.name].facts(root) for folder in folders}
    table = entries(folders, facts, target)
    notes += [f"{name}: {note}" for name, found in facts.items() for note in found.notes]
    shown = {entry["run"] for entry in table}
    notes += [f"{f.name}: holds no run" for f in folders if facts[f.name].foreign and f.uid not in shown]
    if not table:
        raise ConfigurationError(
            f"{_key('directory')}={root} holds no run; expected directories with {', '.join(FILES[:3])} or rollouts/*.jsonl in them, "
            f"as `ollm-rl train name=first` leaves in runs/first{_said(notes)}"
        )
    if limit is not None:
        notes.append(f"{_key('limit')}={limit}: of a file of rollouts with more episodes the first {limit} are here")
    view = View(target / "index.html", len(table), notes=notes)
    with _writable(target):
        with track("view", len(folders), "runs") as bar:
            for folder in folders:
                if folder.uid in shown:
                    known[folder.name].write(limit, view)
                known[folder.name].remember()
                bar.advance()
        by_uid = {data.folder.uid: data for data in known.values()}
        for entry in table:
            data = by_uid[entry["run"]]
            entry |= {"data": data.details, "stored": data.stored}
        tokens = {name: _tokens(name, target / "data", view) for name in {e["backbone"] for e in table if e["stored"]}}
        for entry in table:
            entry["tokens"] = tokens.get(entry["backbone"])
        _clear(target / "data", by_uid.keys())
        view.seconds = time.monotonic() - began
        write_script(target / "data", "index.js", {"root": str(root), "runs": table, "notes": notes})
        write_page(
            view.page, "view.html.j2", title=f"Runs in {str(root).encode(errors='replace').decode()}", nonce=secrets.token_urlsafe(12), stamp=time.time_ns(),
            palette=PALETTE,
        )  # fmt: skip
    return view


def _key(name: str) -> str:
    return ViewConfig.key(name)


def _said(notes: list[str]) -> str:
    return f". Passed over: {'; '.join(notes[:3])}{'; ...' if len(notes) > 3 else ''}" if notes else ""


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    """The directory of the page, which is ours."""
    if target.exists() and not (target / MARKER).exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(
            f"{_key('out')}={target} holds something else; expected a new directory, an empty one, or one that `view` has written"
        )
    if wrong := obstacle(target):
        raise ConfigurationError(f"{_key('out')}={target}: {wrong}. Give a directory that you may write.")
    try:
        (target / "data").mkdir(parents=True, exist_ok=True)
        write_json(target / MARKER, {"written_by": "ollm-rl view", "format": FORMAT})
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{_key('out')}={target} cannot be written ({error.strerror}). Give another directory."
        ) from error


class _Data:
    """The files of one run in `data/`, and what is known of those that are there."""

    def __init__(self, folder: Folder, data: Path):
        self.folder, self.data, self.home = folder, data, data / folder.uid
        self.details, self.stored = "", 0
        self.kept: set[str] = set()
        self.manifest: dict[str, Any] = {"format": FORMAT, "facts": {}, "groups": {}}
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.home / MANIFEST).read_text())
            if found["format"] == FORMAT:
                self.manifest = {name: found[name] for name in self.manifest}
        self.before = json.dumps(self.manifest)

    def facts(self, root: Path) -> Facts:
        """What the run's files say, read anew where one has changed."""
        key = self.folder.stamp([*sorted(self.folder.files), *sorted(self.folder.inside)])
        key = f"{key} {self.folder.name}"
        if self.manifest["facts"].get("key") != key:
            self.manifest["facts"] = {"key": key, "found": finite(asdict(facts_of(self.folder, root)))}
        return Facts(**self.manifest["facts"]["found"])  # of this `FORMAT`

    def write(self, limit: int | None, view: View) -> None:
        """Write the chunks and the details, as far as they are not there."""
        found = store(self.folder, self.data, limit, self.manifest["groups"])
        self.stored = sum(each["n"] for each in found.sets.values())
        name = f"{self.folder.uid}/run-{self.folder.stamp([CONFIG, METRICS, CONVERSION])}{short(str(found.sets))}.js"
        if not (self.data / name).exists():
            write_script(self.data, name, {"sets": found.sets, **_details(self.folder)})
            found.written += 1
        self.details, self.kept = name, {Path(file).name for file in [*found.files, name]}
        view.written += found.written
        view.episodes += self.stored
        view.notes += [f"{self.folder.name}: {note}" for note in found.notes]

    def remember(self) -> None:
        """Keep what the data were made from, and take away what they no longer need."""
        for path in self.home.glob("*.js"):
            if path.name not in self.kept:
                path.unlink()
        if json.dumps(self.manifest) != self.before or not (self.home / MANIFEST).exists():
            self.home.mkdir(parents=True, exist_ok=True)
            write_json(self.home / MANIFEST, self.manifest)


def _details(folder: Folder) -> dict[str, Any]:
    """Curves by column, the configuration, and what the options are worth."""
    lines = records(folder.path / METRICS)[0] if METRICS in folder.files else []
    names = dict.fromkeys(k for line in lines for k, v in line.items() if isinstance(v, int | float))
    found: dict[str, Any] = {"curves": {name: [_plotted(line.get(name)) for line in lines] for name in names}}
    if CONFIG in folder.files:
        found["config"] = (folder.path / CONFIG).read_text(errors="replace")
    if CONVERSION in folder.files:
        with suppress(CheckpointError):  # the facts have a note on it
            found["conversion"] = finite(stored_json(folder.path / CONVERSION))
    return found


def _plotted(value: Any) -> float | None:
    return finite(float(value)) if isinstance(value, int | float) else None


def _tokens(backbone: str | None, data: Path, view: View) -> str | None:
    """The file with the texts of a backbone's tokens; None where there is no tokenizer."""
    if backbone is None:
        return None
    name = f"tokens-{short(backbone)}.js"
    if not (data / name).exists():
        if (texts := token_texts(backbone)) is None:
            view.notes.append(
                f"backbone {backbone}: its tokenizer is not here, so most tokens are shown without their texts"
            )
            return None
        write_script(data, name, texts)
        view.written += 1
    return name


def _clear(data: Path, kept: Collection[str]) -> None:
    """Take away the data of runs that are gone."""
    for path in data.iterdir():
        if path.is_dir() and path.name not in kept and (path / MANIFEST).exists():
            shutil.rmtree(path)
