"""The fields of a row: what they are called, what they may hold, and how they are written out."""

import decimal
import json
import math
from collections.abc import Mapping
from typing import Any

from ollm_rl.errors import DataError, close, did_you_mean
from ollm_rl.tasks.marks import MARKS, known_mark
from ollm_rl.tasks.twins import canonical

TEXT = (str, int, float)  # numbers are written out
# Fields of a row: whether it may be missing or null, of which kinds it is, and that in words.
FIELDS: tuple[tuple[str, bool, tuple[type, ...], str], ...] = (
    ("problem", False, TEXT, "a text"),
    ("answer", True, TEXT, "a text or a finite number"),
    ("id", True, TEXT, "a text or a number"),
    ("solution", True, (str,), "a text"),
    ("split", True, (str,), "a text such as train or test"),
    ("difficulty", True, (int, float), "a finite number"),
    ("source", True, (str,), "a text"),
    ("domain", True, (str, list), "a text or a list of texts"),
)


def renamed(row: dict[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """The row with our names for its columns (`task.columns`)."""
    if not columns:
        return row
    found = {key: value for key, value in row.items() if key not in columns.values()}
    for ours, theirs in columns.items():
        value: Any = row
        for key in [theirs] if theirs in row else theirs.split("."):
            if not isinstance(value, dict) or key not in value:
                hint = did_you_mean(theirs, [str(k) for k in row])
                raise DataError(
                    f"{where} has no column '{theirs}', which task.columns names; found {', '.join(sorted(map(str, row)))}.{hint}"
                )
            value = value[key]
        found[ours] = value
    return found


def likely_misspelt(columns: Mapping[str, str]) -> list[str]:
    """A note on every name of `task.columns` that is almost one of ours. It may be meant, for a column of one's own has any name."""
    ours = [field for field, *_ in FIELDS]
    notes = []
    for name in columns:
        if name not in ours and (near := close(name, ours, 1, alike=0.75)):
            notes.append(
                f"task.columns names '{name}', which is no field of ours, so only rewards get it. Did you mean '{near[0]}'?"
            )
    return notes


def checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The row, its difficulty as a number.

    Raises:
        DataError: a field is missing or holds something else, or the split is none that is known.
    """
    if isinstance(row.get("difficulty"), str) and _is_number(row["difficulty"]):  # of a CSV file
        row = {**row, "difficulty": float(row["difficulty"])}
    for field, optional, kinds, expected in FIELDS:
        value = row.get(field)
        if optional and value is None:
            continue
        if field not in row:
            hint = did_you_mean(field, [str(k) for k in row])
            raise DataError(
                f"{where} has no field '{field}'; found fields {sorted(row)}.{hint} Say which column is meant: "
                f"'task.columns={{{field}: <column>}}'."
            )
        if not is_of(value, kinds) or not (optional or canonical(str(value))):
            other = ""
            if optional:  # a column that happens to have the name of a field
                other = f" If it means something else, give it another name: 'task.columns={{<name>: {field}}}'."
            raise DataError(f"{where} has {shown(value)} in the field '{field}', expected {expected}.{other}")
    if row.get("split") and known_mark(row["split"]) is None:
        hint = did_you_mean(row["split"], MARKS)
        raise DataError(
            f"{where} has {shown(row['split'])} in the field 'split', expected one of {', '.join(MARKS)} or none.{hint}"
        )
    return row


def is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a field's value is of one of these kinds: a number that is one, a list of texts."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    if isinstance(value, list):
        return all(isinstance(x, str) for x in value)
    return not isinstance(value, float) or math.isfinite(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def shown(value: Any) -> str:
    """A field's value as a JSON file has it, shortened."""
    return f"{json.dumps(value, ensure_ascii=False, default=repr):.60}"


def text_of(value: Any) -> str:
    """A field as text: a number with the digits it was written with, and no exponent; 42.0 is 42."""
    if not isinstance(value, float):
        return str(value)
    digits = format(decimal.Decimal(getattr(value, "digits", repr(value))), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
