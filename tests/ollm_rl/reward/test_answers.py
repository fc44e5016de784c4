"""Final answers: where they are found, and one way of writing them."""

import contextlib
import time
from fractions import Fraction

import pytest

from ollm_rl.reward.answer_shape import NotUnderstood, read
from ollm_rl.reward.answers import extract_answer
from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.reward.verifier import MAX_ANSWER


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
        ("<think>\\boxed{7}</think>The answer is 42.", "42"),
        ("\\boxed{7}</think>\n\\boxed{42}", "42"),
        ("<think>It is \\boxed{42}", None),
        ("The answer is \\boxed{5}. <think>Or \\boxed{6}?</think> Yes.", "5"),
        ("<think>5</think><answer> 42 </answer>", "42"),
        ("The final answer is:\n\\[\n42\n\\]", "42"),
        ("### Final Answer\n\n$$\n42\n$$\nDone.", "42"),
        ("The answer is:\n\\begin{align*}\nx &= 2+3 \\\\\n&= 5\n\\end{align*}", "x = 2+3 = 5"),
        ("The final answer is:\n\\[\n4", None),
        ("**Final answer: 4**", "4"),
        ("**Answer:** 4.", "4"),
        ("The answer is 42.\n\n#### Verification\nWe check.", "42"),
        ("#### 42\n\n#### 2. Check\nfine", "42"),
        ("#### $29.00", "$29.00"),
        ("\\boxed{7}. Wait. The final answer is 8.", "8"),
        ("\\boxed{7}. Wait. The answer is 8.", "7"),
        ("The final answer is 8, or rather \\boxed{7}.", "7"),
        ("\\boxed{7}. The final answer is in the box above.", "7"),
        ("The answer is 72 clips, altogether.", "72 clips"),
        ("The answer is 42, since 6 * 7 = 42.", "42"),
        ("The answer is 3, 5 and 7.", "3, 5 and 7"),
        ("The answer is Mar. 3, 2024. It was a Sunday.", "Mar. 3, 2024"),
        ("The answer is 12 U.S. dollars.", "12 U.S. dollars"),
        ("The answer is 4. The answer is not 5.", "4"),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


LONG = 2_000_000


@pytest.mark.parametrize(
    "part",
    [
        r"\boxed{", "{", "answer is ", "\\", "<think>", "</think>", "<think></think>", "<", "<answer>", "<answer></answer>",
        "#", "#### ", "#### 1", "Final Answer\n", "**", " ", "\t", "\n", "answer to ", "answer is $$", r"answer is \[", "therefore, ",
        "1, ", ",", "1,000", "the ", "_", "```", r"\boxed{1}, ", ". ", "a.", "\u200b", "１", "\u0307",
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", ["", "The answer is ", r"\boxed{1} The final answer is "])
def test_extraction_from_megabytes_is_quick(start, part):
    text = start + part * (LONG // len(part))
    begin = time.process_time()
    extract_answer(text)
    assert time.process_time() - begin < 1.0


@pytest.mark.parametrize(
    "part",
    [
        "3", "1:", "1-", "1,", "12,", "$", "$1", r"\dot{1}", "'1", "1'000", "1_000", "1 min ", r"\text{", r"5\text{ a}", "5 kg ",
        "C(", "C(1,2)", "one hundred and ", "is a ", "the ", "\u0307", "１", "²", "\ufeff", "A1", "v1.", "(C)", "Option ", "P(", "1_{",
        "F", "Z_{36}", ":", "=", "°", "€1", "5 million ", "2 hours ", "x(", "0.(3)", r"\frac{\text{a}}{\text{b}}", r"1\text{to}", "/",
        "twenty-", "2024-01-10 ",
    ],
)  # fmt: skip
def test_reading_a_long_answer_is_quick(part):
    """Of the length that is looked at; the normal form is made in the caller's process, the shape in a worker."""
    begin = time.process_time()
    for text in (part * (MAX_ANSWER // len(part)), "0." + part * ((MAX_ANSWER - 2) // len(part))):
        form = normal_form(text)
        plain_number(form)
        with contextlib.suppress(NotUnderstood, RecursionError):
            read(form)
    assert time.process_time() - begin < 1.0


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
        ("４２。", "42"),
        ("٤٢", "42"),
        ("x⁻¹", "x^{-1}"),
        ("2½", r"2\frac{1}{2}"),
        ("\ufeff4\u200b2", "42"),
        ("1'000'000", "1000000"),
        ("0.(3)", r"0.\overline{3}"),
        (r"0.\dot{1}4285\dot{7}", r"0.\overline{142857}"),
        ("2.5(4)=10", "2.5(4)=10"),
        ("$12", r"\$12"),
        ("$12$", "12"),
        ("30 min", "30 minute"),
        (r"\min(3,4)", r"\min(3,4)"),
        ("C(1,2)", "C(1,2)"),
        ("C(n,2)", r"\binom{n}{2}"),
        ("= 5", "5"),
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
