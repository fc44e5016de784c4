"""Exact comparison of formulas, given as sympy trees that nobody evaluated.

Rational values are fractions of bounded size, so that integers and huge numbers are never compared by closeness.
Irrational ones are computed to a precision that grows with the size of every number in the formula: two values that
agree to more digits than the formula has room to differ in are equal (a separation bound in the manner of Burnikel et
al. 2000, with a wide margin instead of a proof). Formulas with variables are compared at points: exactly at rational
points for rational functions (polynomial identity testing, Schwartz 1980), to the same high precision for others.

sympy's `simplify` is not used: it is slow, unbounded, and misses equalities that a few points decide.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
import sympy
from sympy.core.function import AppliedUndef

MAX_BITS = 1 << 18  # of an exact number
MAX_PRECISION = 1 << 18  # bits
EXTRA = 200  # bits of precision beyond the size of the formula
MIN_POINTS = 4
INTEGERS = set("abcdijklmnpqrstNMKLRS")  # letters that stand for integers in floors and factorials
INFINITE = (sympy.oo, -sympy.oo, sympy.zoo)

MP = mpmath.MPContext()  # its precision is set by the evaluator in use: one at a time, in a process of one thread

Value = Any  # a Fraction where the value is rational, else a number of MP; mpmath has no types


class Undefined(Exception):
    """No value at this point."""


class TooLarge(Exception):
    """Numbers beyond `MAX_BITS`."""


class NotEvaluable(Exception):
    """A function or an object that is not evaluated here."""


class Evaluator:
    """Values of sympy trees at a point.

    Attributes:
        size: bits of all numbers met, added up. largest: of the largest.
        imaginary: a value that is not real has been met.
    """

    def __init__(self, precision: int = EXTRA, point: dict[str, Fraction] | None = None):
        self.mp = MP
        self.mp.prec = precision
        self.point = point or {}
        self.size = self.largest = 0
        self.imaginary = False

    def __call__(self, node: sympy.Basic) -> Value:
        value = self._value(node)
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            if bits > MAX_BITS:
                raise TooLarge
            self.size += bits
            self.largest = max(self.largest, bits)
            return value
        if isinstance(value, self.mp.mpc):
            if value.imag == 0:
                value = value.real
            else:
                self.imaginary = True
        if not self.mp.isfinite(value):
            raise Undefined
        if value:
            bits = abs(int(self.mp.mag(value)))
            self.size += bits
            self.largest = max(self.largest, bits)
        return value

    def _value(self, node: sympy.Basic) -> Value:
        if isinstance(node, sympy.Float):
            return Fraction(str(node))
        if isinstance(node, sympy.Rational):
            return Fraction(int(node.p), int(node.q))
        if isinstance(node, sympy.Symbol):
            return self._symbol(node)
        if isinstance(node, AppliedUndef):  # f(x): an unknown like any other
            return self._named(str(node))
        name = type(node).__name__
        if name in _CONSTANTS:
            return _CONSTANTS[name](self.mp)
        if isinstance(node, sympy.Add):
            return self._sum(node.args)
        if isinstance(node, sympy.Mul):
            value: Value = Fraction(1)
            for factor in node.args:
                value = self._times(value, self(factor))
            return value
        if type(node) is sympy.exp:  # a power of E counts as an instance, with other arguments
            return self._exp(self(node.args[0]))
        if isinstance(node, sympy.Pow):
            return self._power(self(node.args[0]), self(node.args[1]))
        if isinstance(node, sympy.Sum | sympy.Product | sympy.Integral | sympy.Derivative | sympy.Limit):
            done = node.doit()
            if done == node or done.has(type(node)):
                raise NotEvaluable(name)
            return self(done)
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](self, *[self(a) for a in node.args])
        raise NotEvaluable(name)

    def _symbol(self, node: sympy.Symbol) -> Value:
        if str(node) == "i":
            return self.mp.mpc(0, 1)
        return self._named(str(node))

    def _named(self, name: str) -> Fraction:
        if name not in self.point:
            raise NotEvaluable(name)
        return self.point[name]

    def real(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            return self.mp.mpf(value.numerator) / value.denominator
        return value

    def _sum(self, terms: tuple) -> Value:
        total: Value = Fraction(0)
        for term in terms:
            value = self(term)
            if isinstance(total, Fraction) and isinstance(value, Fraction):
                total += value
            else:
                total = self.real(total) + self.real(value)
        return total

    def _times(self, a: Value, b: Value) -> Value:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a * b
        return self.real(a) * self.real(b)

    def _exp(self, x: Value) -> Value:
        if x == 0:
            return Fraction(1)
        if abs(self.real(x)) > MAX_BITS:
            raise TooLarge
        return self.mp.exp(self.real(x))

    def _power(self, base: Value, exponent: Value) -> Value:
        if exponent == 0:
            if base == 0:
                raise Undefined
            return Fraction(1)
        if base == 0:
            if isinstance(exponent, self.mp.mpc) or exponent < 0:
                raise Undefined
            return Fraction(0)
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if base == 1:
                return base
            if abs(base) != 1 and abs(exponent) * abs(math.log2(abs(base.numerator)) + 1) > MAX_BITS:
                raise TooLarge
            if abs(base) != 1 and abs(exponent) * (math.log2(base.denominator) + 1) > MAX_BITS:
                raise TooLarge
            if exponent.denominator == 1:
                return base ** int(exponent)
            if (root := _exact_root(base, exponent.denominator)) is not None:
                return root**exponent.numerator
        if (
            isinstance(exponent, Fraction)
            and exponent.denominator > 1
            and exponent.denominator % 2
            and self._negative(base)
        ):
            positive = self.real(-base) ** self.real(exponent)  # the real root, as mathematics at school has it
            return -positive if exponent.numerator % 2 else positive
        x, y = self.real(base), self.real(exponent)
        if abs(self.mp.re(y)) * (abs(self.mp.mag(x)) + 1) > MAX_BITS:
            raise TooLarge
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return x ** int(exponent)
        return self.mp.power(x, y)

    def _negative(self, x: Value) -> bool:
        return not isinstance(x, self.mp.mpc) and x < 0


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """The rational root, if there is one; negative bases have roots of odd degree."""
    if degree > 64 or (base < 0 and degree % 2 == 0):
        return None
    top, bottom = _integer_root(abs(base.numerator), degree), _integer_root(base.denominator, degree)
    if top is None or bottom is None:
        return None
    return Fraction(-top if base < 0 else top, bottom)


def _integer_root(n: int, degree: int) -> int | None:
    root = math.isqrt(n) if degree == 2 else int(sympy.integer_nthroot(n, degree)[0])
    return root if root**degree == n else None


# Functions -------------------------------------------------------------------------------------------------------


def _is_integer(x: Value) -> bool:
    return isinstance(x, Fraction) and x.denominator == 1


def _factorial(e: Evaluator, x: Value) -> Value:
    if _is_integer(x):
        n = int(x)  # type: ignore[arg-type]
        if n < 0:
            raise Undefined
        if n > 20_000:
            raise TooLarge
        return Fraction(math.factorial(n))
    if abs(e.real(x)) > 20_000:
        raise TooLarge
    return e.mp.gamma(e.real(x) + 1)


def _gamma(e: Evaluator, x: Value) -> Value:
    return _factorial(e, x - 1)


def _binomial(e: Evaluator, n: Value, k: Value) -> Value:
    if _is_integer(n) and _is_integer(k):
        n, k = int(n), int(k)  # type: ignore[arg-type]
        if k < 0:
            return Fraction(0)
        if n < 0:
            raise Undefined
        if min(k, n - k) * n.bit_length() > MAX_BITS:
            raise TooLarge
        return Fraction(math.comb(n, k))
    return e.mp.binomial(e.real(n), e.real(k))


def _rounded(round_exactly, round_nearby):
    def function(e: Evaluator, x: Value) -> Value:
        if isinstance(x, Fraction):
            return Fraction(round_exactly(x))
        if isinstance(x, e.mp.mpc):
            raise Undefined
        nearest = int(e.mp.nint(x))
        if abs(x - nearest) < e.mp.mpf(2) ** (-e.mp.prec // 2):
            return Fraction(nearest)
        return Fraction(int(round_nearby(e.mp, x)))

    return function


def _absolute(e: Evaluator, x: Value) -> Value:
    return abs(x)


def _extreme(choose):
    def function(e: Evaluator, *values: Value) -> Value:
        if any(isinstance(v, e.mp.mpc) for v in values):
            raise Undefined
        return choose(values, key=e.real)

    return function


def _log(e: Evaluator, x: Value, base: Value | None = None) -> Value:
    if x == 0 or base in (0, 1):
        raise Undefined
    if x == 1:
        return Fraction(0)
    value = e.mp.log(e.real(x))
    return value if base is None else value / e.mp.log(e.real(base))


def _elementary(name: str):
    def function(e: Evaluator, x: Value) -> Value:
        if abs(e.real(x)) > MAX_BITS:
            raise TooLarge
        if x != 0:  # cosh and tanh come as close to 1, and cos near 0, as this
            e.size += (3 * int(abs(e.real(x))) if "h" in name else 0) + 2 * abs(int(e.mp.mag(e.real(x))))
        try:
            return getattr(e.mp, name)(e.real(x))
        except (ValueError, ZeroDivisionError) as error:
            raise Undefined from error

    return function


_CONSTANTS = {
    "Pi": lambda mp: +mp.pi, "Exp1": lambda mp: +mp.e, "ImaginaryUnit": lambda mp: mp.mpc(0, 1),
    "GoldenRatio": lambda mp: +mp.phi, "EulerGamma": lambda mp: +mp.euler, "Catalan": lambda mp: +mp.catalan,
}  # fmt: skip
_FUNCTIONS = {
    "factorial": _factorial, "gamma": _gamma, "binomial": _binomial, "log": _log, "Abs": _absolute,
    "floor": _rounded(math.floor, lambda mp, x: mp.floor(x)), "ceiling": _rounded(math.ceil, lambda mp, x: mp.ceil(x)),
    "Max": _extreme(max), "Min": _extreme(min), "UnevaluatedExpr": lambda e, x: x,
} | {
    name: _elementary(name)
    for name in ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc", "sinh", "cosh",
                 "tanh", "coth", "asinh", "acosh", "atanh", "zeta", "erf")
}  # fmt: skip
_OF_INTEGERS = {"floor", "ceiling", "factorial", "binomial", "Mod", "Sum", "Product"}


# Comparison ------------------------------------------------------------------------------------------------------


def same(a: sympy.Expr, b: sympy.Expr) -> bool:
    """The two formulas have the same value wherever both have a real one.

    Raises:
        TooLarge: their numbers are too large to tell.
        NotEvaluable: they hold a function that is not known here.
    """
    if a == b:
        return True
    if a.has(*INFINITE) or b.has(*INFINITE):
        return a.doit() == b.doit()
    names = _unknowns(a) | _unknowns(b)
    if not names:
        try:
            return _equal_at(a, b, {})
        except Undefined:
            return False
    return all(difference == 0 for difference in _differences(a, b, names))


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


def _differences(a: sympy.Expr, b: sympy.Expr, names: set[str]) -> Iterator[int]:
    """0 or 1 for every point at which both have a value, until one differs; 1 if there are too few points."""
    tried, too_large = 0, False
    complex_allowed = any(x.has(sympy.I) or "i" in {str(s) for s in x.free_symbols} for x in (a, b))
    for point in _points(a, b, names):
        try:
            equal = _equal_at(a, b, point, complex_allowed)
        except Undefined:
            continue
        except TooLarge:
            too_large = True
            continue
        tried += 1
        yield 0 if equal else 1
    if tried < MIN_POINTS:
        if too_large:
            raise TooLarge
        yield 1


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
    for formula in formulas:
        first(formula)
    precision = 2 * first.size + EXTRA
    if precision > MAX_PRECISION and not all(isinstance(first(f), Fraction) for f in formulas):
        raise TooLarge
    second = Evaluator(min(precision, MAX_PRECISION), point)
    second.imaginary, second.size = first.imaginary, first.size
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
    return abs(x - y) <= abs(y) * e.mp.mpf(2) ** (-EXTRA // 2)


def _near(e: Evaluator, x: Value, y: Value) -> bool:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    # Half of the precision is the size of the numbers in the formula; the rounding errors are far below it.
    return abs(e.real(x) - e.real(y)) < e.mp.mpf(2) ** (-(e.mp.prec // 2) - EXTRA // 4)
