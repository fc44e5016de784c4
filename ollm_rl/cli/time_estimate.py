"""What a command would take in time and tokens, for `--dry-run`: measured on this machine, and on a GPU where somebody has measured."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ollm_rl.common.cache import cache_dir
from ollm_rl.common.distributed import processes
from ollm_rl.config.compose import Settings, on_cluster, preflight
from ollm_rl.errors import OLLMError, WorkerError
from ollm_rl.evaluation.overview import Text
from ollm_rl.experiments.pieces import Estimate, Phase
from ollm_rl.models.precision import prefer_bf16
from ollm_rl.session.opening import wants_samples

MEASURED = ("train", "evaluate", "oracle", "compare", "demo", "convert")  # commands
RATES = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu.json"  # of a checkout


def print_time(command: str, settings: Settings, overrides: list[str], combinations: int, out: Console) -> None:
    """Print seconds and tokens of a command by phases, or why nothing was measured.

    Args:
        combinations: how many runs like this one the command line asks for.
    """

    def say(line: str) -> None:
        out.print(line, highlight=False, markup=False, soft_wrap=True)

    if why := not_measured(command, settings):
        say(f"time: not measured ({why})")
    else:
        try:
            _print_measured(command, settings, overrides, combinations, out, say)
        except (
            OLLMError,
            WorkerError,
            RuntimeError,
            MemoryError,
        ) as error:  # the run would say so as well
            said = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"time: not measured, for the command would fail ({said})")
    for line in gpu_lines(command, settings):
        say(line)


def not_measured(command: str, settings: Settings) -> str:
    """Why a command cannot be measured here; "" if it can."""
    config = settings.config
    if command not in MEASURED:
        return f"`{command}` has no end of its own" if command != "tune" else "trials are as long as `train`"
    if not config.estimate.measure:
        return "estimate.measure=false"
    if config.rollout.num_workers or (on_cluster(config.rollout) and command in ("compare", "demo")):
        return "workers of a cluster are elsewhere"
    if processes().count > 1:
        return "several processes"
    if not is_here(str(config.backbone.name), config.backbone.revision):
        return f"backbone '{config.backbone.name}' is not on this machine"
    if wants_samples(config):
        return "solutions are to be sampled first"
    return ""


def is_here(backbone: str, revision: str | None) -> bool:
    """Whether a backbone's weights can be loaded without a download."""
    if backbone == "tiny":
        return True
    if backbone == "smollm2":
        return (cache_dir() / "backbones" / "smollm2-135m-instruct").exists()
    if (Path(backbone).expanduser() / "config.json").is_file():
        return True
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(backbone, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return False
    return any(folder.glob("*.safetensors"))


def _print_measured(
    command: str, settings: Settings, overrides: list[str], combinations: int, out: Console, say: Any
) -> None:
    from ollm_rl.experiments.measuring import measure
    from ollm_rl.experiments.overrides import of_tasks, trial_settings

    several = command in ("compare", "demo")
    all_of_them = list[Phase]()
    for task, (mine, given) in of_tasks(overrides, settings).items() if several else [("", (settings, overrides))]:
        config, trials = mine.config, [mine] if command in ("train", "evaluate") else []
        if several:
            trials = [trial_settings(given, mine, name) for name in config.agents]
        for each in trials or [mine]:
            preflight(each)
        seeds, searches = (len(config.seeds), config.with_oracle) if several else (1, command == "oracle")
        found = measure(command, mine, trials, seeds, searches, config.estimate.seconds)
        if all_of_them:
            found.phases.pop(0)  # the process starts once
        all_of_them.append(found.whole)
        _print_phases(found, task, config.backbone.dtype, out, say)
    whole = Estimate(all_of_them).whole
    if len(all_of_them) > 1:
        say(
            f"all {len(all_of_them)} tasks: {whole.seconds:,.0f} s ({whole.cpu_seconds:,.0f} s of processor time), "
            f"{whole.tokens:,.0f} generated tokens, {whole.texts:,.0f} texts"
        )
    if combinations > 1:
        say(f"{combinations} combinations: about {combinations * whole.seconds:,.0f} s, one after the other")


def _print_phases(found: Estimate, task: str, dtype: str, out: Console, say: Any) -> None:
    """What a command would take on one task."""
    whole = found.whole
    body = [
        [p.name, f"{p.seconds:,.1f}", f"{p.seconds / max(whole.seconds, 1e-9):.0%}", *(f"{x:,.0f}" if x else "-" for x in (p.tokens, p.texts))]
        for p in found.phases
    ]  # fmt: skip
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    kind = "bfloat16" if prefer_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))[0] else "float32"
    kind = kind if dtype == "auto" else dtype
    title = f"What {task or 'it'} would take here ({device}, {kind}; measured in {found.took:.0f} s)"
    out.print(Text(title, "", ["phase", "seconds", "share", "tokens", "texts"], body).to_rich())
    say(
        f"in all: {whole.seconds:,.0f} s ({whole.cpu_seconds:,.0f} s of processor time), {whole.tokens:,.0f} generated tokens, "
        f"{whole.texts:,.0f} texts; {found.memory_gib:.1f} GiB while measuring"
    )
    if found.rates:
        say("measured: " + ", ".join(f"{value:,.3g} {name}" for name, value in found.rates.items()))
    for note in dict.fromkeys(found.notes):
        say(f"not in it: {note}" if "not estimated" in note else f"note: {note}")


def gpu_lines(command: str, settings: Settings) -> list[str]:
    """GPU hours of training, where the same agent was measured on this backbone and task."""
    config = settings.config
    if command not in ("train", "compare", "demo") or not RATES.is_file():
        return []
    if config.backbone.name != "smollm2" or config.task.name != "chain_sum":
        return []
    stored = json.loads(RATES.read_text())
    measured = {row["agent"]: row for row in stored["comparison"]["rows"] if row.get("train_episodes")}
    name, agent = settings.agent_name, config.get("agent", {})
    if command != "train" or name not in measured or "total_episodes" not in agent:
        return []
    row, seconds = measured[name], measured[name]["train_seconds"]
    hours = seconds * agent.total_episodes / row["train_episodes"] / 3600
    return [
        f"on a GPU: {hours:.4f} GPU hours of training, from {row['train_episodes']} episodes in {seconds:.1f} s on {stored['device'].split(',')[0]} "
        "(benchmarks/results/gpu.json)"
    ]
