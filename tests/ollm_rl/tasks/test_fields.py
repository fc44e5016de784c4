"""The fields of rows, by themselves; whole files are in test_tasks."""

import math

import pytest

from ollm_rl.errors import DataError
from ollm_rl.tasks.fields import TEXT, checked, is_of, likely_misspelt, renamed, text_of


@pytest.mark.parametrize(
    ("value", "text"), [(42, "42"), (42.0, "42"), (0.5, "0.5"), (1e-7, "0.0000001"), (1e22, "1" + 22 * "0"), (-0.25, "-0.25"), ("1e3", "1e3")]
)  # fmt: skip
def test_numbers_as_texts(value, text):
    assert text_of(value) == text


def test_kinds():
    assert is_of(1, TEXT) and is_of("a", TEXT) and is_of(["a"], (str, list))
    assert not any(is_of(value, TEXT) for value in (True, None, math.nan, math.inf, [])) and not is_of([1], (str, list))


def test_columns_get_our_names():
    row = {"question": "1+1", "reward_model": {"truth": "2"}, "level": 3}
    found = renamed(row, {"problem": "question", "answer": "reward_model.truth"}, "row 1")
    assert found == {"problem": "1+1", "answer": "2", "level": 3, "reward_model": {"truth": "2"}}
    assert renamed({"a.b": 1}, {"problem": "a.b"}, "row 1") == {"problem": 1}
    with pytest.raises(DataError, match="row 1 has no column 'questoin'.*Did you mean 'question'"):
        renamed(row, {"problem": "questoin"}, "row 1")


def test_names_that_are_almost_ours_are_said():
    (note,) = likely_misspelt({"problem": "question", "anwser": "ans", "level": "difficulty", "kind": "type"})
    assert "'anwser'" in note and note.endswith("Did you mean 'answer'?")


def test_a_row_is_refused_with_its_place_and_what_was_expected():
    assert checked({"problem": "1+1", "difficulty": "2"}, "row 1")["difficulty"] == 2.0
    for row, told in (
        ({"answer": "2"}, "row 1 has no field 'problem'"), ({"problem": " "}, "in the field 'problem', expected a text"),
        ({"problem": "x", "solution": 3}, "has 3 in the field 'solution', expected a text"),
        ({"problem": "x", "split": "tets"}, "Did you mean 'test'"),
        ({"problem": "x", "difficulty": math.nan}, "has NaN in the field 'difficulty'"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=told):
            checked(row, "row 1")
