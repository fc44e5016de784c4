r"""Final answers: finding them in a solution and bringing plain ones to a normal form.

Policy: the last `\boxed{...}` with balanced braces counts; without one, what follows the last "answer is" or
"answer:"; else there is no answer. A solution that the token budget cut off is judged by the same rule.
"""

import re
from fractions import Fraction

_PHRASE = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*(.+?)(?:\.?\s*$|\.\s|\n)", re.IGNORECASE)
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)"))
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?|[+-]?\.\d+")
_RATIO = re.compile(r"([+-]?\d+)\s*/\s*([+-]?\d+)")
_FRAC = re.compile(r"([+-]?)\s*\\[dt]?frac\s*\{([+-]?\d+)\}\s*\{([+-]?\d+)\}")
MAX_DIGITS = 2_000  # of a number that is compared here; longer ones go to the worker with its limits


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, or None."""
    end = len(text)
    while (start := text.rfind(r"\boxed", 0, end)) >= 0:
        open_brace = start + len(r"\boxed")
        if text[open_brace : open_brace + 1] == "{":
            depth = 0
            for i in range(open_brace, len(text)):
                depth += {"{": 1, "}": -1}.get(text[i], 0)
                if depth == 0:
                    return text[open_brace + 1 : i]
        end = start
    return None


def extract_answer(text: str) -> str | None:
    """The final answer that a solution states, or None."""
    answer = last_boxed(text)
    if answer is None:
        phrases = _PHRASE.findall(text)
        answer = phrases[-1] if phrases else None
    return answer.strip() or None if answer is not None else None


def strip_delimiters(text: str) -> str:
    r"""Remove `$`, `\[ \]`, `\( \)` and an enclosing `\boxed` around a whole answer."""
    text = text.strip()
    while True:
        before = text
        for left, right in _DELIMITERS:
            if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
                text = text[len(left) : len(text) - len(right)].strip()
        if text.startswith(r"\boxed{") and last_boxed(text) == text[len(r"\boxed{") : -1]:
            text = text[len(r"\boxed{") : -1].strip()
        if text == before:
            return text


def plain_number(text: str) -> Fraction | None:
    """An integer, decimal or simple fraction as an exact number; None for anything else."""
    if len(text) > MAX_DIGITS:
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    if (ratio := _RATIO.fullmatch(text)) and int(ratio[2]):
        return Fraction(int(ratio[1]), int(ratio[2]))
    if (frac := _FRAC.fullmatch(text)) and int(frac[3]):
        value = Fraction(int(frac[2]), int(frac[3]))
        return -value if frac[1] == "-" else value
    return None
