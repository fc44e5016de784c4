"""Rows of files: JSON lines, JSON arrays, CSV and TSV, Parquet, each also compressed by gzip, and directories of them.

JSON and Parquet are told by how a file begins, CSV and TSV by its name. Every row comes with the place where it stands.
"""

import csv
import gzip
import io
import json
import stat
import zlib
from collections.abc import Iterable, Iterator
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from ollm_rl.errors import DataError
from ollm_rl.tasks.marks import mark_of_name

EXPECTED = 'Expected one object a line: {"problem": ..., "answer": ..., "solution": ...}.'
SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
MOST = 2**25  # characters of a line: what is longer is no row of problems
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
# How files begin that cannot be read here, and what to do about it.
BEGINNINGS = (
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first (unzstd)"),
    (b"BZh", "is compressed by bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it first (unxz)"),
    (b"PK\x03\x04", "is a zip archive; unpack it first (unzip)"),
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


def read_rows(path: str, setting: str = "task.path") -> Iterator[tuple[str, Any]]:
    """Where it stands, and the value, of every row of a file, or of all files of a directory and those below it.

    In a directory, the rows of a file whose name begins with that of a split (`test.csv`, `train-00000-of-00002.parquet`) have it
    as their `split`, where they say nothing else.

    Args:
        setting: that names the path, for messages.

    Raises:
        DataError: something cannot be read, is no UTF-8 text, or holds nothing; the message has the file and the line.
    """
    place = Path(path).expanduser()
    found = 0
    for file in _files(place, setting):
        mark = mark_of_name(file.name) if file != place else None
        for where, value in _rows_of(file):
            found += 1
            if mark and isinstance(value, dict) and value.get("split") in (None, ""):
                value = {**value, "split": mark}
            yield where, value
    if not found:
        raise DataError(f"{place} is empty. {EXPECTED}")


def _files(place: Path, setting: str) -> list[Path]:
    try:
        if not stat.S_ISDIR(place.stat().st_mode):
            return [place]
        found = sorted(p for p in place.rglob("*") if p.is_file() and _is_ours(p) and not _is_hidden(p, place))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or directory: {place}. Check {setting}.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise DataError(f"{place} cannot be read ({getattr(error, 'strerror', error)}). Check {setting}.") from error
    if not found:
        raise DataError(f"{place} is a directory without files that end in {', '.join(SUFFIXES)}, or these and .gz.")
    return found


def _is_ours(file: Path) -> bool:
    return file.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def _is_hidden(file: Path, place: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(place).parts)


def _rows_of(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DataError(f"{file} is no regular file, and is read more than once. Expected a file of rows.")
        packed = _begin(file, False).startswith(GZIP)
        start = _begin(file, packed)
        if start.startswith(PARQUET):
            yield from _parquet(file, packed)
            return
        for bytes_, what in BEGINNINGS:
            if start.startswith(bytes_):
                raise DataError(f"{file} is not a UTF-8 text: it {what}.")
        if b"\0" in start:
            raise DataError(f"{file} is not a UTF-8 text: it has zero bytes, as UTF-16 and binary files have.")
        with _opened(file, packed) as opened, io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
            name = file.name.lower().removesuffix(".gz")
            if name.endswith((".csv", ".tsv")):
                yield from _csv(file, text, "\t" if name.endswith(".tsv") else ",")
            elif start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                yield from _array(file, text)
            else:
                yield from _lines(file, text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not a UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file} is damaged: gzip cannot unpack it ({error}).") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}). Check task.path.") from error


def _opened(file: Path, packed: bool) -> Any:
    return gzip.open(file, "rb") if packed else file.open("rb")


def _begin(file: Path, packed: bool) -> bytes:
    with _opened(file, packed) as opened:
        return bytes(opened.read(64))


def _lines(file: Path, text: Any) -> Iterator[tuple[str, Any]]:
    """The JSON value of every line that is not blank."""
    number = 0
    while line := text.readline(MOST):
        number += 1
        where = f"{file}, line {number}"
        if len(line) >= MOST:
            raise DataError(f"{where} has more than {MOST:,} characters. {EXPECTED}")
        if line.strip():
            yield where, _value(line.rstrip("\r\n"), file, number)


def _array(file: Path, text: Any) -> Iterator[tuple[str, Any]]:
    """The elements of a file that is one JSON array."""
    for number, value in enumerate(_value(text.read(), file), 1):
        yield f"{file}, element {number}", value


def _csv(file: Path, text: Any, delimiter: str) -> Iterator[tuple[str, Any]]:
    """The rows of a table whose first line names its columns; an empty cell is None."""
    csv.field_size_limit(MOST)
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = next(rows, None)
        if names is None:
            return
        if len(set(names)) < len(names):
            raise DataError(f"{file} names the column {max(names, key=names.count)!r} twice in its first line.")
        for row in rows:
            where = f"{file}, line {rows.line_num}"
            if row and len(row) != len(names):
                raise DataError(
                    f"{where} has {len(row)} cells; expected {len(names)}, one for each column that the first line names: "
                    f"{', '.join(names):.80}."
                )
            if row:
                yield where, {name: cell or None for name, cell in zip(names, row, strict=True)}
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num} cannot be read ({error}).") from None


def _parquet(file: Path, packed: bool) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with _opened(file, packed) as opened:
            for batch in parquet.ParquetFile(io.BytesIO(opened.read()) if packed else opened).iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", _plain(row)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is damaged: it begins as a Parquet file and is none ({error}).") from None


def _plain(value: Any) -> Any:
    """As JSON would have it."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else Written(str(value))
    if isinstance(value, date | time):
        return value.isoformat()
    return value if isinstance(value, str | int | float | None) else repr(value)


def _value(text: str, file: Path, number: int | None = None) -> Any:
    """The JSON value of a line, or of a whole file."""
    where = f"{file}" if number is None else f"{file}, line {number}"
    try:
        value = json.loads(text, parse_float=Written, object_pairs_hook=_object)
        if "\\ud" in text.lower():  # half of a character, which no file and no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line, column = error.lineno if number is None else number, error.colno
        said = (text if number is not None else text.split("\n")[line - 1]).strip()
        what = f"{error.msg.removesuffix(' at').rstrip(':')} at column {column}"
        raise DataError(
            f"{file}, line {line} is not JSON ({what}). The line ends with {_end(said)}. {EXPECTED}"
        ) from None
    except UnicodeEncodeError:
        raise DataError(f"{where} has half of a surrogate pair, which is no character. {EXPECTED}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # a key twice; an integer of thousands of digits; brackets in brackets
        raise DataError(f"{where} cannot be read ({str(error).partition(';')[0]}). {EXPECTED}") from None
    return value


def _end(text: str, most: int = 60) -> str:
    """The end of a text as Python writes it."""
    return f"...{text[-most:]!r}" if len(text) > most else repr(text)


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(k for k in keys if keys.count(k) > 1)}' stands twice in an object")
    return found
