"""Values of formulas, given as sympy trees that nobody evaluated: fractions of bounded size where they are rational, else
numbers of any precision."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import sympy
from sympy.core.function import AppliedUndef

MAX_BITS = 1 << 18  # of an exact number

MP = mpmath.MPContext()  # its precision is set by the evaluator in use: one at a time, in a process of one thread

Value = Any  # a Fraction where the value is rational, else a number of MP; mpmath has no types
Function = Callable[..., Value]  # of an evaluator and values


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

    def __init__(self, precision: int, point: dict[str, Fraction] | None = None):
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

    def _sum(self, terms: tuple[Any, ...]) -> Value:
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


def _rounded(round_exactly: Callable[[Fraction], int], round_nearby: Callable[[Any, Value], Value]) -> Function:
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


def _extreme(choose: Callable[..., Value]) -> Function:
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


def _elementary(name: str) -> Function:
    def function(e: Evaluator, x: Value) -> Value:
        if abs(e.real(x)) > MAX_BITS:
            raise TooLarge
        if x != 0:  # cosh and tanh come as close to 1, and cos near 0, as this
            e.size += (3 * int(abs(e.real(x))) if "h" in name else 0) + 2 * abs(int(e.mp.mag(e.real(x))))
        try:
            value = getattr(e.mp, name)(e.real(x))
        except (ValueError, ZeroDivisionError) as error:
            raise Undefined from error
        if name in _WITH_POLES and value and e.mp.mag(value) > e.mp.prec // 2:  # tan(pi/2), but for the rounding of pi
            raise Undefined
        return value

    return function


_CONSTANTS = {
    "Pi": lambda mp: +mp.pi, "Exp1": lambda mp: +mp.e, "ImaginaryUnit": lambda mp: mp.mpc(0, 1),
    "GoldenRatio": lambda mp: +mp.phi, "EulerGamma": lambda mp: +mp.euler, "Catalan": lambda mp: +mp.catalan,
}  # fmt: skip
_WITH_POLES = ("tan", "cot", "sec", "csc")
_FUNCTIONS: dict[str, Any] = {  # `Function`s of one value or more
    "factorial": _factorial, "gamma": _gamma, "binomial": _binomial, "log": _log, "Abs": _absolute,
    "floor": _rounded(math.floor, lambda mp, x: mp.floor(x)), "ceiling": _rounded(math.ceil, lambda mp, x: mp.ceil(x)),
    "Max": _extreme(max), "Min": _extreme(min), "UnevaluatedExpr": lambda e, x: x,
} | {
    name: _elementary(name)
    for name in ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc", "sinh", "cosh",
                 "tanh", "coth", "asinh", "acosh", "atanh", "zeta", "erf")
}  # fmt: skip
