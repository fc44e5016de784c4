"""What the options say: along gold solutions position by position, per latent over a data set, and for one prompt.

Gold tokens are forced through the rollout engine, so that the options shown are the engine's.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ollm_rl.evaluation.replay import replay
from ollm_rl.options.enumeration import Options
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.session.agent import Agent
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem

AT_ONCE = 32  # solutions that are forced through the engine side by side
CONTEXT = 24  # characters before a token that are kept as its context


@dataclass
class Position:
    """One token of a gold solution.

    Attributes:
        token, text: the gold token and what it reads.
        context: the characters before it.
        options: (latent, token, text, prior probability) of every distinct token that the options decode to; the latent
            is the lowest-numbered that gives it, and the probabilities are among these latents, as agents choose.
        prior: the token of the prior's first choice.
        encoder: the latent that the encoder finds likeliest, given the gold token.
        encoder_token: what that latent decodes to.
        entropy: of the backbone, in nats.
    """

    token: int
    text: str
    context: str
    options: list[tuple[int, int, str, float]]
    prior: int
    encoder: int
    encoder_token: int
    entropy: float

    @property
    def covered(self) -> bool:
        """Some option says the gold token."""
        return any(token == self.token for _, token, _, _ in self.options)

    @property
    def decision(self) -> bool:
        """The options say different things."""
        return len(self.options) > 1


def inspect_problems(session: Session, problems: list[Problem]) -> list[list[Position]]:
    """The positions of the problems' gold solutions, the end-of-text token included."""
    found: list[list[Position]] = []
    for start in range(0, len(problems), AT_ONCE):
        found += _inspected(session, problems[start : start + AT_ONCE])
    return found


@torch.inference_mode()
def _inspected(session: Session, problems: list[Problem]) -> list[list[Position]]:
    prompter = session.prompter
    gold = [prompter.encode_solution(p.solution or "") for p in problems]
    engine = session.new_engine(num_slots=len(problems), max_new_tokens=max(map(len, gold)) + 1)
    engine.admit([prompter.encode(p) for p in problems])
    found: list[list[Position]] = [[] for _ in problems]
    active = list(range(len(problems)))
    at = 0
    while active:
        x = torch.tensor([gold[i][at] for i in active], device=engine.device)
        seen = _positions(session, engine.hidden, engine.logits, engine.options, x)
        for i, position in zip(active, seen, strict=True):
            position.context = prompter.tokenizer.decode(gold[i][:at])[-CONTEXT:]
            found[i].append(position)
        at += 1
        order = engine.release(torch.tensor([len(gold[i]) == at for i in active], device=engine.device))
        active = [active[row] for row in order.tolist()]
        if active:
            engine.advance(torch.tensor([gold[i][at - 1] for i in active], device=engine.device))
    return found


def _positions(session: Session, hidden: Tensor, logits: Tensor, options: Options, x: Tensor) -> Iterator[Position]:
    """A position for each of the states (n, d) with their options and gold tokens `x` (n,)."""
    plugin, decode = session.plugin, session.backbone.tokenizer.decode
    prior = plugin.prior_logits(hidden, options.mask).softmax(-1)
    picks = plugin.encoder_logits(hidden, session.backbone.head.weight[x]).argmax(-1).tolist()
    log_p = logits.float().log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    for row, gold in enumerate(x.tolist()):
        tokens = options.tokens[row].tolist()
        yield Position(
            token=gold,
            text=decode([gold]),
            context="",
            options=[
                (z, tokens[z], decode([tokens[z]]), float(prior[row, z]))
                for z in options.mask[row].nonzero()[:, 0].tolist()
            ],
            prior=tokens[int(prior[row].argmax())],
            encoder=picks[row],
            encoder_token=tokens[picks[row]],
            entropy=float(entropies[row]),
        )


@dataclass
class Meaning:
    """What a latent tends to mean at decision points.

    Attributes:
        picked: share of the decision points at which the encoder picks it.
        tokens: (text, count, lift): what it says most typically where it is picked; the lift is the token's share
            there over its share at all decision points.
        contexts: (text before, token) of some of these positions.
    """

    latent: int
    picked: float
    tokens: list[tuple[str, int, float]]
    contexts: list[tuple[str, str]]


def latent_meanings(positions: list[list[Position]], num_options: int, shown: int = 6) -> list[Meaning]:
    """A meaning for every latent, from the positions at which the encoder's pick says the gold token."""
    points = [p for solution in positions for p in solution if p.decision and p.encoder_token == p.token]
    overall = Counter(p.text for p in points)
    meanings = []
    for z in range(num_options):
        mine = [p for p in points if p.encoder == z]
        counts = Counter(p.text for p in mine)
        lift = {t: (n / len(mine)) / (overall[t] / len(points)) for t, n in counts.items()}
        typical = sorted((t for t in counts if lift[t] >= 1), key=lambda t: (-lift[t] * counts[t], t))[:shown]
        contexts = [(p.context, p.text) for p in mine if p.text in typical[:3]][:3]
        tokens = [(t, counts[t], lift[t]) for t in typical]
        meanings.append(Meaning(z, len(mine) / max(1, len(points)), tokens, contexts))
    return meanings


def inspect_prompt(session: Session, prompt: str, agent: Agent | None = None) -> dict[str, Any]:
    """The greedy answer of an agent, or of the prior, to a prompt, with what every option would have said; as `replay` gives it.

    Args:
        agent: one that chooses latents in this session; None: the prior.
    """

    def act(hidden: Tensor, mask: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        z = session.plugin.prior_logits(hidden, mask).argmax(-1)
        return z, torch.zeros(len(z), device=z.device)

    problem = Problem("prompt", prompt, "")
    request = Request(problem) if agent is None else agent.request(problem, 0, True)
    _, episode = next(iter(rollout(session.engine, [request], act, keep_hidden=False)))
    return replay(session, [episode])[0]
