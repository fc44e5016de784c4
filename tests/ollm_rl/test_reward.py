"""Verdicts: exact for numbers, bounded in time, and without the known false positives."""

import os
import subprocess
import sys
import time

import pytest

from ollm_rl.answers import extract_answer, last_boxed, plain_number, strip_delimiters
from ollm_rl.reward import Verifier


@pytest.fixture(scope="module")
def verifier():
    with Verifier(timeout_s=5.0) as v:
        yield v


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}} and then \boxed{3}", "3"),
        (r"\boxed{7} and an open \boxed{8", "7"),
        ("The answer is 12.", "12"),
        ("nothing here", None),
        (r"\boxed{}", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


def test_normal_forms():
    assert last_boxed(r"\boxed{a{b}c}") == "a{b}c"
    assert strip_delimiters(r"$\boxed{3}$") == "3"
    assert plain_number("1,234") == 1234
    assert plain_number(r"-\frac{1}{2}") == plain_number("-0.5")
    assert plain_number("x") is None


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("5", "5", True),
        ("5", "5.0", True),
        ("1/2", r"\frac{1}{2}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("12679621", "12679605", False),
        ("2^2012", "2^2013", False),
        ("2019!", "2020!", False),
        (r"\frac{2^{1009}}{2^{1009}+2018}", r"\frac{2^{1009}}{2^{1009}+1009}", False),
    ],
)
def test_verdicts(verifier, gold, answer, correct):
    verdict = verifier.check(gold, rf"Therefore \boxed{{{answer}}}")
    assert verdict.correct is correct
    assert verdict.reason == ("equal" if correct else "different")


def test_no_answer_and_too_large(verifier):
    assert verifier.check("5", "I do not know").reason == "no_answer"
    assert verifier.check("5", rf"\boxed{{{'1' * 3000}x}}").reason == "too_large"


def test_an_overrun_is_stopped_and_the_next_verdict_is_right():
    with Verifier(timeout_s=0.001, num_workers=1) as hasty:
        hard = r"\boxed{(x+y+z)^{40}}"
        assert hasty.check("(x+z+y)^{41}-1", hard).reason == "timeout"
        hasty.timeout_s = 10.0
        assert hasty.check("x+1", r"\boxed{1+x}").correct


def test_many_keep_their_order(verifier):
    pairs = [(str(i % 3), rf"\boxed{{{i % 2}}}") for i in range(50)]
    assert [v.correct for v in verifier.check_many(pairs)] == [i % 3 == i % 2 for i in range(50)]


SCRIPT = r"""
import time
print("top", flush=True)
from ollm_rl.reward import Verifier
verifier = Verifier(timeout_s=5.0)
print(verifier.check("x+1", r"\boxed{1+x}").reason, verifier._all[0].process.pid, flush=True)
time.sleep(60)
"""


def test_workers_leave_the_callers_script_alone_and_end_with_it(tmp_path):
    """No `if __name__ == "__main__"` is needed, and a parent killed by SIGKILL leaves nothing behind."""
    (tmp_path / "script.py").write_text(SCRIPT)
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(tmp_path / "script.py")]
    parent = subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "top\n"
    reason, pid = parent.stdout.readline().split()
    assert reason == "equal"
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while (alive := os.path.exists(f"/proc/{pid}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive
