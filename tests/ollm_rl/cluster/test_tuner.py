"""Ray Tune with trials that only pretend to learn."""

import time
from functools import partial
from pathlib import Path

import pytest

from ollm_rl.cluster.tuner import EarlyStopping, Setup, Watcher, run_optuna, run_trials
from ollm_rl.config.compose import compose
from ollm_rl.config.spaces import read_axis
from ollm_rl.errors import DataError

pytestmark = pytest.mark.usefixtures("cluster")
ROLLOUT = compose(["rollout.num_cpus_per_worker=1"]).config.rollout


def job(folder, point, report):
    """Scores x; fails once at 2 if that is wanted; bad ones are slow."""
    x = float(point["x"] if "x" in point else point["values"]["x"])
    with (folder / "begun").open("a") as out:
        out.write(f"{x}\n")
    if x == 2 and (folder / "fail").exists():
        (folder / "fail").unlink()
        raise DataError("a file is missing")
    for step in range(1, 9):
        report({"reward": x, "train_episodes": 16 * step})
        time.sleep(0.1 if x < 3 else 0)
    return {"score": x}


def watcher(ended=None):
    return Watcher(
        lambda point, metrics: None, lambda point, metrics: ended.append(point["x"]) if ended is not None else None
    )


@pytest.mark.slow
def test_trials_that_are_done_are_not_run_again(tmp_path):
    points, ended = [{"x": x} for x in (3, 2)], []
    (tmp_path / "fail").touch()
    with pytest.raises(DataError, match="a file is missing"):
        run_trials(
            tmp_path / "state" / "a", partial(job, tmp_path), points, Setup(ROLLOUT, watcher(ended), most_at_once=1)
        )
    begun = (tmp_path / "begun").read_text().split()
    assert begun == ["3.0", "2.0"] and ended == [3]
    found = run_trials(
        tmp_path / "state" / "a", partial(job, tmp_path), points, Setup(ROLLOUT, watcher(ended), most_at_once=1)
    )
    assert sorted((each.config["x"], each.metrics["score"]) for each in found) == [(2, 2), (3, 3)]
    assert (tmp_path / "begun").read_text().split() == ["3.0", "2.0", "2.0"] and ended == [3, 2]
    assert not list(tmp_path.glob("state/**/progress.csv"))


@pytest.mark.slow
def test_bad_trials_are_stopped_early(tmp_path):
    points = [{"x": x} for x in (5, 4, 1, 2)]
    stopping = EarlyStopping(grace_episodes=32, episodes=128, reduction_factor=2)
    found = run_trials(tmp_path / "state" / "a", partial(job, tmp_path), points, Setup(ROLLOUT, watcher(), stopping))
    scores = {each.config["x"]: each.metrics.get("score") for each in found}
    assert scores[5] == 5 and scores[1] is None


@pytest.mark.slow
def test_optuna_chooses_points(tmp_path):
    pytest.importorskip("optuna")
    axis = read_axis("x", "x", "interval(2.5,4)")
    found = run_optuna(
        tmp_path / "state" / "a",
        partial(job, Path(tmp_path)),
        {"agent": "grpo"},
        [axis],
        3,
        0,
        Setup(ROLLOUT, watcher(), most_at_once=1),
    )
    assert len(found) == 3 and all(
        2.5 <= each.config["values"]["x"] <= 4 and each.config["agent"] == "grpo" for each in found
    )
