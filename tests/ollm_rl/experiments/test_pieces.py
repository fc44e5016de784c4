"""Pieces of work, and what all of it would take."""

import pytest

from ollm_rl.experiments.pieces import Measuring, slope


def test_what_is_not_looked_at_takes_what_a_unit_more_took():
    assert slope([(4, 3.0), (8, 5.0), (16, 9.0)]) == pytest.approx(0.5)
    measuring, asked = Measuring(seconds=1e9), []
    measuring.grown("all", lambda at, n: asked.append((at, n)), total=20, share=1.0)
    assert asked == [(0, 4), (4, 8), (0, 16), (0, 20)]  # new problems, as far as there are some


@pytest.mark.parametrize(("least", "pieces"), [(1, [(0, 2)]), (2, [(0, 2), (2, 4)])])
def test_what_comes_once_is_told_from_the_rest_where_two_pieces_are_asked_for(least, pieces):
    """However little time there is."""
    measuring, asked = Measuring(seconds=0.0), []
    measuring.grown("all", lambda at, n: asked.append((at, n)), total=20, share=1.0, first=2, least=least)
    assert asked == pieces
