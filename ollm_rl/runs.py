"""Run directories: configuration, metrics, rollouts, checkpoints and results of one run."""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollm_rl.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:  # torch takes seconds to import, and a mistyped key should not wait for it
    from ollm_rl.trajectory import Episode

log = logging.getLogger(__name__)
# What a comparison is made of (configs/experiment/default.yaml).
COMPARISON = ("agents", "seeds", "tasks", "with_oracle", "agent_overrides", "quick", "quick_overrides")


class Run:
    """`<root>/<name>/`: an existing directory is continued or refused, never overwritten silently.

    Args:
        resume: `auto` continues a run that was made with the same configuration, `never` refuses an existing
            directory, `must` demands one.
        config: the resolved configuration as YAML. A run is only continued with the configuration that made it.

    Raises:
        CheckpointError: the directory's state and `resume` do not fit together.
    """

    def __init__(self, root: str | Path, name: str, config: str, resume: str = "auto"):
        self.path = Path(root) / name
        if resume not in ("auto", "never", "must"):
            raise ConfigurationError(f"resume={resume!r}; expected 'auto', 'never' or 'must'")
        stored = self.path / "config.yaml"
        self.existed = stored.exists()
        if self.existed and resume == "never":
            raise CheckpointError(f"{self.path} exists and resume=never. Choose another name=, or resume=auto.")
        if not self.existed and resume == "must":
            raise CheckpointError(f"{self.path} holds no run, but resume=must. Check name=, or use resume=auto.")
        if self.existed and _fixed(stored.read_text()) != _fixed(config):
            difference = _first_difference(stored.read_text(), config)
            raise CheckpointError(
                f"{self.path} was made with another configuration ({difference}). "
                "Choose another name=, repeat the settings of that run, or delete the directory."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        stored.write_text(config)
        self._tensorboard: Any = None

    def metrics(self) -> list[dict]:
        """All whole lines of `metrics.jsonl` so far."""
        return whole_lines(self.path / "metrics.jsonl")

    def log_metrics(self, step: int, values: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl` and the same scalars to TensorBoard."""
        with (self.path / "metrics.jsonl").open("a") as out:
            out.write(json.dumps({"step": step, **values}) + "\n")
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        for key, value in values.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(key, value, step)

    def truncate_metrics(self, step: int) -> None:
        """Forget metrics and rollouts after `step`: a resumed run writes them again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        path = self.path / "metrics.jsonl"
        if path.exists():
            _write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        for path in (self.path / "rollouts").glob("train_*.jsonl"):
            if int(path.stem.removeprefix("train_")) > step:
                path.unlink()

    def save_rollouts(self, name: str, episodes: "Iterable[Episode]") -> None:
        """Write episodes as `rollouts/<name>.jsonl`."""
        folder = self.path / "rollouts"
        folder.mkdir(exist_ok=True)
        _write_whole(folder / f"{name}.jsonl", "".join(json.dumps(e.record()) + "\n" for e in episodes))

    def checkpoint_dir(self, step: int) -> Path:
        """An empty scratch directory for a checkpoint; `commit_checkpoint` makes it the latest."""
        path = self.path / "checkpoints" / f".step_{step}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def commit_checkpoint(self, step: int, keep: int = 2) -> Path:
        """Make the scratch directory `checkpoints/step_N` at once, so that a kill leaves no half checkpoint."""
        folder = self.path / "checkpoints"
        final = folder / f"step_{step}"
        shutil.rmtree(final, ignore_errors=True)
        (folder / f".step_{step}").rename(final)
        _write_whole(folder / "latest", f"step_{step}\n")
        steps = sorted(int(p.name.removeprefix("step_")) for p in folder.glob("step_*"))
        for old in steps[:-keep]:
            shutil.rmtree(folder / f"step_{old}", ignore_errors=True)
        return final

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """Step and directory of the last whole checkpoint."""
        pointer = self.path / "checkpoints" / "latest"
        if not pointer.exists():
            return None
        name = pointer.read_text().strip()
        return int(name.removeprefix("step_")), pointer.parent / name

    def write_json(self, name: str, value: Any) -> Path:
        path = self.path / name
        _write_whole(path, json.dumps(value, indent=2) + "\n")
        return path

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def whole_lines(path: Path) -> list[dict]:
    """The records of a JSON lines file that may be missing; a kill may leave half a line at its end, which is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)


def _fixed(config: str) -> list[str]:
    """The settings that a continued run must share.

    It may train longer, how it is resumed and on which cluster does not matter, and a comparison may get more agents and seeds:
    each of its parts has a configuration of its own.
    """
    kept, group = [], ""
    for line in config.splitlines():
        group = group if line.startswith((" ", "-")) else line.partition(":")[0]
        key = line.strip().partition(":")[0]
        if (
            key not in ("total_episodes", "resume")
            and group not in COMPARISON
            and (group, key) != ("rollout", "address")
        ):
            kept.append(line)
    return kept


def _first_difference(old: str, new: str) -> str:
    for a, b in zip(_fixed(old), _fixed(new), strict=False):
        if a != b:
            return f"there '{a.strip()}', now '{b.strip()}'"
    return "one has more settings than the other"
