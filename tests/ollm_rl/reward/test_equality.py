"""Formulas are compared exactly, however large or close their values are."""

import pytest

from ollm_rl.reward.equality import proportional, same
from ollm_rl.reward.latex import parse
from ollm_rl.reward.numeric import TooLarge


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (r"\sqrt{2+\sqrt{3}}", r"\frac{\sqrt{6}+\sqrt{2}}{2}", True),
        (r"\sqrt[3]{-8}", "-2", True),
        (r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}", "1", True),
        (r"\arcsin\frac{1}{\sqrt{3}}", r"\arctan\frac{1}{\sqrt{2}}", True),
        (r"\log_{2}8", "3", True),
        ("e^{i\\pi}+1", "0", True),
        (r"\sqrt{10^{60}+1}", r"10^{30}", False),
        (r"2^{2012}+\sqrt{2}", r"2^{2012}+\sqrt{3}", False),
        (r"(2^{2012}+\sqrt{2})-2^{2012}", r"\sqrt{2}", True),
        (r"e^{23110}+1", r"e^{23110}", False),
        (r"\pi", r"\frac{355}{113}", False),
        ("|x|", "x", False),
        (r"\sqrt{x^{2}}", "x", False),
        (r"\sqrt{a}\sqrt{b}", r"\sqrt{ab}", True),
        (r"\lceil\frac{n}{2}\rceil", r"\lfloor\frac{n+1}{2}\rfloor", True),
        (r"\lfloor\frac{n}{2}\rfloor", r"\frac{n}{2}", False),
        ("(-1)^{n}", r"\cos(n\pi)", True),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", True),
        (r"\sum_{k=1}^{n}k", r"\frac{n(n+1)}{2}", True),
        (r"x+10^{-60}\sqrt{y}", "x", False),
        ("f(x)+1", "1+f(x)", True),
    ],
)
def test_same(a, b, equal):
    assert same(parse(a), parse(b)) is equal


def test_too_large_is_said_and_not_guessed():
    with pytest.raises(TooLarge):
        same(parse(r"10^{10^{10}}"), parse(r"10^{10^{10}}+1"))


def test_proportional():
    assert proportional(parse("2x+4y-6"), parse("3-x-2y"))
    assert not proportional(parse("2x+4y-6"), parse("3-x-2y"), positive=True)
    assert not proportional(parse("x-5"), parse("y-5"))
