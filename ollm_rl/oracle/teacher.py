"""Teacher forcing: latents picked with the gold solution in sight. Can the options say what a teacher would?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ollm_rl.errors import DataError
from ollm_rl.evaluation import breakdown, misbehaviour, wilson
from ollm_rl.hidden_cache import compute_hidden_states
from ollm_rl.option_quality import moved
from ollm_rl.rollout import Act, Request
from ollm_rl.tasks import Problem
from ollm_rl.workspace import Workspace

PICKERS = ("encoder", "cover")


def following(latents: Sequence[int], workspace: Workspace) -> Act:
    """A policy for one episode: these latents in order, then the prior's first choices."""
    given = iter(latents)

    def act(hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        z = next(given, None)
        if z is None:
            best = workspace.plugin.prior_logits(hidden).masked_fill(~mask, -1e9).argmax(-1)
        else:
            best = torch.full((len(hidden),), z, device=hidden.device)
        return best, torch.zeros(len(hidden), device=hidden.device)

    return act


@torch.inference_mode()
def teacher_forced(workspace: Workspace, problems: Sequence[Problem], picker: str = "encoder") -> dict:
    """Pick a latent for every gold token, and play them.

    Args:
        picker: `encoder`: the plug-in's encoder, which has seen the gold token, picks its likeliest latent; `cover`: the
            lowest latent that says the gold token, if any does.

    Returns:
        a row of `results.json`; `exact_reproduction` is the share of gold solutions that the played latents say, to the
        token, and `tokens_reproduced` the share of gold tokens that the picked options say after the gold beginning.

    Raises:
        DataError: a problem has no solution.
    """
    if not all(p.solution for p in problems):
        raise DataError(
            f"oracle.search=teacher_forced reads gold solutions; task '{workspace.task.name}' has problems without one. "
            "Choose another split (evaluate.split=) or task, or another search."
        )
    backbone, plugin, prompter = workspace.backbone, workspace.plugin, workspace.prompter
    states = compute_hidden_states(backbone, prompter, list(problems), plugin.config.shortlist)
    parts = [moved(states.block(at, at + 256), backbone.device) for at in range(0, len(states), 256)]
    says = torch.cat([workspace.lm.options(p.hidden).tokens == p.gold[:, None] for p in parts])  # (N, K)
    if picker == "encoder":
        picked = torch.cat([plugin.encoder_logits(p.hidden, backbone.head.weight[p.gold]).argmax(-1) for p in parts])
    else:
        picked = says.float().argmax(-1)
    reproduced = says.gather(1, picked[:, None]).float().mean()
    owner, picked = states.owner.cpu(), picked.cpu()
    latents = [picked[owner == i].tolist() for i in range(len(problems))]
    room = workspace.engine.max_new_tokens
    requests = [
        Request(p, i, following(z, workspace), max(1, min(len(z), room)))
        for i, (p, z) in enumerate(zip(problems, latents, strict=True))
    ]
    episodes = workspace.rollout(requests, following([], workspace), skip_forced=False, keep_hidden=False)
    gold = [prompter.encode_solution(p.solution or "") for p in problems]
    same = [e.tokens == g for e, g in zip(episodes, gold, strict=True)]
    right = [e.solved for e in episodes]
    n = len(problems)
    return {
        "agent": f"teacher_forced_{picker}", "search": "teacher_forced", "n_problems": n,
        "accuracy": sum(right) / n, "accuracy_ci95": list(wilson(sum(right), n)), "avg_at_8": None, "pass_at_8": None,
        "exact_reproduction": sum(same) / n, "exact_reproduction_ci95": list(wilson(sum(same), n)),
        "tokens_reproduced": float(reproduced), "tokens_covered": float(says.any(-1).float().mean()),
        "mean_tokens": sum(len(e.tokens) for e in episodes) / n, **misbehaviour(episodes),
        "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0,
        "breakdown": breakdown(list(zip(problems, right, strict=True))),
    }  # fmt: skip
