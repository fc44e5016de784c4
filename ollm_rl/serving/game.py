"""A game in which a person is the agent: one problem, the text so far, and at every decision point the options to choose from.

It goes by the engine as an environment does: forced positions run on by themselves, and the person is asked at decision points.
What is shown is plain data for JSON (`Game.state`). Nothing here knows of a browser.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ollm_rl.errors import ConfigurationError
from ollm_rl.options.enumeration import NO_LATENT
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.search import Search
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.offered import Offer, offered, piece
from ollm_rl.rollout.sampler import RECENT, Act
from ollm_rl.serving.config import PlayConfig
from ollm_rl.session.agent import Agent
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem

PATIENCE_S = 60.0  # for a search: whoever asked is waiting
YOU, PRIOR, POLICY, SEARCH = "you", "prior", "policy", "search"  # who chose a token


@dataclass
class _Decision:
    """What is known at the decision point where the game stands.

    Attributes:
        takes: the latent that the prior, and the policy if there is one, find best.
        likely: (K,) the policy's probabilities; None if it has none to show.
    """

    offers: list[Offer]
    takes: dict[str, int]
    likely: list[float] | None


class Game:
    """A person's episode on problems of a session; one at a time.

    >>> game = Game(session, agent)
    >>> game.state()["options"]
    >>> game.choose(3)
    >>> game.finish("policy")

    Args:
        agent: whose choices are shown beside the prior's, and which may go on from here.
        config: where problems come from, and how far a search goes.

    Raises:
        ConfigurationError: the agent chooses tokens and not latents.
        DataError: the split has no problems.

    Attributes:
        episode: the text so far. by: who chose each of its tokens; empty where nobody was asked.
        decision: what is to be chosen from; None once the text has ended.
        searched: how the last search went, until something is chosen.
    """

    episode: Episode
    by: list[str]
    decision: _Decision | None
    searched: dict[str, Any] | None

    def __init__(self, session: Session, agent: Agent | None = None, config: PlayConfig | None = None):
        if agent is not None and agent.acts_on_logits:
            raise ConfigurationError(
                f"agent {agent.target} chooses tokens, and play shows options; expected a policy that chooses latents, such as one of "
                "agent=grpo. Leave policy= out to play beside the prior."
            )
        self.session, self.agent, self.config = session, agent, config or PlayConfig()
        self.acts: dict[str, Act] = {PRIOR: Sampling(LatentPolicy.from_prior(session.plugin), deterministic=True)}
        if agent is not None:
            self.acts[POLICY] = PolicyAdapter(agent, deterministic=True)
        # An engine of its own: searches and whoever else has the session use that one's. The second row is for undoing.
        self.engine = session.new_engine(num_slots=2, kv_cache_gib=None)
        self.turn = 0  # grows with every change, so that a page can tell that it is behind
        self.split, self.index = self.config.split, -1
        self.new()

    def new(self, split: str | None = None, index: int | None = None) -> None:
        """Begin a problem.

        Args:
            split: where it comes from; None: the same as before.
            index: which of the split's problems, from 0; None: the next one, after the last the first.

        Raises:
            ConfigurationError: there is no such problem. DataError: there is none in that split.
        """
        at = self.split if split is None else split
        PlayConfig(split=at)  # which checks it
        problems = self.session.problems(at, self.config.num_problems)
        if index is None:
            index = (self.index + 1) % len(problems) if at == self.split else 0
        if not 0 <= index < len(problems):
            raise ConfigurationError(
                f"problem {index} of split {at}; expected 0 to {len(problems) - 1} (play.num_problems={self.config.num_problems})"
            )
        self.split, self.index, self.num_problems = at, index, len(problems)
        self.problem: Problem = problems[index]
        self.prompt = self.session.prompter.encode(self.problem)
        self.moves: list[int] = []  # how long the text was at every choice, for undoing
        self.engine.clear()
        self.engine.make_room(len(self.prompt))
        self._set(Episode(self.problem), [])
        self._return()
        self._run_on()

    def choose(self, latent: int) -> None:
        """Take an option, and run on to the next decision point or to the end, where the text is judged.

        Raises:
            ConfigurationError: it is none of those offered, or the text has ended.
        """
        decision = self._asked()
        known = [offer.latent for offer in decision.offers]
        if isinstance(latent, bool) or latent not in known:
            raise ConfigurationError(f"latent {latent!r:.40} is not offered here; expected one of {known}")
        self.moves.append(len(self.episode.tokens))
        self._feed(latent, YOU)
        self._run_on()

    def undo(self) -> None:
        """Back to where the last choice was made: one's own, or the one to let somebody else go on.

        Raises:
            ConfigurationError: none was.
        """
        if not self.moves:
            raise ConfigurationError("nothing was chosen yet, so there is nothing to undo")
        length = self.moves.pop()
        said = self.episode
        self._set(Episode(self.problem, 0, said.tokens[:length], said.latents[:length]), self.by[:length])
        self._return()
        self._run_on()

    def finish(self, by: str) -> None:
        """Let `policy` or `prior` choose from here to the end: at every decision point what it finds best.

        Raises:
            ConfigurationError: there is no such chooser, or the text has ended.
        """
        if by not in self.acts:
            has = "" if POLICY in self.acts else " (give policy=<directory> to have a policy)"
            raise ConfigurationError(f"by={by!r:.40}; expected one of {', '.join(self.acts)}{has}")
        decision: _Decision | None = self._asked()
        self.moves.append(len(self.episode.tokens))
        while decision is not None:
            self._feed(decision.takes[by], by)
            self._run_on()
            decision = self.decision

    def search(self, budget: int | None = None) -> None:
        """Search for a right text among those that begin as this one; the first found is the text then, else nothing changes.

        The search is the oracle's best-first tree search. It looks at the verdicts of the texts that it tries, which nobody who
        has to answer can do. It goes by the policy's probabilities, or by the prior's where the policy has none of states alone.

        Args:
            budget: tokens that it may generate; None: `play.search_budget`.

        Raises:
            ConfigurationError: the text has ended, or the budget is not a number from 1.
        """
        self._asked()
        most = self.config.search_budget if budget is None else budget
        PlayConfig(search_budget=most)  # which checks it
        by, policy = self._searching()
        begun = self.episode
        found = Oracle(self.session, policy, budget=most, max_seconds=PATIENCE_S).solve_from(
            self.problem, begun.tokens, begun.latents
        )
        solution = found.solution
        if solution is not None:
            self.moves.append(len(begun.tokens))
            new = [SEARCH if latent != NO_LATENT else "" for latent in solution.latents[len(begun.tokens) :]]
            self._set(solution, [*self.by, *new])
            self.decision = None
        self.searched = _told(found, most, by)
        self.turn += 1

    def state(self) -> dict[str, Any]:
        """All that there is to see, as plain data: problem, tokens with who chose them, options, and, once the text has ended, the verdict.

        `tokens` have the `latent` (-1 where the options agreed) and `by`: `you`, `prior`, `policy` or `search`, empty where nobody
        was asked. `options` are those of the decision point, with the probabilities of prior and policy (null if unknown); they are
        empty once the text has `ended`, which holds the answer, the gold one, and the verdict.
        """
        said, decision = self.episode, self.decision
        takes: dict[str, int] = {} if decision is None else decision.takes
        return {
            "turn": self.turn, "task": self.session.task.name, "backbone": self.session.backbone.name,
            "policy": None if self.agent is None else self.agent.target.rpartition(".")[2],
            "num_latents": self.session.plugin.num_options, "search_budget": self.config.search_budget,
            "split": self.split, "index": self.index, "num_problems": self.num_problems,
            "problem_id": self.problem.id, "problem": self.problem.problem,
            "tokens": [
                {"text": piece(self.engine, token), "latent": latent, "by": by, "ends": token in self.engine.eos_ids}
                for token, latent, by in zip(said.tokens, said.latents, self.by, strict=True)
            ],
            "max_new_tokens": self.engine.max_new_tokens, "num_choices": sum(map(bool, self.by)), "can_undo": bool(self.moves),
            "options": [] if decision is None else _options(decision),
            "prior_takes": takes.get(PRIOR), "policy_takes": takes.get(POLICY),
            "searched": self.searched, "ended": self._verdict() if said.stop else None,
        }  # fmt: skip

    def _asked(self) -> _Decision:
        """The decision that is to be made.

        Raises:
            ConfigurationError: the text has ended.
        """
        if self.decision is None:
            raise ConfigurationError("the text has ended; undo the last choice, or begin a new problem")
        return self.decision

    def _set(self, episode: Episode, by: list[str]) -> None:
        self.episode, self.by, self.searched = episode, by, None

    def _return(self) -> None:
        """The engine's row as it was when the text had come to where it is now, to the bit."""
        engine, said = self.engine, self.episode.tokens
        if not said:
            engine.clear()
            engine.admit([self.prompt])
            return
        # The keys and values of what it had said are in the row still: the last token alone is run through again.
        device = engine.device
        before = torch.tensor([len(self.prompt) + len(said) - 1], device=device)
        engine.fork(
            engine.restore(engine.kv, torch.tensor([0], device=device), before), torch.tensor(said[-1:], device=device)
        )

    def _feed(self, latent: int, by: str) -> None:
        """One token more."""
        engine, said = self.engine, self.episode
        token, recorded = int(engine.options.tokens[0, latent]), int(engine.options.latents[0, latent])
        said.append(token, recorded, engine.eos_ids, engine.max_new_tokens)
        self.by.append("" if recorded == NO_LATENT else by)
        self.searched = None
        if not said.stop:
            engine.advance(torch.tensor([token], device=engine.device))

    def _run_on(self) -> None:
        """Through forced positions to the next decision point, or to the end, where the text is judged."""
        self.turn += 1
        self.decision = None
        while not self.episode.stop and not bool(self.engine.options.decision[0]):
            self._feed(0, "")
        if not self.episode.stop:
            self.decision = self._look()
            return
        self.episode.text = self.session.prompter.decode(self.episode.tokens)
        self.episode.judged = False  # until it is, for a reward may fail
        self.session.judge([self.episode], self.session.prompter)

    @torch.inference_mode()
    def _look(self) -> _Decision:
        engine, mask = self.engine, self.engine.options.mask
        uniforms = torch.zeros(1, device=engine.device)  # nobody draws: choices are the best ones
        takes = {name: int(act(self._seen(act), mask, uniforms)[0]) for name, act in self.acts.items()}
        policy = self.acts.get(POLICY)
        found = policy.log_probs(self._seen(policy), mask) if isinstance(policy, PolicyAdapter) else None
        return _Decision(offered(engine), takes, None if found is None else found[0].exp().tolist())

    def _seen(self, act: Act) -> Tensor:
        """The states (1, s) as a policy sees them."""
        sees = getattr(act, "sees", None)
        if sees is None:
            return self.engine.hidden
        recent = [*self.prompt, *self.episode.tokens][-RECENT:]
        seen: Tensor = sees(self.engine.hidden, torch.tensor([recent], device=self.engine.device))
        return seen

    def _searching(self) -> tuple[str, Any]:
        """Whose probabilities a search goes by, and what gives them."""
        act = self.acts.get(POLICY)
        if isinstance(act, PolicyAdapter) and not hasattr(act, "sees"):
            hidden, mask = self.engine.hidden, self.engine.options.mask
            if act.log_probs(hidden, mask) is not None:
                assert self.agent is not None
                return POLICY, self.agent.policy
        return PRIOR, LatentPolicy.from_prior(self.session.plugin)

    def _verdict(self) -> dict[str, Any]:
        said = self.episode
        return {
            "text": said.text, "answer": said.answer, "gold": self.problem.answer, "solved": said.solved, "reward": said.reward,
            "verdict": said.verdict, "judged": said.judged, "stop": said.stop,
        }  # fmt: skip


def _options(decision: _Decision) -> list[dict[str, Any]]:
    likely = decision.likely
    return [
        {
            "latent": offer.latent, "text": offer.text, "ends": offer.ends, "prior": offer.prior,
            "policy": None if likely is None else likely[offer.latent],
        }
        for offer in decision.offers
    ]  # fmt: skip


def _told(found: Search, budget: int, by: str) -> dict[str, Any]:
    return {
        "found": found.solution is not None, "tokens": found.spent, "texts": found.tried, "budget": budget, "by": by,
    }  # fmt: skip
