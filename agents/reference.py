"""The clean reference: what a policy on the same options does if it imitates good solutions only.

Not a learner from rewards: it is told which training solutions are careful. It marks what imitation could reach
with perfect data, and is therefore a line to compare reinforcement learning with.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.base import PolicyAgent, has_some
from agents.config import ReferenceConfig
from ollm_rl.common.finite import descend
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run
from ollm_rl.errors import DataError, did_you_mean
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.options.quality import canonical_labels
from ollm_rl.options.reading import read_states
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem, Task
from ollm_rl.tasks.base import ALL, has_end


class Reference(PolicyAgent):
    """Imitation of the solutions whose column `column` equals `value`.

    Args:
        num_solutions, seed: as in the conversion, so that its cached hidden states are reused.
    """

    config_class = ReferenceConfig
    config: ReferenceConfig

    def __init__(self, session: Session, **settings: Any):
        super().__init__(session, **settings)
        self.policy = LatentPolicy.from_prior(session.plugin)

    @classmethod
    def check_task(cls, settings: Mapping[str, Any], task: Task, sampled: bool) -> None:
        config = cls.config_class.among(settings)
        # Sampled solutions have their problems' columns; which problems are asked about is not known yet.
        n = ALL if sampled and has_end(task) else config.num_solutions
        if not has_some(task, n, config.seed, lambda p: _is_good(p, config, sampled)):
            raise _no_good(task.problems("sft", n, config.seed), config, task.name)

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        start = time.monotonic()
        session = self.session
        problems = session.problems("sft", self.config.num_solutions, self.config.seed)
        clean = torch.tensor([_is_good(p, self.config) for p in problems])
        if not clean.any():
            raise _no_good(problems, self.config, session.task.name)
        hidden, covered, latent = session.run_on_model(_labelled, problems, clean)
        device = session.backbone.device
        optimizer = torch.optim.AdamW(self.policy.net.parameters(), lr=self.config.learning_rate, weight_decay=0.01)
        generator = torch.Generator().manual_seed(session.seed)
        with track("reference", self.config.epochs, "epochs") as bar, torch.random.fork_rng(devices=[]):
            torch.manual_seed(session.seed)
            for _ in range(self.config.epochs):
                for rows in torch.randperm(len(hidden), generator=generator).split(512):
                    x = F.dropout(self.policy.standardize(hidden[rows].to(device)), self.config.dropout)
                    losses = F.cross_entropy(self.policy.net(x), latent[rows].to(x.device), reduction="none")
                    descend(optimizer, (losses * covered[rows].to(x.device)).mean())
                bar.advance()
        return {"train_episodes": 0, "train_tokens": 0, "train_seconds": time.monotonic() - start}


def _is_good(problem: Problem, config: ReferenceConfig, sampled: bool = False) -> bool:
    """Whether a problem's solution is marked as a good one; true and 1 of a column are the values `true` and `1`."""
    mark = problem.extra.get(config.column)
    said = mark if isinstance(mark, str) else json.dumps(mark, default=str)
    return said == config.value and (sampled or problem.solution is not None)


def _no_good(problems: Sequence[Problem], config: ReferenceConfig, task: str) -> DataError:
    columns = sorted({name for p in problems for name in p.extra})
    values = sorted({f"{p.extra[config.column]!s:.40}" for p in problems if config.column in p.extra})[:8]
    found = f"the column has {', '.join(values)}" if values else f"columns are {', '.join(columns) or 'none'}"
    return DataError(
        f"agent=reference found no solution with {config.column}={config.value!r} in split 'sft' of task '{task}' ({found}). It imitates the good "
        "solutions alone: set agent.column and agent.value to a column that marks them, or leave this agent out."
        f"{'' if values else did_you_mean(config.column, columns)}"
    )


def _labelled(session: Session, problems: list[Problem], clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States in the solutions that are `clean` (n,), whether an option says what follows, and the lowest that does."""
    plugin = session.plugin
    states = read_states(session.backbone, session.prompter, problems, plugin.config.shortlist, plugin.reader).all()
    states = states.select(clean[states.owner])
    covered, latent = canonical_labels(session.backbone, session.plugin, states)
    return states.hidden.cpu(), covered.cpu(), latent.cpu()
