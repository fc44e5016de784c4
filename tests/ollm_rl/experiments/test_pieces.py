"""Pieces of work, and what all of it would take."""

import pytest

from ollm_rl.experiments.pieces import Measuring, slope


def test_what_is_not_looked_at_takes_what_a_unit_more_took():
    assert slope([(4, 3.0), (8, 5.0), (16, 9.0)]) == pytest.approx(0.5)
    measuring, asked = Measuring(seconds=1e9), []
    measuring.grown("all", lambda at, n: asked.append((at, n)), total=20, share=1.0)
    assert asked == [(0, 4), (4, 8), (0, 16), (0, 20)]  # new problems, as far as there are some
