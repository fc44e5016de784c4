r"""The outer shape of an answer: lists, sets, tuples, intervals, unions, equations, quantities, literals and words.

What is inside, the formulas, is left to math-verify's parser. The shape is read here because that parser guesses it:
`(1,2)` is an interval to it, `a \le x < b` and a list of solutions are nested trees, and units are symbols.
All texts are in normal form (`ollm_rl.reward.normal_form.normal_form`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from ollm_rl.reward import units
from ollm_rl.reward.literals import Literal, literal
from ollm_rl.reward.normal_form import unbraced
from ollm_rl.reward.words import number_in_words, option, unwrapped, words_key

MAX_PARTS = 200
MAX_DEPTH = 40

_TOKEN = re.compile(r"\\text\{[^{}]*\}|\\[a-zA-Z]+|\\.|[a-zA-Z]+|.", re.DOTALL)
_OPEN = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"}
_CLOSE = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"}
OPERATORS = {"=": "=", r"\cong": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in"}


@dataclass(frozen=True)
class Leaf:
    """A formula; `unit` is canonical or empty; `text` is without it."""

    text: str
    unit: str = ""


@dataclass(frozen=True)
class Words:
    """Language: compared as such, without case and punctuation."""

    key: str


@dataclass(frozen=True)
class Option:
    """A choice: its letter and what stands beside it; `text` is all of it."""

    letter: str
    label: str
    text: str


@dataclass(frozen=True)
class Items:
    """`kind`: `list` (bare), `set` (in braces), `union`, `ratio`, or the two brackets of a tuple or interval, such as `[)`.

    `joined` is what stands between the parts of a list: `or`, or anything else.
    """

    kind: str
    parts: "tuple[Node, ...]"
    joined: str = ","


@dataclass(frozen=True)
class Relation:
    """A chain `parts[0] operators[0] parts[1] ...`; the parts are texts."""

    parts: tuple[str, ...]
    operators: tuple[str, ...]


Node = Leaf | Words | Option | Items | Relation | Literal


class NotUnderstood(Exception):
    """A text that is no answer of a shape known here."""


@lru_cache(maxsize=4096)
def read(text: str, depth: int = 0) -> Node:
    """The shape of an answer in normal form.

    Raises:
        NotUnderstood: it is empty, or nested or long beyond reason.
    """
    text = unbraced(text)
    if not text or depth > MAX_DEPTH:
        raise NotUnderstood(text[:80])
    if _is_number(text):
        return Leaf(text)
    if (found := _special(text, depth)) is not None:
        return found
    if len(_SENTENCE_WORDS.findall(text)) > 2:
        return Words(words_key(text))
    if match := _WHOLE_TEXT.fullmatch(text):
        return read(match[1].strip(" .") or match[1], depth + 1)
    text = _CONDITION.sub("", text) or text
    core, unit = units.without_unit(text)
    if unit and _is_number(core):
        return Leaf(core, unit)
    if unit and (found := literal(core)):
        return replace(found, unit=unit)
    name, _, value = text.partition("=")
    if is_name(name) and _is_number(value):  # x=1,250
        return Relation((name, value), ("=",))
    if _DAMAGED_NUMBER.fullmatch(text):
        raise NotUnderstood(text[:80])
    parts, between = _split(text, _separates)
    if len(parts) > 1:
        ors = [b for b in between if "or" in b.lower()]
        return _items("list", [p for p in parts if p], depth, "or" if ors else ",")
    shape = _bracketed(text)
    if _PLUS_MINUS.search(text) and not (shape and shape[0] == "set"):
        return _items("list", [_with_signs(text, plus, minus) for plus, minus in ("+-", "-+")], depth)
    parts, operators = _split(_without_approximation(text), OPERATORS.__contains__)
    if len(parts) > 1:
        if not all(parts):
            raise NotUnderstood(text[:80])
        return _relation(tuple(parts), tuple(OPERATORS[o] for o in operators), depth)
    parts, _ = _split(text, lambda token: token == r"\cup")
    if len(parts) > 1:
        return _items("union", parts, depth)
    if len(parts := _split(text, ":".__eq__)[0]) > 2:
        return _items("ratio", parts, depth)
    if match := _POINT.fullmatch(text):
        return _point(*match.groups()) or _leaf(text)
    if shape is not None:
        kind, inner = shape
        if kind == "set" and (match := _BUILDER.fullmatch(inner)):
            if not isinstance(found := read(match[1], depth + 1), Relation):
                raise NotUnderstood(text[:80])
            return found
        parts, _ = _split(inner, _separates)
        if kind == "set" or len(parts) > 1:
            return _items(kind, [p for p in parts if p], depth)
    return _leaf(text)


_DAMAGED_NUMBER = re.compile(r"[-+]?(?=[0-9,]*,0[0-9])[0-9]+(?:,[0-9]+)+")  # 1,50,00


def _special(text: str, depth: int) -> Node | None:
    """What is neither formula nor mere words: a literal, a number in words or in another base, an option."""
    if (value := _in_base(text)) is not None:
        return Leaf(str(value))
    if found := literal(text):
        return found
    if (number := number_in_words(text)) is not None:
        value, counted = number
        if not counted:
            return Leaf(str(value))
        core, unit = units.without_unit(f"{value} {counted}")
        pronoun = value == 1 and not units.is_known(counted)  # one cannot say
        return Leaf(core, unit) if unit and not pronoun else None
    if depth < 2 and (choice := option(text)):
        return Option(*choice, text)
    return None


_BASE_NAMES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip
_IN_BASE = re.compile(
    r"([-+]?)(?:\(([0-9A-Za-z.]+)\)|([0-9A-Za-z.]+)) ?(?:_\{ ?\(?(?:base ?)?(-?[0-9]{1,2}|[a-z]+)\)? ?\}|,? ?\(?(?:in )?base[- ]?([0-9]{1,2}|[a-z]+)\)?)"
)
_PREFIXED = re.compile(r"0(?:[xX]([0-9A-Fa-f]+)|[bB]([01]+)|[oO]([0-7]+))")


def _in_base(text: str) -> Fraction | None:
    """The value of `1010_{2}`, `FF_{16}`, `(1010)_{\\text{two}}`, `1010 in base 2`, `0xFF`. `F_{16}` is a name."""
    plain = unwrapped(text)
    if match := _PREFIXED.fullmatch(plain):
        return Fraction(int(plain, 0))
    if not (match := _IN_BASE.fullmatch(plain)):
        return None
    digits, named = match[2] or match[3], match[4] or match[5]
    base = _BASE_NAMES.get(named, int(named) if named.lstrip("-").isdigit() else 0)
    letters = not re.search("[0-9]", digits)
    if not 2 <= abs(base) <= 36 or (letters and (len(digits) < 2 or not (digits.isupper() or base == 16))):
        return None
    whole, _, part = digits.partition(".")
    if not whole + part or any(int(c, 36) >= abs(base) for c in whole + part if c != ".") or "." in part:
        return None
    value = Fraction(0)
    for place, digit in enumerate(reversed(whole)):
        value += int(digit, 36) * Fraction(base) ** place
    for place, digit in enumerate(part, 1):
        value += int(digit, 36) * Fraction(base) ** -place
    return -value if match[1] == "-" else value


_POINT = re.compile(r"([A-Z](?:'|_\{[^{}]*\})*)(\((.+)\))")


def _point(name: str, coordinates: str, inner: str) -> Relation | None:
    """`P(3,4)` states where P is; with letters in its arguments it is the value of a function."""
    numeric = not re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", inner))
    whole = _bracketed(coordinates) is not None and len(_split(inner, _separates)[0]) > 1
    return Relation((name, coordinates), ("=",)) if numeric and whole else None


def _relation(parts: tuple[str, ...], operators: tuple[str, ...], depth: int) -> Node:
    """`x=y=0` and `(x,y)=(0,0)` are two equations; `|x|<a` is `-a<x<a`."""
    *names, value = parts
    equations = set(operators) == {"="}
    if equations and len(names) > 1 and all(map(is_name, names)) and not is_name(value):
        return Items("list", tuple(Relation((name, value), ("=",)) for name in names))
    if operators == ("=",) and (left := _bracketed(parts[0])) and (right := _bracketed(parts[1])):
        a, b = (_split(inner, _separates)[0] for _, inner in (left, right))
        if left[0] == right[0] == "()" and len(a) == len(b) > 1 and all(map(is_name, a)):
            return Items("list", tuple(Relation(pair, ("=",)) for pair in zip(a, b, strict=True)))
    if operators in (("<",), ("<=",)) and (match := _ABSOLUTE.fullmatch(parts[0])):
        return Relation((f"-({value})", match[1], value), (operators[0], operators[0]))
    return Relation(parts, operators)


def _items(kind: str, parts: list[str], depth: int, joined: str = ",") -> Items:
    if len(parts) > MAX_PARTS:
        raise NotUnderstood(f"{len(parts)} parts")
    nodes = [read(p.strip(), depth + 1) for p in parts]
    if kind in ("list", "set"):  # a list inside, such as \pm 1, adds its members
        nodes = [
            n for node in nodes for n in (node.parts if isinstance(node, Items) and node.kind == "list" else (node,))
        ]
    return Items(kind, tuple(nodes), joined)


def _split(text: str, separates: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Parts between the separators outside of all brackets, and the separators."""
    parts, separators, depth, start = [], [], 0, 0
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in _OPEN:
            depth += 1
        elif word in _CLOSE:
            depth -= 1
        elif depth == 0 and separates(word):
            parts.append(text[start : token.start()].strip())
            separators.append(word)
            start = token.end()
    return [*parts, text[start:].strip()], separators


_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z]) ?")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_BUILDER = re.compile(r"[a-zA-Z](?:\\in ?\\mathbb\{R\})?[:|](.+)")
_CONDITION = re.compile(r",? ?(?:\\text\{ ?)?(?:for|where|with) (?:all|any|every|each)\b.*", re.DOTALL)
_AND = re.compile(r"\\text\{[\s,;]*(?:and|or|and/or)?[\s,;]*\}", re.IGNORECASE)


def _with_signs(text: str, plus_minus: str, minus_plus: str) -> str:
    return _PLUS_MINUS.sub(lambda m: plus_minus if m[1] == "pm" else minus_plus, text).removeprefix("+")


def _separates(token: str) -> bool:
    return token in ",;" or token.lower() in ("and", "or") or bool(_AND.fullmatch(token))


def _without_approximation(text: str) -> str:
    r"""`\frac{1}{3}\approx 0.333` states 1/3."""
    first, *rest = re.split(r"\\approx(?![a-zA-Z]) ?", text)
    return f"{first}={rest[0]}" if rest and is_name(first) else (first if rest and first else text)


def _bracketed(text: str) -> tuple[str, str] | None:
    """Kind and content if one pair of brackets encloses the whole text."""
    tokens = list(_TOKEN.finditer(text))
    first, last = tokens[0], tokens[-1]
    depth = 0
    for token in tokens:
        depth += (token[0] in _OPEN) - (token[0] in _CLOSE)
        if depth == 0 and token is not last:
            return None
    if depth:
        return None
    inner = text[first.end() : last.start()].strip()
    if (first[0], last[0]) == (r"\{", r"\}"):
        return "set", inner
    if (first[0], last[0]) == (r"\langle", r"\rangle"):
        return "()", inner
    if first[0] in ("(", "[") and last[0] in (")", "]"):
        return first[0] + last[0], inner
    return None


_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi|psi|"
    "omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell"
)
_ONE_NAME = rf"(?:[a-zA-Z]|\\(?:{_GREEK})(?![a-zA-Z])) ?(?:_\{{[^{{}}]*\}})?'*(?:\([^()=<>]*\))?"
_NAME = re.compile(
    rf"{_ONE_NAME}"
    r"|(?:m ?)?\\angle ?[A-Z]{1,3}(?:_\{[0-9]\})?|[A-Z]{2,5}|\|[A-Z]{2}\||\[[A-Z]{3,}\]|\\(?:overline|vec)\{[A-Z]{1,2}\}"
    r"|[a-zA-Z]{4,}(?: [a-zA-Z]+)*|(?:\\text\{[^{}]*\})(?:_\{[^{}]*\})?|\\(?:Pr|mathbb\{[EP]\})[(\[][^()=<>\[\]]*[)\]]"
)
_ABSOLUTE = re.compile(rf"\|({_ONE_NAME})\|")


def is_name(text: str) -> bool:
    r"""Something that an equation gives a value to: `x`, `x_{1}`, `f(x)`, `\angle ABC`; not a constant."""
    return bool(_NAME.fullmatch(text)) and text not in ("e", "i")


# Words and quantities --------------------------------------------------------------------------------------------

_WORDS = re.compile(r"(?<![\\a-zA-Z])(?!pmatrix|vmatrix|cases)[a-zA-Z]{4,}(?![a-zA-Z])")
_SENTENCE_WORDS = re.compile(
    r"(?<![\\a-zA-Z])(?!(?:and|or|if|per|square|cubic|pmatrix|vmatrix|cases)\b)[a-zA-Z]{3,}(?![a-zA-Z{])", re.IGNORECASE
)
_SHORT_WORDS = re.compile(r"(?i)(?:yes|no|odd|all|any|red|mon|tue|wed|thu|fri|sat|sun)")


def _leaf(text: str) -> Node:
    if units.letter_unit(text):
        return Leaf(text)
    core, unit = units.without_unit(text)
    words = r"\text" in core or _WORDS.search(core) or _SHORT_WORDS.fullmatch(core)
    if words or re.fullmatch(r"[A-Z]{3,}", core):  # an order of letters, not a product
        return Words(words_key(text))
    if not core:
        raise NotUnderstood(text)
    return Leaf(core, unit)


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?", text)) and not re.search(r",(?![0-9]{3}(?:,|\.|$))", text)
