"""Finished episodes looked at again: at every token, what the other options would have said."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ollm_rl.evaluation.records import Changes
from ollm_rl.options.enumeration import NO_LATENT
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.episode import Episode
from ollm_rl.session.local import Session

AT_ONCE = 64  # episodes
BEGINNING = "(beginning)"  # in place of a token before the first
SHOWN = 4  # solved and failed episodes of an agent


@torch.inference_mode()
def replay(session: Session, episodes: list[Episode]) -> list[dict[str, Any]]:
    """Run the episodes' tokens through the engine once more.

    Returns:
        a dict per episode: its record and `steps`, one per token: `token` (text), `latent` (-1 where the options
        agreed), `options` (the distinct tokens that the options decode to, as (latent, text, prior probability)).
    """
    if not episodes:
        return []
    engine = session.new_engine(num_slots=min(len(episodes), AT_ONCE))
    parts = [episodes[at : at + engine.num_slots] for at in range(0, len(episodes), engine.num_slots)]
    return [record for part in parts for record in _replay(session, engine, part)]


def _replay(session: Session, engine: RolloutEngine, episodes: list[Episode]) -> list[dict[str, Any]]:
    prompter, tokenizer = session.prompter, session.backbone.tokenizer
    engine.clear()
    engine.make_room(max(len(prompter.encode(e.problem)) for e in episodes))
    engine.admit([prompter.encode(e.problem) for e in episodes])
    active = list(range(len(episodes)))
    steps: list[list[dict[str, Any]]] = [[] for _ in episodes]
    position = 0
    while active:
        tokens, mask = engine.options.tokens, engine.options.mask
        prior = session.plugin.prior_logits(engine.hidden, mask).softmax(-1)
        for row, i in enumerate(active):
            offered = [
                (z, tokenizer.decode([int(tokens[row, z])]), round(float(prior[row, z]), 4))
                for z in mask[row].nonzero()[:, 0].tolist()
            ]
            token = episodes[i].tokens[position]
            latent = episodes[i].latents[position]
            steps[i].append({"token": tokenizer.decode([token]), "latent": latent, "options": offered})
        position += 1
        done = torch.tensor([len(episodes[i].tokens) == position for i in active], device=engine.device)
        order = engine.release(done)
        active = [active[row] for row in order.tolist()]
        if active:
            engine.advance(torch.tensor([episodes[i].tokens[position - 1] for i in active], device=engine.device))
    return [{**e.to_dict(), "steps": s} for e, s in zip(episodes, steps, strict=True)]


def shown(episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes that a report shows: some solved ones, then some failed ones. None without a token, as a search may leave."""
    episodes = [e for e in episodes if e.tokens]
    return [e for e in episodes if e.solved][:SHOWN] + [e for e in episodes if not e.solved][:SHOWN]


def changes(session: Session, episodes: list[Episode], most: int = 8) -> Changes:
    """What an agent does differently from the prior: at the decisions of its greedy episodes, against the prior's likeliest."""
    found = Counter[tuple[str, str]]()
    all_quarters, changed_quarters, after, changed_after = ([0] * 4, [0] * 4, Counter[str](), Counter[str]())
    for episode in replay(session, episodes):
        steps = episode["steps"]
        asked = [i for i, step in enumerate(steps) if step["latent"] != NO_LATENT and len(step["options"]) > 1]
        for number, i in enumerate(asked):
            quarter, before = 4 * number // len(asked), steps[i - 1]["token"] if i else BEGINNING
            _, favourite, _ = max(steps[i]["options"], key=lambda option: option[2])
            all_quarters[quarter] += 1
            after[before] += 1
            if favourite != steps[i]["token"]:
                found[favourite, steps[i]["token"]] += 1
                changed_quarters[quarter] += 1
                changed_after[before] += 1
    common = [(before, now, n) for (before, now), n in found.most_common(most)]
    return Changes(
        decisions=sum(all_quarters), changed=found.total() / max(sum(all_quarters), 1), most_common=common,
        by_quarter=[n / max(1, of) for n, of in zip(changed_quarters, all_quarters, strict=True)],
        after=[(token, after[token], n / after[token]) for token, n in changed_after.most_common(most)],
    )  # fmt: skip
