"""Verdicts: exact, cached, and bounded in time and memory wherever they are asked for."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ollm_rl.reward.verifier import Verdict, Verifier

pytestmark = pytest.mark.alone  # limits of time
LIMIT = 1.0
SLACK = 0.5
HOSTILE = {
    "tower of powers": "9^{9^{9^{9^{9}}}}",
    "factorial of a huge number": "(10^{10^{10}})!",
    "factorials of factorials": "((99999999!)!)!",
    "nested braces": "{" * 900 + "x" + "}" * 900,
    "10,000 nested braces": "{" * 10_000 + "x" + "}" * 10_000,
    "nested parentheses": "(" * 700 + "x" + ")" * 700,
    "nested roots": r"\sqrt{" * 150 + "2" + "}" * 150,
    "5 MB": "1+" * 2_500_000 + "x",
    "300 x 300 matrix": r"\begin{pmatrix}" + r"\\".join(["&".join(["1"] * 300)] * 300) + r"\end{pmatrix}",
    "NUL and control characters": "x\x00+\x01\x02\x1b[31m\ud800",
    "import": "__import__('os').system('touch pwned')",
    "import in a function": r"\operatorname{exec}(\text{import os; os.system('touch pwned')})",
    "endless sum": r"\sum_{k=1}^{10^{12}}\frac{1}{k^{2}+x}",
    "endless product": r"\prod_{k=1}^{10^{9}}(k+x)",
    "integral": r"\int_{0}^{1}\sin(\sin(\sin(x^{x})))dx",
    "power of a polynomial": "(x+y+z+w)^{100000}",
    "many terms": "+".join(["x"] * 900),
    "many signs": r"\pm".join(["x"] * 300),
    "many list items": ",".join(["x+1"] * 300),
}


@pytest.fixture(scope="module")
def verifier():
    with Verifier(timeout_s=LIMIT) as v:
        assert v.check("x+1", r"\boxed{1+x}").correct
        yield v


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
        ("tab", "bat", False),  # words, although a product of three letters is the same in any order
        ("abc", r"a \cdot b \cdot c", True),
        ("xy", "yx", True),
        (r"\frac{2^{1009}}{2^{1009}+2018}", r"\frac{2^{1009}}{2^{1009}+1009}", False),
    ],
)
def test_verdicts(verifier, gold, answer, correct):
    verdict = verifier.check(gold, rf"Therefore \boxed{{{answer}}}")
    assert verdict == Verdict(correct, "equal" if correct else "different", answer)


def test_reasons(verifier):
    assert verifier.check("5", "I do not know") == Verdict(False, "no_answer", None)
    assert verifier.check("None", "nothing").reason == "no_answer"
    assert verifier.check("5", rf"\boxed{{{'1' * 3000}x}}").reason == "too_large"
    assert verifier.check("x", r"\boxed{\frac{}{}}").reason == "unparsable"
    assert not verifier.check("5", r"\boxed{\sum_{k=1}^{10^{8}}\frac{1}{k^2}}").correct
    assert verifier.check("2^{10^{9}}", r"\boxed{2^{10^{9}}+1-1+x}").reason == "too_large"


def test_many_keep_their_order(verifier):
    pairs = [(f"x+{i % 3}", rf"\boxed{{{i % 2}+x}}") for i in range(50)] + [("7", "none"), ("7", "Answer: 7")]
    found = verifier.check_many(pairs)
    assert [v.correct for v in found[:50]] == [i % 3 == i % 2 for i in range(50)]
    assert [v.reason for v in found[50:]] == ["no_answer", "equal"]


def test_a_verdict_does_not_depend_on_who_gives_it(verifier):
    """The cheap path in this process and the workers agree, on every kind of text."""
    cases = [
        case for kind in json.loads((Path(__file__).parent / "answer_texts.json").read_text()).values() for case in kind
    ]
    verdicts = verifier.check_many([(gold, text) for gold, text, _ in cases])
    assert [case for case, v in zip(cases, verdicts, strict=True) if v.correct is not case[2]] == []


def test_workers_start_with_the_first_question_that_needs_them():
    """Their start, which takes longer than this limit, is not that question's fault."""
    with Verifier(timeout_s=0.5) as v:
        assert v.check("7", r"\boxed{7}").correct and not v.check("7", "eight").correct
        assert v._pool._server is None
        assert v.check(r"\frac{\sqrt{3}}{2}", r"\boxed{\sin(\frac{\pi}{3})}").correct
        assert v._pool._server.alive


def test_a_verifier_can_be_pickled(verifier):
    with pickle.loads(pickle.dumps(verifier)) as copy:
        assert copy.timeout_s == LIMIT and copy.check("2x", r"\boxed{x+x}").correct


def _attack(verifier, answer):
    start = time.monotonic()
    verdict = verifier.check("x+1", rf"\boxed{{{answer}}}")
    return verdict, time.monotonic() - start


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_from_the_main_thread(verifier, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdict, seconds = _attack(verifier, HOSTILE[name])
    assert not verdict.correct and seconds < LIMIT + SLACK
    assert not list(tmp_path.iterdir())


def _memory_of_the_group(pid: int) -> int:
    """Bytes of resident memory of the largest process of a group."""
    largest = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == pid:
                pages = int((entry / "statm").read_text().split()[1])
                largest = max(largest, pages * os.sysconf("SC_PAGESIZE"))
        except (OSError, ProcessLookupError):
            continue
    return largest


def test_hostile_answers_from_eight_threads_leave_ordinary_ones_alone(verifier):
    """Times and memory are bounded for the hostile, and 100 ordinary verdicts beside them are right."""
    peak, done = 0, threading.Event()
    group = verifier._pool._server.process.pid

    def watch():
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, _memory_of_the_group(group))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with ThreadPoolExecutor(8) as hostile, ThreadPoolExecutor(1) as ordinary:
        attacks = [hostile.submit(_attack, verifier, rf"{h}+0x") for h in HOSTILE.values()]
        pairs = [(f"x^2+{2 * i}x+{i * i}", rf"\boxed{{(x+{i + (i % 4 == 0)})^2}}") for i in range(1, 101)]
        verdicts = ordinary.submit(lambda: [verifier.check(*pair) for pair in pairs]).result()
        assert [v.reason for v in verdicts] == ["different" if i % 4 == 0 else "equal" for i in range(1, 101)]
        assert max(attack.result()[1] for attack in attacks) < LIMIT + SLACK
    done.set()
    watcher.join()
    assert 0 < peak < 1 << 30


def _workers_of(verifier) -> list[int]:
    server = verifier._pool._server.process.pid
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    found = []
    for pid in pids:
        try:
            if os.getpgid(pid) == server and pid != server:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def test_killed_workers_are_replaced_and_no_verdict_suffers():
    with Verifier(timeout_s=5.0) as v:
        assert v.check("x+1", r"\boxed{1+x}").correct
        stop = threading.Event()

        def kill():
            while not stop.wait(0.02):
                for pid in _workers_of(v):
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(0.4)  # more often, and one question loses all of its attempts on a slow machine

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        pairs = [(f"x^2+{2 * i}x+{i * i}", rf"\boxed{{(x+{i})^2}}") for i in range(100)]
        verdicts = v.check_many(pairs)
        stop.set()
        killer.join()
        assert {x.reason for x in verdicts} == {"equal"}
        os.kill(v._pool._server.process.pid, signal.SIGKILL)  # the one that forks them, too
        time.sleep(0.1)
        for pid in _workers_of(v):
            os.kill(pid, signal.SIGKILL)
        assert v.check("y+1", r"\boxed{1+y}").correct


def test_a_forked_child_has_workers_of_its_own():
    """Parent and child would read one another's verdicts from a socket that they share."""
    with Verifier(timeout_s=5.0) as v:
        assert v.check("x+1", r"\boxed{1+x}").correct
        child = os.fork()
        wrong = child == 0
        answers = [v.check(f"x+{i}", rf"\boxed{{{i + wrong}+x}}").correct for i in range(1, 60)]
        if child == 0:
            os._exit(1 if any(answers) else 0)
        assert all(answers)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert v.check("y+1", r"\boxed{1+y}").correct  # the child, ending, has not taken the workers along


def test_closing_ends_all_workers():
    verifier = Verifier(timeout_s=30.0)
    verifier.check("x+1", r"\boxed{1+x}")

    def ask():
        with pytest.raises(RuntimeError, match="closed"):
            verifier.check("x", rf"\boxed{{{HOSTILE['endless product']}}}")

    slow = threading.Thread(target=ask, daemon=True)
    slow.start()
    time.sleep(0.3)
    pids = _workers_of(verifier)
    assert pids
    verifier.close()
    time.sleep(0.3)
    assert not [p for p in pids if os.path.exists(f"/proc/{p}/exe")]
    slow.join(5)
    assert not slow.is_alive()


SCRIPT = r"""
import time
print("top", flush=True)
from ollm_rl.reward.verifier import Verifier
verifier = Verifier(timeout_s=5.0)
print(verifier.check("x+1", r"\boxed{1+x}").reason, verifier._pool._server.process.pid, flush=True)
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
    while (alive := os.path.exists(f"/proc/{pid}/exe")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def test_workers_that_cannot_start_say_why(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with Verifier() as v, pytest.raises(RuntimeError, match="No module named"):
        v.check("x+1", r"\boxed{1+x}")


def test_in_a_ray_actor(cluster):
    """Two at a time, as the threads of an actor may be."""
    import ray

    @ray.remote
    class Grader:
        def grade(self, answers):
            with Verifier(timeout_s=LIMIT) as v, ThreadPoolExecutor(2) as threads:
                assert v.check("x+1", r"\boxed{1+x}").correct  # starts the workers
                found = list(threads.map(partial(_attack, v), answers))
                return found, v.check("x^2-1", r"\boxed{(x-1)(x+1)}")

    hostile, ordinary = ray.get(Grader.remote().grade.remote(list(HOSTILE.values())))
    assert ordinary.correct
    assert not any(v.correct for v, _ in hostile)
    assert max(seconds for _, seconds in hostile) < LIMIT + SLACK
