"""Final answers: where they are found, and one way of writing them."""

import time
from fractions import Fraction

import pytest

from ollm_rl.answers import extract_answer
from ollm_rl.normal import normal_form, plain_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}} and then \boxed{3}", "3"),
        (r"First \boxed{7}, hence by symmetry \boxed{8}.", "8"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$.", "1, 2, 3"),
        (r"\boxed{4} or \boxed{4}", "4"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{7} and an open \boxed{8", "7"),
        (r"The answer is $\boxed{8", None),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("The answer is 12.", "12"),
        ("The answer is 1.5. It took long.", "1.5"),
        ("The final answer is: **42**\n", "42"),
        ("Answer:\n 7\nand more", "7"),
        ("48/2=24\n#### 72", "72"),
        ("the answer is 3, no: the answer is 4.", "4"),
        ("nothing here", None),
        (r"\boxed{}", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", [r"\boxed{" * 700_000, "{" * 5_000_000, "answer is " * 500_000, "\\" * 5_000_000])
def test_extraction_from_megabytes_is_quick(text):
    start = time.perf_counter()
    extract_answer(text)
    assert time.perf_counter() - start < 1.0


def test_a_box_before_a_long_text_is_no_final_answer():
    assert extract_answer(r"\boxed{5}" + " x" * 100_000) is None


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r"$\boxed{3}$", "3"),
        (r"\[ \dfrac12 \]", r"\frac{1}{2}"),
        (r"\left( 1 ,\, 2 \right)", "(1,2)"),
        (r"\tfrac32n", r"\frac{3}{2}n"),
        ("x^10", "x^{10}"),
        ("2^(n+1)", "2^{n+1}"),
        ("sqrt(3)/2", r"\sqrt{3}/2"),
        ("x² − 1", "x^{2}-1"),
        ("2**5", "2^{5}"),
        (r"\mathrm{e}^{2}", "e^{2}"),
        ("\x0crac{7}{12}", r"\frac{7}{12}"),
        (r"40^{\circ}", "40°"),
        (r"\tan^{-1}(x)", r"\arctan(x)"),
        ("1, 250", "1, 250"),
        ("{5}", "5"),
        ("5!", "5!"),
    ],
)
def test_normal_form(text, form):
    assert normal_form(text) == form
    assert normal_form(form) == form


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        ("-0.5", Fraction(-1, 2)),
        (r"7\frac{1}{3}", Fraction(22, 3)),
        ("1 1/2", Fraction(3, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"4.8\cdot 10^{8}", 480_000_000),
        (".5", Fraction(1, 2)),
        ("x", None),
        ("1/0", None),
        ("1, 250", None),
        ("12,34", None),
        ("9" * 2_001, None),
        ("٣", None),
    ],
)
def test_plain_number(text, value):
    assert plain_number(text) == value


def test_a_box_keeps_inner_braces():
    assert extract_answer(r"\boxed{a{b}c}") == "a{b}c"
