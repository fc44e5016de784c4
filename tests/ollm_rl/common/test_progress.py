"""Bars in a log file."""

from ollm_rl.common import progress


def test_a_total_that_was_an_estimate_grows_and_no_time_is_negative(monkeypatch, capsys):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.track("reader", 10, "steps") as bar:
        for _ in range(13):
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reader: 1/10 steps") and lines[-1].startswith("reader: 13/13 steps")
    assert all("-" not in line for line in lines)
