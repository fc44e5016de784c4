"""Learning from the oracle: search with the policy, imitate what was solved, search again (expert iteration).

Anthony et al. 2017, "Thinking Fast and Slow with Deep Learning and Tree Search": the search is the expert, the policy the
apprentice that makes the next search better. As in Singh et al. 2023, "Beyond Human Data" (ReST-EM), every round fits a copy
of the prior to the newest texts, so that habits of the first rounds are not kept alive. Imitation runs on stored hidden
states, without the language model.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from agents.base import PolicyAgent
from agents.config import DistillConfig
from ollm_rl.common.finite import descend
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import DataError
from ollm_rl.options.enumeration import NO_LATENT
from ollm_rl.options.modules import masked
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.teacher import played
from ollm_rl.rollout.episode import Decisions, Episode, unpack
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session


class Distill(PolicyAgent):
    """Cross-entropy on the latents of solved texts.

    Args:
        rounds: of search and imitation, each on new problems.
        problems_per_round, budget, search, width: what is searched, and how; see `ollm_rl.oracle.oracle.Oracle`.
        texts_per_problem: solved texts that are looked for, no two the same. Several samples teach what the policy can
            do; the first text that a tree search solves is often a guess that it would not make again.
        epochs, learning_rate, dropout, batch_size: of imitation, which starts from the prior in every round.
    """

    learns_from_rewards = trains_on = True

    config_class = DistillConfig
    config: DistillConfig

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        self.policy = LatentPolicy.from_prior(session.plugin)
        self.counters: dict[str, Any] = {"round": 0, "train_episodes": 0, "train_tokens": 0, "train_seconds": 0.0}

    def prepare(self, run: Run) -> None:
        """There are problems to train on: said before anything is evaluated."""
        self.session.problems("train", self.config.problems_per_round, self.session.seed)

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        """Search and imitate. After an interruption it goes on with the first round that is not done, whose searches that are
        done are not done again."""
        session, counters = self.session, self.counters
        self._resume(run)
        problems = session.problems("train", self.config.rounds * self.config.problems_per_round, session.seed)
        while counters["round"] < self.config.rounds:
            start, number = time.monotonic(), counters["round"]
            part = problems[number * self.config.problems_per_round : (number + 1) * self.config.problems_per_round]
            if not part:
                raise DataError(
                    f"agent.rounds={self.config.rounds} of agent.problems_per_round={self.config.problems_per_round} need more problems than "
                    f"the {len(problems)} of task '{session.task.name}' in split 'train'; lower one of them"
                )
            config = self.config
            oracle = Oracle(
                session, self.policy, config.search, config.budget, config.width, texts=config.texts_per_problem
            )
            searches = oracle.solve(part, session.seed, run.file(f"round_{number + 1}.jsonl"))
            found = [text for s in searches for text in s.solutions]
            texts = self._play(found)
            run.save_rollouts(f"round_{number + 1}", texts)
            loss = self._imitate(texts, number)
            counters["round"] += 1
            counters["train_episodes"] += sum(s.tried for s in searches)
            counters["train_tokens"] += sum(s.spent for s in searches)
            counters["train_seconds"] += time.monotonic() - start
            figures = {
                "solved": sum(bool(s.solutions) for s in searches) / len(part),
                "tokens": counters["train_tokens"],
            }
            figures |= {"texts": len(texts)} | ({} if loss is None else {"loss": loss})
            metrics: dict[str, Any] = {f"distill/{name}": value for name, value in figures.items()}
            metrics["train_episodes"] = counters["train_episodes"]
            wanted = callbacks.on_iteration_end(self, number + 1, metrics)
            run.log_metrics(number + 1, metrics)
            run.save_checkpoint(number + 1, self._write_checkpoint)
            if not wanted:
                break
        return {k: v for k, v in counters.items() if k.startswith("train_")}

    def _write_checkpoint(self, path: Path) -> None:
        self.save(path, plugin=False)
        (path / "counters.json").write_text(json.dumps(self.counters))

    def _resume(self, run: Run) -> None:
        """Continue after the last round that was done."""
        latest = run.latest_checkpoint()
        run.truncate_metrics(latest[0] if latest else 0)
        if latest is not None:
            self.load(latest[1])
            self.counters |= json.loads((latest[1] / "counters.json").read_text())

    def _play(self, found: list[Episode]) -> list[Episode]:
        """The found texts as trajectories, with hidden states at their decision points.

        One in some thousand comes out differently in bf16, where batches of another size round otherwise: it is left out.
        """
        session = self.session
        texts = [(Request(e.problem, i), [z for z in e.latents if z != NO_LATENT]) for i, e in enumerate(found)]
        packed = session.map(played, texts)
        episodes = [unpack(p, [e.problem], session.backbone.device)[0] for p, e in zip(packed, found, strict=True)]
        return [p for p, e in zip(episodes, found, strict=True) if p.tokens == e.tokens]

    def _imitate(self, episodes: list[Episode], number: int) -> float | None:
        """Fit a copy of the prior to the episodes' latents; the last epoch's loss, None if there is nothing to imitate."""
        session = self.session
        deciding = [e for e in episodes if e.num_kept]
        self.policy = LatentPolicy.from_prior(session.plugin)
        if not deciding:
            return None
        data = Decisions.of(deciding)
        optimizer = torch.optim.AdamW(self.policy.net.parameters(), lr=self.config.learning_rate, weight_decay=0.01)
        generator, last = torch.Generator().manual_seed(session.seed + number), 0.0
        with track(f"imitate {number + 1}", self.config.epochs, "epochs") as bar, torch.random.fork_rng(devices=[]):
            torch.manual_seed(session.seed + number)
            for _ in range(self.config.epochs):
                losses = []
                for rows in torch.randperm(len(data), generator=generator).split(self.config.batch_size):
                    rows = rows.to(data.z.device)
                    x = F.dropout(self.policy.standardize(data.hidden[rows]), self.config.dropout)
                    logits = masked(self.policy.net(x).float(), data.mask[rows])
                    losses.append(descend(optimizer, F.cross_entropy(logits, data.z[rows])))
                last = sum(losses) / len(losses)
                bar.advance(1, f"loss {last:.3f}")
        return last
