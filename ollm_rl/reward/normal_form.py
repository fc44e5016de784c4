r"""One way of writing for the many that mean the same, and plain numbers.

Nothing is computed: delimiters, styles, spacing and spelling variants go, other scripts' digits and punctuation become
ASCII (Unicode's NFKC, after superscripts, subscripts and fractions, which it would flatten), and arguments get their
braces.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from ollm_rl.reward.answers import repair_escapes

MAX_DEPTH = 40  # of arguments in arguments
MAX_DIGITS = 2_000  # of a number that is compared here; longer ones go to a worker with its limits
MAX_ELLIPSIS = 60  # characters of a decimal that ends in dots

# Other scripts ---------------------------------------------------------------------------------------------------

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒―－", "-"), **dict.fromkeys("×·⋅∙✕✖∗＊", r"\cdot "), **dict.fromkeys("÷⁄∕", "/"),
        **dict.fromkeys("≤≦⩽", r"\le "), **dict.fromkeys("≥≧⩾", r"\ge "), **dict.fromkeys("≈≒", r"\approx "),
        **dict.fromkeys("‘’′", "'"), **dict.fromkeys("“”", '"'), **dict.fromkeys("º˚", "°"), **dict.fromkeys("〜～", r"\sim "),
        **dict.fromkeys("，、٬،", ","), **dict.fromkeys("。｡٫", "."), **dict.fromkeys("：∶", ":"),
        "π": r"\pi ", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∞": r"\infty ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "≡": r"\equiv ", "→": r"\to ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "ℓ": r"\ell ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "λ": r"\lambda ", "φ": r"\phi ",
        "ω": r"\omega ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "｛": r"\{", "｝": r"\}",
        "＄": r"\$", "％": r"\%", "٪": r"\%", "؛": ";", "⟨": r"\langle ", "⟩": r"\rangle ",
    }
)  # fmt: skip
_SQUARED = re.compile("[㍱-㍺㎀-㏟]")  # cm² in one sign, which NFKC makes cm2
_ABOVE = re.compile("[²³¹⁰ⁱ⁴-ⁿᵃ-ᵛʰʲʳʷʸˡˢˣᶜᶠᶻ]+")
_BELOW = re.compile("[₀-₎ₐ-ₜ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_DOTTED_DIGIT = re.compile("([0-9])\u0307")
_BARRED_DIGITS = re.compile("(?:[0-9][\u0304\u0305])+")


def _in_ascii(text: str) -> str:
    """Other scripts' digits, punctuation and signs of mathematics as ASCII and LaTeX; letters stay."""
    if text.isascii():
        return text
    text = _SQUARED.sub(
        lambda m: " " + "".join(chr(int(c, 16)) for c in unicodedata.decomposition(m[0]).split()[1:]), text
    )
    text = _ABOVE.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = _BELOW.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = _VULGAR.sub(lambda m: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
    text = "".join(map(_character, text))
    text = _DOTTED_DIGIT.sub(r"\\dot{\1}", text)
    return _BARRED_DIGITS.sub(lambda m: rf"\overline{{{re.sub('[^0-9]', '', m[0])}}}", text)


def _character(c: str) -> str:
    """An ASCII digit for any decimal one; nothing for byte-order marks, joiners and others that have no width."""
    if c.isascii():
        return c
    if (digit := unicodedata.decimal(c, None)) is not None:
        return str(digit)
    return "" if unicodedata.category(c) == "Cf" or "\ufe00" <= c <= "\ufe0f" else c


# One way of writing ----------------------------------------------------------------------------------------------

_FUNCTIONS = (
    "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log",
    "ln", "lg", "exp", "max", "min", "gcd", "lcm", "sqrt",
)  # fmt: skip
_NAMES = "|".join((*_FUNCTIONS, "pi", "infty"))
_STYLES = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|hbox|operatorname\*?|rm|bf)"
_IN_TEXT = r"\\text\{[^{}]*\}(?:\s*\^\s*\{?-?[0-9]\}?)?"
_AFTER_A_UNIT = r"\s*(?:$|[/.,;:)}]|and\b|[0-9.]+\s*s(?:ec)?|\^\s*\{?\s*-?[0-9]\s*\}?\s*(?:$|[.,;)}]))"


def _time_unit(match: re.Match[str]) -> str:
    """`30 min` and `m/sec`, where neither is a function."""
    word = {"min": "minute", "sec": "second"}[match[1]]
    return (
        f" \\text{{{word}}}"
        if match[0].endswith("}")
        else f" {word}"
        if match.string[match.start() - 1] != "/"
        else word
    )


def _binomial(match: re.Match[str]) -> str:
    """`C(n,2)` is a binomial, `C(1,2)`, with nothing but numbers, the point C."""
    letters = re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", match[1] + match[2]))
    return rf"\binom{{{match[1]}}}{{{match[2]}}}" if letters else match[0]


def _without_groups(match: re.Match[str]) -> str:
    return re.sub("['_.]", "", match[0])


def _indian_number(match: re.Match[str]) -> str:
    """`1,50,000` is a number: no member of a list is written `000`. `15,25,125` may be either, but not behind a ₹."""
    text: str = match[0]
    return text.replace(",", "") if not text[0].isdigit() or ",0" in text else text


def _dotted_period(match: re.Match[str]) -> str:
    r"""`0.\dot{1}4285\dot{7}`: the period goes from the first dot to the last."""
    dots = list(re.finditer(r"\\dot\s*\{?([0-9])\}?", match[0]))
    return rf"\overline{{{re.sub('[^0-9]', '', match[0][: dots[-1].end()])}}}{match[0][dots[-1].end() :]}"


_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", ""),
        (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", " "),  # delimiters of mathematics
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
        (r"(?<=[0-9])(?:\{,\}|,\\!)(?=[0-9]{3})", ""),
        (r"\{,\}|,\\!", ","),
        (r"\{:\}", ":"),
        (r"(?<![0-9a-zA-Z.'_])[0-9]{1,3}(?:(?:'[0-9]{3})+|(?:_[0-9]{3})+)(?![0-9a-zA-Z'_])", _without_groups),
        (r"(?<![0-9a-zA-Z.,])[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9a-zA-Z.])", _without_groups),  # 1.234.567
        (r"(?<![0-9,.])(?:(?:₹|\bRs\.?) ?)?[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9,])", _indian_number),
        (r"\.{2,}|\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])", r"\\ldots "),
        (r"\\(?:text)?euro(?![a-zA-Z])", "€"),
        (r"\\(?:pounds|textsterling)(?![a-zA-Z])", "£"),
        (r"\\(?:text)?yen(?![a-zA-Z])", "¥"),
        (r"\bU\.S\.\s*(?=[a-zA-Z$\\])", "US "),
        (r"\\not\s*(?:=|\\?eq(?![a-zA-Z]))", r"\\ne "),
        (r"\\(?:boxed|fbox|underline)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\{\s*\\(?:bf|rm|it|sf)(?![a-zA-Z])([^{}]*)\}", r"\1"),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])|&nbsp;", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (rf"(?<=[0-9}}])\s*{_STYLES}\s*\{{\s*(min|sec)s?\.?\s*\}}", _time_unit),
        (rf"(?<=[0-9}}/ ])(?<!\\)(min|sec)s?(?={_AFTER_A_UNIT})", _time_unit),
        (rf"({_STYLES}\s*\{{[^{{}}]*)\^\s*\{{?([23])\}}?(?=[^{{}}]*\}})", lambda m: m[1] + ("²" if m[2] == "2" else "³")),
        (rf"{_STYLES}\s*\{{\s*({_NAMES})\s*\}}", r"\\\1 "),
        (rf"{_STYLES}\s*\{{([-+0-9.,/ ]+|[ei])\}}", r"\1"),
        (r"\\(?:mathbf|mathit|boldsymbol|bm)\s*\{([a-zA-Z])\}", r"\1"),
        (rf"{_STYLES}\s*\{{([^{{}}]*)\}}", lambda match: rf"\text{{{match[1].strip()}}}"),
        (r"\\text\{\}", ""),
        (rf"\\frac\s*\{{\s*({_IN_TEXT})\s*\}}\s*\{{\s*({_IN_TEXT})\s*\}}", r"\1/\2"),
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
        (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"(?<![\\a-zA-Z])C\(([^(),]*),([^(),]*)\)", _binomial),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"(?<=[0-9])\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=[0-9])", r"\\text{to}"),
        (r"\\p?mod(?![a-zA-Z])\s*\{?\(?\s*([0-9a-zA-Z]+)\s*\)?\}?|\(\s*mod\s*([0-9a-zA-Z]+)\s*\)", r"\\pmod{\1\2}"),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\dot\s*\{?[0-9]\}?(?:[0-9]|\\dot\s*\{?[0-9]\}?)*", _dotted_period),
        (r"\\bar\s*\{?([0-9]+)\}?", r"\\overline{\1}"),
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
_BARE = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")
_STATED = re.compile(r"^[=:] ?(?![=>])")  # = 5
# 0.1(6), but 2.5(4) in a formula is a product
_PERIOD_IN_BRACKETS = re.compile(
    r"(?:(?<![^=,])|(?<=^[-+(])|(?<=^\\\{))([-+]?[0-9]*\.[0-9]*)\(([0-9]+)\)(?=$|[,.;%°]|\)$|\\\}$|\\%|\\text|[a-zA-Z]{2})"
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_PRICE = re.compile(r"(?<!\\)\$(?=\s?-?\.?[0-9])")
_PRICE_BEHIND = re.compile(r"(?<=[0-9])\s?\$")


def _dollars(text: str) -> str:
    r"""`\$` for a `$` that is money: it stands before a number, or is alone behind one, so that none closes a formula."""
    signs, prices = len(_DOLLAR.findall(text)), len(_PRICE.findall(text))
    if signs and signs == prices:
        return _PRICE.sub(r"\\$", text)
    return _PRICE_BEHIND.sub(r"\\$", text) if signs == 1 else text


def normal_form(text: str) -> str:
    """One way of writing for the many that mean the same; texts with equal normal forms are equal answers.

    Nothing is computed: delimiters, styles, spacing and spelling variants go, and arguments get their braces.
    """
    if _BARE.fullmatch(text):
        return text
    text = _in_ascii(repair_escapes(text))
    text = _dollars(text) if "$" in text else text
    text = _SPACE.sub(" ", strip_box(text).replace("\x0b", ""))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _SPACE.sub(" ", text).strip()
    text = _brace_arguments(text)
    text = re.sub(r"(\\[a-zA-Z]+) (?=[^a-zA-Z])", r"\1", text)
    text = _LOOSE_SPACE.sub("", _SPACE.sub(" ", text))
    text = _PERIOD_IN_BRACKETS.sub(r"\1\\overline{\2}", text)
    text = _STATED.sub("", text.strip().rstrip(".,;:")).strip()
    if re.search(r"(?<!\\)(?:\\\\)*\\$", text):  # half of a control space
        text = text[:-1].strip()
    return unbraced(text)


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
        if bold := re.fullmatch(r"\*\*([^*]+)\*\*", text):
            text = bold[1]
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
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(rf"([-+]?)({_DECIMAL})(?:[eE]|\\cdot ?10\^\{{)([-+]?[0-9]{{1,3}})\}}?")
_ELLIPSIS = re.compile(r"([-+]?)([0-9]*)\.([0-9]*?)([0-9]{1,12}?)\4{2,} ?\\ldots")  # 0.1666..., a period three times
_REPEATING = re.compile(r"([-+]?)([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
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
    match = _ELLIPSIS.fullmatch(text) if len(text) <= MAX_ELLIPSIS else None
    if match := match or _REPEATING.fullmatch(text):
        sign, whole, start, period = match.groups()
        nines = Fraction(int(period), 10 ** len(start) * (10 ** len(period) - 1))
        return _signed(sign, Fraction(f"{whole or 0}.{start or 0}") + nines)
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
