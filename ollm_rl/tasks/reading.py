"""Rows of a JSON-lines file or of a data set on the hub, each with the place where it stands."""

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ollm_rl.errors import DataError

log = logging.getLogger(__name__)

VALIDATION = ("validation", "valid", "val", "dev")
MARKS = ("sft", "train", "tune", "test", *VALIDATION)  # what a row may say about its split
EXPECTED = 'Expected one object a line: {"problem": ..., "answer": ..., "solution": ...}.'
# How files begin that are taken for JSON lines and are none, and what to do about it.
BEGINNINGS = (
    (b"\x1f\x8b", "is compressed by gzip; unpack it first (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first (unzstd)"),
    (b"BZh", "is compressed by bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it first (unxz)"),
    (b"PK\x03\x04", "is a zip archive; unpack it first (unzip)"),
    (b"PAR1", "is a Parquet file; write it as JSON lines first, such as by pandas.read_parquet and to_json(lines=True)"),
    (b"\xff\xfe", "is encoded in UTF-16; save it as UTF-8, such as by iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "is encoded in UTF-16; save it as UTF-8, such as by iconv -f UTF-16 -t UTF-8"),
)  # fmt: skip


class Written(float):
    """A number of a JSON file that keeps the digits it was written with."""

    digits: str

    def __new__(cls, text: str | float) -> "Written":
        number = super().__new__(cls, text)
        number.digits = str(text)
        return number


def read_lines(path: str) -> Iterator[tuple[str, Any]]:
    """Where it stands, and the JSON value, of every line that is not blank. A byte-order mark is skipped.

    Raises:
        DataError: it cannot be read, is no UTF-8 text, holds nothing, or a line is no JSON; the message has the line.
    """
    file = Path(path).expanduser()
    _check_file(file)
    found = False
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found = True
                    yield (where := f"{file}, line {number}"), _value(line, where)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not a UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}). Check task.path.") from error
    if not found:
        raise DataError(f"{file} is empty. {EXPECTED}")


def _check_file(file: Path) -> None:
    try:
        kind = file.stat().st_mode
        if stat.S_ISDIR(kind):
            raise DataError(f"{file} is a directory. Expected a JSON-lines file; give one of its files as task.path.")
        if not stat.S_ISREG(kind):
            raise DataError(f"{file} is no regular file, and is read more than once. Expected a JSON-lines file.")
        with file.open("rb") as opened:
            start = opened.read(64)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file: {file}. Expected a JSON-lines file; check task.path.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"{file} cannot be read ({getattr(error, 'strerror', error)}). Check task.path.") from error
    for bytes_, what in BEGINNINGS:
        if start.startswith(bytes_):
            raise DataError(f"{file} is not a UTF-8 text: it {what}.")
    if b"\0" in start:
        raise DataError(f"{file} is not a UTF-8 text: it has zero bytes, as UTF-16 and binary files have.")


def _value(line: str, where: str) -> Any:
    try:
        value = json.loads(line, parse_float=Written, object_pairs_hook=_object)
        if "\\ud" in line.lower():  # half of a character, which no file and no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}). {EXPECTED}") from None
    except UnicodeEncodeError:
        raise DataError(f"{where} has half of a surrogate pair, which is no character. {EXPECTED}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # a key twice; an integer of thousands of digits; brackets in brackets
        raise DataError(f"{where} cannot be read ({str(error).partition(';')[0]}). {EXPECTED}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(k for k in keys if keys.count(k) > 1)}' stands twice in an object")
    return found


def read_hub(hub_id: str, config: str | None = None) -> Iterator[tuple[str, Any]]:
    """Where it stands, and the columns, of every row of all splits; `split` says which, if it is one that we know.

    A local directory will do.

    Raises:
        DataError: the data set cannot be had, or has no rows.
    """
    from datasets import load_dataset

    local = Path(hub_id).expanduser()
    try:
        data = load_dataset(str(local)) if local.is_dir() else load_dataset(hub_id, config)
    except Exception as error:  # datasets raises many kinds for one cause
        raise DataError(
            f"the data set {hub_id} cannot be had from the hub ({type(error).__name__}). "
            "Give a local copy with task.path=<file.jsonl>."
        ) from error
    if not any(len(rows) for rows in data.values()):
        raise DataError(f"the data set {hub_id} is empty. Expected rows with a problem and an answer.")
    if unknown := [str(split) for split in data if not known_mark(split)]:
        log.info(
            "%s: split %s is neither train nor test to us; problems are spread by a hash", hub_id, ", ".join(unknown)
        )
    for split, rows in data.items():
        for number, row in enumerate(rows, 1):
            mark = next((m for m in (row.get("split"), split) if known_mark(m)), None)
            yield f"{hub_id}, split {split}, row {number}", {"id": f"{split}-{number}", **row, "split": mark}


def known_mark(mark: Any) -> str | None:
    """The split that a row is marked with, as we write it; None for what is no mark of ours."""
    text = str(mark).strip().lower()
    return text if text in MARKS else None
