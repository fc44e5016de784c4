"""Things that are made once."""

import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ollm_rl.common.cache import cache_dir, check_cache, key_of, made_by_one
from ollm_rl.errors import ConfigurationError

MAKE = """
import sys, time
from pathlib import Path
from ollm_rl.common.cache import made_by_one
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

    monkeypatch.setattr("ollm_rl.common.cache.FileLock.acquire", refuse)
    with made_by_one(tmp_path / "thing"):
        pass
    assert not (tmp_path / "thing.lock").exists()


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, value, place in (
        ("OLLM_RL_CACHE", "~/mine", "mine"),
        ("XDG_CACHE_HOME", "~/x", "x/ollm_rl"),
        ("XDG_CACHE_HOME", "", ".cache/ollm_rl"),
    ):
        for name in ("OLLM_RL_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, value)
        assert cache_dir() == tmp_path / place


def test_without_a_home_the_cache_has_to_be_named(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("OLLM_RL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ollm_rl.common.cache.Path.home", homeless)
    with pytest.raises(ConfigurationError, match="Set OLLM_RL_CACHE"):
        cache_dir()


@pytest.mark.parametrize("place", ["file", "file/x", "/proc/nothing", "x" * 300, "y/" * 2500])
def test_a_cache_that_cannot_be_is_said(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / place))
    with pytest.raises(ConfigurationError, match="the cache cannot be at .*Set OLLM_RL_CACHE"):
        check_cache()
    with (
        pytest.raises(ConfigurationError, match="the cache cannot be written: .*Set OLLM_RL_CACHE"),
        made_by_one(cache_dir() / "thing"),
    ):
        pass


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_what_cannot_be_written_in_the_cache_is_said(tmp_path, monkeypatch, code):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    with (
        pytest.raises(ConfigurationError, match="the cache cannot be written") as caught,
        made_by_one(tmp_path / "thing"),
    ):
        raise OSError(code, "no", str(tmp_path / "thing" / "x"))
    assert caught.value.__cause__.errno == code
    with pytest.raises(OSError, match="elsewhere"), made_by_one(tmp_path / "thing"):
        raise OSError(code, "no", "/elsewhere")
