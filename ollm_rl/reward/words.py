r"""Language in answers: words that are compared as such, numbers in words, and the letters of multiple choice.

All texts are in normal form (`ollm_rl.reward.normal_form.normal_form`).
"""

import re
from fractions import Fraction


def unwrapped(text: str) -> str:
    r"""The text without its `\text{...}`, as one would read it out."""
    return " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split()).rstrip(".")


_THE = re.compile(r"(?<!\S)the (?=[^\W\d_])")
# "a" is an article at the beginning and behind these; "plan a", "vitamin a" and "a and b" have none.
_A = re.compile(
    r"(^|(?<!\S)(?:is|are|was|of|in|on|at|to|for|with|by|has|have|and|or|from|as|into) )"
    r"an? (?!(?:and|or|is|are|was|has|but|then|not|only|wins|loses)\b)(?=[^\W\d_]{2})"
)


def words_key(text: str) -> str:
    """What is compared of words: no case, no articles, no punctuation; but every sign of what may be a formula."""
    text = unwrapped(text).casefold()
    if not re.search(r"[0-9+\-*/^=<>\\|!]", text):
        text = re.sub(r"[{}\"'.,;:?()]", " ", _A.sub(r"\1", _THE.sub("", text)))
    key = " ".join(text.split()).rstrip(".,;:")
    return "no solution" if key == "no solutions" else key


# Numbers in words ------------------------------------------------------------------------------------------------

_BELOW_TWENTY = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_ONES = {word: n for n, word in enumerate(_BELOW_TWENTY.split())}
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100,
}  # fmt: skip
_ORDINALS = {
    "first": "one",
    "second": "two",
    "third": "three",
    "fifth": "five",
    "eighth": "eight",
    "ninth": "nine",
    "twelfth": "twelve",
}
_NOT_COUNTED = re.compile(
    r"\b(?:of|the|in|at|on|is|are|or|and|not|by|for|per|more|less|than|times|point|over|to|out|other)\b"
)


def number_in_words(text: str) -> tuple[Fraction, str] | None:
    """The number that a text says in words, and what is counted: `twenty-one`, `minus five`, `two thirds`, `three cm`."""
    if not re.fullmatch(r"(?i)[a-z][a-z -]*", text := unwrapped(text)):
        return None
    words = re.split("[ -]+", text.casefold())
    sign = -1 if words[0] in ("minus", "negative") else 1
    words = words[sign < 0 :]
    for end in range(len(words), max(0, len(words) - 3), -1):
        value, counted = _value(words[:end]), " ".join(words[end:])
        numeral = any(w in _ONES | _TENS | _ORDINALS or w.removesuffix("s") in _PARTS for w in words[end:])
        if value is not None and not numeral and not _NOT_COUNTED.search(counted):
            return sign * value, counted
    return None


def ordinal(text: str) -> int | None:
    """The number of `third`, `3rd`, `3^{\\text{rd}}` or `twenty-third`."""
    text = re.sub(r"[\^{} ]+", " ", unwrapped(text)).strip().casefold()
    if match := re.fullmatch(r"([0-9]{1,9}) ?(?:st|nd|rd|th)", text):
        return int(match[1])
    *first, last = re.split("[ -]+", text) or [""]
    cardinal = _ORDINALS.get(last) or (re.sub("ie$", "y", last[:-2]) if last.endswith("th") else "")
    value = _cardinal([*first, cardinal])
    return value if cardinal and cardinal != "zero" else None


def _value(words: list[str]) -> Fraction | None:
    if words in (["half"], ["a", "half"]):
        return Fraction(1, 2)
    if words[-3:] == ["and", "a", "half"] and (whole := _cardinal(words[:-3])) is not None:
        return whole + Fraction(1, 2)
    if len(words) > 1 and (part := _PARTS.get(words[-1].removesuffix("s"))):
        top = _cardinal(words[:-1])
        plural = words[-1].endswith("s")
        return Fraction(top, part) if top is not None and top < 20 and plural == (top != 1) else None
    number = _cardinal(words)
    return None if number is None else Fraction(number)


def _cardinal(words: list[str]) -> int | None:
    """`one hundred and five`, `two thousand twenty-four`, `a million`."""
    total, scale, at = 0, 10**15, 0
    if words[:1] == ["a"] and words[1:2] and words[1] in ("hundred", "dozen", *_SCALES):
        words = ["one", *words[1:]]
    while at < len(words):
        if at and words[at] == "and":
            at += 1
        value, end = _below_thousand(words, at)
        if end == at:
            return None
        if end == len(words):
            return total + value
        if not (step := _SCALES.get(words[end])) or step >= scale:
            return total + 12 * value if words[end:] == ["dozen"] else None
        total, scale, at = total + value * step, step, end + 1
    return total if at else None


def _below_thousand(words: list[str], at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = 0
    if words[at : at + 1] == ["hundred"] or (
        words[at + 1 : at + 2] == ["hundred"] and 0 < _ONES.get(words[at], 0) < 100
    ):
        hundreds = 1 if words[at] == "hundred" else _ONES[words[at]]
        value, at = 100 * hundreds, at + 1 + (words[at] != "hundred")
        if words[at : at + 1] == ["and"] and at + 1 < len(words) and words[at + 1] in _ONES | _TENS:
            at += 1
    if at < len(words) and words[at] in _TENS:
        value, at = value + _TENS[words[at]], at + 1
        if at < len(words) and 0 < _ONES.get(words[at], 0) < 10:
            value, at = value + _ONES[words[at]], at + 1
    elif at < len(words) and words[at] in _ONES:
        value, at = value + _ONES[words[at]], at + 1
    return value, at


# Multiple choice -------------------------------------------------------------------------------------------------

_LETTER = re.compile(r"\(?([A-J])\)?")
_NAMED_OPTION = re.compile(
    r"(?:option|choice|answer|alternative) ?:? ?\(?([A-J])\)?(?:[ .:)]+(.*))?", re.DOTALL | re.IGNORECASE
)
_MARKED_OPTION = re.compile(r"(?:\(([A-J])\)[:.]?|([A-J]) ?[:.)]|\[([A-J])\]) ?(.+)|([A-J])\)", re.DOTALL)
_IN_TEXT = re.compile(r"\\text\{ ?[(\[]?[A-J] ?[)\]:.]")
_NO_LABEL = re.compile(
    r"[^0-9a-zA-Z\\{$€£¥₹.]|[a-zA-Z](?![a-zA-Z])|\\(?!text|frac|sqrt|pi|\$|\{|binom|left|infty|angle)"
)  # (A)(B), A:B
_ANOTHER = re.compile(
    r"(?:or|and) ?\(?[A-J]\b|(?-i:\b[B-J]\b|\bA\b(?! [a-z])|(?<![a-zA-Z\\])\(?[A-J] ?[:).])|^(?:is|was) (?:.* )?(?:not|wrong|incorrect|false)\b",
    re.IGNORECASE,
)


def option(text: str) -> tuple[str, str] | None:
    """Letter and text of an option such as `(C) 12`, `C: 5 metres`, `Option C`; a lone `C` is a formula as well."""
    plain = unwrapped(text)
    if match := _NAMED_OPTION.fullmatch(plain):
        letter, label = match[1].upper(), (match[2] or "").strip()
    elif match := _MARKED_OPTION.fullmatch(plain):
        letter, label = match[1] or match[2] or match[3] or match[5], (match[4] or "").strip()
        if label and (_NO_LABEL.match(label) and not _IN_TEXT.match(text)):
            return None
    else:
        return None
    return None if _ANOTHER.search(label) else (letter, label)


def option_letter(text: str) -> str | None:
    """The letter, if the text is nothing but one of A to J."""
    match = _LETTER.fullmatch(text)
    return match[1] if match else None
