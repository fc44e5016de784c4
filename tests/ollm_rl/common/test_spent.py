"""Seconds of what the cache keeps are those of all calls that worked on it."""

import time

import pytest

from ollm_rl.common.spent import counted, spent


def test_seconds_add_up_over_interruptions(tmp_path):
    folder = tmp_path / "new" / "place"
    assert spent(folder) == 0
    with pytest.raises(KeyboardInterrupt), counted(folder):
        time.sleep(0.05)
        raise KeyboardInterrupt
    first = spent(folder)
    assert 0.05 <= first < 5
    with counted(folder):
        time.sleep(0.02)
    assert first + 0.02 <= spent(folder) < first + 5
