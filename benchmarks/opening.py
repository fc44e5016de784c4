"""A control for what is learned on `chain_sum`: the prior with its first token set to the first number of the problem, and nothing else.

    python benchmarks/opening.py PLUGIN [--problems 100] [--seeds 0 1 2] [--split test] [--samples 8]

That token begins with a step instead of the answer. Beside it stands the prior as it is, on the same problems. Prints one JSON line last.
"""

import argparse
import json
import sys

import numpy as np
import torch
from torch import Tensor

import ollm_rl as ol
from agents.prior import Prior
from ollm_rl.evaluation.metrics import bootstrap, results_row
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.sampler import Act, Request
from ollm_rl.tasks import Problem


class Opened:
    """A policy for one text: this latent first (None: as the rest), then another policy's choices."""

    def __init__(self, first: int | None, rest: Act):
        self.first, self.rest = first, rest

    def __call__(self, hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        first, self.first = self.first, None
        if first is None:
            return self.rest(hidden, mask, uniforms)
        return torch.full((len(hidden),), first, device=hidden.device), torch.zeros(len(hidden), device=hidden.device)


def openings(session: ol.Session, problems: list[Problem]) -> list[int | None]:
    """The latent that says each problem's first number as the first token; None where no option says it."""
    prompter, engine = session.prompter, session.engine
    prompts = [prompter.encode(p) for p in problems]
    engine.clear()
    engine.make_room(max(map(len, prompts)))
    engine.admit(prompts)
    found: list[int | None] = []
    for i, problem in enumerate(problems):
        first = prompter.encode_solution(problem.extra["metadata"]["expression"].split()[0])[0]
        says = (engine.options.tokens[i] == first) & engine.options.mask[i]
        found += says.nonzero()[:1, 0].tolist() or [None]
    return found


def played(
    session: ol.Session, problems: list[Problem], firsts: list[int | None] | None, samples: int, seed: int
) -> tuple[list[Episode], list[Episode]]:
    """Greedy episodes and `samples` sampled ones of each problem, of the prior with these first latents (None: its own)."""
    prior = Prior(session)
    seeds = np.random.default_rng(seed).integers(2**31, size=(len(problems), samples)).tolist()
    begun = firsts or [None] * len(problems)
    greedy, drawn = PolicyAdapter(prior, True), PolicyAdapter(prior, False)

    def act(i: int, rest: Act) -> Act:
        return rest if firsts is None else Opened(begun[i], rest)  # one policy for all shares rows

    one = [Request(p, i, act(i, greedy)) for i, p in enumerate(problems)]
    many = [Request(p, s, act(i, drawn)) for i, p in enumerate(problems) for s in seeds[i]]
    return session.rollout(one, greedy, keep_hidden=False), session.rollout(many, drawn, keep_hidden=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", default="test")
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()
    backbone, task = ol.load_backbone("smollm2"), ol.make_task("chain_sum")
    session = ol.Session(backbone, ol.PlugIn.from_pretrained(given.plugin, backbone), task)
    episodes: dict[str, tuple[list[Episode], list[Episode]]] = {"opened": ([], []), "prior": ([], [])}
    slots = session.engine.num_slots
    for seed in given.seeds:
        problems = session.problems(given.split, given.problems, seed)
        firsts = [z for at in range(0, len(problems), slots) for z in openings(session, problems[at : at + slots])]
        for name, first in (("opened", firsts), ("prior", None)):
            for kept, new in zip(episodes[name], played(session, problems, first, given.samples, seed), strict=True):
                kept += new
    session.close()
    k, command = given.samples, " ".join(["python", *sys.argv])
    rows = [results_row(name, greedy, sampled, k) for name, (greedy, sampled) in episodes.items()]
    figures = ("agent", "accuracy", "accuracy_ci95", f"avg@{k}", f"pass@{k}")
    found = [{key: row.to_dict()[key] for key in figures if key in row.to_dict()} for row in rows]
    paired = {}
    if k:
        best = [np.array([e.solved for e in sampled]).reshape(-1, k).max(1) for _, sampled in episodes.values()]
        ids = [e.problem.id for e in episodes["prior"][0]]
        paired = {f"pass_at_{k}_difference": vars(bootstrap(best[0].astype(float) - best[1], ids))}
    print(json.dumps({"command": command, "n": rows[0].n_problems, "rows": found, **paired}))


if __name__ == "__main__":
    main()
