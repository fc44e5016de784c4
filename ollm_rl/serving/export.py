"""Export: a trained policy as a directory that `transformers` loads as an ordinary model (docs/export.md)."""

import copy
import json
import logging
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ollm_rl.common.folders import obstacle
from ollm_rl.common.run_config import today
from ollm_rl.common.run_dir import CONFIG, RESULTS
from ollm_rl.config.typed import choice, typed
from ollm_rl.errors import CheckpointError, ConfigurationError, DataError
from ollm_rl.evaluation.overview import is_graded
from ollm_rl.evaluation.results import Results, Row
from ollm_rl.options.config import EXPORT_KINDS
from ollm_rl.options.hf import BACKBONE, OptionLMConfig, OptionLMForCausalLM
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.reward.config import SOLVED_AT
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.serving.config import ExportConfig
from ollm_rl.session.agent import Agent, answers_itself
from ollm_rl.session.local import Session
from ollm_rl.session.saving import as_yaml, description
from ollm_rl.tasks import SPLITS, Problem
from ollm_rl.tasks.chat_template import chat_template, differences, tokenizer_with

log = logging.getLogger(__name__)

CARD = "README.md"
TRIED = 20  # problems whose prompts are compared with what the exported chat template makes of them
LOOKED_AT = 64  # states at which predictions are compared
DRAWN = 50  # likeliest tokens that transformers draws from where nothing is said
# Of the backbone that comes from a package: what it is called on the hub, and its licence.
ON_HUB = {"smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}


def export(
    agent: Agent,
    out: str | Path,
    kind: str = ExportConfig.kind,
    bundle: bool = ExportConfig.bundle,
    push_to_hub: str | None = ExportConfig.push_to_hub,
) -> Path:
    """Write an agent as an ordinary model of transformers: weights, tokenizer with the task's prompt as its chat template, and a card.

    >>> ol.export(ol.load_agent("runs/first/policy"), "first")
    >>> import ollm_rl.options.hf, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("first")

    Args:
        out: the directory, new or an earlier export. kind, bundle: as in `ExportConfig`.
        push_to_hub: a repository of the hub to which it is uploaded as well.

    Returns:
        the directory.

    Raises:
        ConfigurationError: the agent is no latent policy that follows from the states alone, or `out` holds something else.
    """
    if kind not in EXPORT_KINDS:
        raise ConfigurationError(f"kind={kind}; expected one of {', '.join(EXPORT_KINDS)}")
    path = Path(out).expanduser().resolve()
    _check_free(path)
    model, tokenizer = exported(agent, kind)
    backbone = agent.session.backbone
    new = path.with_name(f".{path.name}.new")  # an earlier export stays until this one is whole
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    model.generation_config.to_json_file(new / "generation_config.json")
    tokenizer.save_pretrained(new)
    if bundle:
        backbone.model.save_pretrained(new / BACKBONE)
        backbone.tokenizer.save_pretrained(new / BACKBONE)
    else:
        for named in (backbone.name, backbone.adapter):
            if named is not None and Path(named).exists():
                log.warning("%s names %s, a directory of this machine: bundle=true takes it along", path, named)
    (new / CARD).write_text(card(agent, kind, bundle, path))
    _replace(path, new)
    if push_to_hub is not None:
        _upload(path, push_to_hub)
    return path


def _replace(path: Path, new: Path) -> None:
    """Put a whole export in the place of an earlier one; what else lies there, such as a clone's `.git`, stays."""
    path.mkdir(exist_ok=True)
    for name in ("policy.safetensors", "policy.json", "conversion.json"):  # which not every export has
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / BACKBONE, ignore_errors=True)
    for file in new.iterdir():
        file.replace(path / file.name)
    new.rmdir()


def exported(agent: Agent, kind: str = ExportConfig.kind) -> tuple[OptionLMForCausalLM, PreTrainedTokenizerBase]:
    """What `export` writes, in memory: the model, and the tokenizer that asks as the task does."""
    session = agent.session
    if session.lm is None:
        raise ConfigurationError("an export needs the model in its own process; use rollout=local")
    policy = policy_of(agent) if kind == "policy" else None
    plugin = copy.copy(session.plugin)
    # What the engine's reader leaves out is what this task's prompts begin with.
    plugin.prefix = session.prompter.prefix
    model = OptionLMForCausalLM.of(session.backbone, plugin, policy)
    tokenizer = tokenizer_with(chat_template(session.prompter), session.backbone.tokenizer)
    _compare_prompts(session, tokenizer)
    eos = session.backbone.eos_ids
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    # Nothing of what the backbone's makers found to be good sampling: greedy, or the policy's own distribution.
    model.generation_config = GenerationConfig(
        max_new_tokens=session.engine_settings["max_new_tokens"], do_sample=False, eos_token_id=eos, pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    if session.plugin.num_options > DRAWN:
        model.generation_config.top_k = session.plugin.num_options
    return model, tokenizer


def policy_of(agent: Agent) -> LatentPolicy:
    """The policy of an agent that is nothing else: pi(z | h) by a net on the states.

    Raises:
        ConfigurationError: it is more than that, or not that.
    """
    policy, inner = getattr(agent, "policy", None), getattr(agent, "agent", agent)
    if why := why_not_alone(agent):
        raise ConfigurationError(
            f"agent {type(inner).__qualname__} cannot leave as kind=policy: {why}. Export one of grpo, ppo, distill and prior, or kind=mixture. "
            "An adapter of LoRA is a model of peft already: merge it there."
        )
    assert isinstance(policy, LatentPolicy)
    return policy


def why_not_alone(agent: Agent) -> str:
    """Why an agent is more than a latent policy that follows from the states alone, or none; empty if it is one."""
    policy = getattr(agent, "policy", None)
    inner = getattr(agent, "agent", agent)  # of a class that inherits nothing
    why = ""
    if agent.acts_on_logits or not isinstance(policy, LatentPolicy):
        why = "it chooses without a latent policy"
    elif type(policy) is not LatentPolicy:
        why = f"its {type(policy).__name__} is more than a net on the states"
    elif hasattr(PolicyAdapter(agent, True), "sees"):
        why = "it looks at tokens"
    elif getattr(type(inner), "request", Agent.request) is not Agent.request:
        why = "it starts or ends its texts in a way of its own"
    elif answers_itself(agent):
        why = "it searches"
    elif not _follows(agent, policy):
        why = "it does not predict what its policy finds likeliest"
    return why


@torch.inference_mode()
def _follows(agent: Agent, policy: LatentPolicy) -> bool:
    """Whether an agent predicts what its policy finds likeliest, at states as they are common."""
    scale, draw = policy.standardize, torch.Generator().manual_seed(0)
    states = torch.randn(LOOKED_AT, policy.hidden_size, generator=draw).to(scale.mean.device) * scale.std + scale.mean
    mask = torch.rand(LOOKED_AT, policy.num_options, generator=draw).to(scale.mean.device) < 0.7
    mask[:, 0] = True
    predicted, _ = PolicyAdapter(agent, True)(states, mask, torch.zeros(LOOKED_AT, device=scale.mean.device))
    return torch.equal(predicted, policy(states, mask).argmax(-1))


def is_export(path: Path) -> bool:
    """Whether a directory holds an exported model."""
    try:
        facts = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("model_type") == OptionLMConfig.model_type


def _check_free(path: Path) -> None:
    if not path.is_file() and (wrong := obstacle(path)):
        raise ConfigurationError(
            f"out={path}: {wrong}. Expected a directory that you may write, or the name of a new one."
        )
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"out={path} is a file; expected a directory")
    if path.is_dir() and any(path.iterdir()) and not (is_export(path) and (path / CARD).exists()):
        raise ConfigurationError(
            f"out={path} holds something that is no export; expected a new directory, or an earlier export"
        )


def _compare_prompts(session: Session, tokenizer: Any) -> None:
    """Say it if the exported chat template does not ask as the task does."""
    problems = _some_problems(session, TRIED)
    if wrong := differences(session.prompter, tokenizer, problems):
        log.warning(
            "the exported chat template asks otherwise than the task at %d of %d problems (%s first), perhaps by tokens that "
            "the tokenizer merges across the end of the examples", len(wrong), len(problems), wrong[0].id,
        )  # fmt: skip


def _upload(path: Path, repository: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=path, commit_message="Export from ollm_rl")
    except Exception as error:  # the hub's client raises many kinds for one cause
        raise CheckpointError(
            f"push_to_hub={repository}: the hub did not take it ({type(error).__name__}: {error}). The export is in {path}; log in with "
            "`hf auth login` and repeat."
        ) from error


def card(agent: Agent, kind: str, bundle: bool, path: Path) -> str:
    """The model card of the export in `path`: what it is, how to run it, what it scores, and how it was made."""
    session = agent.session
    name, task = session.backbone.name, session.task.name
    hub, licence = ON_HUB.get(name, (name if "/" in name and not Path(name).exists() else None, None))
    front = {
        "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["option-language-model", "latent-policy", "reinforcement-learning"],
    }  # fmt: skip
    front |= {"base_model": hub} if hub else {}
    front |= {"license": licence} if licence else {}
    who = type(getattr(agent, "agent", agent)).__qualname__
    what = {
        "policy": f"Its logits are the log-probabilities of the latent policy that {who} trained on `{task}`: at every token the plug-in offers "
        f"{session.plugin.num_options} options, and the policy says which.",
        "mixture": f"Its logits are the mixture over the {session.plugin.num_options} latents of the plug-in under its prior, converted on `{task}`.",
    }[kind]
    weights = (
        "The weights of the backbone are in `backbone/`."
        if bundle
        else f"It needs the backbone `{name}`, whose weights are not here."
    )
    some = _some_problems(session, 1)
    problem = json.dumps(some[0].problem if some else "...", ensure_ascii=False)
    found = description(agent)
    made = {"agent": found["_target_"], **{key: found[key] for key in ("settings", "task", "reward", "seed")}}
    made = _without_places(made)
    row = None if kind != "policy" else _row_of(agent)
    return "\n".join([
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {who} on {task}, over {name}\n",
        f"A frozen `{name}` with the plug-in of an option language model (arXiv 2604.19087). {what} {weights}\n",
        "```python",
        "import ollm_rl.options.hf  # pip install ollm_rl; registers the model with transformers",
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
        'path = "<this directory>"',
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)",
        f"question = [{{\"role\": \"user\", \"content\": {problem}}}]",
        'inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        'print(tokenizer.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```\n",
        "The chat template puts the examples that it was trained with before the question. `generate` gives the likeliest text; with "
        "`do_sample=True` it draws from the policy.\n" if kind == "policy" else "The chat template puts the task's examples before the question.\n",
        *_scores(row, found["reward"] or {}),
        "## How it was made\n",
        *_commands(agent, kind, row, path),
        f"```yaml\n{yaml.safe_dump(made, sort_keys=False, allow_unicode=True)}```\n",
        "The backbone keeps its own licence"
        + (f" ({licence})" if licence else "")
        + "; plug-in and policy have that of whoever trained them.",
    ]) + "\n"  # fmt: skip


def _commands(agent: Agent, kind: str, row: Row | None, path: Path) -> list[str]:
    """What is typed to train it and to measure it again, with every setting that differs from its default, for the directory that the export
    was made from; nothing where nobody can say it (a task or an agent that has no name)."""
    found = _configuration(agent)
    if not found.get("task") or not found.get("reward") or "<" in str(found["agent"]["_target_"]):
        return []
    if row is not None:
        measured = {"num_problems": row.n_problems, **({"samples": max(row.sampled)} if row.sampled else {})}
        found["evaluate"] = {**measured, **found.get("evaluate", {})}
    said = typed(_without_places(found))
    common = [o for name, some in said.items() if name != "agent" for o in some]
    from_policy = [f"policy={_place(found['policy'])}"] if found.get("policy") else []
    train = ["train", *said["agent"], *common, *from_policy, f"seed={agent.session.seed}"]
    here = _place(str(path)) if path.is_relative_to(Path.cwd()) else "<this directory>"
    again = ["evaluate", *(said["agent"] if kind == "policy" else ["agent=prior"])]
    again += [o for o in common if not o.startswith("plugin.path=")]
    again += [*([f"policy={here}"] if kind == "policy" else []), f"plugin.path={here}"]
    again.append(f"seed={agent.session.seed if row is None else row.seed}")
    where = "In the directory that it was exported in; files outside of it are named by their last part:\n"
    return [where, "```", shlex.join(["ollm-rl", *train]), shlex.join(["ollm-rl", *again]), "```\n"]


def _configuration(agent: Agent) -> dict[str, Any]:
    """The settings that an agent was made with: those of its run, and of what its run does not say those that the agent has itself."""
    own = OmegaConf.to_container(OmegaConf.create(as_yaml(description(agent))))
    file = None if agent.run_dir is None else agent.run_dir / CONFIG
    kept = OmegaConf.to_container(today(file.read_text(errors="replace"), str(file))) if file and file.is_file() else {}
    assert isinstance(own, dict) and isinstance(kept, dict)
    found = {str(key): value for key, value in {**own, **kept}.items()}
    if not isinstance(
        found.get("plugin"), dict
    ):  # of an agent that was not trained by a command: where it is on this machine
        found.pop("plugin", None)
    found["backbone"].pop("fingerprint", None)
    return found


def _without_places(value: Any) -> Any:
    """Settings in which a file or directory of this machine is named as `_place` does."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    is_place = isinstance(value, str) and "/" in value and len(value) < 4096 and Path(value).expanduser().exists()
    return _place(value) if is_place else value


def _place(value: str) -> str:
    """A file or directory as seen from the working directory, if it is within, else its name only: a card is read elsewhere."""
    path = Path(value).expanduser()
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.name if path.is_absolute() else str(path)


def _some_problems(session: Session, n: int) -> list[Problem]:
    """Of the last split that has any: data of one's own need not have every split."""
    for split in reversed(SPLITS):
        try:
            return session.problems(split, n)
        except DataError:
            continue
    return []


def _scores(row: Row | None, reward: dict[str, Any]) -> list[str]:
    """The table of what its run measured; nothing if it is of no run, or leaves as something else than what was measured.

    Args:
        reward: its settings, with what it is under `_target_`.
    """
    if row is None:
        return []
    named = f"`{choice('reward', reward)}`" if reward else "a function without a name"
    solved_at = reward.get("solved_at", SOLVED_AT)
    lines = [
        "## What it scores\n",
        f"On {row.n_problems} held-out problems (`results.json` of its run, seed {row.seed}); intervals are 95%. The reward is {named}. A text is "
        f"solved from a reward of {solved_at:g} on (`reward.solved_at`), and accuracy is the share of solved texts.\n",
        "| figure | value |\n|---|---|",
        f"| greedy accuracy | {_with(row.accuracy, row.accuracy_ci95)} |",
    ]
    if row.before is not None:
        lines.append(f"| greedy accuracy before training | {_with(row.before.accuracy, row.before.accuracy_ci95)} |")
    if is_graded(row) or (row.before is not None and is_graded(row.before)):
        for when, found in (("", row), (" before training", row.before)):
            if found is not None and found.mean_reward is not None:
                lines.append(
                    f"| mean reward of greedy texts{when} | {_with(found.mean_reward, found.mean_reward_ci95)} |"
                )
    for k, each in list(row.sampled.items())[-1:]:  # of all texts that were drawn
        for name, value, interval in (
            ("avg", each.avg, each.avg_ci95), ("pass", each.pass_, each.pass_ci95), ("maj", each.maj, each.maj_ci95),
        ):  # fmt: skip
            if value is not None:
                lines.append(f"| {name}@{k} | {_with(value, interval)} |")
    return [*lines, ""]


def _with(value: float, interval: Any) -> str:
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _row_of(agent: Agent) -> Row | None:
    """What the run in which it was trained measured of it."""
    place = agent.run_dir
    if place is None or not (place / RESULTS).is_file():
        return None
    rows = Results.load(place).rows
    return rows[0] if len(rows) == 1 else None
