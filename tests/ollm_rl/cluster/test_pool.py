"""Units of work on workers that are killed, made to hang and made to raise."""

import os
import signal
import time
from pathlib import Path

import pytest

from ollm_rl.cluster import pool as cluster_pool
from ollm_rl.cluster.pool import Pool
from ollm_rl.errors import ConfigurationError, RewardError, WorkerError

pytestmark = pytest.mark.usefixtures("cluster")


class Made:
    """What a worker has: its process's number, and whether it got on."""

    def __init__(self, folder: str):
        self.folder, self.heartbeat = Path(folder), 0

    def first(self, name: str) -> bool:
        """Whether this is the first time, in any worker, that `name` is asked for."""
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def square(made, x):
    made.heartbeat += 1
    return x * x


def square_but(made, factor, x, how):
    """The first time for `x`: dies, hangs, stops or raises, as `how` says."""
    if how and made.first(f"{how}{x}"):
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how in ("stop", "hang"):  # the signal may arrive a moment after the call has returned
            time.sleep(600)
        raise RuntimeError(f"no luck with {x}")
    made.heartbeat += 1
    return factor * x * x


@pytest.fixture
def pool(tmp_path):
    made = Pool(Made, [str(tmp_path)], num_workers=2, num_cpus=0.5, hang_s=4)
    yield made
    made.close()


def test_results_come_in_the_order_of_their_parts(pool):
    assert [r.value for r in pool.map(square, [(x,) for x in range(20)])] == [x * x for x in range(20)]
    assert pool.call(square, 7) == 49
    assert pool.failures == []


@pytest.mark.slow
def test_every_unit_gives_one_result_whatever_happens_to_workers(pool):
    how = {3: "die", 5: "raise", 8: "hang", 11: "stop"}
    parts = [(x, how.get(x, "")) for x in range(16)]
    found = [r.value for r in pool.map(square_but, parts, common=[pool.put(10)])]
    assert found == [10 * x * x for x in range(16)]
    assert sorted(f.kind for f in pool.failures) == ["died", "hung", "hung", "raised"]
    assert "no luck with 5" in next(f.error for f in pool.failures if f.kind == "raised")
    assert pool.pending == 0


def never(made, x):
    raise RuntimeError(f"never with {x}")


def judged(made, x):
    told = RewardError(f"reward 'mine' raised ValueError: {x}")
    told.traceback = "line 7, in mine"
    raise told


def test_a_reward_that_raises_again_and_again_is_the_users_mistake(pool):
    """It is asked again, for it may do better then; in the end the error comes with the traceback of the user's code."""
    with pytest.raises(RewardError, match="reward 'mine' raised ValueError: 0") as caught:
        pool.call(judged, 0)
    assert len(pool.failures) == 5 and caught.value.traceback == "line 7, in mine"


def test_failures_in_a_row_end_the_run_with_the_first_error(pool):
    with pytest.raises(WorkerError, match=r"5 failures of workers in a row(.|\n)*never with 0"):
        list(pool.map(never, [(0,)]))


def mistake(made):
    raise ConfigurationError("seed=x; expected a number")


def test_a_mistake_of_the_users_is_not_tried_again(pool):
    with pytest.raises(ConfigurationError, match="seed=x"):
        pool.call(mistake)


def slow(made, x):
    time.sleep(x)
    return x


def wait_for(made, name):
    while not (made.folder / name).exists():
        made.heartbeat += 1
        time.sleep(0.05)


def test_the_first_to_be_ready_comes_first_and_dropped_units_are_forgotten(pool, tmp_path):
    tickets = [pool.submit(wait_for, "end"), pool.submit(square, 2), pool.submit(square, 3)]
    assert [pool.next().ticket for _ in range(2)] == tickets[1:]
    pool.drop()
    (tmp_path / "end").touch()
    assert pool.pending == 0
    assert [r.value for r in pool.map(square, [(2,), (3,)])] == [4, 9]


def test_more_workers_share_what_the_first_made(pool, tmp_path):
    pool.grow(3, [str(tmp_path)])
    assert len(pool) == 3
    assert sorted(r.value for r in pool.map(square, [(x,) for x in range(6)])) == [0, 1, 4, 9, 16, 25]


def test_what_no_machine_has_is_said_and_not_waited_for(tmp_path, monkeypatch):
    """A cluster of this machine will not get a GPU."""
    monkeypatch.setattr(cluster_pool, "_ours", True)  # whoever started this one
    with pytest.raises(ConfigurationError, match="a worker asks for 1 CPU, 64 GPU; this machine has"):
        Pool(Made, [str(tmp_path)], num_gpus=64)


def test_a_cluster_that_may_grow_is_waited_for_and_it_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cluster_pool, "_ours", False)
    Pool(Made, [str(tmp_path)], num_gpus=64).close()
    assert "no machine of the cluster has that" in caplog.text


def test_workers_without_a_place_are_named_and_the_others_work(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cluster_pool, "WAIT_S", 1.0)
    pool = Pool(Made, [str(tmp_path)], num_workers=2, num_cpus=12)  # of 16
    try:
        assert [r.value for r in pool.map(slow, [(x,) for x in (1.0, 1.0, 1.0)])] == [1.0, 1.0, 1.0]
    finally:
        pool.close()
    assert "has waited for a place for over 1 s" in caplog.text


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "127.0.0.1:99999"]
)
def test_an_address_at_which_nobody_answers_is_refused_soon(address):
    """Ray itself tries for minutes."""
    with pytest.raises(ConfigurationError, match=f"no Ray cluster answers at '{address}'"):
        cluster_pool._check_address(address)
