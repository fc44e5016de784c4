"""Whole checkpoints: sealed with the size and the checksum of every file, so that a damaged one is noticed and passed over."""

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from ollm_rl.errors import CheckpointError

log = logging.getLogger(__name__)
SEAL = "files.json"


def seal(folder: Path) -> None:
    """Write down what the checkpoint in `folder` consists of: its last file."""
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != SEAL}
    (folder / SEAL).write_text(json.dumps({name: [f.stat().st_size, _checksum(f)] for name, f in files.items()}) + "\n")


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, an empty text if nothing is."""
    if not folder.is_dir():
        return "it is missing"
    try:
        if not (folder / SEAL).exists():  # of an earlier release, or of a trainer that was killed before it was sealed
            return _unreadable(folder)
        for name, (size, checksum) in json.loads((folder / SEAL).read_text()).items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if _checksum(file) != checksum:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"{SEAL} cannot be read ({error})"
    return ""


def newest_whole(folders: Sequence[Path]) -> Path | None:
    """The first of `folders`, newest first, that is whole; None if there are none at all. Damaged ones are named in the log.

    Raises:
        CheckpointError: all are damaged.
    """
    reasons: list[str] = []
    for folder in folders:
        reason = damage(folder)
        if not reason:
            if reasons:
                log.warning("going on from %s, for later checkpoints are damaged: %s", folder.name, "; ".join(reasons))
            return folder
        reasons.append(f"{folder.name}: {reason}")
    if reasons:
        where = folders[0].parent
        raise CheckpointError(
            f"no checkpoint in {where} is whole ({'; '.join(reasons)}). Restore one, delete that directory to train from "
            "the beginning, or choose another name=."
        )
    return None


def _checksum(file: Path) -> int:
    found = 0
    with file.open("rb") as data:
        while part := data.read(1 << 20):
            found = zlib.crc32(part, found)
    return found


def _unreadable(folder: Path) -> str:
    """The first file that its own format says is damaged."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    if not files:
        return "it is empty"
    for file in files:
        try:
            if not file.stat().st_size:
                return f"{file.relative_to(folder)} is empty"
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".safetensors":
                with file.open("rb") as data:
                    length = int.from_bytes(data.read(8), "little")
                    header = json.loads(data.read(length))
                end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
                if file.stat().st_size != 8 + length + end:
                    return f"{file.relative_to(folder)} was cut off"
            elif file.suffix in (".pt", ".pth", ".bin"):  # as torch.save writes them
                with ZipFile(file) as archive:
                    if archive.testzip():
                        return f"{file.relative_to(folder)} is damaged"
        except (ValueError, KeyError, BadZipFile, OSError) as error:
            return f"{file.relative_to(folder)} cannot be read ({type(error).__name__})"
    return ""
