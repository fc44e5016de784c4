r"""The outer shape of an answer: lists, sets, tuples, intervals, unions, equations, units and words.

What is inside, the formulas, is left to math-verify's parser. The shape is read here because that parser guesses it:
`(1,2)` is an interval to it, `a \le x < b` and a list of solutions are nested trees, and units are symbols.
All texts are in normal form (`ollm_rl.answers.normal_form`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ollm_rl.answers import unbraced

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
class Items:
    """`kind`: `list` (bare), `set` (in braces), `union`, or the two brackets of a tuple or interval, such as `[)`.

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


Node = Leaf | Words | Items | Relation


class NotUnderstood(Exception):
    """A text that is no answer of a shape known here."""


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
    if len(_SENTENCE_WORDS.findall(text)) > 2:
        return Words(words_key(text))
    if match := _WHOLE_TEXT.fullmatch(text):
        return read(match[1].strip(), depth + 1)
    text = _CONDITION.sub("", text) or text
    core, unit = _without_unit(text)
    if unit and _is_number(core):
        return Leaf(core, unit)
    name, _, value = text.partition("=")
    if is_name(name) and _is_number(value):  # x=1,250
        return Relation((name, value), ("=",))
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


# Words and units -------------------------------------------------------------------------------------------------

_WORDS = re.compile(r"(?<![\\a-zA-Z])(?!pmatrix|vmatrix|cases)[a-zA-Z]{4,}(?![a-zA-Z])")
_SENTENCE_WORDS = re.compile(
    r"(?<![\\a-zA-Z])(?!(?:and|or|if|per|square|cubic|pmatrix|vmatrix|cases)\b)[a-zA-Z]{3,}(?![a-zA-Z{])", re.IGNORECASE
)
_SHORT_WORDS = re.compile(r"(?i)(?:yes|no|odd|all|any|red|mon|tue|wed|thu|fri|sat|sun|one|two|six|ten)")
_MULTIPLIERS = {
    "dozen": "12", "hundred": "100", "thousand": "1000", "million": "10^{6}", "billion": "10^{9}", "trillion": "10^{12}",
}  # fmt: skip
_NO_UNIT = re.compile(
    r"(?i)[^a-z°/ .^{}0-9²³-]|(?<![\^{-])[0-9]|\b(?:and|or|if|is|not|no|plus|minus|times|over|squared|cubed|factorial|mod|"
    r"modulo|negative|hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|tenths?|hundredths?|when|for|where|than|even|odd|"
    r"divided|by|choose|to|power|root|approximately|about)\b"
)
_NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16", "twenty": "20",
}  # fmt: skip
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_BASE = re.compile(r"\(?(-?(?=[A-F]*[0-9])[0-9A-F]+)\)?_\{(?:\\text\{)?(-?[0-9]{1,2}|[a-z]+)\}?\}")
_TEXT_UNIT = re.compile(r"(.*?[^\s\\])\s*?((?:\\text\{[^{}]*\})(?:\\text\{[^{}]*\}|[/ ]|\^\{-?[0-9]\}|\\cdot ?|per)*)")
_WORD_UNIT = re.compile(r"(.*[0-9}°])( ?)([a-zA-Z]{2,}(?:[ /.]+[a-zA-Z]+|\^\{[23]\})*)")
_LETTER_UNIT = re.compile(r"([-+]?[0-9.,/]+) ([mgshlLJNVWK])")
_SHORT_UNITS = {
    "cm", "mm", "km", "kg", "mg", "ml", "ft", "lb", "lbs", "oz", "hr", "hrs", "min", "sec", "mph", "kmh", "kph", "km/h",
    "m/s", "ft/s", "sq", "cu", "usd",
}  # fmt: skip
_SYNONYMS = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "kilometer": "km", "kilometre": "km", "meter": "m",
    "metre": "m", "kilogram": "kg", "gram": "g", "foot": "ft", "feet": "ft", "inch": "in", "inche": "in", "hour": "h",
    "hr": "h", "minute": "min", "second": "s", "sec": "s", "mile": "mi", "pound": "lb", "ounce": "oz", "liter": "l",
    "litre": "l", "cent": "¢", "dollar": "$", "usd": "$", "percent": "%", "pct": "%", "percentage": "%", "yd": "yard",
    "mph": "mi/h", "kmh": "km/h", "kph": "km/h", "c": "°c", "celsiu": "°c", "f": "°f", "fahrenheit": "°f",
    "radian": "", "rad": "", "unit": "", "square unit": "", "sq unit": "", "cubic unit": "", "unit^2": "", "unit^3": "",
}  # fmt: skip


def _leaf(text: str) -> Node:
    if text.lower() in _NUMBERS:
        return Leaf(_NUMBERS[text.lower()])
    core, unit = _without_unit(text)
    words = r"\text" in core or _WORDS.search(core) or _SHORT_WORDS.fullmatch(core)
    if words or re.fullmatch(r"[A-Z]{3,}", core):  # an order of letters, not a product
        return Words(words_key(text))
    if not core:
        raise NotUnderstood(text)
    return Leaf(core, unit)


def words_key(text: str) -> str:
    """What is compared of words: no case, no articles, no punctuation; but every sign of what may be a formula."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    if not re.search(r"[0-9+\-*/^=<>\\|!]", text):
        text = re.sub(r"[{}\"'.,;:?()]|\b(?:a|an|the)\b", " ", text)
    key = " ".join(text.casefold().split()).rstrip(".,;:")
    return "no solution" if key == "no solutions" else key


def _without_unit(text: str) -> tuple[str, str]:
    """The text without its unit, and the unit's canonical name: `%`, `°`, `$`, `base 2`, `km/h`; empty for none."""
    if match := re.fullmatch(r"(-?)\\?[$€£](.+)", text):
        return _without_unit(match[1] + match[2])[0], "$"
    if text.endswith("%"):
        return text.removesuffix("%").removesuffix("\\").strip(), "%"
    if (match := _BASE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))) and (base := _base(match[2])):
        return match[1], f"base {base}"
    core, words = text, ""
    if match := _TEXT_UNIT.fullmatch(text):
        core, words = match[1], re.sub(r"\\text\{([^{}]*)\}", r" \1 ", match[2])
    elif (match := _WORD_UNIT.fullmatch(text)) and _plausible(match[3], bool(match[2])):
        core, words = match[1], match[3]
    if _NO_UNIT.search(words) or len(words.split()) > 4:
        return text, ""
    words = words.strip().lower()
    first, _, others = words.partition(" ")
    if first in _MULTIPLIERS:
        core, words = rf"({core})\cdot {_MULTIPLIERS[first]}", others
    if "°" in core:
        if _TRIGONOMETRY.search(core):
            core = core.replace("°", r"\cdot\frac{\pi}{180}")
        else:
            core, words = core.replace("°", ""), words or "°"
    return core.strip(), _canonical(words)


def _plausible(words: str, apart: bool) -> bool:
    """Known abbreviations may stand right behind the number, words must not."""
    known = words.lower() in _SHORT_UNITS or bool(re.match(r"(?:cm|mm|km|ft|in|sq|cu)\b", words))
    return known or (apart and bool(re.match(r"[a-zA-Z]{3,}", words)))


def _base(text: str) -> int:
    """The base that a subscript names, from 2 to 36 or -36 to -2; 0 if it names none."""
    number = _NUMBERS.get(text.lower(), text)
    return int(number) if number.lstrip("-").isdigit() and 2 <= abs(int(number)) <= 36 else 0


def letter_unit(text: str) -> str | None:
    """The number of `10 m`, which may also be a product: a unit to those who expect a plain number only."""
    match = _LETTER_UNIT.fullmatch(text)
    return match[1] if match else None


def _canonical(words: str) -> str:
    words = re.sub(r"\s*(?:/|\bper\b)\s*", "/", words)
    words = words.replace("²", "^2").replace("³", "^3")
    words = re.sub(r" ?\^ ?\{?(-?[0-9])\}?", r"^\1", words.replace(r"\cdot", " ").replace(".", " "))
    for name, power in (("square", 2), ("sq", 2), ("cubic", 3), ("cu", 3)):
        words = re.sub(rf"\b{name} ([a-z]+)", rf"\1^{power}", words)
    names = []
    for word in re.split(r"([/ ^])", " ".join(words.split())):
        single = word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
        names.append(_SYNONYMS.get(single, _SYNONYMS.get(word, single)))
    return _SYNONYMS.get("".join(names), "".join(names)).strip()


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?", text)) and not re.search(r",(?![0-9]{3}(?:,|\.|$))", text)
