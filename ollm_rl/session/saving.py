"""A saved agent: `agent.json` beside its weights says what it is and what it was made for, so that it can be made again.

    _target_, settings   its class, and what that was called with
    backbone             name, revision, fingerprint, dtype, and `adapter`, a directory beside it, where one was merged
    boxed                whether its prompts are for a reward that reads boxes; null: for the task's own
    task, reward         as `make_task` and the reward's class take them; null where they were made otherwise
    engine               max_new_tokens, the token budget that it was trained with
    plugin               `plugin`, a directory beside it, or the path of the plug-in elsewhere
    seed                 of the session

Everything is safetensors and JSON; nothing in such a directory is unpickled, and its class is imported only if it is one of
ours or the user names it (`ollm_rl.load_agent`).
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ollm_rl.common.config_files import RENAMED_TARGETS
from ollm_rl.common.run_config import today
from ollm_rl.common.run_dir import CONFIG, PLUGIN, stored_json
from ollm_rl.errors import CheckpointError
from ollm_rl.models.adapters import keep_adapter

DESCRIPTION = "agent.json"
ADAPTER = "adapter"  # and of that of the adapter that the backbone has


def description(agent: Any) -> dict[str, Any]:
    """What `agent.json` says of an agent; values that are no JSON become text."""
    session = agent.session
    backbone = session.backbone
    path = session.plugin_path
    found = {
        "_target_": agent.target,
        "settings": agent.settings,
        "backbone": {
            "name": backbone.name, "revision": backbone.revision, "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            **({} if backbone.adapter is None else {ADAPTER: str(Path(backbone.adapter).resolve())}),
        },
        "task": getattr(session.task, "settings", None),  # of a class that inherits nothing, it may be missing
        "boxed": getattr(session.task, "boxed", None),  # as its prompts depend on it
        "reward": session.reward,
        "engine": {"max_new_tokens": session.engine_settings["max_new_tokens"]},
        "plugin": None if path is None else str(Path(path).resolve()),
        "seed": session.seed,
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def write_description(agent: Any, path: Path, plugin: bool) -> None:
    """Write `agent.json` and, if `plugin`, a copy of the plug-in."""
    path.mkdir(parents=True, exist_ok=True)
    found = description(agent)
    if plugin:
        agent.session.plugin.save_pretrained(path / PLUGIN)
        found["plugin"] = PLUGIN
        if ADAPTER in found["backbone"]:
            keep_adapter(found["backbone"][ADAPTER], path / ADAPTER)
            found["backbone"][ADAPTER] = ADAPTER
    (path / DESCRIPTION).write_text(json.dumps(found, indent=2) + "\n")


def as_yaml(found: dict[str, Any]) -> str:
    """A description as the configuration of a run: the agent's settings under `agent`, as the command line has them."""
    agent = {"_target_": found["_target_"], **found["settings"]}
    others = {key: value for key, value in found.items() if key not in ("_target_", "settings")}
    return OmegaConf.to_yaml(OmegaConf.create({"agent": agent, **others}))


def read_description(path: Path) -> dict[str, Any] | None:
    """What is known of the agent saved in `path`: by its `agent.json`, or else by the `config.yaml` of the run around it,
    which is all that earlier releases wrote. None if there is neither.

    Raises:
        CheckpointError: the file is damaged.
    """
    if (path / DESCRIPTION).is_file():
        found = stored_json(path / DESCRIPTION)
        if not isinstance(found, dict) or not isinstance(found.get("_target_"), str):
            raise CheckpointError(f"{path / DESCRIPTION} does not name an agent's class under '_target_'. Restore it.")
        target = RENAMED_TARGETS.get(found["_target_"], found["_target_"])
        if found.get(PLUGIN) is not None:
            found[PLUGIN] = str(path / found[PLUGIN])  # an absolute path stays what it is
        if (found.get("backbone") or {}).get(ADAPTER) is not None:
            found["backbone"][ADAPTER] = str(path / found["backbone"][ADAPTER])
        return {**found, "_target_": target}
    run = next((above / CONFIG for above in list(path.resolve().parents)[:2] if (above / CONFIG).is_file()), None)
    return None if run is None else _of_run(run)


def _of_run(file: Path) -> dict[str, Any]:
    """A run's configuration as a description."""
    found = OmegaConf.to_container(today(file.read_text(errors="replace"), str(file)), resolve=False)
    assert isinstance(found, dict)
    if "_target_" not in (agent := found.get("agent") or {}) or not (found.get("backbone") and found.get("task")):
        raise CheckpointError(f"{file} does not say which agent was trained, or on what. Give session= and agent=.")
    plugin = found.get(PLUGIN)
    sizes = dict(plugin) if isinstance(plugin, dict) else {"path": plugin}
    return {
        "_target_": agent.pop("_target_"),
        "settings": agent,
        "backbone": found["backbone"],
        "task": found["task"],
        "reward": found.get("reward"),
        "engine": found.get("engine") or {},
        PLUGIN: sizes.pop("path", None),
        "convert": {**found.get("convert", {}), PLUGIN: sizes},
        "seed": found.get("seed", 0),
    }
