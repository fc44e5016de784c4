"""The data of the page: files that it loads when it needs them, written once.

Each is a script that calls `ollm(<name>, <data>)`, for a page that is opened from a disk may load scripts but read no files; the data are
JSON, packed with gzip, in base64, so that nothing in a text can be taken for a script. A file's name has a hash of what it was made from:
the names, times and sizes of a run's files.
"""

import base64
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollm_rl.report.pages import verdict_text
from ollm_rl.view.runs import TRAINING, Folder, records, set_of, short

LARGEST = 1_000_000  # bytes of rollouts in a chunk, about
FORMAT = 1  # of the files; those of another are written anew
REPLAYS = "replays"


@dataclass
class Stored:
    """What of a run's episodes lies in files.

    Attributes:
        sets: by name (`greedy`, `train_3`), dicts of `n`, `solved` and `parts`: (file, index of its first, number).
        files: of all chunks.
        written: how many of them are new.
    """

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    written: int = 0


def script(name: str, value: Any) -> str:
    """The script that hands `value` to the page."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(finite(value), separators=(",", ":"))
    packed = gzip.compress(text.encode(), 6, mtime=0)
    return f'ollm({json.dumps(name)},"{base64.b64encode(packed).decode()}")\n'


def write_script(folder: Path, name: str, value: Any) -> int:
    """Write `<folder>/<name>` in one step; its bytes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = script(name, value)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="ascii")
    scratch.replace(path)
    return len(text)


def unpacked(path: Path) -> Any:
    """What `write_script` has written."""
    packed = path.read_text(encoding="ascii").rpartition(',"')[2].rstrip().removesuffix('")')
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def store(folder: Folder, data: Path, limit: int | None, before: dict[str, Any]) -> Stored:
    """Write the chunks of a run's episodes, as far as they are not there.

    Args:
        data: the directory of all data.
        limit: most episodes of a file.
        before: what `store` found last, by the groups' keys.
    """
    found = Stored()
    replays = sorted(name for name in folder.files if name.startswith(REPLAYS))
    steps: dict[str, dict[str, Any]] | None = None
    said: list[str] = []
    groups = {}
    for names, training in _groups(folder):
        key = short(f"{folder.stamp([*names, *(() if training else replays)])} {limit} {FORMAT}")
        group = before.get(key)
        if group is None or not all((data / file).exists() for file in group["files"]):
            if not training and steps is None:
                steps = _steps(folder, replays, said)
            group = _write(folder, names, data, key, limit, {} if training else steps or {})
            group["notes"] += [] if training else said
            found.written += len(group["files"])
        groups[key] = group
        found.sets |= group["sets"]
        found.files += group["files"]
        found.notes += [note for note in group["notes"] if note not in found.notes]
    before.clear()
    before.update(groups)
    return found


def _groups(folder: Folder) -> Iterator[tuple[list[str], bool]]:
    """Files that share chunks: neighbours that are small. When a run goes on, the groups of before stay as they were."""
    for training in (False, True):
        group: list[str] = []
        size = 0
        for name in (n for n in folder.rollouts if set_of(n).startswith(TRAINING) == training):
            if group and size + folder.files[name][1] > LARGEST:
                yield group, training
                group, size = [], 0
            group.append(name)
            size += folder.files[name][1]
        if group:
            yield group, training


def _write(
    folder: Folder, names: list[str], data: Path, key: str, limit: int | None, steps: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    group: dict[str, Any] = {"files": [], "sets": {}, "notes": []}
    chunk: list[dict[str, Any]] = []
    size = 0.0

    def flush() -> None:
        nonlocal chunk, size
        if chunk:
            write_script(data, group["files"][-1], chunk)
            chunk, size = [], 0.0

    for name in names:
        episodes, damaged = _episodes(folder.path / name)
        if damaged:
            group["notes"].append(f"{name}: {damaged} damaged lines are left out")
        each = folder.files[name][1] / max(1, len(episodes))  # neighbours that fit by their files' sizes stay together
        if limit is not None:
            episodes = episodes[:limit]
        made: dict[str, Any] = {"n": len(episodes), "solved": 0, "parts": []}
        for i, record in enumerate(episodes):
            if not chunk:
                group["files"].append(f"{folder.uid}/{key}-{len(group['files'])}.js")
            if not made["parts"] or made["parts"][-1][0] != group["files"][-1]:
                made["parts"].append([group["files"][-1], i, 0])
            made["parts"][-1][2] += 1
            shown = _shown(record, set_of(name), i, steps)
            made["solved"] += shown["solved"]
            chunk.append(shown)
            size += each
            if size > LARGEST:
                flush()
        group["sets"][set_of(name)] = made
    flush()
    return group


def _episodes(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The episodes of a file, and how many lines hold none."""
    found, damaged = records(path)
    good = [record for record in found if _is_episode(record)]
    return good, damaged + len(found) - len(good)


def _is_episode(record: dict[str, Any]) -> bool:
    return (
        isinstance(record.get("problem"), str)
        and isinstance(record.get("text"), str)
        and isinstance(record.get("reward"), int | float)
        and isinstance(record.get("latents", []), list)
        and isinstance(record.get("tokens", []), list)
    )


def _shown(record: dict[str, Any], name: str, i: int, steps: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """An episode as the page has it: its line, and beside it what is shown of it."""
    made = {
        "set": name, "i": i, "record": record, "solved": bool(record.get("solved", record["reward"] >= 1.0)),
        "said": verdict_text({"gold": "?", **record, "verdict": str(record.get("verdict") or "")}),
    }  # fmt: skip
    if (replay := steps.get(_key(record))) is not None:
        made["steps"] = replay["steps"]
    return made


def _key(record: dict[str, Any]) -> str:
    return short(json.dumps([record.get("problem_id"), record["problem"], record.get("tokens"), record["text"]]))


def _steps(folder: Folder, names: Iterable[str], notes: list[str]) -> dict[str, dict[str, Any]]:
    """The episodes with what every option would have said, by what they have in common with the lines of rollouts."""
    made: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            episodes = json.loads((folder.path / name).read_text(errors="replace"))
            made |= {_key(e): e for e in episodes if _is_episode(e) and _are_steps(e["steps"])}
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            notes.append(f"{name} is passed over ({type(error).__name__})")
    return made


def _are_steps(steps: Any) -> bool:
    return all(
        isinstance(step["token"], str) and isinstance(step["latent"], int) and all(map(_is_option, step["options"]))
        for step in steps
    )


def _is_option(option: Any) -> bool:
    latent, text, prior = option
    return isinstance(latent, int) and isinstance(text, str) and isinstance(prior, int | float)


def finite(value: Any) -> Any:
    """As JSON knows it: null in place of NaN and infinity."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list) else value
