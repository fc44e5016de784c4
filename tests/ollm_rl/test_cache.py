"""Things that are made once."""

import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

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
    path = tmp_path / "thing"
    with pytest.raises(KeyboardInterrupt) as kept, made_by_one(path):
        raise KeyboardInterrupt
    command = [sys.executable, "-c", MAKE, str(path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "made\n"
    assert kept.tb  # its frames have kept the lock from being collected, and so released


def test_a_cache_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(errno.EACCES, "read-only")  # as root, no mode of a directory would

    monkeypatch.setattr("ollm_rl.cache.FileLock.acquire", refuse)
    with made_by_one(tmp_path / "thing"):
        pass
    assert not (tmp_path / "thing.lock").exists()
