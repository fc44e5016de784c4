"""Formulas in normal form as sympy trees that nobody evaluated, by math-verify's LaTeX parser."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from sympy.core.function import AppliedUndef

from ollm_rl.reward.answer_shape import NotUnderstood
from ollm_rl.reward.normal_form import plain_number

PARSER = ConversionConfig(lowercase_symbols=False)
# What the parser drops or misreads: n!! is (n!)! to it, x' is x, A^T is A, "5 6" is 11.
_MISREAD = re.compile(
    r"!!|\\text|'|\^\{ ?(?:T|\\top|\\prime|\*) ?\}|[0-9] [0-9]|[0-9)]_\{|\\ldots|\\not(?![a-z])|\\pmod|\\equiv|\\hat|\\tilde"
)
_MIXED = re.compile(r"(?<![\w.})\]])([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}")
_REPEATING = re.compile(r"[0-9]*\.[0-9]*\\overline\{[0-9]+\}")
_DECIMAL = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


class _Parser(_Latex2Sympy):  # type: ignore[misc] # it has no types
    """math-verify's parser with three of its decisions changed.

    A number before a number in brackets, or before a binomial, is a product; to the original it is a mixed number.
    Digits are read here; the original hands them to sympy's `parse_expr`, which costs more than all the rest.
    And it looks ahead without the context of what it is inside of, which is quicker and either right or an error.
    """

    prediction = PredictionMode.SLL

    def create_parser(self, latex_str: str) -> Any:
        parser = super().create_parser(latex_str)
        parser._interp.predictionMode = self.prediction
        return parser

    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        first = self.convert_postfix(arr[i])
        if i + 1 == len(arr):
            if isinstance(first, list):
                raise NotUnderstood("a derivative of nothing")
            return first
        if isinstance(first, list):  # d/dx
            return sympy.Derivative(self.convert_postfix_list(arr, i + 1), first[0])
        others = self.convert_postfix_list(arr, i + 1)
        is_matrix = getattr(first, "is_Matrix", False) or getattr(others, "is_Matrix", False)
        return (self.mat_mul_flat if is_matrix else self.mul_flat)(first, others)

    def parse_number(self, text: str) -> sympy.Basic:
        number = text.replace(",", "").strip()
        if not _DECIMAL.fullmatch(number):
            raise NotUnderstood(text[:80])
        return sympy.Integer(int(number)) if number.isdigit() else sympy.Rational(Fraction(number))


class _ContextParser(_Parser):
    prediction = PredictionMode.LL


def _tree(text: str) -> Any:
    try:
        return _Parser(is_real=False, config=PARSER).parse(text)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # with its context, then
        return _ContextParser(is_real=False, config=PARSER).parse(text)


@lru_cache(maxsize=4096)
def parse(text: str) -> sympy.Basic:
    """The sympy tree, unevaluated, of a formula in normal form.

    Raises:
        NotUnderstood: it is not a formula.
    """
    number = plain_number(text)
    if number is not None:
        return sympy.Rational(number.numerator, number.denominator)
    if _MISREAD.search(text):
        raise NotUnderstood(text)
    text = _REPEATING.sub(lambda match: rf"({plain_number(match[0])})", text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"\\pi ?\(", r"\\pi\\cdot(", text)
    text = re.sub(r"([0-9]+|[a-zA-Z])!(?=\^)", r"(\1!)", text)
    # Square brackets group; to the parser they would be intervals.
    grouped = text if r"\sqrt[" in text else text.replace("[", "(").replace("]", ")")
    try:
        found = _tree(grouped)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parser raises plain Exceptions and its own mistakes alike
        raise NotUnderstood(text[:80]) from error
    if isinstance(found, sympy.Expr) and (
        functions := found.atoms(AppliedUndef)
    ):  # x(x) is x times x, f(x) is no product
        symbols = {str(s): s for s in found.free_symbols}
        found = found.xreplace(
            {
                f: sympy.Mul(symbols[str(f.func)], f.args[0], evaluate=False)
                for f in functions
                if str(f.func) in symbols and len(f.args) == 1
            }
        )
    if isinstance(found, sympy.MatrixExpr):
        found = found.doit()
    if isinstance(found, bool) or not isinstance(found, sympy.Basic | sympy.MatrixBase):
        raise NotUnderstood(text[:80])
    return found
