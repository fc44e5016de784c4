"""A control: the same reinforcement learning without options, on a linear head over the backbone's shortlist.

What the options add is what latent GRPO has over this: both read the same frozen states (those of the plug-in's reader
among them), start from the same solutions and have about as many parameters, but here an action is a token.
"""

import json
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from agents.base import check_worked, model_of
from agents.config import ShortlistHeadConfig
from agents.grpo import GRPO
from ollm_rl.common.cache import cache_dir, key_of, made_by_one
from ollm_rl.common.finite import check_weights, descend
from ollm_rl.common.progress import track
from ollm_rl.common.run_dir import Run
from ollm_rl.common.spent import spent
from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.hidden_states import HiddenStates
from ollm_rl.options.modules import digest
from ollm_rl.options.policies import choose
from ollm_rl.options.reading import read_states
from ollm_rl.options.standardize import Standardize
from ollm_rl.rollout.episode import Decisions, Episode, owners, represented
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.callbacks import Callbacks
from ollm_rl.session.local import Session
from ollm_rl.tasks import Task
from ollm_rl.tasks.base import worked


class ShortlistPolicy(nn.Module):
    """pi(token | state): the backbone's logits plus those of a linear map of the standardised state, on a shortlist.

    Args:
        backbone: whose head gives the logits to start from.
        tokens: (T,) the tokens that the map has rows for; others keep the backbone's logit.
        state_size: s, columns of the states that it reads, as `PlugIn.state_size` has it.
    """

    rows_of: Tensor

    def __init__(self, backbone: Backbone, tokens: Tensor, state_size: int):
        super().__init__()
        self.backbone, self.state_size = backbone, state_size
        self.standardize = Standardize(state_size)
        self.net = nn.Embedding(len(tokens) + 1, state_size, padding_idx=0)  # row 0: of all other tokens
        nn.init.zeros_(self.net.weight)
        rows_of = torch.zeros(backbone.vocab_size, dtype=torch.long)
        rows_of[tokens] = torch.arange(1, len(tokens) + 1)
        self.register_buffer("rows_of", rows_of)

    def learned(self) -> list[nn.Parameter]:
        """What learning changes."""
        return list(self.net.parameters())

    def change(self, x: Tensor, ids: Tensor) -> Tensor:
        """What the map adds (n, S) to the logits of tokens `ids` (n, S), for standardised states x (n, s)."""
        return torch.bmm(self.net(self.rows_of[ids]), x[:, :, None])[..., 0]

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities (n, S) float32 of the tokens `ids` (n, S)."""
        rows = self.backbone.head_rows(ids).float()
        own = hidden[:, : self.backbone.hidden_size].float()
        logits = self.backbone.after_head(torch.bmm(rows, own[:, :, None])[..., 0])
        return (logits + self.change(self.standardize(hidden), ids)).log_softmax(-1)

    def __deepcopy__(self, memo) -> "ShortlistPolicy":
        copy = ShortlistPolicy(self.backbone, self.tokens, self.state_size)  # not of the backbone
        copy.load_state_dict(self.state_dict())
        return copy.to(self.rows_of.device)

    @property
    def tokens(self) -> Tensor:
        """(T,) the tokens that have a row."""
        known = self.rows_of.nonzero()[:, 0]
        return known[self.rows_of[known].argsort()].cpu()

    def save_pretrained(self, path: str | Path) -> None:
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        state = {"net.weight": self.net.weight, "tokens": self.tokens}
        state |= {"mean": self.standardize.mean, "std": self.standardize.std}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path / "head.safetensors"
        )
        (path / "head.json").write_text(json.dumps({"fingerprint": self.backbone.fingerprint}) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, backbone: Backbone) -> "ShortlistPolicy":
        """Load a head.

        Raises:
            CheckpointError: nothing there, or it belongs to another backbone.
        """
        path = Path(path)
        if not (path / "head.json").is_file() or not (path / "head.safetensors").is_file():
            raise CheckpointError(
                f"no head in {path}: expected head.json and head.safetensors. "
                "Train one with `ollm-rl train agent=shortlist_head`."
            )
        if json.loads((path / "head.json").read_text())["fingerprint"] != backbone.fingerprint:
            raise CheckpointError(
                f"the head in {path} belongs to another backbone than '{backbone.name}'. Train again."
            )
        state = load_file(path / "head.safetensors")
        head = cls(backbone, state["tokens"], len(state["mean"]))
        head.net.load_state_dict({"weight": state["net.weight"]})
        head.standardize.load_state_dict({"mean": state["mean"], "std": state["std"]})
        return head.to(backbone.device)


class ShortlistHead(GRPO):
    """GRPO on tokens of the shortlist, from a linear head that was first fitted to the task's solutions."""

    acts_on_logits = True
    needs_model = True
    reads_reader = True  # of the plug-in, which was trained for it as well
    setup_seconds = 0.0  # of the states that the head is fitted to, and of fitting it

    label = "shortlist_head"
    config_class = ShortlistHeadConfig
    config: ShortlistHeadConfig

    def __init__(self, session: Session, **settings: Any):
        model_of(session, "shortlist_head")
        super().__init__(session, **settings)

    @classmethod
    def check_task(cls, settings: Mapping[str, Any], task: Task, sampled: bool) -> None:
        config = cls.config_class.among(settings)
        if not sampled and config.path is None:
            check_worked(task, config.num_solutions, config.sft_seed, "shortlist_head")

    def start(self) -> None:
        """Begin with nothing: the head is fitted by `prepare`, or loaded."""

    def prepare(self, run: Run) -> None:
        """Fit the head to the solutions, or take it from the cache, unless that was done or one was loaded."""
        super().prepare(run)
        self._begin()

    def _begin(self) -> None:
        """Have the head that learning is kept near to; without another, it goes on with that one."""
        if self.prior is None:
            fitted = self._from_solutions()
            self.prior = deepcopy(fitted).requires_grad_(False)
            if self.policy is None:
                self.learn_from(fitted)

    def _from_solutions(self) -> ShortlistPolicy:
        """The head fitted to the solutions: from the cache, or fitted now."""
        session = self.session
        plugin, reader = session.plugin, session.plugin.reader
        own = plugin.num_parameters - (0 if reader is None else sum(p.numel() for p in reader.parameters()))
        num_tokens = self.config.num_tokens or max(2, own // plugin.state_size)
        drawn = session.problems("sft", self.config.num_solutions, self.config.sft_seed)
        problems = worked(drawn, session.task.name, "agent=shortlist_head (split 'sft')")
        text = [(session.prompter.own(p), p.solution) for p in problems]
        shortlist = session.plugin.config.shortlist
        fit = {
            "num_solutions": self.config.num_solutions, "epochs": self.config.sft_epochs,
            "learning_rate": self.config.sft_learning_rate, "dropout": self.config.dropout,
        }  # fmt: skip
        parts = (session.backbone.fingerprint, str(session.backbone.dtype), session.prompter.prefix, text, fit)
        read = [] if reader is None else [digest(reader.state_dict())]
        path = cache_dir() / "heads" / key_of(*parts, self.config.sft_seed, num_tokens, shortlist, *read)
        with made_by_one(path):
            if not (path / "head.json").exists():
                store = read_states(session.backbone, session.prompter, problems, shortlist, session.plugin.reader)
                fitted, seconds = self._fitted(store.all(), num_tokens)
                seconds += sum(spent(folder) for folder in (store.path, store.read) if folder is not None)
                check_weights("the head fitted to solutions", fitted.net)
                path.mkdir(parents=True, exist_ok=True)
                (path / "seconds.json").write_text(json.dumps({"seconds": seconds}))
                fitted.save_pretrained(path)
        self.setup_seconds = json.loads((path / "seconds.json").read_text())["seconds"]
        return ShortlistPolicy.from_pretrained(path, session.backbone)

    def _fitted(self, states: HiddenStates, num_tokens: int) -> tuple[ShortlistPolicy, float]:
        """A head with rows for the tokens that solutions have and shortlists offer most often; how long it took."""
        begun, backbone = time.monotonic(), self.session.backbone
        often = torch.bincount(states.ids.flatten().long(), minlength=backbone.vocab_size)
        said = torch.bincount(states.gold, minlength=backbone.vocab_size)
        tokens = (often + len(states) * said.clamp_max(1)).topk(min(num_tokens, backbone.vocab_size)).indices
        head = ShortlistPolicy(backbone, tokens, states.hidden.shape[1]).to(backbone.device)
        head.standardize.fit(states.hidden.to(backbone.device))
        optimizer = torch.optim.AdamW(head.net.parameters(), lr=self.config.sft_learning_rate, weight_decay=0.01)
        order = torch.Generator().manual_seed(self.config.sft_seed)
        epochs = self.config.sft_epochs
        with track("shortlist head on solutions", epochs, "epochs") as bar, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.sft_seed)
            for _ in range(epochs):
                for rows in torch.randperm(len(states), generator=order).split(1024):
                    part = states.select(rows)
                    x = F.dropout(head.standardize(part.hidden.to(backbone.device)), self.config.dropout)
                    ids = part.ids.long().to(backbone.device)
                    logits = backbone.after_head(part.logits.to(backbone.device)) + head.change(x, ids)
                    loss = F.cross_entropy(logits, part.target.to(backbone.device))
                    last = descend(optimizer, loss)
                bar.advance(1, f"loss {last:.3f}")
        return head, time.monotonic() - begun

    def shortlist(self, logits: Tensor) -> Tensor:
        """(n, S) the tokens that the backbone finds likeliest."""
        return self.session.backbone.likeliest(logits, self.session.plugin.config.shortlist)[1]

    def rollout(self, requests: list[Request]) -> list[Episode]:
        return self.session.rollout(requests, self._sample_tokens, from_logits=True)

    @torch.inference_mode()
    def _sample_tokens(self, hidden: Tensor, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        return self._choose(hidden, logits, False, uniforms)

    def _choose(
        self, hidden: Tensor, logits: Tensor, deterministic: bool, uniforms: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (n,) and their log-probabilities (n,)."""
        if self.policy is None:
            raise ConfigurationError("agent=shortlist_head has no head yet: call learn or prepare first, or load one")
        ids = self.shortlist(logits)
        log_probs = self.policy(hidden, ids)
        z = choose(log_probs, deterministic, uniforms)[:, None]
        return ids.gather(1, z)[:, 0], log_probs.gather(1, z)[:, 0]

    @torch.inference_mode()
    def predict(
        self,
        hidden: Tensor,
        deterministic: bool = True,
        mask: Tensor | None = None,
        uniforms: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor:
        assert logits is not None
        return self._choose(hidden, logits, deterministic, uniforms)[0]

    def decisions(self, episodes: list[Episode]) -> Decisions:
        """All positions; the shortlist stands in the mask's place, and `z` is the token's place on it."""
        hidden, tokens, log_probs = (torch.cat([getattr(e, n) for e in episodes]) for n in ("hidden", "z", "log_probs"))
        with torch.inference_mode():
            ids = torch.cat([self.shortlist(self.session.backbone.logits(few)) for few in hidden.split(256)])
        ids = ids.clone()
        there = ids == tokens[:, None]
        missing = ~there.any(1)  # its logits were rounded differently in another batch: it was the last of the list
        ids[missing, -1] = tokens[missing]
        places = (ids == tokens[:, None]).float().argmax(1)
        owner, weight = (of(episodes).to(hidden.device) for of in (owners, represented))
        return Decisions(hidden, places, log_probs, ids, owner, weight)

    @torch.inference_mode()
    def divergence(self, episodes: Sequence[Episode]) -> list[float]:
        """KL in nats from the head that learning began with, on the shortlists, summed over each episode's positions."""
        self._begin()
        found = []
        for episode in episodes:
            data = self.decisions([episode])
            now, before = self.policy(data.hidden, data.mask), self.prior(data.hidden, data.mask)
            found.append(float((now.exp() * (now - before)).sum()))
        return found

    def _learn(self, run: Run, callbacks: Callbacks) -> dict:
        return {**super()._learn(run, callbacks), "setup_seconds": self.setup_seconds}

    def save_weights(self, path: Path) -> None:
        if self.policy is None:
            raise ConfigurationError("agent=shortlist_head has no head yet: call learn or prepare first")
        check_weights("the head", self.policy.net)
        self.policy.save_pretrained(path)

    def load(self, path: str | Path) -> None:
        self.learn_from(ShortlistPolicy.from_pretrained(path, self.session.backbone))
