"""Learning from the oracle: search with the policy, imitate what was solved, search again (expert iteration).

Anthony et al. 2017, "Thinking Fast and Slow with Deep Learning and Tree Search": the search is the expert, the policy the
apprentice that makes the next search better. As in Singh et al. 2023, "Beyond Human Data" (ReST-EM), every round fits a copy
of the prior to the newest texts, so that habits of the first rounds are not kept alive. Imitation runs on stored hidden
states, without the language model.
"""

import time

import torch
from torch.nn import functional as F

from agents.base import LatentPolicy, PolicyAgent
from ollm_rl.errors import ConfigurationError
from ollm_rl.oracle import Oracle
from ollm_rl.oracle.teacher import following
from ollm_rl.progress import track
from ollm_rl.rollout import Request
from ollm_rl.runs import Run
from ollm_rl.trajectory import Decisions, Episode
from ollm_rl.workspace import Workspace


class Distill(PolicyAgent):
    """Cross-entropy on the latents of solved texts.

    Args:
        rounds: of search and imitation, each on new problems.
        problems_per_round, budget, search, width: what is searched, and how; see `ollm_rl.oracle.Oracle`.
        texts_per_problem: solved texts that are looked for, no two the same. Several samples teach what the policy can
            do; the first text that a tree search solves is often a guess that it would not make again.
        epochs, learning_rate, dropout, batch_size: of imitation, which starts from the prior in every round.
    """

    learns_from_rewards = True

    def __init__(
        self,
        workspace: Workspace,
        rounds: int = 2,
        problems_per_round: int = 400,
        search: str = "best_of_n",
        budget: int = 400,
        width: int | None = None,
        texts_per_problem: int = 4,
        epochs: int = 8,
        learning_rate: float = 5e-4,
        dropout: float = 0.1,
        batch_size: int = 512,
    ):
        super().__init__(workspace)
        if rounds < 1 or problems_per_round < 1 or epochs < 1:
            raise ConfigurationError(
                f"agent=distill: expected at least one round, problem and epoch, got rounds={rounds}, "
                f"problems_per_round={problems_per_round}, epochs={epochs}"
            )
        self.rounds, self.problems_per_round = rounds, problems_per_round
        self.search, self.budget, self.width, self.texts = search, budget, width, texts_per_problem
        self.epochs, self.learning_rate, self.dropout, self.batch_size = epochs, learning_rate, dropout, batch_size
        self.policy = LatentPolicy.from_prior(workspace.plugin)

    def learn(self, run: Run) -> dict:
        """Search and imitate. A round that was searched before an interruption is not searched again."""
        space, tokens, tried = self.workspace, 0, 0
        start = time.monotonic()
        problems = space.problems("train", self.rounds * self.problems_per_round, space.seed)
        for number in range(self.rounds):
            part = problems[number * self.problems_per_round : (number + 1) * self.problems_per_round]
            oracle = Oracle(space, self.policy, self.search, self.budget, self.width, texts=self.texts)
            searches = oracle.solve(part, space.seed, run.path / f"round_{number + 1}.jsonl")
            found = [text for s in searches for text in s.solutions]
            tokens, tried = tokens + sum(s.spent for s in searches), tried + sum(s.tried for s in searches)
            played = self._play(found)
            run.save_rollouts(f"round_{number + 1}", played)
            loss = self._imitate(played, number)
            share = sum(bool(s.solutions) for s in searches) / len(part)
            figures = {"solved": share, "tokens": tokens, "texts": len(played), "loss": loss}
            run.log_metrics(number + 1, {f"distill/{name}": value for name, value in figures.items()})
        return {"train_episodes": tried, "train_tokens": tokens, "train_seconds": time.monotonic() - start}

    def _play(self, found: list[Episode]) -> list[Episode]:
        """The found texts as trajectories, with hidden states at their decision points.

        One in some thousand comes out differently in bf16, where batches of another size round otherwise: it is left out.
        """
        requests = [
            Request(e.problem, i, following([z for z in e.latents if z >= 0], self.workspace))
            for i, e in enumerate(found)
        ]
        played = self.workspace.rollout(requests, following([], self.workspace))
        return [p for p, e in zip(played, found, strict=True) if p.tokens == e.tokens]

    def _imitate(self, episodes: list[Episode], number: int) -> float:
        """Fit a copy of the prior to the episodes' latents; the last epoch's loss."""
        space = self.workspace
        deciding = [e for e in episodes if e.num_decisions]
        self.policy = LatentPolicy.from_prior(space.plugin)
        if not deciding:
            return float("nan")
        data = Decisions.of(deciding)
        optimizer = torch.optim.AdamW(self.policy.net.parameters(), lr=self.learning_rate, weight_decay=0.01)
        generator, last = torch.Generator().manual_seed(space.seed + number), 0.0
        with track(f"imitate {number + 1}", self.epochs, "epochs") as bar, torch.random.fork_rng(devices=[]):
            torch.manual_seed(space.seed + number)
            for _ in range(self.epochs):
                losses = []
                for rows in torch.randperm(len(data), generator=generator).split(self.batch_size):
                    rows = rows.to(data.z.device)
                    x = F.dropout(self.policy.standardize(data.hidden[rows]), self.dropout)
                    logits = self.policy.net(x).float().masked_fill(~data.mask[rows], -1e9)
                    loss = F.cross_entropy(logits, data.z[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
                last = sum(losses) / len(losses)
                bar.advance(1, f"loss {last:.3f}")
        return last
