"""docs/configuration.md, from the dataclasses: `python -m ollm_rl.config.document > docs/configuration.md`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from ollm_rl.common.config_files import GROUPS, SCHEMAS, SECTIONS, config_file, members, roots, schema, section
from ollm_rl.common.settings import MOST, Config, Setting, settings_of

HEAD = """# Configuration

Every setting with its default and what is allowed. This page is made from the dataclasses that have them (`python -m
ollm_rl.config.document > docs/configuration.md`); a test keeps it true.

`group=choice` takes a member of a group, `group.key=value` sets one key; `ollm-rl <command> --dry-run` prints the result. `null` stands
for "not set" where "null or ..." is allowed. In Python the same names are arguments: `ol.make_agent("grpo", session, beta=0.05)`.

## What a command would take

`ollm-rl <command> ... --dry-run` says parameters, memory and disk without loading a weight, and then measures for about ten seconds for each task
(`estimate.seconds=`; a minute where the smallest pieces take that long, as in `experiment=headline`) how long the command would take here: it loads the backbone, does small pieces of the command's own work (a conversion
on a few solutions if there is none in the cache, an iteration of training, some problems of the evaluation and of the search), and prints seconds,
share, generated tokens and texts of every phase, the sum, decode rows, prompt tokens and solution tokens a second, and the seconds of an
update. Seconds are those that the processor gives this process: a busy machine takes longer to measure, and longer to run. Nothing that is made is kept.

`estimate.measure=false` leaves the measurement out. It is left out too, with the reason, for a backbone that is not on this machine,
workers of a cluster, and solutions that are to be sampled first. Training is estimated for agents that learn in equal iterations on
stored states (`grpo` and its controls); for others the estimate says that it is not in it. Agents that train more than a policy over the
options (`lora_sft`, `lora_grpo`, `shortlist_head`) are estimated only with the `policy=` of one that was trained. GPU hours are given where this agent was measured on this
backbone and task (`benchmarks/results/gpu.json`, with the device).

What a run did cost stands in its `cost.json`, in its report and in the last table that it prints: seconds, generated tokens, texts and peak memory over all calls
that worked on it. How far predictions are from it: `python benchmarks/estimates.py`, `benchmarks/results/estimates.json`.
"""


def document() -> str:
    """The whole page."""
    parts = [HEAD, "## Settings of every command\n", _table("", roots())]
    for name in SECTIONS:
        parts += [f"## {name}\n", _about(section(name)), _table(f"{name}.", [section(name)])]
    for group in GROUPS:
        parts += [f"## {group}=\n", *_group(group)]
    return "\n".join(part for part in parts if part)


def _group(group: str) -> Iterator[str]:
    kinds: dict[type[Config] | None, list[str]] = {}
    for name in members(group):
        kinds.setdefault(schema(group, name) if group in SCHEMAS else None, []).append(name)
    for kind, names in kinds.items():
        lines = [f"- `{group}={name}`{_differences(group, name)}" for name in names]
        yield "\n".join(lines) + "\n"
        if kind is not None:
            yield _about(kind)
            yield _table(f"{group}.", [kind])


def _about(kind: type[Config]) -> str:
    return f"{(kind.__doc__ or '').strip()}\n"


def _differences(group: str, name: str) -> str:
    """What a member's file says."""
    own = OmegaConf.to_container(config_file(f"{group}/{name}.yaml"), resolve=False)
    assert isinstance(own, Mapping | None)
    values = {key: value for key, value in (own or {}).items() if key not in ("defaults", "shape")}
    said = ", ".join(f"`{key!s}: {_shown(value)}`" for key, value in values.items() if not isinstance(value, dict))
    return f": {said}" if said else ""


def _table(prefix: str, kinds: list[type[Config]]) -> str:
    rows = [_row(prefix, known) for kind in kinds for known in settings_of(kind).values()]
    return (
        "\n".join(["| key | default | allowed | |", "|---|---|---|---|", *rows]) + "\n" if rows else "(no settings)\n"
    )


def _row(prefix: str, known: Setting) -> str:
    cells = [
        f"`{prefix}{known.name}`",
        f"`{_shown(known.default)}`",
        re.sub(rf"from (\d+) to {MOST}\b", r"of at least \1", known.expected),
        re.sub(r"<(?=[^>`]*>)", "&lt;", known.rules.get("doc", "")),  # a page takes it for a tag else
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(list(value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    print(document(), end="")
