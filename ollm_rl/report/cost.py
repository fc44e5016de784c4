"""The table of what a run, and each part of a comparison, cost."""

from ollm_rl.common.run_dir import stored_cost
from ollm_rl.evaluation.overview import Text, num
from ollm_rl.evaluation.results import Results

MOST_PHASES = 4  # that are named


def cost_table(results: Results) -> Text | None:
    """What the run cost and, of a comparison, each of its parts; None if nobody counted."""
    if results.directory is None:
        return None
    folders = {results.directory: "all"} | {
        row.directory: f"{row.agent}-{row.seed}"
        for row in results.rows
        if row.directory is not None and row.directory != results.directory
    }
    found = [(name, cost) for folder, name in folders.items() if (cost := stored_cost(folder)) is not None]
    if not found:
        return None
    gpu = any(cost.gpu_memory_gib for _, cost in found)
    body = []
    for name, cost in found:
        longest = sorted(cost.phases.items(), key=lambda phase: -phase[1])[:MOST_PHASES]
        body.append([
            name, num(cost.seconds, 0), num(cost.tokens, 0), num(cost.episodes, 0), num(cost.memory_gib, 1),
            *([num(cost.gpu_memory_gib, 1)] if gpu else []),
            ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in longest),
        ])  # fmt: skip
    return Text(
        "What it cost",
        "Seconds from the opening of the run's directory on, over all calls that worked on it; generated tokens and whole texts, "
        "those of evaluations and searches among them; the most memory of this process at a time. Parts of a comparison share what is loaded and "
        "converted: the first has it. Phases are progress bars, the longest first, and can overlap.",
        ["run", "seconds", "tokens", "texts", "GiB", *(["GPU GiB"] if gpu else []), "longest phases"],
        body,
        bold=1 if len(body) > 1 else 0,
    )
