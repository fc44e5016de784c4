"""Sums in two languages: how often, independent of the solution's style, and judged as sums are."""

import pytest

from benchmarks.mixed import MixedSum, languages_of
from ollm_rl.reward import Verifier


def test_lines_are_in_russian_as_often_as_it_is_said_whatever_the_style():
    problems = MixedSum(russian=0.3).problems("sft", 2000, 0)
    with Verifier() as verifier:
        right = [verifier.check(p.answer, p.solution).correct for p in problems[:50]]
    assert all(right)
    for style in ("direct", "steps"):
        found = languages_of([p.solution for p in problems if p.extra["style"] == style])
        assert found["russian_lines"] == pytest.approx(0.3, abs=0.04)
    assert languages_of([p.solution for p in MixedSum(russian=0).problems("sft", 50, 0)])["russian_texts"] == 0


def test_languages_of_texts():
    found = languages_of(["Затем 1 + 1 = 2\nThe answer is 2.", "Then 1 + 1 = 2\n\nThe answer is 2.", "Ответ: 2."])
    assert found == {"russian_lines": 2 / 5, "russian_texts": 2 / 3, "mixed_texts": 1 / 3, "lines": 5 / 3}
