"""Code is run in a sandbox: right code passes, hostile code gets a verdict in time and touches nothing."""

import pickle
import threading
import time

import pytest

from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.python_tests import PythonTests, code_of, same

pytest.importorskip("pydantic_monty")
pytestmark = pytest.mark.alone  # limits of time
DOUBLE = {"entry_point": "f", "calls": [[2], [5]], "expected": [4, 10]}
CHECK = {
    "entry_point": "f",
    "check": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(x=5) == 10",
}
GOOD = "def f(x):\n    return 2 * x"
PLAIN = "\ndef f(x):\n    return 0"  # behind what is done when the module is read
HOSTILE = {
    "a shell": "import os\nos.system('touch {out}')",
    "popen": "import subprocess\nsubprocess.Popen(['touch', '{out}'])",
    "a file": "open('{out}', 'w').write('x')",
    "a path": "from pathlib import Path\nPath('{out}').write_text('x')",
    "reading": "def f(x):\n    return open('/etc/passwd').read()",
    "a socket": "import socket\nsocket.socket().connect(('127.0.0.1', 80))",
    "the network": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
    "native code": "import ctypes\nctypes.CDLL(None)",
    "a fork bomb": "import os\nwhile True:\n    os.fork()",
    "processes": "import multiprocessing\nmultiprocessing.Process().start()",
    "threads": "import threading\nwhile True:\n    threading.Thread(target=print).start()",
    "the environment": "import os\ndef f(x):\n    return os.environ['HOME']",
    "10 GiB": "a = [0] * (10 * 2**30)",
    "a string of 10 GB": "def f(x):\n    return 'a' * 10**10",
    "bytes": "def f(x):\n    return bytearray(10**11)",
    "growth": "a = []\nwhile True:\n    a.append('x' * 1000)",
    "a growing dictionary": "def f(x):\n    d = {{}}\n    i = 0\n    while True:\n        d[i] = str(i) * 100\n        i += 1",
    "nested lists": "a = []\nwhile True:\n    a = [a, a]",
    "an endless loop": "while True:\n    pass",
    "an endless loop in the function": "def f(x):\n    while True:\n        x += 1",
    "a long sum": "def f(x):\n    return sum(range(10**15))",
    "sleep": "import time\ntime.sleep(1000)",
    "sleep in the function": "import time\ndef f(x):\n    time.sleep(1000)\n    return 2 * x",
    "recursion": "def f(x):\n    return f(x)",
    "mutual recursion": "def g(x):\n    return f(x)\ndef f(x):\n    return g(x)",
    "deep structure": "def f(x):\n    for i in range(100000):\n        x = [x]\n    return x",
    "itself": "a = []\na.append(a)\ndef f(x):\n    return a",
    "a huge power": "10**10**10",
    "squares": "x = 7\nwhile True:\n    x = x * x",
    "many digits": "def f(x):\n    return int('9' * 10**7)",
    "a slow pattern": "import re\ndef f(x):\n    return re.match('(a|a)*$', 'a' * 5000 + 'b')",
    "output": "def f(x):\n    while True:\n        print('x' * 10**6)",
    "exit": "raise SystemExit(0)",
    "exit in the function": "import sys\ndef f(x):\n    sys.exit(0)",
    "a hard exit": "import os\nos._exit(0)",
    "equal to anything": "class A:\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return A()",
    "never different": "class A(int):\n    def __ne__(self, o):\n        return False\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return A(0)",
    "equal lists": "class L(list):\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return L()",
    "a check of its own": "def check(candidate):\n    pass\ndef f(x):\n    return 0",
    "another candidate": "candidate = lambda x: 2 * x\ndef f(x):\n    return 0",
    "caught assertions": "def f(x):\n    raise AssertionError",
    "other builtins": "len = all = any = isinstance = lambda *a: True\ndef f(x):\n    return 0",
    "nothing": "def f(x):\n    pass",
    "a generator": "def f(x):\n    yield 2 * x",
    "eval": "eval(\"__import__('os').system('touch {out}')\")",
    "classes": "def f(x):\n    return ().__class__.__bases__[0].__subclasses__()",
    "a number that is none": "def f(x):\n    return float('nan')",
    "true": "def f(x):\n    return True",
}  # fmt: skip


@pytest.fixture(scope="module")
def reward():
    made = PythonTests(timeout_s=1.0)
    yield made
    made.close()


@pytest.mark.parametrize("tests", [DOUBLE, CHECK], ids=["calls", "check"])
def test_verdicts(reward, tests):
    texts = {
        GOOD: "passed", f"So:\n```python\n{GOOD}\n```\nDone.": "passed", "f = lambda x: 2 * x": "no_code", "": "no_code",
        "def f(x):\n    return x": "failed", "def f(x) return": "failed", "def f(x):\n    raise ValueError": "failed",
        "import numpy\n" + GOOD: "unsupported", "def f(x):\n    return globals()": "unsupported",
        "def f(x):\n    return ().__class__": "unsupported", "def f(x):\n    return y": "failed", "def f(x):\n    return x.y": "failed",
        "def f(x):\n    yield x": "unsupported", "def f(x):\n    while True: pass": "timeout",
    }  # fmt: skip
    assert {text: reward.check(text, tests) for text in texts} == texts


@pytest.mark.parametrize("tests", [DOUBLE, CHECK], ids=["calls", "check"])
def test_hostile_texts_get_a_verdict_and_touch_nothing(reward, tests, tmp_path):
    assert len(HOSTILE) >= 40
    out = tmp_path / "touched"
    for name, code in HOSTILE.items():
        text = code.format(out=out)
        text = text if "def f" in text else text + PLAIN
        start = time.monotonic()
        assert reward.check(text, tests) in ("failed", "timeout", "unsupported"), name
        assert time.monotonic() - start < 1.5, name
    assert not out.exists()


def test_ordinary_verdicts_beside_hostile_ones_are_as_they_were(reward):
    hostile = [code.format(out="/nowhere") for code in HOSTILE.values()]
    pairs = [(text if "def f" in text else text + PLAIN, DOUBLE) for text in hostile]
    found: list[str] = []
    beside = threading.Thread(target=lambda: found.extend(reward.check_many(pairs)))
    beside.start()
    assert set(reward.check_many([(GOOD, DOUBLE), (GOOD, CHECK)] * 100)) == {"passed"}
    beside.join()
    assert len(found) == len(pairs) and "passed" not in found and "infra" not in found


def test_it_is_fast(reward):
    reward.check(GOOD, DOUBLE)
    start = time.monotonic()
    reward.check_many([(GOOD, DOUBLE)] * 500)
    assert time.monotonic() - start < 1.0


def test_a_worker_that_is_killed_from_outside_is_asked_again(reward, monkeypatch):
    verdicts = iter(["crashed", "passed", "crashed", "crashed"])
    monkeypatch.setattr(reward, "_run", lambda code, tests: next(verdicts))
    assert reward.check(GOOD, DOUBLE) == "passed"
    assert reward.check(GOOD, DOUBLE) == "failed"  # twice: it is the code's doing


def test_where_no_worker_can_be_had_nobody_is_judged(monkeypatch):
    reward, logged = PythonTests(), {}
    monkeypatch.setenv("MONTY_BIN", "/nowhere")
    monkeypatch.setenv("PATH", "")

    def none():
        raise OSError("no worker")

    monkeypatch.setattr(reward, "_pool", none)
    assert reward(completions=[GOOD], tests=[DOUBLE], log_extra=logged.__setitem__) == [None]
    assert logged["verdict"] == ["infra"]


def test_equality_is_pythons_on_plain_data():
    assert same([1, 2], (1, 2)) and same(0.1 + 0.2, 0.3) and same({"a": [1.0]}, {"a": [1]}) and same(1, 1.0)
    assert (
        not same(1, 2)
        and not same("1", 1)
        and not same([1], [1, 1])
        and not same(float("nan"), 1.0)
        and not same(None, 0)
    )


def test_code_is_found_where_a_text_has_it():
    tests = {"entry_point": "f", "prompt": "import math\ndef f(x):\n    '''It.'''\n"}
    assert code_of("    return x", tests) == tests["prompt"] + "    return x"
    assert (
        code_of("```\ndef g(): pass\n```\n```py\ndef f(x): return 1\n```", tests)
        == tests["prompt"] + "\ndef f(x): return 1\n"
    )
    assert "import math" in code_of("def f(x):\n    return math.pi", tests)
    assert code_of("x" * 100_000, tests) is None


def test_an_answer_may_use_what_its_prompt_imports_and_defines(reward):
    prompt = "from typing import List\ndef twice(x): return 2 * x\ndef f(x: int) -> int:\n    'Double it.'\n"
    whole = "def f(x: List) -> int:\n    return twice(x)"
    for text in (whole, f"So:\n```python\n{whole}\n```", "    return twice(x)"):
        assert reward.check(text, {**CHECK, "prompt": prompt}) == "passed"


def test_it_travels_and_names_what_it_needs(reward):
    again = pickle.loads(pickle.dumps(reward))
    assert again.settings == reward.settings and again.check(GOOD, DOUBLE) == "passed"
    again.close()
    with pytest.raises(ConfigurationError, match="column 'tests'"):
        reward(completions=["x"], answer=["y"])
    with pytest.raises(ConfigurationError, match="timeout_s"):
        PythonTests(timeout_s=0)
