"""Comparison of formulas with units: numbers, expressions, matrices, and what is measured in cm or dollars."""

import re

import sympy

from ollm_rl.reward.answer_shape import Leaf
from ollm_rl.reward.equality import same
from ollm_rl.reward.latex import parse
from ollm_rl.reward.normal_form import plain_number
from ollm_rl.reward.units import CENTS, FACTORS, agree, letter_unit

_LETTERS = re.compile(r"[A-Za-z]{3,}")


def equal_quantities(gold: Leaf, answer: Leaf) -> bool:
    if {gold.unit, answer.unit} == {"$", "¢"}:
        dollars, cents = (gold, answer) if gold.unit == "$" else (answer, gold)
        return equal_formulas(dollars.text, rf"{CENTS}\cdot({cents.text})")
    if {gold.unit, answer.unit} == {"°", "rad"}:
        degrees, radians = (gold, answer) if gold.unit == "°" else (answer, gold)
        return equal_formulas(rf"{FACTORS['°']}\cdot({degrees.text})", radians.text)
    if gold.unit and answer.unit and not agree(gold.unit, answer.unit):
        return False
    if equal_formulas(gold.text, answer.text):
        return True
    if bool(gold.unit) == bool(answer.unit):
        return not gold.unit and _equal_letters(gold, answer)
    for text, unit, other in ((gold.text, gold.unit, answer.text), (answer.text, answer.unit, gold.text)):
        if unit in FACTORS and equal_formulas(rf"{FACTORS[unit]}\cdot({text})", other):
            return True
    return _equal_letters(gold, answer)


def _equal_letters(gold: Leaf, answer: Leaf) -> bool:
    """`10 m` for 10 and `5 N m` for the same in words, though they may be products; 5 for `5 m/s`."""
    found = []
    for leaf in (gold, answer):
        number, unit = letter_unit(leaf.text) or (leaf.text, "") if not leaf.unit else (leaf.text, leaf.unit)
        found.append((plain_number(number), unit))
    (a, one), (b, other) = found
    return a is not None and a == b and (bool(other) or "^-" in one) and not (one and other and not agree(one, other))


def equal_formulas(a: str, b: str) -> bool:
    if a == b:
        return True
    if _LETTERS.fullmatch(a) and _LETTERS.fullmatch(b) and sorted(a) == sorted(b):
        return False  # words such as `bat` and `tab`: as products they would be equal
    x, y = plain_number(a), plain_number(b)
    if x is not None and y is not None:
        return x == y
    return same_formula(parse(a), parse(b))


def same_formula(a: sympy.Basic, b: sympy.Basic | None) -> bool:
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape == b.shape and all(map(same_formula, a, b))
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return same(a, b)
    if isinstance(a, sympy.Set) and isinstance(b, sympy.Set):
        return bool(a.doit() == b.doit())
    return bool(a == b)
