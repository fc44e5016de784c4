"""The settings of a saved policy, as a command that names it takes them over."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ollm_rl.common.run_dir import PLUGIN
from ollm_rl.config.compose import compose, to_dict
from ollm_rl.config.overrides import pair
from ollm_rl.config.typed import CHOSEN, typed
from ollm_rl.errors import CheckpointError
from ollm_rl.models.loading import resolve
from ollm_rl.session.loading import OF_BACKBONES, not_ours
from ollm_rl.session.saving import ADAPTER, read_description

log = logging.getLogger(__name__)

# What a session is made of: who gives none of these wants the session that the policy was made in.
OF_SESSIONS = ("backbone", "plugin", "task", "reward", "engine", "convert", "experiment")
COMPARED = ("task", "reward", "backbone")
BUDGET = "engine.max_new_tokens"


def says_of_sessions(overrides: Sequence[str]) -> bool:
    """Whether a command line says something of the session itself."""
    return any(pair(override)[0].partition(".")[0] in OF_SESSIONS for override in overrides)


def with_policy(overrides: list[str], judged: bool = True) -> list[str]:
    """The overrides of a command with `policy=`, after those of the policy for what they do not name: agent, backbone, task, and the
    reward and token budget that go with the task.

    `task=` names a task, while `task.<setting>=` changes the policy's own; so it is with the others. An `experiment=` names all. Where task,
    reward, backbone or budget are others than the policy's in the end, one line says so.

    Args:
        judged: false: no verdict is asked, so that the reward does not matter.

    Raises:
        ConfigurationError: an override that cannot be read. CheckpointError: the policy's description is damaged, or a class or function of
            it is none of the toolkit's and has to be named: a file does not choose what is imported.
    """
    given = [pair(override) for override in overrides]
    place = compose([o for o, (key, _) in zip(overrides, given, strict=True) if key == "policy"]).config.policy
    if place is None or not Path(place).is_dir():  # which is said later
        return overrides
    path, found = Path(place), read_description(Path(place))
    keys = {key for key, _ in given}
    device = next((text for key, text in given if key == "backbone.device"), "auto")
    done = "evaluated" if judged else "used"
    named = {group for group in CHOSEN if keys & {group, f"{group}._target_", f"{group}.name"}}
    named |= set(CHOSEN) if "experiment" in keys else set()
    if found is None:
        if missing := [part for part in COMPARED if part not in named]:
            now = _in_effect(overrides, device)
            used = shlex.join(o for part in missing for o in now[part])
            log.warning("%s does not say what it was trained on; it is %s on %s", path, done, used)
        return overrides
    own = policy_overrides(path, found, device)
    taken = {name: said for name, said in own.items() if name not in named}
    if "task" in named:  # it brings its own
        taken = {name: said for name, said in taken.items() if name not in ("reward", "engine")}
    if "experiment" in keys or "plugin.path" in keys:
        taken = {name: said for name, said in taken.items() if name not in ("plugin", "convert")}
    for part, target in not_ours(found).items():
        said = own.get(part, [f"{part}=<module>.<name>"])
        if part in named or (part == "reward" and ("task" in named or not judged)):
            continue
        if part != "reward" or not says_of_sessions(overrides):
            raise CheckpointError(
                f"{path} was trained with the {part} {target or 'of a kind that cannot be named'}, which is none of the toolkit's, and a file does "
                f"not choose what is imported. If you trust it, name it: {shlex.join(said)}"
            )
        taken.pop(part, None)
        own.setdefault(part, said)
    effective = [*(o for said in taken.values() for o in said), *overrides]
    then, now = _compared(own, (found.get("engine") or {}).get("max_new_tokens")), _in_effect(effective, device)
    parts = [part for part in then if judged or part != "reward"]
    if differing := [part for part in parts if part in now and now[part] != then[part]]:
        trained, used = (shlex.join(o for part in differing for o in said[part]) for said in (then, now))
        dropped = [
            o for part in own if part in not_ours(found) and part not in named and part in differing for o in own[part]
        ]
        more = f"; a file does not choose what is imported: for its own add {shlex.join(dropped)}" if dropped else ""
        log.warning("the policy was trained on %s, it is %s on %s%s", trained, done, used, more)
    return effective


def _in_effect(overrides: list[str], device: str) -> dict[str, list[str]]:
    """Task, reward, backbone and token budget of a command line, its defaults included, to be compared with those of a policy."""
    config = to_dict(compose(overrides).config)
    said = typed({**{p: config[p] for p in ("task", "reward")}, "backbone": _backbone(config["backbone"], device)})
    return _compared(said, config["engine"]["max_new_tokens"])


def _compared(said: Mapping[str, list[str]], budget: int | None) -> dict[str, list[str]]:
    """Of the overrides of a session those in which it matters that a policy was trained on others."""
    found = {
        part: [o for o in said[part] if not o.startswith(f"backbone.{ADAPTER}=")] for part in COMPARED if part in said
    }
    return found if budget is None else {**found, "engine": [f"{BUDGET}={budget}"]}


def _backbone(settings: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What makes a backbone what it is on any machine, without a precision that `auto` means here."""
    found = {key: settings[key] for key in OF_BACKBONES if key != "device" and settings.get(key) is not None}
    if found.get("dtype", "auto") == "auto" or resolve(found["dtype"], device)[0] == resolve("auto", device)[0]:
        found.pop("dtype", None)
    return found


def policy_overrides(path: Path, found: Mapping[str, Any], device: str) -> dict[str, list[str]]:
    """What is typed for the session and the agent of a description (`read_description`), by section.

    Plug-in and adapter are left out where they are beside the policy, from where sessions take them.

    Args:
        device: on which dtypes are compared: one that `auto` means there is left out.
    """
    config: dict[str, Any] = {"agent": {"_target_": found["_target_"], **(found.get("settings") or {})}}
    config |= {part: found.get(part) for part in ("task", "reward")}
    config["backbone"] = _backbone(found.get("backbone") or {}, device)
    if (path / ADAPTER).is_dir():
        config["backbone"].pop(ADAPTER, None)
    budget = (found.get("engine") or {}).get("max_new_tokens")
    config["engine"] = {} if budget is None else {"max_new_tokens": budget}
    if not (path / PLUGIN / "plugin.json").is_file():
        made = dict(found.get("convert") or {})
        sizes = dict(made.pop(PLUGIN, {}))
        if "convert" in found:
            sizes.setdefault("reader_depth", 0)  # of a run that knew of no readers
        config |= {"convert": made, "plugin": {**sizes, "path": found.get(PLUGIN)}}
    return typed(config)
