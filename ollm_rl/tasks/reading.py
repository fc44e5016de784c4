"""Rows of a data set on the hub, each with the place where it stands."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ollm_rl.errors import DataError
from ollm_rl.tasks.marks import known_mark

log = logging.getLogger(__name__)


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
