"""Exact comparison of formulas, given as sympy trees that nobody evaluated.

Rational values are fractions of bounded size, so that integers and huge numbers are never compared by closeness.
Irrational ones are computed to a precision that grows with the size of every number in the formula: two values that
agree to more digits than the formula has room to differ in are equal (a separation bound in the manner of Burnikel et
al. 2000, with a wide margin instead of a proof). Formulas with variables are compared at points: exactly at rational
points for rational functions (polynomial identity testing, Schwartz 1980), to the same high precision for others.

sympy's `simplify` is not used: it is slow, unbounded, and misses equalities that a few points decide.
"""

import hashlib
import random
from collections.abc import Iterator
from fractions import Fraction

import sympy
from sympy.core.function import AppliedUndef

from ollm_rl.reward.numeric import Evaluator, TooLarge, Undefined, Value

MAX_PRECISION = 1 << 18  # bits
EXTRA = 200  # bits of precision beyond the size of the formula
MIN_POINTS = 4
INTEGERS = set("abcdijklmnpqrstNMKLRS")  # letters that stand for integers in floors and factorials
INFINITE = (sympy.oo, -sympy.oo)
_NO_VALUES = (sympy.zoo, sympy.nan)
_OF_INTEGERS = {"floor", "ceiling", "factorial", "binomial", "Mod", "Sum", "Product"}


def same(a: sympy.Expr, b: sympy.Expr) -> bool:
    """The two formulas have the same value wherever both have a real one. What is undefined equals nothing.

    Raises:
        TooLarge: their numbers are too large to tell.
        NotEvaluable: they hold a function that is not known here.
    """
    if _undefined(a) or _undefined(b):
        return False
    if a == b:
        return True
    if a.has(*INFINITE) or b.has(*INFINITE):
        return a.doit() == b.doit() and not _undefined(a.doit())
    names = _unknowns(a) | _unknowns(b)
    if not names:
        try:
            return _equal_at(a, b, {})
        except Undefined:
            return False
    return _equal_at_points(a, b, names)


def _undefined(node: sympy.Basic) -> bool:
    """It divides by zero in so many words; other quotients by zero show when they are evaluated."""
    for part in sympy.preorder_traversal(node):
        if part in _NO_VALUES or (isinstance(part, sympy.Pow) and part.args[0].is_zero and part.args[1].is_negative):
            return True
    return False


def proportional(a: sympy.Expr, b: sympy.Expr, positive: bool = False) -> bool:
    """One formula is a constant (positive) multiple of the other, as of two equations (or inequalities)."""
    if not _unknowns(a) | _unknowns(b):
        return False  # 1 < 2 says nothing that 3 < 4 does not
    ratio: Value | None = None
    tried = 0
    for point in _points(a, b, _unknowns(a) | _unknowns(b)):
        try:
            e = _sized(point, a, b)
            x, y = e(a), e(b)
        except (Undefined, TooLarge):
            continue
        if e.imaginary:
            continue
        if (x == 0) != (y == 0):
            return False
        if x == 0:
            continue
        tried += 1
        quotient = x / y if isinstance(x, Fraction) and isinstance(y, Fraction) else e.real(x) / e.real(y)
        if positive and quotient < 0:
            return False
        if ratio is None:
            ratio = quotient
        elif not _near(e, ratio, quotient):
            return False
    return tried >= MIN_POINTS


def _unknowns(node: sympy.Basic) -> set[str]:
    found = {str(s) for s in node.free_symbols} | {str(f) for f in node.atoms(AppliedUndef)}
    return found - {"i"}


def _equal_at_points(a: sympy.Expr, b: sympy.Expr, names: set[str]) -> bool:
    """They agree wherever both have a value, and both have one at `MIN_POINTS` at least."""
    tried, too_large = 0, False
    complex_allowed = any(x.has(sympy.I) or "i" in {str(s) for s in x.free_symbols} for x in (a, b))
    for point in _points(a, b, names):
        try:
            if not _equal_at(a, b, point, complex_allowed):
                return False
            tried += 1
        except Undefined:
            continue
        except TooLarge:
            too_large = True
    if tried < MIN_POINTS and too_large:
        raise TooLarge
    return tried >= MIN_POINTS


def _points(a: sympy.Expr, b: sympy.Expr, names: set[str]) -> Iterator[dict[str, Fraction]]:
    """Points that depend on the formulas, so that none can be written to agree at all of them by design."""
    seed = hashlib.sha256(f"{a} {b}".encode()).digest()
    draw = random.Random(seed)
    if _counts(a) or _counts(b):  # formulas about integers need to agree at integers only
        large = [] if _grows(a) or _grows(b) else [10**4, 10**5, 10**6]
        for n in range(1, 13) if len(names) == 1 else ():
            yield dict.fromkeys(names, Fraction(n))
        for high in (6, 6, 6, 12, 12, 12, 12, 20, 20, 20, 40, 40, 60, 60, 100, 400, *large):
            yield {name: Fraction(draw.randint(1, high)) for name in sorted(names)}
        return
    far = [] if _grows(a) or _grows(b) else [(1, 10**4), (-1, 10**4), (-1, 10**6)]
    for sign, high in [(1, 50)] * 6 + [(0, 50)] * 5 + [(-1, 50)] * 2 + far:
        yield {
            name: Fraction(draw.randint(1, high), draw.randint(1, 12)) * (sign or draw.choice((-1, 1)))
            for name in sorted(names)
        }


def _counts(node: sympy.Basic) -> bool:
    """It is about integers: floors or factorials of n, or a negative number to such a power. A floor of x is not."""
    for part in sympy.preorder_traversal(node):
        names = {str(s)[:1] for s in part.free_symbols}
        if type(part).__name__ in _OF_INTEGERS and names and names <= INTEGERS:
            return True
        if isinstance(part, sympy.Pow) and part.args[0].is_number and part.args[1].free_symbols:
            base = part.args[0]
            if base.is_negative or base.could_extract_minus_sign():
                return True
    return False


def _grows(node: sympy.Basic) -> bool:
    """Values far from zero would be too large: a variable stands in an exponent or a factorial."""
    for part in sympy.preorder_traversal(node):
        exponent = part.args[1] if isinstance(part, sympy.Pow) else part
        if (isinstance(part, sympy.Pow | sympy.exp) or type(part).__name__ in _OF_INTEGERS | {"gamma"}) and (
            exponent.free_symbols and not type(part).__name__.startswith(("floor", "ceil"))
        ):
            return True
    return False


def _sized(point: dict[str, Fraction], *formulas: sympy.Basic) -> Evaluator:
    """An evaluator whose precision fits the formulas at this point."""
    first = Evaluator(EXTRA, point)
    found = [first(formula) for formula in formulas]
    precision = 2 * first.size + EXTRA
    if precision > MAX_PRECISION and not all(isinstance(value, Fraction) for value in found):
        raise TooLarge
    second = Evaluator(min(precision, MAX_PRECISION), point)
    second.imaginary = first.imaginary
    return second


def _equal_at(a: sympy.Basic, b: sympy.Basic, point: dict[str, Fraction], complex_allowed: bool = True) -> bool:
    """Raises `Undefined` where one has no value, or none that is real if it must be."""
    first = Evaluator(EXTRA, point)
    x, y = first(a), first(b)
    if first.imaginary and not complex_allowed:
        raise Undefined
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    if first.largest > EXTRA // 4:  # digits may have cancelled
        low = Evaluator(first.largest + EXTRA, point)
        x, y = low(a), low(b)
    high = Evaluator(2 * (first.largest + EXTRA), point)
    u, v = high(a), high(b)
    if _stable(high, x, u) and _stable(high, y, v) and not _stable(high, u, v):
        return False
    e = _sized(point, a, b)
    return _near(e, e(a), e(b))


def _stable(e: Evaluator, x: Value, y: Value) -> bool:
    """They agree in half of the digits that the lower precision has: what more precision would not change."""
    x, y = e.real(x), e.real(y)
    return bool(abs(x - y) <= abs(y) * e.mp.mpf(2) ** (-EXTRA // 2))


def _near(e: Evaluator, x: Value, y: Value) -> bool:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    # Half of the precision is the size of the numbers in the formula; the rounding errors are far below it.
    return bool(abs(e.real(x) - e.real(y)) < e.mp.mpf(2) ** (-(e.mp.prec // 2) - EXTRA // 4))
