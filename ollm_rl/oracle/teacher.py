"""Teacher forcing: latents picked with the gold solution in sight. Can the options say what a teacher would?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ollm_rl.errors import DataError
from ollm_rl.evaluation.metrics import breakdown, degeneration, share
from ollm_rl.evaluation.records import TEACHER, TeacherFigures
from ollm_rl.evaluation.rows import Row
from ollm_rl.options.hidden_cache import compute_hidden_states
from ollm_rl.options.quality import moved
from ollm_rl.rollout.episode import Episode, pack
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem

PICKERS = ("encoder", "cover")


class _Following:
    """A policy for one text: these latents in order, then the prior's first choices.

    It knows its place in the text, so it serves once, and only where it was made: sent to a worker, it would go on from the
    middle when the worker's work is done again.
    """

    def __init__(self, latents: Sequence[int], session: Session):
        self._left, self._session = iter(latents), session

    def __call__(self, hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        z = next(self._left, None)
        if z is None:
            best = self._session.plugin.prior_logits(hidden, mask).argmax(-1)
        else:
            best = torch.full((len(hidden),), z, device=hidden.device)
        return best, torch.zeros(len(hidden), device=hidden.device)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a policy that keeps its place is not sent; send the latents, and let `play` make it there")


def play(
    session: Session,
    texts: Sequence[tuple[Request, Sequence[int]]],
    skip_forced: bool = True,
    keep_hidden: bool = True,
) -> list[Episode]:
    """Episodes of requests that follow given latents: at their decision points, or at every token unless `skip_forced`."""
    requests = [replace(request, act=_Following(latents, session)) for request, latents in texts]
    return session.rollout(requests, _Following([], session), skip_forced=skip_forced, keep_hidden=keep_hidden)


def played(session: Session, texts: Sequence[tuple[Request, Sequence[int]]]) -> Iterator[dict[str, Any]]:
    """`play` for `Session.map`: each episode as `pack` has it."""
    yield from (pack([episode]) for episode in play(session, texts))


@torch.inference_mode()
def teacher_forced(session: Session, problems: Sequence[Problem], picker: str = "encoder", seed: int = 0) -> Row:
    """Pick a latent for every gold token, and play them.

    Args:
        picker: `encoder`: the plug-in's encoder, which has seen the gold token, picks its likeliest latent; `cover`: the
            lowest latent that says the gold token, if any does.
        seed: of the row.

    Returns:
        a row whose `teacher` has `exact_reproduction`, the share of gold solutions that the played latents say, to the
        token, and `tokens_reproduced`, the share of gold tokens that the picked options say after the gold beginning.

    Raises:
        DataError: a problem has no solution.
    """
    if not all(p.solution for p in problems):
        raise DataError(
            f"oracle.search=teacher_forced reads gold solutions; task '{session.task.name}' has problems without one. "
            "Choose another split (evaluate.split=) or task, or another search."
        )
    backbone, plugin, prompter = session.backbone, session.plugin, session.prompter
    states = compute_hidden_states(backbone, prompter, list(problems), plugin.config.shortlist, session.lm.reader)
    parts = [moved(states.block(at, at + 256), backbone.device) for at in range(0, len(states), 256)]
    says = torch.cat([session.lm.options(p.hidden).tokens == p.gold[:, None] for p in parts])  # (N, K)
    if picker == "encoder":
        picked = torch.cat([plugin.encoder_logits(p.hidden, backbone.head.weight[p.gold]).argmax(-1) for p in parts])
    else:
        picked = says.float().argmax(-1)
    reproduced = says.gather(1, picked[:, None]).float().mean()
    owner, picked = states.owner.cpu(), picked.cpu()
    latents = [picked[owner == i].tolist() for i in range(len(problems))]
    room = session.engine.max_new_tokens
    texts = [
        (Request(p, i, max_new_tokens=max(1, min(len(z), room))), z)
        for i, (p, z) in enumerate(zip(problems, latents, strict=True))
    ]
    episodes = play(session, texts, skip_forced=False, keep_hidden=False)
    gold = [prompter.encode_solution(p.solution or "") for p in problems]
    same = [e.tokens == g for e, g in zip(episodes, gold, strict=True)]
    right = [e.solved for e in episodes]
    whole, exact = share(sum(right), len(right)), share(sum(same), len(same))
    return Row(
        agent=f"{TEACHER}_{picker}",
        seed=seed,
        n_problems=whole.n,
        accuracy=whole.accuracy,
        accuracy_ci95=whole.accuracy_ci95,
        teacher=TeacherFigures(
            exact_reproduction=exact.accuracy,
            exact_reproduction_ci95=exact.accuracy_ci95,
            tokens_reproduced=float(reproduced),
            tokens_covered=float(says.any(-1).float().mean()),
            mean_tokens=sum(len(e.tokens) for e in episodes) / len(episodes),
        ),
        **degeneration(episodes),
        breakdown=breakdown(list(zip(problems, right, strict=True))),
    )
