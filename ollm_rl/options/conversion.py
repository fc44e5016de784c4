r"""Conversion: training a plug-in on the hidden states of (problem, solution) pairs.

`convert` finds a plug-in in the cache or makes it. If it is to have a reader, that is trained first (`ollm_rl.options.reader_training`).
Then two phases (`ollm_rl.options.training`), both on cached states and on a shortlist, so the backbone's body does not run.

1. Decoder, encoder and prior learn by one of the objectives of `ollm_rl.options.objectives`, while options are kept to their
   shortlists (`ollm_rl.options.shortlist_loss`). Options that collapse, so that a choice between them means nothing, are noticed
   after each epoch and said.

2. The prior is fitted anew, the decoder being fixed. With `prior_target=canonical` (default) it and a new encoder learn
   the canonical option of the gold token, the lowest-numbered that decodes to it. Because every token has one name,
   the prior is a distribution over *tokens*: its first choice is the most likely token, and not merely the largest share of a token's mass split over equal options. With `prior_target=encoder` it imitates the
   encoder of phase 1, as in the paper.
"""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.distributed import processes
from ollm_rl.common.run_dir import Run
from ollm_rl.common.spent import counted, spent
from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.modules import REPORT, PlugIn
from ollm_rl.options.optimization import Progress
from ollm_rl.options.quality import COLLAPSED, measure
from ollm_rl.options.reader_training import cached_reader, reader_key
from ollm_rl.options.reading import read_states
from ollm_rl.options.training import convert as train_plugin
from ollm_rl.tasks import SPLITS, Problem, Task
from ollm_rl.tasks.base import ALL, has_end, worked
from ollm_rl.tasks.prompts import Prompter

log = logging.getLogger(__name__)
FEW = 500  # worked solutions; with fewer it is said that more are needed
ENOUGH = 0.95  # share of positions; below, what is missing is said


def convert(
    backbone: Backbone, task: Task, config: ConversionConfig | None = None, run: Run | None = None, **settings: Any
) -> PlugIn:
    """The plug-in of this backbone, task and configuration: from the cache, or converted now.

    >>> plugin = ol.convert(backbone, task, num_solutions=4000)
    >>> plugin.report["coverage"]["uncertain"], plugin.path

    An interrupted conversion goes on where it was: with the shard of hidden states, or the epoch.

    Args:
        config: how it is trained, and the plug-in's sizes (`ConversionConfig.plugin`).
        run: metrics go there.
        settings: those of `ConversionConfig` that shall differ.

    Raises:
        ConfigurationError: `ConversionConfig` has no such setting, or solutions are to be sampled and were not.
        DataError: the task has no solutions to learn from.
    """
    config = ConversionConfig.of({**vars(config or ConversionConfig()), **settings})
    if config.solutions != "given" and getattr(task, "sampled", None) is None:
        raise ConfigurationError(
            f"solutions={config.solutions!r}: this converts on what the task has. Sample first: task = ol.sample_solutions(backbone, task), then "
            "ol.convert(backbone, task)"
        )
    prompter, train, heldout, path = _wanted(backbone, task, config)
    with made_by_one(path):
        if (path / REPORT).exists():
            log.info("plug-in: from the cache (%s)", path)
            return PlugIn.from_pretrained(path, backbone)
        log.info(
            "conversion: a plug-in is fitted to %d solutions of task '%s', once; it is kept in %s",
            len(train), task.name, cache_dir(),
        )  # fmt: skip
        return _converted(backbone, prompter, train, heldout, config, path, run)


def is_converted(backbone: Backbone, task: Task, config: ConversionConfig) -> bool:
    """Whether `convert` would find the plug-in in the cache.

    Raises:
        DataError: the task has no solutions to learn from.
    """
    return (_wanted(backbone, task, config)[-1] / REPORT).exists()


def _wanted(
    backbone: Backbone, task: Task, config: ConversionConfig
) -> tuple[Prompter, list[Problem], list[Problem], Path]:
    """What a plug-in is made from: prompts, solutions to learn from and to report on; and its place in the cache."""
    prompter = Prompter.for_task(backbone, task)
    train = drawn(task, "sft", config.num_solutions, config.seed)
    heldout = drawn(task, "tune", config.num_heldout, config.seed)
    if not (train and heldout) and not any(task.problems(s, 1) for s in SPLITS if s != "test"):
        raise DataError(
            f"all problems of task '{task.name}' are in split test, marked so or by the hash of their text; conversion does not train on them. "
            "Convert on another task and come here with what it made (plugin.path=<directory>), or read a file with task=jsonl, which splits it."
        )
    train, heldout = (
        worked(problems, task.name, f"conversion (split '{name}')")
        for name, problems in (("sft", train), ("tune", heldout))
    )
    train, heldout = (_fitting(backbone, prompter, problems) for problems in (train, heldout))
    text = [(prompter.own(p), p.solution) for p in train + heldout]
    over = [reader_key(backbone, prompter, train, heldout, config)] if config.plugin.reader_depth else []
    key = key_of(backbone.fingerprint, str(backbone.dtype), prompter.prefix, text, config.training(), "v6", *over)
    return prompter, train, heldout, cache_dir() / "plugins" / key


def drawn(task: Task, split: str, n: int, seed: int) -> list[Problem]:
    """At most n problems of a split; of one where only some have solutions, those that have one first."""
    found = task.problems(split, n, seed)
    if all(p.solution is not None for p in found) or not has_end(task):
        return found
    return sorted(task.problems(split, ALL, seed), key=lambda p: p.solution is None)[:n]


def _fitting(backbone: Backbone, prompter: Prompter, problems: list[Problem]) -> list[Problem]:
    """Those whose prompt and solution the backbone can read.

    Raises:
        DataError: there are none.
    """
    limit, setting = backbone.context_limit
    room = math.inf if limit is None else limit - len(prompter.prefix)

    def fits(p: Problem) -> bool:
        most = sum(len((text or "").encode()) for text in (p.problem, p.solution))  # a token is a byte at least
        return most + 256 < room or len(prompter.encode(p)) + len(prompter.encode_solution(p.solution or "")) <= room

    found = [p for p in problems if fits(p)]
    if len(found) < len(problems):
        left = f"{len(problems) - len(found)} of {len(problems)} solutions"
        positions = (
            f"with their prompts are longer than the {limit} positions of backbone '{backbone.name}' ({setting})"
        )
        if not found:
            raise DataError(f"{left} {positions}; give shorter ones, or choose another backbone")
        log.warning("%s %s: left out", left, positions)
    return found


def _converted(
    backbone: Backbone, prompter: Prompter, train: list[Problem], heldout: list[Problem], config: ConversionConfig,
    path: Path, run: Run | None,
) -> PlugIn:  # fmt: skip
    """Make the plug-in, measure it, and write both to `path`."""
    if len(train) < min(FEW, config.num_solutions):
        log.warning(
            "conversion learns from %d worked solutions, all that split sft has. On sums GRPO reaches 0.57 with 1,000 and 0.71 with 2,000 (docs/tasks.md). "
            "More: 'task.split={sft: 0.7, test: 0.1}' for files, or convert.solutions=sampled",
            len(train),
        )
    reader, read = None, dict[str, Any]()
    if config.plugin.reader_depth:
        reader, read = cached_reader(
            backbone, prompter, train, heldout, config, None if run is None else run.log_metrics
        )
    states = read_states(backbone, prompter, train, config.plugin.shortlist, reader)
    seen = read_states(backbone, prompter, heldout, config.plugin.shortlist, reader)
    us = processes()
    if not us.is_main:  # the shards are shared out; the plug-in is small
        us.wait()
        return PlugIn.from_pretrained(path, backbone)
    keep = path.with_suffix(".training")
    progress = Progress(keep, run.log_metrics if run is not None else None)
    with counted(keep):
        plugin = train_plugin(backbone, states, config, progress, reader)
        report = measure(backbone, plugin, seen)
    report["trainable_share"] = plugin.num_parameters / (plugin.num_parameters + backbone.num_parameters)
    _say_what_lacks(report, config)
    report["collapsed"] = report["distinct_tokens"]["uncertain"] < COLLAPSED
    if read:
        report["reader"] = read
    made = (folder for store in (states, seen) for folder in (store.path, store.read) if folder is not None)
    seconds = sum(map(spent, made)) + read.get("seconds", 0.0) + spent(keep)  # of all, whoever made it
    report |= {"objective": config.objective, "num_solutions": len(train), "seconds": seconds}
    plugin.report, plugin.path = report, path
    plugin.prefix = prompter.prefix if reader is not None else []
    plugin.save_pretrained(path)
    shutil.rmtree(keep, ignore_errors=True)
    us.wait()
    return plugin


def _say_what_lacks(report: dict[str, Any], config: ConversionConfig) -> None:
    """Warnings where options can say too little of what the solutions say."""
    listed, covered = report["gold_on_shortlist"]["all"], report["coverage"]["uncertain"]
    if listed < ENOUGH:
        log.warning(
            "at %.0f%% of the positions the solutions' token is not among the backbone's %d likeliest, so no option can say it there (gold_on_shortlist). "
            "Take a larger plugin.shortlist, or solutions that are more like what the backbone writes.",
            100 * (1 - listed), config.plugin.shortlist,
        )  # fmt: skip
    elif covered < ENOUGH:
        log.warning(
            "at %.0f%% of the uncertain positions no option says the solutions' token, and no policy can say what no option says. "
            "More solutions, more convert.epochs or a larger plugin.num_options would help.", 100 * (1 - covered),
        )  # fmt: skip
