"""The plug-in of an option language model: encoder, decoder and prior (arXiv 2604.19087, section 3).

* encoder q(z | h, x): sees the hidden state and the gold next token; needed in training only.
* decoder b(h, z): a bias on the hidden state; the frozen head turns h + b into the logits of option z.
* prior pi0(z | h): the imitation policy that picks z at deployment.

Deviations from the paper: (1) the decoder's input is h modulated by the latent (FiLM) rather than the two
concatenated, so that all K biases of a state cost little more than one; (2) the decoder does not start
from zero, which collapses the options; (3) the prior imitates the encoder on *canonical* latents, see
`ollm_rl.options.conversion`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.models.backbone import Backbone, Geometry
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.reader import Reader
from ollm_rl.options.standardize import Standardize

IMPOSSIBLE = -1e9  # a masked latent's logit: finite, so that probability zero times its logarithm is zero, not NaN
REPORT = "conversion.json"  # beside a plug-in: what it is worth
FEW = 16  # rows; smaller float32 matrix products are summed in another order (docs/log.md)


def mlp(inputs: int, width: int, outputs: int, depth: int = 2) -> nn.Sequential:
    """A net with `depth` hidden layers of `width` units."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (n, K) with latents that `mask` (n, K) excludes practically impossible; None excludes none."""
    return logits if mask is None else logits.masked_fill(~mask, IMPOSSIBLE)


def digest(weights: Mapping[str, Tensor]) -> str:
    """Hash of named weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return str(found.hexdigest())


class Decoder(nn.Module):
    """b(h, z): (n, s) -> (n, K, d), where s is the size of the states that are read and d that of the backbone's."""

    def __init__(self, reads: int, size: int, config: PlugInConfig):
        super().__init__()
        k, w = config.num_options, config.decoder_width
        self.reads = nn.Linear(reads, w)
        self.scale = nn.Parameter(torch.randn(k, w) * config.init_scale)
        self.shift = nn.Parameter(torch.randn(k, w) * config.init_scale)
        self.between = nn.ModuleList(nn.Linear(w, w) for _ in range(config.decoder_depth - 1))
        self.writes = nn.Linear(w, size)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.reads(x)[:, None] * (1 + self.scale) + self.shift)
        for layer in self.between:
            hidden = nn.functional.gelu(layer(hidden))
        bias: Tensor = self.writes(hidden)
        return bias

    def zero_(self) -> "Decoder":
        """Make every option equal to the backbone (for checks against plain decoding)."""
        nn.init.zeros_(self.writes.weight)
        nn.init.zeros_(self.writes.bias)
        return self


class PlugIn(nn.Module):
    """Encoder, decoder and prior over one backbone's hidden states of size d, and a reader if it has one.

    "States" below are h (n, d) without a reader, and [h; g] (n, d + r) with one: `state_size` columns.

    >>> plugin = ol.PlugIn.from_pretrained("runs/my_plugin/plugin", backbone)   # `ol.convert` makes one
    >>> plugin.num_options, plugin.report["coverage"]["uncertain"]

    Args:
        geometry: of the backbone's attention; needed for a reader (`config.reader_depth` above 0) only.

    Attributes:
        state_size: columns of the states that encoder, decoder, prior, policies and environments read.
        prefix: tokens that all texts of the conversion began with, which its reader does not look at.
        path: the directory that it was read from, if any.
        report: what `conversion.json` there says of its quality: `coverage`, `distinct_tokens` and the like, each for `all` and
            for `uncertain` positions of held-out solutions.
    """

    token_scale: Tensor
    path: Path | None = None
    report: dict[str, Any]
    reader: Reader | None

    def __init__(
        self,
        hidden_size: int,
        config: PlugInConfig,
        fingerprint: str = "",
        backbone: str = "",
        revision: str | None = None,
        geometry: Geometry | None = None,
        adapter: str | None = None,
    ):
        super().__init__()
        self.config, self.hidden_size = config, hidden_size
        self.fingerprint, self.backbone, self.revision, self.adapter = fingerprint, backbone, revision, adapter
        self.report = {}
        self.state_size = hidden_size + (config.reader_width if config.reader_depth else 0)
        self.standardize = Standardize(self.state_size)
        self.decoder = Decoder(self.state_size, hidden_size, config)
        self.encoder = self.new_encoder()
        self.prior = self.new_prior()
        self.register_buffer("token_scale", torch.ones(()))
        self.reader, self.prefix = None, list[int]()
        if config.reader_depth:
            if geometry is None:
                raise ConfigurationError(
                    f"plugin.reader_depth={config.reader_depth}: a reader's keys and values have the shape of the backbone's; "
                    "make the plug-in with PlugIn.beside(backbone, config)"
                )
            self.reader = Reader(hidden_size, config, geometry)

    @classmethod
    def beside(cls, backbone: Backbone, config: PlugInConfig) -> "PlugIn":
        """A new one with random weights, on the backbone's device."""
        plugin = cls(
            backbone.hidden_size, config, backbone.fingerprint, backbone.name, backbone.revision, backbone.geometry,
            None if backbone.adapter is None else str(Path(backbone.adapter).resolve()),
        )  # fmt: skip
        return plugin.to(backbone.device)

    def new_encoder(self) -> nn.Sequential:
        """An encoder of the configured size with random weights."""
        c = self.config
        return mlp(self.state_size + self.hidden_size, c.encoder_width, c.num_options, c.encoder_depth)

    def new_prior(self) -> nn.Sequential:
        """A prior of the configured size with random weights."""
        return mlp(self.state_size, self.config.prior_width, self.config.num_options, self.config.prior_depth)

    @property
    def num_options(self) -> int:
        return self.config.num_options

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def biases(self, hidden: Tensor) -> Tensor:
        """The decoder's biases (n, K, d) float32 of states (n, s)."""
        n = len(hidden)
        if n < FEW:  # other kernels, other roundings: an option must not depend on how many rows are looked at
            hidden = torch.cat([hidden, hidden.new_zeros(FEW - n, hidden.shape[1])])
        biases: Tensor = self.decoder(self.standardize(hidden))
        return biases[:n]

    def prior_logits(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """log pi0(z | h) up to a constant: (n, s) -> (n, K), among the latents that `mask` (n, K) allows."""
        return masked(self.prior(self.standardize(hidden)), mask)

    def prior_log_probs(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """log pi0(z | h): (n, s) -> (n, K), among the latents that `mask` (n, K) allows."""
        return self.prior_logits(hidden, mask).log_softmax(-1)

    def encoder_logits(self, hidden: Tensor, token_embedding: Tensor) -> Tensor:
        """log q(z | h, x) up to a constant; `token_embedding` (n, d) is the gold token's row of the head."""
        both = torch.cat([self.standardize(hidden), token_embedding.to(self.token_scale.dtype) * self.token_scale], -1)
        logits: Tensor = self.encoder(both)
        return logits

    def digest(self) -> str:
        """Hash of what makes the options: policies that were trained on these know them again."""
        return digest(
            {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(("encoder", "prior"))}
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Write `plugin.safetensors` and `plugin.json`, which names the backbone that it belongs to, and `conversion.json`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / "plugin.safetensors")
        names = ("hidden_size", "backbone", "revision", "adapter", "fingerprint")
        facts: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.reader is not None:
            facts |= {"geometry": asdict(self.reader.geometry), "prefix": self.prefix}
        (path / "plugin.json").write_text(json.dumps({**facts, "config": asdict(self.config)}, indent=2) + "\n")
        if self.report:
            (path / REPORT).write_text(json.dumps(self.report, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path, backbone: Backbone | None = None) -> "PlugIn":
        """Load a plug-in and move it to `backbone`'s device.

        Raises:
            CheckpointError: nothing there, or it was made for another backbone.
        """
        path = Path(path)
        if not (path / "plugin.json").is_file() or not (path / "plugin.safetensors").is_file():
            raise CheckpointError(
                f"no plug-in in {path}: expected plugin.json and plugin.safetensors. "
                "Make one with `ollm-rl convert`, or check plugin.path."
            )
        facts = json.loads((path / "plugin.json").read_text())
        if backbone is not None and facts["fingerprint"] != backbone.fingerprint:
            raise CheckpointError(
                f"the plug-in in {path} was made for backbone '{facts['backbone']}' ({facts['fingerprint']}), "
                f"not for '{backbone.name}' ({backbone.fingerprint}). "
                f"Use backbone={facts['backbone']}{_with_adapter(facts)}, or convert this backbone with `ollm-rl convert`."
            )
        try:
            sizes = PlugInConfig(**{"reader_depth": 0, **facts["config"]})  # older ones have none
        except TypeError as error:
            raise CheckpointError(
                f"the plug-in in {path} was made by another version of ollm_rl ({error}). Convert again."
            ) from error
        geometry = Geometry(**facts["geometry"]) if facts.get("geometry") else None
        plugin = cls(
            facts["hidden_size"], sizes, facts["fingerprint"], facts["backbone"], facts.get("revision"), geometry,
            facts.get("adapter"),
        )  # fmt: skip
        plugin.load_state_dict(load_file(path / "plugin.safetensors"))
        plugin.path, plugin.prefix = path, facts.get("prefix") or []
        if (path / REPORT).is_file():
            plugin.report = json.loads((path / REPORT).read_text())
        return plugin.to(backbone.device).eval() if backbone is not None else plugin.eval()


def checkpoint_dir(path: str | Path) -> Path:
    """The directory that `path` names, downloaded first if it is a hub id such as `user/model`.

    Raises:
        CheckpointError: there is neither.
    """
    name = str(path)
    if Path(path).is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client raises many kinds for one cause
        raise CheckpointError(
            f"no option LM in {name}: there is no such directory, and the hub does not give it ({type(error).__name__})."
        ) from error


def canonical(tokens: Tensor) -> Tensor:
    """(n, K) bool: True for the lowest-numbered of the options that decode to the same token."""
    same = tokens[:, :, None] == tokens[:, None, :]
    return same.float().argmax(-1) == torch.arange(tokens.shape[1], device=tokens.device)


def _with_adapter(facts: dict[str, Any]) -> str:
    return "" if facts.get("adapter") is None else f" backbone.adapter={facts['adapter']}"
