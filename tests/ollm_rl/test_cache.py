"""Things that are made once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from ollm_rl.cache import key_of, made_by_one

MAKE = """
import sys, time
from pathlib import Path
from ollm_rl.cache import made_by_one
path = Path(sys.argv[1])
with made_by_one(path):
    if not path.exists():
        time.sleep(0.5)
        path.touch()
        print("made")
"""


def test_the_key_depends_on_every_part():
    assert key_of("a", {"x": 1}) == key_of("a", {"x": 1})
    assert len({key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of("a"), key_of(["a", 1])}) == 5


def test_of_several_processes_one_makes_it_and_the_others_find_it(tmp_path):
    def run(_):
        command = [sys.executable, "-c", MAKE, str(tmp_path / "plugins" / "thing")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(run, range(3))) == ["", "", "made\n"]


def test_a_failure_lets_the_next_one_try(tmp_path):
    try:
        with made_by_one(tmp_path / "thing"):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    with made_by_one(tmp_path / "thing"):
        pass
