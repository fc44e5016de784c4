r"""Answers that are compared in their own terms and never computed: times, dates, ranges, ratios, numbers with dashes,
version numbers, codes, ordinals, compound quantities.

`10:30` is no quotient and `2024-01-10` no difference, although a parser of formulas reads them so. Where the gold could be
either, it is the literal: what is refused by mistake costs less than a wrong answer that is paid.
All texts are in normal form (`ollm_rl.reward.normal_form.normal_form`).
"""

import datetime
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ollm_rl.reward.normal_form import plain_number
from ollm_rl.reward.units import canonical, is_known
from ollm_rl.reward.words import ordinal, unwrapped

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Literal:
    """A gold and an answer are equal if they share a key.

    Attributes:
        text: as a formula, where it may be one.
        keys: canonical forms. loose: further ones that count in an answer only, not in a gold.
        formula: in a gold, the text may also be computed. answer_formula: in an answer.
        unit: as of `ollm_rl.reward.units`.
    """

    text: str
    keys: frozenset[Key]
    loose: frozenset[Key] = frozenset()
    formula: bool = False
    answer_formula: bool = False
    unit: str = ""

    def is_stated_by(self, answer: "Literal") -> bool:
        return bool(self.keys & (answer.keys | answer.loose))


def literal(text: str) -> Literal | None:
    """What the text is, if it is no formula; None if it is one, or words."""
    if len(text) > 80:
        return None
    plain = unwrapped(text)
    folded = plain.casefold()
    if found := _time(folded) or _ratio(text):
        return found
    for key in (_date(folded), _telephone(folded), _version(folded)):
        if key is not None:
            return Literal(text, frozenset({key}))
    if found := _span(plain):
        return found
    for key in (_code(plain), _compound(plain), _ordinal(text)):
        if key is not None:
            return Literal(text, frozenset({key}))
    return None


def _ordinal(text: str) -> Key | None:
    number = ordinal(text)
    return None if number is None else ("ordinal", number)


# Times -----------------------------------------------------------------------------------------------------------

_CLOCK = re.compile(r"(?:at )?([0-9]{1,2})(?::([0-5][0-9])(?::([0-5][0-9]))?)? ?(.*)")
_HALF = re.compile(r"(a|p) ?\.? ?m ?\.?")
_PART_OF_DAY = {"in the morning": "a", "in the afternoon": "p", "in the evening": "p"}
_NAMED = {
    "noon": "12 pm", "midnight": "12 am", "12 noon": "12 pm", "12:00 noon": "12 pm", "12 midnight": "12 am",
    "12:00 midnight": "12 am",
}  # fmt: skip


def _time(text: str) -> Literal | None:
    """`3:30 PM`, `15:30`, `4 p.m.`, `noon`, `1:02:03`.

    Times of day are equal as such. 9:30 without a.m. or p.m. is the very time that is written, or either where the answer
    says more; it may also be a length of time, or in an answer to a ratio, a ratio.
    """
    if not (match := _CLOCK.fullmatch(_NAMED.get(text, text))):
        return None
    hours, minutes, seconds, rest = match.groups()
    hour, minute, second = int(hours), int(minutes or 0), int(seconds or 0)
    written = (hour, minute, int(seconds) if seconds else None)
    half = _HALF.fullmatch(rest)
    part = half[1] if half else _PART_OF_DAY.get(rest)
    if part and 1 <= hour <= 12:
        day: Key = ("time", hour % 12 + 12 * (part == "p"), minute, second)
        return Literal(text, frozenset({day}), frozenset({("without half", *written)}))
    if part == "p" and 12 < hour < 24 and minutes:
        return Literal(text, frozenset({("time", hour, minute, second)}))
    if part or rest not in ("", "o'clock") and not (minutes and rest in ("h", "hours", "hrs")) or not (minutes or rest):
        return None
    keys: set[Key] = {("written", *written)}
    if 12 < hour < 24 or (hours[0] == "0" and len(hours) == 2):
        keys.add(("time", hour, minute, second))
    else:
        keys.add(("without half", *written))
    ratio = _ratio(text) if minutes and minutes[0] != "0" else None
    proportions = ratio.keys if ratio else frozenset()
    return Literal(text, frozenset(keys) | {k for k in proportions if k[0] == "pair"}, proportions)


# Dates -----------------------------------------------------------------------------------------------------------

_MONTHS = {
    name: n for n, names in enumerate(
        ("january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
         "september sep sept", "october oct", "november nov", "december dec"), 1) for name in names.split()
}  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_YEAR_FIRST = re.compile(r"([0-9]{4})([-/.])([0-9]{1,2})\2([0-9]{1,2})")
_YEAR_LAST = re.compile(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4}|[0-9]{2})")
_WRITTEN = re.compile(r"[a-z]{3,9}|[0-9]{1,4}(?:st|nd|rd|th)?")
_DATE_INSIDE = re.compile(
    r"(?<![0-9.])[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9])|(?<![0-9/])[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}(?![0-9/])"
)


def _date(text: str) -> Key | None:
    """("date", year, month, day), each of which may be missing; ("numbers", ...) where day and month may be either."""
    if match := _YEAR_FIRST.fullmatch(text):
        return _valid(int(match[1]), int(match[3]), int(match[4])) or ("numbers", text)
    if match := _YEAR_LAST.fullmatch(text):
        a, b, year = int(match[1]), int(match[3]), int(match[4])
        if len(match[4]) == 4 and (a == b or max(a, b) > 12) and (known := _valid(year, *sorted((a, b)))):
            return known  # the day is the one above 12
        return "numbers", match[2], a, b, year
    if _DATE_INSIDE.search(text):
        return "text", text
    if not re.fullmatch(r"[a-z0-9 ,.]+", text):
        return None
    words = [w for w in re.split(r"[ ,.]+", text) if w not in ("", "of", "the")]
    weekday = words.pop(0) if words and words[0] in _WEEKDAYS else None
    if not 2 <= len(words) <= 3 or not all(map(_WRITTEN.fullmatch, words)):
        return None
    months = [_MONTHS[w] for w in words if w in _MONTHS]
    years = [int(w) for w in words if re.fullmatch("[0-9]{3,4}", w)]
    days = [int(re.sub("[a-z]+", "", w)) for w in words if re.fullmatch("[0-9]{1,2}(?:st|nd|rd|th)?", w)]
    if len(months) != 1 or len(years) > 1 or len(days) > 1 or 1 + len(years) + len(days) != len(words):
        return None
    key = _valid(years[0] if years else None, months[0], days[0] if days else None)
    if weekday and (key is None or None in key or datetime.date(*key[1:]).weekday() != _WEEKDAYS.index(weekday)):
        return None
    return key


def _valid(year: int | None, month: int, day: int | None) -> Key | None:
    try:
        datetime.date(2024 if year is None else max(year, 1), month, 1 if day is None else day)
    except ValueError:
        return None
    return "date", year, month, day


# Ratios and ranges -----------------------------------------------------------------------------------------------

_NUMBER = r"[-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+|[0-9]+/[0-9]+|\\frac\{[0-9]+\}\{[0-9]+\})"
_RATIO = re.compile(rf"{_NUMBER}(?: ?(?::|\\text\{{to\}}) ?{_NUMBER})+")
_END = r"((?:\\?[$€£¥₹])?)([0-9][0-9,]*(?:\.[0-9]+)?)((?:\\?%|°)?)"
_RANGE = re.compile(rf"{_END}-{_END}")
_DASHES = re.compile(r"[0-9]+(?:-[0-9]+){2,}")
_MIXED = re.compile(r"[0-9]+(?:[-:/.][0-9]+){2,}")


def _ratio(text: str) -> Literal | None:
    """`4:3`, `4 to 3`."""
    if not _RATIO.fullmatch(text):
        return None
    words = re.split(r" ?(?::|\\text\{to\}) ?", text)
    numbers = [plain_number(w) for w in words]
    if None in numbers:
        return None
    pair: frozenset[Key] = frozenset({("pair", *numbers)})
    if r"\text" in text:
        pair |= {("range", *numbers)}
    proportional = frozenset({("ratio", *reduced)} if (reduced := _reduced(numbers)) else ())
    quotient = len(numbers) == 2 and bool(numbers[1])
    return Literal(text.replace(r"\text{to}", ":"), pair | proportional, frozenset(), quotient, quotient)


def _reduced(numbers: list[Any]) -> tuple[Any, ...] | None:
    """The ratio in its smallest integers; None if a number is zero."""
    if not all(numbers):
        return None
    scale = math.lcm(*(n.denominator for n in numbers))
    whole = [int(n * scale) for n in numbers]
    common = math.gcd(*whole)
    return tuple(n // common for n in whole)


def _span(text: str) -> Literal | None:
    """`1-10`, `555-1234`, `\\$5-\\$10`, `9 AM-5 PM`, `3:30-4:30`; only a larger number before a smaller one, such as `5-3`, may
    be an answer that was not computed."""
    if match := _RANGE.fullmatch(text):
        left, low, behind, right, high, last = match.groups()
        a, b = plain_number(low), plain_number(high)
        if a is not None and b is not None:
            marks = {m.replace("\\", "") for m in (left, behind, right, last)} - {""}
            padded = bool(re.match("0[0-9]", low) or re.match("0[0-9]", high))  # 01-02
            name = (low, high) if padded else (a, b)
            plain = not marks and not padded
            key: Key = ("range", *name, *sorted(marks))
            return Literal(text, frozenset({key}), frozenset(), False, plain and a > b)
    if _DASHES.fullmatch(text) or (_MIXED.fullmatch(text) and re.search("[-:]", text) and "." not in text):
        return Literal(text, frozenset({("text", text)}))
    first, *last = (_time(end) for end in re.split(r" ?(?:-|\bto\b) ?", text.casefold()))
    if first and len(last) == 1 and last[0]:
        return Literal(text, frozenset(("times", a, b) for a in first.keys for b in last[0].keys))
    return None


# Numbers that count nothing --------------------------------------------------------------------------------------

_TELEPHONE = re.compile(r"(?:\+?([0-9]{1,3})[-. ]?)?(?:\(([0-9]{3})\)[-. ]?|([0-9]{3})[-. ])([0-9]{3})[-. ]([0-9]{4})")
_VERSION = re.compile(r"v(?:ersion)? ?([0-9]+(?:\.[0-9]+)+)|([0-9]+(?:\.[0-9]+){2,})")
_CODE = re.compile(r"[A-Z]{2,}-?[0-9]+|[A-Z][A-Za-z]*[0-9]+[A-Za-z0-9]*")


def _telephone(text: str) -> Key | None:
    match = _TELEPHONE.fullmatch(text)
    return ("telephone", "".join(filter(None, match.groups()))) if match else None


def _version(text: str) -> Key | None:
    match = _VERSION.fullmatch(text)
    return ("version", match[1] or match[2]) if match else None


def _code(text: str) -> Key | None:
    """`AB-123`, `H2O`."""
    text = re.sub(r"_\{([0-9])\}", r"\1", text)
    return ("code", text.replace("-", "")) if _CODE.fullmatch(text) else None


_QUANTITIES = re.compile(r"[0-9.]+ ?[a-zA-Z]+(?:[ ,]*(?:and )?[0-9.]+ ?[a-zA-Z]+)+")
_INCHES = re.compile(r"([0-9]+)' ?([0-9]+)(?:\"|'')")


def _compound(text: str) -> Key | None:
    """`2 hours and 30 minutes`, `5 ft 3 in`, in the order given."""
    if match := _INCHES.fullmatch(text):
        return "compound", (Fraction(match[1]), "ft"), (Fraction(match[2]), "in")
    if not _QUANTITIES.fullmatch(text):
        return None
    parts = re.findall(r"([0-9.]+) ?([a-zA-Z]+)", text)
    numbers = [plain_number(n) for n, _ in parts]
    if None in numbers or not all(is_known(u) for _, u in parts):
        return None
    return "compound", *((n, canonical(u)) for n, (_, u) in zip(numbers, parts, strict=True))
