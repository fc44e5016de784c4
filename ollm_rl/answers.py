r"""Final answers: finding them in a solution and writing them in one way.

Policy. Only the last `TAIL` characters of a text are looked at, for a final answer stands at the end.

* The last complete `\boxed{...}` (or `\fbox`) counts. Boxes that follow one another with nothing but a comma, "and"
  or "or" between them are one answer, a list.
* Without a complete box, what follows the last "answer is", "answer:" or "####" on its line counts, up to the end of
  the sentence, unless it holds a box that was cut off.
* Otherwise there is no answer. A text that the token budget cut off is judged by the same rules.
"""

import re
from collections.abc import Callable
from fractions import Fraction

TAIL = 50_000  # characters
MAX_PHRASE = 300  # characters of an answer that stands in no box
MAX_DEPTH = 40  # of arguments in arguments
MAX_DIGITS = 2_000  # of a number that is compared here; longer ones go to a worker with its limits

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$,;.]*(?:\\text\s*\{\s*)?(?:and|or)?(?:\s*\})?[\s$,;]*")
_PHRASE = re.compile(r"\banswer\b[^\S\n]*(?:is|:|=)|####", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")


def extract_answer(text: str) -> str | None:
    """The final answer that a solution states, or None."""
    tail = text[-TAIL:]
    answer = last_boxed(tail)
    if answer is None:
        answer = _after_phrase(tail)
    return answer.strip(" \t\r\n") or None if answer is not None else None  # a form feed may be a damaged \f


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, joined with those right before it; None if there is none."""
    boxes: list[tuple[int, int, int]] = []  # start of the command, of its content, end of its content
    stack: list[tuple[int, int] | None] = []
    for token in _BRACES.finditer(text):
        if token[0] == "}":
            if stack and (opened := stack.pop()) is not None:
                while boxes and boxes[-1][0] > opened[0]:  # boxes inside this one
                    boxes.pop()
                boxes.append((*opened, token.start()))
        elif token[0] == "{":
            stack.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            stack.append((token.start(), token.end()))
    if not boxes:
        return None
    found = [boxes.pop()]
    while boxes and _joined(text[boxes[-1][2] + 1 : found[-1][0]]):
        found.append(boxes.pop())
    contents = [text[start:end].strip(" \t\r\n") for _, start, end in reversed(found)]
    return ", ".join(dict.fromkeys(contents))


def _joined(between: str) -> bool:
    return len(between) < 40 and bool(_BETWEEN_BOXES.fullmatch(between))


def _after_phrase(text: str) -> str | None:
    phrase = None
    for phrase in _PHRASE.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    if phrase is None:
        return None
    rest = text[phrase.end() : phrase.end() + MAX_PHRASE].lstrip(" \t\n\r:*=")
    rest = rest.partition("\n")[0]
    if end := _SENTENCE_END.search(rest):
        rest = rest[: end.start()]
    return None if r"\boxed" in rest else rest.strip(" \t*")


# One way of writing ----------------------------------------------------------------------------------------------

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/",
        "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "’": "'", "“": '"', "”": '"',
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "º": "°",
    }
)  # fmt: skip
_FUNCTIONS = (
    "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log",
    "ln", "lg", "exp", "max", "min", "gcd", "lcm", "sqrt",
)  # fmt: skip
_NAMES = "|".join((*_FUNCTIONS, "pi", "infty"))
_STYLES = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|hbox|operatorname\*?|rm|bf)"
_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match], str]]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", ""),
        (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", " "),  # delimiters of mathematics
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
        (r"(?<=[0-9])(?:\{,\}|,\\!)(?=[0-9]{3})", ""),
        (r"\{,\}|,\\!", ","),
        (r"\.{2,}|\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|…", r"\\ldots "),
        (r"\\not\s*(?:=|\\?eq(?![a-zA-Z]))", r"\\ne "),
        (r"\\(?:boxed|fbox|underline)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\{\s*\\(?:bf|rm|it|sf)(?![a-zA-Z])([^{}]*)\}", r"\1"),
        (r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"\\text{\1/\2}"),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])|&nbsp;", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (rf"({_STYLES}\s*\{{[^{{}}]*)\^\s*\{{?([23])\}}?(?=[^{{}}]*\}})", lambda m: m[1] + ("²" if m[2] == "2" else "³")),
        (rf"{_STYLES}\s*\{{\s*({_NAMES})\s*\}}", r"\\\1 "),
        (rf"{_STYLES}\s*\{{([-+0-9.,/ ]+|[ei])\}}", r"\1"),
        (r"\\(?:mathbf|mathit|boldsymbol|bm)\s*\{([a-zA-Z])\}", r"\1"),
        (rf"{_STYLES}\s*\{{([^{{}}]*)\}}", lambda match: rf"\text{{{match[1].strip()}}}"),
        (r"\\text\{\}", ""),
        (r"\*\*", "^"),
        (r"\\times(?![a-zA-Z])|\\ast(?![a-zA-Z])|\*", r"\\cdot "),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\leq?(?:slant)?(?![a-zA-Z])|<=|\\leqq(?![a-zA-Z])", r"\\le "),
        (r"\\geq?(?:slant)?(?![a-zA-Z])|>=|\\geqq(?![a-zA-Z])", r"\\ge "),
        (r"\\neq?(?![a-zA-Z])|(?<![0-9a-zA-Z)}])\s*!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])|&lt;", "<"),
        (r"\\gt(?![a-zA-Z])|&gt;", ">"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\l?vert(?![a-zA-Z])|\\rvert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"\\begin\{(?:[bB]matrix|matrix|smallmatrix|array)\}(?:\{[clr| ]*\})?", r"\\begin{pmatrix}"),
        (r"\\end\{(?:[bB]matrix|matrix|smallmatrix|array)\}", r"\\end{pmatrix}"),
        (r"\\\\\s*\[[^\[\]]*\]", r"\\\\"),
        (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}|(?<![\\a-zA-Z])C\(([^(),]*),([^(),]*)\)", r"\\binom{\1\3}{\2\4}"),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"(?<=[0-9])\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=[0-9])", ":"),
        (r"\\p?mod(?![a-zA-Z])\s*\{?\(?\s*([0-9a-zA-Z]+)\s*\)?\}?|\(\s*mod\s*([0-9a-zA-Z]+)\s*\)", r"\\pmod{\1\2}"),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\dot\s*\{?([0-9])\}?", r"\\overline{\1}"),
        (r"\\(max|min|gcd|lcm)\s*\\\{([^{}]*)\\\}", r"\\\1(\2)"),
        (r"\\mathbb\{R\}\s*(?:\^\s*\{?\+\}?|_\s*\{\s*>\s*0\s*\})", r"(0,\\infty)"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|\s*\\text\{degrees?\}|(?<=[0-9}])\s*degrees?(?![a-zA-Z])", "°"),
        (r"(?<![\\a-zA-Z])infinity(?![a-zA-Z])", r"\\infty "),
        (rf"(?<![\\a-zA-Z])({_NAMES})(?![a-zA-Z])", r"\\\1 "),
        (r"\\arc(sin|cos|tan|cot)(?=[a-zA-Z])", r"\\arc\1 "),
        (r"\\(sin|cos|tan|cot)\s*\^\s*\{?\s*-1\s*\}?", r"\\arc\1 "),
    )
]  # fmt: skip
_SPACE = re.compile(r"\s+")
_LOOSE_SPACE = re.compile(r"(?<![a-zA-Z0-9,]) | (?![a-zA-Z0-9])|(?<=,) (?![0-9])|(?<=[^0-9],) ")  # "1, 250" is a list


def normal_form(text: str) -> str:
    """One way of writing for the many that mean the same; texts with equal normal forms are equal answers.

    Nothing is computed: delimiters, styles, spacing and spelling variants go, and arguments get their braces.
    """
    text = re.sub(r"[⁰¹²³⁴-⁹⁻⁺ⁿ]+", lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = re.sub(r"[₀-₉]+", lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m[0]) + "}", text)
    text = _SPACE.sub(" ", strip_box(mended(text).translate(_UNICODE)).replace("\x0b", ""))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _SPACE.sub(" ", text).strip()
    text = _brace_arguments(text)
    text = re.sub(r"(\\[a-zA-Z]+) (?=[^a-zA-Z])", r"\1", text)
    text = _LOOSE_SPACE.sub("", _SPACE.sub(" ", text))
    text = text.strip().rstrip(".,;:").strip()
    if re.search(r"(?<!\\)(?:\\\\)*\\$", text):  # half of a control space
        text = text[:-1].strip()
    return unbraced(text)


def mended(text: str) -> str:
    r"""`\frac` and `\binom` where JSON that was not escaped twice left a form feed and `rac`, as in Omni-MATH."""
    return text.replace("\x0c", r"\f").replace("\x08", r"\b")


def unbraced(text: str) -> str:
    """Without braces around the whole."""
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def strip_box(text: str) -> str:
    r"""Remove `\boxed` and the delimiters of mathematics around a whole answer."""
    while True:
        before = text
        text = re.sub(r"(?<!\.)\.$", "", text.strip()).strip()
        for left, right in (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)")):
            inner = text[len(left) : len(text) - len(right)]
            if text.startswith(left) and text.endswith(right) and len(inner) <= len(text) - 2 and left not in inner:
                text = inner.strip()
        match = re.match(r"\\(?:boxed|fbox)\s*(?=\{)", text)
        if match and _closing(text, match.end()) == len(text) - 1:
            text = text[match.end() + 1 : -1]
        if text == before:
            return text


def _closing(text: str, start: int) -> int:
    """Place of the brace that closes the one at `start`; -1 if none does."""
    depth, i = 0, start
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] in "{}":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return i
        i += 1
    return -1


_NEEDS_BRACES = re.compile(r"\\frac(?![a-zA-Z])|\\binom(?![a-zA-Z])|\\sqrt(?![a-zA-Z])|\^|_")
_DIGITS, _ONE = re.compile(r"[0-9]+"), re.compile(r"\\[a-zA-Z]+|\\?.", re.DOTALL)
_POWER = re.compile(r"[-+]?(?:[0-9]+|\\[a-zA-Z]+|[a-zA-Z])")


def _brace_arguments(text: str, depth: int = 0) -> str:
    r"""`\frac12`, `\sqrt3`, `x^10`, `x^(n+1)` with their arguments in braces."""
    if depth > MAX_DEPTH:
        return text
    out: list[str] = []
    at = 0
    for match in _NEEDS_BRACES.finditer(text):
        if match.start() < at:
            continue
        out.append(text[at : match.start()])
        command, at = match[0], match.end()
        out.append(command)
        if command == r"\sqrt" and (root := re.compile(r"\s*\[([^\[\]]*)\]").match(text, at)):
            index = _brace_arguments(root[1].strip(), depth + 1)
            out.append("" if index == "2" else f"[{index}]")
            at = root.end()
        for _ in range(2 if command in (r"\frac", r"\binom") else 1):
            argument, at = _argument(text, at, command)
            out.append("{" + _brace_arguments(argument, depth + 1) + "}" if argument else "")
    out.append(text[at:])
    return "".join(out)


def _argument(text: str, at: int, command: str) -> tuple[str, int]:
    while at < len(text) and text[at] == " ":
        at += 1
    if at == len(text):
        return "", at
    if text[at] == "{":
        end = _closing(text, at)
        return (text[at + 1 : end].strip(), end + 1) if end > 0 else (text[at + 1 :], len(text))
    if text[at] == "(" and command not in (r"\frac", r"\binom"):
        depth = 0
        for i in range(at, len(text)):
            depth += {"(": 1, ")": -1}.get(text[i], 0)
            if depth == 0:
                return text[at + 1 : i], i + 1
    pattern = {"^": _POWER, "_": _POWER, r"\sqrt": _DIGITS}.get(command, _ONE)
    match = pattern.match(text, at) or _ONE.match(text, at)
    assert match is not None
    return match[0], match.end()


# Plain numbers ---------------------------------------------------------------------------------------------------

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"([-+]?)({_DECIMAL})")
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?: [0-9]{3})+")
_SCIENTIFIC = re.compile(rf"([-+]?)({_DECIMAL})(?:[eE]|\\cdot ?10\^\{{)([-+]?[0-9]{{1,3}})\}}?")
_REPEATING = re.compile(r"([-+]?)([0-9]+)\.([0-9]*)\\overline\{([0-9]+)\}")
_RATIO = re.compile(r"([-+]?)(?:([0-9]+) )?([-+]?[0-9]+)/([-+]?[0-9]+)")
_FRACTION = re.compile(r"([-+]?)([0-9]*)\\frac\{([-+]?[0-9]+)\}\{([-+]?[0-9]+)\}")


def plain_number(text: str) -> Fraction | None:
    """An integer, decimal, fraction or mixed number in normal form as an exact number; None for anything else."""
    if len(text) > MAX_DIGITS:
        return None
    if match := _NUMBER.fullmatch(text):
        return _signed(match[1], Fraction(match[2].replace(",", "").rstrip(".") or "0"))
    if _GROUPED.fullmatch(text):
        return Fraction(text.replace(" ", ""))
    for pattern in (_RATIO, _FRACTION):
        if (match := pattern.fullmatch(text)) and int(match[4]):
            part = Fraction(int(match[3]), int(match[4]))
            if not match[2]:
                return _signed(match[1], part)
            if match[3].isdigit() and match[4].isdigit() and part < 1:  # a mixed number
                return _signed(match[1], int(match[2]) + part)
    if match := _SCIENTIFIC.fullmatch(text):
        return _signed(match[1], Fraction(match[2].replace(",", "").rstrip(".")) * Fraction(10) ** int(match[3]))
    if match := _REPEATING.fullmatch(text):
        sign, whole, start, period = match.groups()
        nines = Fraction(int(period), 10 ** len(start) * (10 ** len(period) - 1))
        return _signed(sign, Fraction(f"{whole}.{start or 0}") + nines)
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
