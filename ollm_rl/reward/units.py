r"""Units and currencies: what stands around a number, under one name each.

A unit is written as the sorted powers of its factors, `h^-1 km` for `km/h`, `kilometres per hour` and `km h^{-1}`;
nothing is converted but cents to dollars, percentages to fractions and degrees to radians.
All texts are in normal form (`ollm_rl.reward.normal_form.normal_form`).
"""

import re
from collections import Counter
from functools import lru_cache

FACTORS = {"%": r"\frac{1}{100}", "°": r"\frac{\pi}{180}"}  # to a number without a unit
CENTS = r"\frac{1}{100}"  # of a dollar

_MULTIPLIERS = {
    "dozen": "12", "hundred": "100", "thousand": "1000", "million": "10^{6}", "billion": "10^{9}", "trillion": "10^{12}",
}  # fmt: skip
_MONEY_MULTIPLIERS = {
    "k": "thousand",
    "m": "million",
    "mn": "million",
    "mio": "million",
    "bn": "billion",
    "b": "billion",
}
_NAMES = {  # the name, and what is written for it; capitals count in the first, not in the second
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
    "nm": "nanometer nanometre", "μm": "um micrometer micrometre micron", "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "g": "gram gramme gm",
    "kg": "kilogram kilo kilogramme", "mg": "milligram", "lb": "lb", "oz": "ounce", "l": "liter litre",
    "ml": "milliliter millilitre", "h": "hour hr", "min": "minute", "s": "second sec", "ms": "millisecond",
    "day": "", "week": "wk", "month": "", "year": "yr", "gal": "gallon", "ha": "hectare", "acre": "", "t": "tonne",
    "N": "newton", "kN": "kilonewton", "J": "joule", "kJ": "kilojoule", "MJ": "megajoule", "W": "watt", "mW": "milliwatt",
    "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt", "Pa": "pascal", "kPa": "kilopascal", "MPa": "megapascal",
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "V": "volt", "mV": "millivolt",
    "kV": "kilovolt", "A": "ampere amp", "mA": "milliampere", "Ω": "ohm", "K": "kelvin", "mol": "mole", "eV": "",
    "cal": "calorie", "kcal": "kilocalorie", "B": "byte", "kB": "kilobyte", "MB": "megabyte", "GB": "gigabyte",
    "TB": "terabyte", "mJ": "millijoule", "MV": "megavolt", "mHz": "millihertz", "Mb": "megabit", "Gb": "gigabit", "M": "", "%": "percent pct percentage", "°": "degree deg",
    "°c": "c celsius celsiu", "°f": "f fahrenheit", "rad": "radian", "": "unit",
    "$": "dollar usd buck us$", "¢": "cent", "€": "euro eur", "£": "gbp quid", "pound": "", "¥": "", "yen": "jpy",
    "yuan": "cny rmb renminbi", "₹": "rupee inr rs", "₩": "won krw", "₽": "ruble rouble rub", "CHF": "franc",
    "CAD": "c$ ca$ can$", "AUD": "a$ au$", "NZD": "nz$", "HKD": "hk$", "SGD": "s$ sg$", "MXN": "peso",
}  # fmt: skip
_SYNONYMS = {word: name for name, words in _NAMES.items() for word in words.split()}
_SYNONYMS |= {name.lower(): name for name in _NAMES if len(name) > 1 and name[0] not in "Mm"}  # mw may be MW or mW
_COMPOSED = {
    "mph": "mi/h", "kmh": "km/h", "kph": "km/h", "kmph": "km/h", "fps": "ft/s", "rpm": "revolution/min", "sqm": "m^2",
    "sqft": "ft^2", "cc": "cm^3", "kWh": "kW h", "Wh": "W h", "mAh": "mA h", "Ah": "A h", "Nm": "N m",
}  # fmt: skip
_PHRASES = [
    (re.compile(rf"\b(?:{words})\b", re.IGNORECASE), name)
    for words, name in (
        (r"(?:us|u\.s\.|american|united states) ?dollars?", "USD"), (r"canadian dollars?", "CAD"),
        (r"australian dollars?", "AUD"), (r"(?:pounds? sterling|british pounds?)", "GBP"), (r"japanese yen", "JPY"),
        (r"chinese yuan", "CNY"), (r"indian rupees?", "INR"), (r"kilowatt[ -]?hours?", "kWh"), (r"watt[ -]?hours?", "Wh"),
        (r"percentage points?", "percentagepoint"), (r"light[ -]years?", "lightyear"),
    )
]  # fmt: skip
_AGREEING = {frozenset(p) for p in (("pound", "£"), ("pound", "lb"), ("¥", "yen"), ("¥", "yuan"))}
_CURRENCIES = set("$¢€£¥₹₩₽") | {"pound", "yen", "yuan", "CHF", "CAD", "AUD", "NZD", "HKD", "SGD", "MXN"}
_ATTACHED = {  # may stand right behind a number
    "cm", "mm", "km", "kg", "mg", "ml", "ft", "lb", "lbs", "oz", "hr", "hrs", "min", "sec", "mph", "kmh", "kph", "km/h",
    "m/s", "ft/s", "sq", "cu", "usd", "eur", "gbp", "kwh", "kw", "mw", "hz", "khz", "mhz", "ghz", "kpa", "kj", "gb", "mins",
    "secs", "kgs", "cms", "kmph", "minute", "second",
}  # fmt: skip

_NO_UNIT = re.compile(
    r"(?i)[^a-zΩμ°/ .^{}()0-9²³-]|(?<![\^{-])[0-9]|\b(?:and|or|if|is|not|no|plus|minus|times|over|squared|cubed|factorial|"
    r"mod|modulo|negative|hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|tenths?|hundredths?|when|for|where|than|even|odd|"
    r"divided|by|choose|to|power|root|approximately|about|base|point)\b"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_TEXT_UNIT = re.compile(
    r"(.*?[^\s\\])\s*?((?:\\text\{[^{}]*\})(?:\\text\{[^{}]*\}|[/() ]|\^\{-?[0-9]\}|\\cdot ?|per)*)"
)
_WORD_UNIT = re.compile(r"(.*[0-9})°])( ?)([a-zA-Z]{2,}(?:[ /.]+[a-zA-Z]+|\\cdot ?[a-zA-Z]+|\^\{-?[0-9]\})*)")
_SYMBOL = r"(?:[mgshlLJNVWKΩ]|[a-zA-Zμ]{2,3}|second|minute)(?:\^\{-?[0-9]\})?"
_LETTER_UNIT = re.compile(rf"([-+]?[0-9.,/]+) ?((?<= |[0-9](?=[Ωμ])){_SYMBOL}(?:(?: ?\\cdot ?|/\(?| ){_SYMBOL})*\)?)")
_TEMPERATURE = re.compile(r"(?i)(.+)° ?(?:\\text\{)?(c|f)(?:elsius|ahrenheit)?\}?")
_SIGN_BEFORE = re.compile(
    r"([-+]?) ?(?:\\text\{ ?)?((?:US|U\.S\.|CA|AU|NZ|HK|SG|A|C|S)(?= ?\\?\$))? ?\\?([$€£¥₹₩₽]) ?\}? ?((?:\\text\{)?[^-+ ].*|-[0-9.].*)"
)
_CODE_BEFORE = re.compile(
    r"(?:\\text\{ ?)?(USD|EUR|GBP|JPY|CNY|RMB|INR|CAD|AUD|CHF|KRW|NZD|HKD|SGD|Rs\.?) ?\}? ?([-+]?[0-9.,].*)"
)
_SIGN_BEHIND = re.compile(r"(.*[0-9})]) ?(?:\\text\{ ?)?\\?([$€£¥₹₩₽¢]) ?\}?")
_HYPHENATED = re.compile(r"(?i)\b((?:kilo)?watt|light|foot)-(hours?|years?|pounds?)\b")
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_MONEY = re.compile(r"([-+]?[0-9.,]+) ?(?:\\text\{ ?)?([kKmM]|[mM]n|[mM]io|[bB]n?)\.?\}?")


@lru_cache(maxsize=4096)
def without_unit(text: str) -> tuple[str, str]:
    """The text without its unit, and the unit's name, such as `%`, `°`, `$`, `h^-1 km`; empty for none."""
    if (money := _money(text)) is not None:
        return money
    text = _HYPHENATED.sub(r"\1 \2", text)
    if text.endswith("%"):
        return text.removesuffix("%").removesuffix("\\").strip(), "%"
    if match := _TEMPERATURE.fullmatch(text):
        return match[1], "°" + match[2].lower()
    core, words = text, ""
    if match := _TEXT_UNIT.fullmatch(text):
        core, words = match[1], re.sub(r"\\text\{([^{}]*)\}", r" \1 ", match[2])
    elif (match := _WORD_UNIT.fullmatch(text)) and _plausible(match[3], bool(match[2])):
        core, words = match[1], match[3].replace(r"\cdot", " ")
    words = re.sub(r"(?i)\b([a-z]+) (squared|cubed)\b", _power, words.replace(r"\cdot", " "))
    if _NO_UNIT.search(words) or len(words.split()) > 4:
        return text, ""
    first, _, others = words.strip().partition(" ")
    if first.lower() in _MULTIPLIERS:
        core = core.replace(",", "") if _GROUPED.fullmatch(core) else core
        core, words = rf"({core})\cdot {_MULTIPLIERS[first.lower()]}", others
    if "°" in core:
        if _TRIGONOMETRY.search(core):
            core = core.replace("°", r"\cdot\frac{\pi}{180}")
        else:
            core, words = core.replace("°", ""), words or "°"
    return core.strip(), canonical(words) if words else ""


def letter_unit(text: str) -> tuple[str, str] | None:
    """Number and unit of `10 m` or `5 N m`, which may also be products: for those who expect a quantity."""
    match = _LETTER_UNIT.fullmatch(text)
    return (match[1], canonical(match[2])) if match and is_known(match[2]) else None


def agree(a: str, b: str) -> bool:
    """The two names are of one unit, or may be: pounds are money or a weight, and 12 dollars an hour are 12 dollars."""
    if a == b or frozenset((a, b)) in _AGREEING:
        return True
    short, long = sorted((a, b), key=len)
    return short in _CURRENCIES and short in long.split() and "^-1" in long


def is_known(words: str) -> bool:
    """Every factor is a unit of measurement or a currency."""
    names = _factors(words)
    return bool(names) and all(name in _NAMES for name in names)


def canonical(words: str) -> str:
    """The name of a unit, the sorted powers of its factors."""
    powers = _factors(words)
    return " ".join(
        name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()) if power and name
    )


# How they are read -----------------------------------------------------------------------------------------------


def _money(text: str) -> tuple[str, str] | None:
    """Amount and currency of `\\$12`, `USD 12`, `12 €`, `\\$5 million`, `\\$5M`, `\\$12 per hour`."""
    if match := _SIGN_BEFORE.fullmatch(text):
        sign, currency, amount = match[1], _name((match[2] or "").replace(".", "") + match[3]), match[4]
    elif match := _CODE_BEFORE.fullmatch(text):
        sign, currency, amount = "", _name(match[1].rstrip(".")), match[2]
    elif match := _SIGN_BEHIND.fullmatch(text):
        return without_unit(match[1])[0], _name(match[2])
    else:
        return None
    amount = re.sub(r"(?<=[0-9])\}$", "", amount)  # of the \text before the sign
    amount = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", amount).strip()
    amount = re.sub(r"^([0-9.,]+) ?(?:/|an? ) ?(?=[a-zA-Z])", r"\1 per ", amount)
    if match := _MONEY.fullmatch(amount):
        amount = f"{match[1]} {_MONEY_MULTIPLIERS[match[2].lower()]}"
    core, unit = without_unit(amount)
    if unit != currency:  # an hour, or another currency, which contradicts it
        currency = canonical(f"{currency} {unit}")
    return f"{sign}{core}", currency


def _plausible(words: str, apart: bool) -> bool:
    """Known abbreviations may stand right behind the number, words must not."""
    if words.lower() in _ATTACHED or re.match(r"(?:cm|mm|km|ft|in|sq|cu)\b", words):
        return True
    return apart and (bool(re.match(r"[a-zA-Z]{3,}", words)) or is_known(words))


def _power(match: re.Match[str]) -> str:
    exponent = "2" if match[2].lower() == "squared" else "3"
    return f"{match[1]}^{exponent}" if is_known(match[1]) else match[0]


def _factors(words: str) -> Counter[str]:
    """The powers of the factors of a unit; a stroke is for the next factor or bracket only."""
    for pattern, name in _PHRASES:
        words = pattern.sub(name, words)
    words = re.sub(r"\s*(?:/|\bper\b)\s*", "/", words).replace("²", "^2").replace("³", "^3")
    words = re.sub(r" ?\^ ?\{?(-?[0-9])\}?", r"^\1", words.replace(r"\cdot", " ").replace(".", " "))
    words = re.sub(r"\b([kcdm]?m|ft|in)([23])\b", r"\1^\2", words)
    words = re.sub(r"(?i)\b(?:square|sq) ([a-z]+)", r"\1^2", words)
    words = re.sub(r"(?i)\b(?:cubic|cu) ([a-z]+)", r"\1^3", words)
    found: Counter[str] = Counter()
    inverse, brackets = False, []
    for token in re.findall(r"[^\s/^()]+(?:\^-?[0-9])?|[/()]", words):
        if token == "/":
            inverse = True
        elif token == "(":
            brackets.append(inverse)
        elif token == ")":
            inverse = bool(brackets) and brackets.pop() and False
        else:
            word, _, power = token.partition("^")
            sign = -1 if inverse or any(brackets) else 1
            inverse = False
            if (composed := _COMPOSED.get(word) or _COMPOSED.get(word.lower())) is not None:
                for name, exponent in _factors(composed).items():
                    found[name] += sign * exponent
            else:
                found[_name(word)] += sign * int(power or 1)
    return found


def _name(word: str) -> str:
    if word in _NAMES:
        return word
    lower = word.lower()
    single = lower[:-1] if len(lower) > 2 and lower.endswith("s") and not lower.endswith("ss") else lower
    return _SYNONYMS.get(lower, _SYNONYMS.get(single, single))
