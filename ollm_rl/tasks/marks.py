"""What a row, a file or a split on the hub may say about the split that its problems belong to."""

import re
from typing import Any

VALIDATION = ("validation", "valid", "val", "dev")
MARKS = ("sft", "train", "tune", "test", *VALIDATION)


def known_mark(mark: Any) -> str | None:
    """The split that a row is marked with, as we write it; None for what is no mark of ours."""
    text = str(mark).strip().lower()
    return text if text in MARKS else None


def mark_of_name(name: str) -> str | None:
    """The split that a file's name begins with, as in `test.csv` and `train-00000-of-00002.parquet`."""
    return known_mark(re.split(r"[^A-Za-z]", name)[0])
