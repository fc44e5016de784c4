"""Problems that stand more than once in the data.

Two rows are the same problem if their texts are equal but for spacing and for how Unicode writes the same characters. One
that was learned from is never reported on, and one that is reported on counts once.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.tasks.base import SPLITS, Problem

# Compatibility forms that mean something else in mathematics: 5² is not 52, ½ is not 1/2 after a digit, ① may be an operator.
MEANINGFUL = ("<super>", "<sub>", "<fraction>", "<circle>")


@dataclass(frozen=True)
class Row:
    """A problem, the split that it is marked with, and where it was read."""

    problem: Problem
    mark: str | None
    where: str


def canonical(text: str) -> str:
    """What the texts of one problem have in common: no format characters, one space for any white space, full-width and other
    presentation forms as ordinary ones (NFKC, save superscripts, subscripts, fractions and circled digits)."""
    if not text.isascii():
        text = "".join(
            c if unicodedata.decomposition(c).startswith(MEANINGFUL) else unicodedata.normalize("NFKC", c)
            for c in unicodedata.normalize("NFC", text)
            if unicodedata.category(c) != "Cf"
        )
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def whole(problem: Problem) -> str:
    """The text by which problems are the same or not: what was said before it, and it."""
    return canonical("\n".join([*(text for _, text in problem.turns), problem.problem]))


def with_own_ids(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows, each with an id that no other has, and what there is to say about it."""
    taken = {row.problem.id for row in rows}
    first: dict[str, str] = {}
    found, clashes = [], 0
    for row in rows:
        id, text = row.problem.id, whole(row.problem)
        if id in first:
            clashes += first[id] != text
            number = 2
            while f"{id}#{number}" in taken:
                number += 1
            row = replace(row, problem=replace(row.problem, id=f"{id}#{number}"))
            taken.add(row.problem.id)
        first.setdefault(id, text)
        found.append(row)
    note = f"{_count(clashes, 'row has', 'rows have')} the id of another problem; '#2', '#3', ... is added to theirs"
    return found, [note] if clashes else []


def separate(by_split: dict[str, list[Row]]) -> tuple[dict[str, list[Problem]], list[Problem], list[str]]:
    """Every problem on one side: what is in `test` leaves all other splits, what is in `tune` leaves `sft` and `train`.

    In `sft` a problem may have several solutions; in the others it stands once, as in its first row.

    Returns:
        the problems of each split, those that were left out, and what there is to say about it.
    """
    kept: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    out: list[Problem] = []
    notes: list[str] = []
    reported: dict[str, str] = {}  # the split in which a problem is reported on
    for split in ("test", "tune", "train", "sft"):
        seen: set[str] = set()
        again, elsewhere = 0, Counter[str]()
        for row in by_split[split]:
            text = whole(row.problem)
            if text in reported:
                elsewhere[reported[text]] += 1
                out.append(row.problem)
            elif text in seen and split != "sft":
                again += 1
                out.append(row.problem)
            else:
                seen.add(text)
                kept[split].append(row.problem)
        if split in ("test", "tune"):
            reported |= dict.fromkeys(seen, split)
        for other, n in elsewhere.items():
            notes.append(f"{_count(n, 'row', 'rows')} of {split} left out, whose problems are in {other} too")
        if again:
            notes.append(
                f"{_count(again, 'row', 'rows')} of {split} left out, which repeat a problem of an earlier row of {split}"
            )
    return kept, out, notes + _contradictions([row for split in SPLITS for row in by_split[split]])


def _contradictions(rows: Sequence[Row]) -> list[str]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[whole(row.problem)].append(row)
    found = []
    for first, *others in groups.values():
        answered = [row for row in (first, *others) if row.problem.answer]
        found += [(answered[0], other) for other in answered[1:] if _answer(other) != _answer(answered[0])][:1]
    if not found:
        return []
    one, other = found[0]
    return [
        f"{_count(len(found), 'problem has', 'problems have')} different answers in different rows, such as "
        f"{one.problem.answer!r:.40} in {one.where} and {other.problem.answer!r:.40} in {other.where}; the first counts"
    ]


def _answer(row: Row) -> str | Fraction:
    number = plain_number(form := normal_form(row.problem.answer))
    return form if number is None else number


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
