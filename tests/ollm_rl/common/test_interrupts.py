"""Ctrl-C that comes while something must not be torn."""

import os
import signal
import subprocess
import sys
from threading import Thread

import pytest

from ollm_rl.common.interrupts import Terminations, interrupt_waits


@pytest.fixture(autouse=True)
def heeded():
    """A suite that runs in the background of a shell ignores SIGINT, and its children would as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_takes_effect_at_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_waits():
        interrupt()
        done.append("all")
    assert done == ["all"]
    with pytest.raises(KeyboardInterrupt):  # as before
        interrupt()


def test_a_second_one_takes_effect_at_once():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_waits():
        interrupt()
        done.append("first")
        interrupt()
        done.append("second")
    assert done == ["first"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_errors_pass_and_the_handler_is_as_before():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), interrupt_waits():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_may_use_it():
    done = []

    def work() -> None:
        with interrupt_waits():
            done.append(1)

    (thread := Thread(target=work)).start()
    thread.join()
    assert done == [1]


MANY = """
import faulthandler, random, signal, sys
from ollm_rl.common.run_dir import Run

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
for i in range(150):
    faulthandler.dump_traceback_later(20, exit=True)
    run = Run(sys.argv[1], f"run{i}", "a: 1\\n")
    run.log_metrics(0, {"reward": 0.5})  # the import is done
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + 5e-3 * random.random())
        for step in range(1, 100_000):
            run.log_metrics(step, {"reward": 0.5, "loss": 1.0, "seconds": 2.0})
    except KeyboardInterrupt:
        pass
    run.close()
"""


def test_a_run_that_is_interrupted_while_it_logs_can_be_closed(tmp_path):
    """Of 150 interrupts a few came while TensorBoard's queue was locked, and closing the run never ended."""
    done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_sigterm_is_an_interrupt_while_a_command_runs():
    before = signal.getsignal(signal.SIGTERM)
    ended, done = Terminations(), []
    with pytest.raises(KeyboardInterrupt), ended, interrupt_waits():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("all")
    assert ended.came and done == ["all"] and signal.getsignal(signal.SIGTERM) is before
