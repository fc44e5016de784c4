"""Run directories: configuration, metrics, rollouts, checkpoints and results of one run."""

import json
import logging
import math
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ollm_rl.common.checkpoints import newest_whole, seal
from ollm_rl.common.cost import COST, Cost, Meter
from ollm_rl.common.interrupts import interrupt_waits
from ollm_rl.common.run_config import LIMITS, changes, read
from ollm_rl.common.run_lock import LOCK, OWNER, hold, release
from ollm_rl.common.run_settings import RunConfig
from ollm_rl.common.trackers import Recorded, Tracker, tracker_of
from ollm_rl.errors import CheckpointError, ConfigurationError, OLLMError

log = logging.getLogger(__name__)
CONFIG, METRICS = "config.yaml", "metrics.jsonl"
POLICY = "policy"  # directory of the trained agent
PLUGIN = "plugin"  # and of a plug-in's copy
RESULTS = "results.json"  # of a run that is done
CONVERSION = "conversion.json"  # what its options are worth
INSPECTION = "inspect.html"  # the page of `inspect`
SOLUTIONS = "solutions.json"  # how those were sampled that the options were made from


class Run:
    """`<root>/<name>/`: an existing directory is continued or refused, never overwritten silently.

    While the run is open, no other process can open it; this one may do so again. `close` it, or let it go out of scope.
    `config.yaml` of an existing run is replaced with the first thing that is written under the new configuration.

    Args:
        resume: `auto` continues a run that was made with the same configuration, `never` refuses an existing
            directory, `must` demands one.
        config: the resolved configuration as YAML. A run is only continued with the configuration that made it, or
            with a larger limit of training.

    Attributes:
        grown: limits of training that are larger than those of the existing run, as (stored, now).

    Raises:
        CheckpointError: the directory's state and `resume` do not fit together, another process has it, or less training
            is wanted than was done.
        ConfigurationError: the directory cannot be written.
    """

    def __init__(self, root: str | Path, name: str, config: str, resume: str = RunConfig.resume):
        self.path = Path(root) / name
        if resume not in ("auto", "never", "must"):
            raise ConfigurationError(f"resume={resume!r}; expected 'auto', 'never' or 'must'")
        stored = self.path / CONFIG
        try:
            self.existed = stored.exists()
            if self.existed and resume == "never":
                raise CheckpointError(f"{self.path} exists and resume=never. Choose another name=, or resume=auto.")
            if not self.existed and resume == "must":
                raise CheckpointError(f"{self.path} holds no run, but resume=must. Check name=, or use resume=auto.")
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} cannot be written ({error.strerror}). Choose another name= or runs_dir=."
            ) from error
        self._close_lock = weakref.finalize(self, release, hold(self.path))
        self._tensorboard: Any = None
        self._tracker = tracker_of(config, self.path)
        self._meter = Meter(stored_cost(self.path))
        self._waiting: str | None = config  # to be written
        self.existed = stored.exists()  # another process may have made it meanwhile
        self.grown: dict[str, tuple[float, float]] = {}
        if not self.existed:
            if left := [name for name in (RESULTS, METRICS, "checkpoints") if (self.path / name).exists()]:
                self.close()
                raise CheckpointError(
                    f"{self.path} has {left[0]} of a run, but no {CONFIG} that says how it was made. Restore it, delete the directory, "
                    "or choose another name=."
                )
            self._adopt()
            return
        try:
            self.grown, changed = may_continue(self.path, config)
        except CheckpointError:
            self.close()
            raise
        if (self.path / RESULTS).exists() and not changed:
            self._waiting = None  # nothing more is done, so what was done stays
        elif steps := self._checkpoints():
            log.info("%s goes on; its last checkpoint is of step %d", self.path, steps[-1])

    def _adopt(self) -> None:
        """From now on what is written was made with this configuration."""
        if self._waiting is None:
            return
        if self.grown:
            (self.path / RESULTS).unlink(missing_ok=True)  # of the smaller limit
        _write_whole(self.path / CONFIG, self._waiting)
        self._waiting = None

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """What is refused in here as a user error leaves no new directory, which would refuse the mended command."""
        try:
            yield
        except OLLMError:
            if not self.existed and {p.name for p in self.path.iterdir()} <= {CONFIG, LOCK, OWNER}:
                self.close()
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def metrics(self) -> list[dict]:
        """All whole lines of `metrics.jsonl` so far."""
        return whole_lines(self.path / METRICS)

    def log_metrics(self, step: int, values: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`, and log the same to TensorBoard and to the tracker."""
        with interrupt_waits():
            self._adopt()
            with (self.path / METRICS).open("a") as out:
                out.write(_json({"step": step, **values}) + "\n")
            if self._tensorboard is None:
                from torch.utils.tensorboard import SummaryWriter

                self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(key, value, step)
            if self._tracker is not None:
                self._tracker.metrics(step, values)

    def truncate_metrics(self, step: int) -> None:
        """Forget metrics and rollouts after `step`: a resumed run writes them again."""
        self._adopt()
        kept = [line for line in self.metrics() if line["step"] <= step]
        path = self.path / METRICS
        if path.exists():
            _write_whole(path, "".join(_json(line) + "\n" for line in kept))
        for path in (self.path / "rollouts").glob("train_*.jsonl"):
            if int(path.stem.removeprefix("train_")) > step:
                path.unlink()

    def save_rollouts(self, name: str, episodes: Iterable[Recorded]) -> None:
        """Write episodes as `rollouts/<name>.jsonl`, and log some of them to the tracker."""
        self._adopt()
        episodes = list(episodes)
        write_rollouts(self.path, name, episodes)
        if self._tracker is not None:
            self._tracker.rollouts(name, self._last_step(), episodes)

    def _last_step(self) -> int:
        return int(next((line["step"] for line in reversed(self.metrics())), 0))

    def file(self, name: str) -> Path | None:
        """Where a file of the run is to be; None if nothing is written."""
        return self.path / name

    def save_checkpoint(self, step: int, write: Callable[[Path], object]) -> None:
        """Make a checkpoint of what `write` puts into a directory."""
        write(self.checkpoint_dir(step))
        self.commit_checkpoint(step)

    def checkpoint_dir(self, step: int) -> Path:
        """An empty scratch directory for a checkpoint; `commit_checkpoint` makes it the latest."""
        self._adopt()
        path = self.path / "checkpoints" / f".step_{step}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def commit_checkpoint(self, step: int, keep: int = 2) -> Path:
        """Make the scratch directory `checkpoints/step_N` at once, so that a kill leaves no half checkpoint.

        The last `keep` stay; later ones are of what was forgotten when the run was resumed.
        """
        self._save_cost()
        folder = self.path / "checkpoints"
        final = folder / f"step_{step}"
        seal(folder / f".step_{step}")
        shutil.rmtree(final, ignore_errors=True)
        (folder / f".step_{step}").rename(final)
        _write_whole(folder / "latest", f"step_{step}\n")
        steps = self._checkpoints()
        for old in [s for s in steps if s > step] + [s for s in steps if s <= step][:-keep]:
            shutil.rmtree(folder / f"step_{old}", ignore_errors=True)
        return final

    def _checkpoints(self) -> list[int]:
        names = (p.name.removeprefix("step_") for p in (self.path / "checkpoints").glob("step_*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """Step and directory of the last whole checkpoint; None before the first.

        Raises:
            CheckpointError: there are some, and all are damaged.
        """
        pointer = self.path / "checkpoints" / "latest"
        steps = self._checkpoints()[::-1]
        if pointer.exists():
            name = pointer.read_text(errors="replace").strip().removeprefix("step_")
            if name.isdecimal():  # later ones were never the latest: a kill came between
                steps = [int(name), *(s for s in steps if s < int(name))]
            else:
                log.warning("%s does not name a checkpoint", pointer)
        found = newest_whole([pointer.parent / f"step_{step}" for step in steps])
        return None if found is None else (int(found.name.removeprefix("step_")), found)

    def write_json(self, name: str, value: Any) -> Path:
        if name == RESULTS:
            self._adopt()
        path = write_json(self.path / name, value)
        if name == RESULTS:
            self._save_cost()
        if self._tracker is not None and name in (RESULTS, CONVERSION):
            self._tracker.summary(name.removesuffix(".json"), self._last_step(), value)
        return path

    def _save_cost(self) -> None:
        if self._meter.used:  # else it was done before, and only looked at
            write_json(self.path / COST, self._meter.cost().to_dict())

    def close(self) -> None:
        """End the log, and let other processes open the run."""
        if self.path.is_dir():
            self._save_cost()
        self._meter.stop()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._tracker is not None:
            self._tracker.finish(completed=sys.exc_info()[0] is None)
        self._close_lock()


class NoRun(Run):
    """What agents get to write to where nothing is to be written (`agent.learn(None)`)."""

    def __init__(self) -> None:
        self.existed, self.grown = False, {}
        self._tracker: Tracker | None = None

    @property
    def path(self) -> Path:  # type: ignore[override]
        raise ConfigurationError("learn(None) writes nothing, so there is no directory; name one: learn('runs/<name>')")

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        yield

    def metrics(self) -> list[dict]:
        return []

    def log_metrics(self, step: int, values: dict[str, Any]) -> None: ...

    def truncate_metrics(self, step: int) -> None: ...

    def save_rollouts(self, name: str, episodes: Iterable[Recorded]) -> None: ...

    def file(self, name: str) -> Path | None:
        return None

    def save_checkpoint(self, step: int, write: Callable[[Path], object]) -> None: ...

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        return None

    def close(self) -> None: ...


def policy_dir(place: str | Path) -> Path:
    """Where the policy is: in that directory, or in `policy/` of that run.

    Raises:
        CheckpointError: it is a run, and none of an agent that left a policy.
    """
    path = Path(os.path.expanduser(place))  # Path.expanduser raises where there is no such user
    if not (path / CONFIG).is_file():
        return path
    if (path / POLICY).is_dir():
        return path / POLICY
    inside = sorted(str(found) for depth in ("*", "*/*") for found in path.glob(f"{depth}/{POLICY}"))
    found = f" There are {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}." if inside else ""
    raise CheckpointError(
        f"{path} is a run without a policy; expected the run of an agent that was trained to its end (runs/<name>/{POLICY}), or a directory "
        f"that agent.save wrote.{found}"
    )


def plugin_dir(place: str | Path) -> Path:
    """Where the plug-in is: in that directory, in `plugin/` of that run, or beside that run's policy."""
    path = Path(os.path.expanduser(place))
    inside = [path / PLUGIN, path / POLICY / PLUGIN] if (path / CONFIG).is_file() else []
    return next((found for found in inside if found.is_dir()), path)


PARTS = {"policy": policy_dir, "plugin": plugin_dir}  # what a run's directory may stand for, by `of_run` of a setting


def may_continue(path: Path, config: str) -> tuple[dict[str, tuple[float, float]], bool]:
    """Limits of training that are larger in `config` than in the run in `path`, as (stored, now); whether anything that may
    differ does.

    Raises:
        CheckpointError: something differs that may not, or less training is wanted than was done.
    """
    stored = path / CONFIG
    found = changes(read(stored.read_text(errors="replace"), str(stored)), read(config, "the configuration"))
    if found.refused:
        more = f"; {len(found.refused) - 1} more" if len(found.refused) > 1 else ""
        raise CheckpointError(
            f"{path} was made with another configuration ({found.refused[0]}{more}). "
            "Choose another name=, repeat the settings of that run, or delete the directory."
        )
    for key, (before, now) in found.limits.items():
        done = max((line.get(LIMITS[key]) or 0 for line in whole_lines(path / METRICS)), default=0)
        if now < min(before, done):
            raise CheckpointError(
                f"{path} was trained further than {key}={now}: it has {LIMITS[key]} {done} of {before}. Give {key} of at "
                f"least {done}, choose another name=, or delete the directory."
            )
    grown = {key: (before, now) for key, (before, now) in found.limits.items() if now > before}
    return grown, bool(found.limits) or found.comparison


def stored_cost(path: Path) -> Cost | None:
    """What a run has cost so far, as far as that was written down."""
    try:
        return Cost.of(json.loads((path / COST).read_text()))
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def write_rollouts(directory: Path, name: str, episodes: Iterable[Recorded]) -> Path:
    """Write episodes as `rollouts/<name>.jsonl`, one a line."""
    path = directory / "rollouts" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, "".join(_json(e.to_dict()) + "\n" for e in episodes))
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file in one step; NaN and infinity, which JSON does not know, become null."""
    _write_whole(path, _json(value, indent=2) + "\n")
    return path


def stored_json(path: Path) -> Any:
    """What a run's JSON file says.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): the file was damaged. Restore it, or delete it and repeat the "
            "command, which makes it anew."
        ) from error


def whole_lines(path: Path) -> list[dict]:
    """The records of a JSON lines file that may be missing; a kill may leave half a line at its end, which is left out.

    Raises:
        CheckpointError: another line is no JSON.
    """
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise CheckpointError(
                f"{path}, line {number} is not JSON ({error.msg}): the file was damaged. Restore it, or delete that line."
            ) from error
    return found


def _json(value: Any, indent: int | None = None) -> str:
    """As JSON, which knows no NaN and no infinity: null in their place."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)
