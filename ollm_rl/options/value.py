"""A learned verifier: how likely a text is to be right, from the verdicts of other texts, for where no verdict can be had.

It reads what policies read, at the end of a text and along it, and how sure the policy was ("Training verifiers to solve math word
problems", Cobbe et al. 2021, arXiv 2110.14168, whose verifier is a language model of its own).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ollm_rl.common.finite import check_weights, descend
from ollm_rl.common.progress import track
from ollm_rl.errors import CheckpointError, DataError
from ollm_rl.options.config import ValueConfig
from ollm_rl.options.modules import PlugIn, mlp
from ollm_rl.options.standardize import Standardize

REMEDY = "Lower value.learning_rate."


class Value(nn.Module):
    """(n, f) -> (n,): how likely texts are to be right, from 0 to 1, by their features (`Episode.features`).

    A small net on standardised features: one hidden layer, with dropout before each layer while it learns.

    Attributes:
        beginnings: the same for texts that are not at their end (`Episode.beginnings`); None if nobody learned it.
    """

    beginnings: "Value | None"

    def __init__(self, num_features: int, width: int, dropout: float = 0.0, beginnings: bool = False):
        super().__init__()
        self.num_features, self.width, self.dropout = num_features, width, dropout
        self.standardize = Standardize(num_features)
        self.net = mlp(num_features, width, 1, depth=1)
        self.beginnings = Value(num_features, width) if beginnings else None

    def logits(self, features: Tensor) -> Tensor:
        """(n,) before the logistic function."""
        x: Tensor = self.standardize(features)
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                x = F.dropout(x, self.dropout, self.training)
            x = layer(x)
        return x[:, 0].float()

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(features).sigmoid()

    def save_pretrained(self, path: str | Path, **facts: Any) -> None:
        """Write `value.safetensors` and `value.json`; `facts` are kept in the latter."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        check_weights("the learned verifier", self, REMEDY)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / "value.safetensors")
        sizes = {
            "num_features": self.num_features, "width": self.width, "beginnings": self.beginnings is not None
        }  # fmt: skip
        (path / "value.json").write_text(json.dumps({**sizes, **facts}, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, fingerprint: str = "", plugin: PlugIn | None = None) -> "Value":
        """Load one.

        Args:
            fingerprint: of the backbone that it is for. plugin: whose reader's states it is to read.

        Raises:
            CheckpointError: nothing there, or it belongs to another backbone or plug-in (where these are given).
        """
        path = Path(path)
        if not (path / "value.json").is_file() or not (path / "value.safetensors").is_file():
            raise CheckpointError(
                f"no learned verifier in {path}: expected value.json and value.safetensors, as `ollm-rl train value.enabled=true` leaves "
                "them in its run's policy/."
            )
        facts = json.loads((path / "value.json").read_text())
        if fingerprint and facts.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"the learned verifier in {path} was trained on another backbone; use that one, or train again"
            )
        if plugin is not None:
            fits = facts["num_features"] == 2 * plugin.state_size + 4
            if not fits or facts.get("plugin") not in (None, plugin.digest()):
                raise CheckpointError(
                    f"the learned verifier in {path} reads the states of another plug-in than this one; use that one (plugin.path=), or train "
                    "again with value.enabled=true"
                )
        value = cls(facts["num_features"], facts["width"], beginnings=facts.get("beginnings", False))
        value.load_state_dict(load_file(path / "value.safetensors"))
        return value.eval().requires_grad_(False)


def fit_value(
    features: Tensor, solved: Tensor, problems: Tensor, config: ValueConfig, seed: int
) -> tuple[Value, dict[str, float]]:
    """Learn from verdicts by cross-entropy. A tenth of the problems is held out, and the epoch is kept whose loss there is the lowest.

    Args:
        features: (n, f) of n texts. solved: (n,) verdicts, 0 or 1. problems: (n,) which problem each text is of.

    Returns:
        the verifier, and of the held-out texts the `loss` beside `base`, the loss of who says the mean verdict of all others; `epoch`.

    Raises:
        DataError: all texts are right, or all are wrong.
    """
    solved = solved.float()
    if not len(solved):
        raise DataError(
            "no text that the learned verifier is to learn from was judged: the reward gave None for all of them"
        )
    if not 0 < float(solved.mean()) < 1:
        what = "right" if float(solved.mean()) else "wrong"
        raise DataError(
            f"all {len(solved)} texts that the learned verifier is to learn from are {what}: it needs both. Raise value.num_problems, or "
            "leave value.enabled=false."
        )
    draw = torch.Generator().manual_seed(seed)
    names = problems.unique()
    if len(names) < 2:
        raise DataError(
            "the learned verifier has texts of one problem only; expected several, some to learn from and some held out"
        )
    held = torch.isin(problems, names[torch.randperm(len(names), generator=draw)[: max(1, len(names) // 10)]])
    mine, others = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    base = F.binary_cross_entropy(solved[mine].mean().expand(len(others)), solved[others])
    best: tuple[float, int, dict[str, Tensor]] | None = None
    with track("value", config.epochs, "epochs") as bar, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = Value(features.shape[1], config.width, config.dropout).to(features.device)
        value.standardize.fit(features[mine])
        optimizer = torch.optim.AdamW(value.net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        for epoch in range(1, config.epochs + 1):
            value.train()
            for order in torch.randperm(len(mine), generator=draw).split(config.batch_size):
                part = mine[order.to(mine.device)]
                loss = F.binary_cross_entropy_with_logits(value.logits(features[part]), solved[part])
                descend(optimizer, loss, max_norm=1.0, remedy=REMEDY)
            value.eval()
            with torch.no_grad():
                apart = float(F.binary_cross_entropy_with_logits(value.logits(features[others]), solved[others]))
            if best is None or apart < best[0]:
                best = apart, epoch, {k: v.detach().clone() for k, v in value.state_dict().items()}
            bar.advance(1, f"loss {apart:.3f}")
    assert best is not None
    value.load_state_dict(best[2])
    return value.requires_grad_(False), {"epoch": best[1], "loss": best[0], "base": float(base)}
