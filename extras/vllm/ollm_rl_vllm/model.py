"""An exported option LM as a model of vLLM: its logits are log pi(x | h), or those of the mixture over the latents."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model
from vllm.utils.torch_utils import set_default_torch_dtype

from ollm_rl.models.backbone import fingerprint, sample
from ollm_rl.models.smollm2 import smollm2_dir
from ollm_rl.options.hf import BACKBONE, policy_in
from ollm_rl.options.modules import PlugIn, checkpoint_dir
from ollm_rl.options.next_token import by_mixture, by_policy
from ollm_rl.options.reader import Block, in_prefix
from ollm_rl_vllm.head import GatheredHead

# Backbones by `model_type`. Their classes in vLLM give the states of layers, and their logits are what the head gives.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
OF_BACKBONE = "backbone."  # before the names of its weights, as vLLM's loader hands them over


class OptionLMForCausalLM(nn.Module):
    """A frozen backbone of vLLM's own with plug-in and policy.

    `forward` gives the states that the head reads, with what the reader makes of the text beside them. The reader's blocks are
    attention layers of vLLM: their keys and values are in the paged cache as those of the backbone's layers.

    Raises:
        ValueError: the export or the settings of vLLM ask for what is not here; before any weight of the backbone is read.
    """

    allow_patterns_overrides = ["plugin.safetensors"]  # of the directory itself; read by `PlugIn`, not by vLLM

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        model = vllm_config.model_config
        config, path = model.hf_config, checkpoint_dir(model.model)
        own = copy.deepcopy(config.text_config)
        _check(own.model_type, vllm_config)
        with set_default_torch_dtype(torch.float32):  # in which they were learned, whatever the backbone's precision
            self.plugin = PlugIn.from_pretrained(path)
            self.policy = policy_in(path, self.plugin)
        device = vllm_config.device_config.device
        self.plugin.to(device)
        if self.policy is not None:
            self.policy.to(device)
        self.requires_grad_(False)
        reader = self.plugin.reader
        if reader is not None:  # an export counts its blocks among the backbone's layers
            own.num_hidden_layers = reader.geometry.num_layers
            if getattr(own, "layer_types", None):
                own.layer_types = own.layer_types[: own.num_hidden_layers]
        self.own = own
        self.lm = init_vllm_registered_model(
            vllm_config, prefix="lm", hf_config=own, architectures=[ARCHITECTURES[own.model_type]]
        )
        self.head = GatheredHead(self.lm)
        self.secondary_weights = [_weights_of(path, self.plugin)]
        self.reader = None if reader is None else reader.frozen(model.dtype, device)
        if self.reader is not None:
            self.tapped = sorted({layer for layer in self.reader.layers if layer < own.num_hidden_layers})
            self.lm.set_aux_hidden_state_layers(tuple(self.tapped))
            self.register_buffer("prefix", torch.tensor(self.plugin.prefix, device=device), persistent=False)
            self.attention = nn.ModuleList(_Heads(block, vllm_config) for block in self.reader.blocks)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embeds: Tensor = self.lm.embed_input_ids(input_ids)
        return embeds

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """States (n, d) of n tokens of any texts at their positions (n,), or (n, d + r) with a reader."""
        found = self.lm(input_ids, positions, intermediate_tensors, inputs_embeds)
        if self.reader is None:
            return found
        hidden, states = found if isinstance(found, tuple) else (found, [])
        by_layer = dict(zip(self.tapped, states, strict=True))
        taps = torch.cat([by_layer.get(layer, hidden) for layer in self.reader.layers], -1)
        ignored = None
        if input_ids is not None and len(self.prefix):
            ignored = in_prefix(self.prefix, input_ids, positions)[None]
        g = self.reader(taps[None], positions[None], self._look_back, ignored)[0]
        return torch.cat([hidden, g.to(hidden.dtype)], -1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Log-probabilities (n, vocab) float32 of the next tokens, for states (n, s)."""
        if self.policy is None:
            return by_mixture(self.head, self.plugin, hidden_states)
        return by_policy(self.head, self.plugin, self.policy, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Of the backbone; those of plug-in and policy are here already.

        Raises:
            ValueError: it is not the backbone that the plug-in was made for.
        """
        samples: dict[str, Tensor] = {}

        def backbone() -> Iterator[tuple[str, Tensor]]:
            for name, weight in weights:
                if name.startswith(OF_BACKBONE):
                    name = name.removeprefix(OF_BACKBONE)
                    samples[name] = sample(weight)
                    yield name, weight

        self.lm.load_weights(backbone())
        with torch.device("meta"):
            shapes = [
                (name, tuple(p.shape)) for name, p in AutoModelForCausalLM.from_config(self.own).named_parameters()
            ]
        missing = [name for name, _ in shapes if name not in samples]
        if missing or self.plugin.fingerprint != fingerprint(
            self.own.model_type, ((name, shape, samples[name]) for name, shape in shapes)
        ):
            raise ValueError(
                f"{self.secondary_weights[0].model_or_path} is not the backbone that the plug-in was made for"
                f"{f', it has no {missing[0]}' if missing else ''}. Export with bundle=true, which takes the right one along."
            )
        return {name for name, _ in self.named_parameters()}

    def _look_back(self, block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self.reader is not None
        return self.attention[block.layer_idx - self.reader.geometry.num_layers](query, key, value)


class _Heads(nn.Module):
    """The attention of a block of the reader. Each rank of the tensor parallelism has the cache of some of its heads, as for the
    backbone's layers, so that all layers have caches of one shape."""

    def __init__(self, block: Block, vllm_config: VllmConfig):
        super().__init__()
        self.ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        if block.heads % self.ranks:
            raise ValueError(
                f"tensor_parallel_size={self.ranks}: the reader has {block.heads} heads; expected a divisor of that"
            )
        n, kv = block.heads // self.ranks, max(1, block.kv_heads // self.ranks)
        first = rank * block.kv_heads // self.ranks
        self.mine, self.kv_mine = slice(rank * n, (rank + 1) * n), slice(first, first + kv)
        self.layer = Attention(
            n, block.head_dim, block.head_dim**-0.5, num_kv_heads=kv, cache_config=vllm_config.cache_config,
            prefix=f"reader.blocks.{block.layer_idx}.attn",
        )  # fmt: skip

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, heads, n, e) each: (1, n, heads * e)."""
        q, k, v = (
            each[0, heads].transpose(0, 1).flatten(1)
            for each, heads in ((query, self.mine), (key, self.kv_mine), (value, self.kv_mine))
        )
        found: Tensor = self.layer(q, k, v)
        if self.ranks > 1:
            found = tensor_model_parallel_all_gather(found, -1)
        return found[None]


def _check(model_type: str, vllm_config: VllmConfig) -> None:
    """What cannot be, said before anything is loaded."""
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"this export has a backbone of type '{model_type}'; in vLLM there is {' and '.join(ARCHITECTURES)}. "
            "transformers runs it: AutoModelForCausalLM.from_pretrained."
        )
    if vllm_config.speculative_config is not None:
        raise ValueError("an option LM takes no speculative decoding: drafts are of the backbone's tokens")
    if vllm_config.quant_config is not None:
        raise ValueError("an option LM takes no quantization: its options were learned on the backbone's own states")
    if vllm_config.cache_config.cache_dtype.startswith("fp8"):
        raise ValueError(
            f"kv_cache_dtype={vllm_config.cache_config.cache_dtype}: the reader marks keys with numbers beyond it; use auto"
        )


def _weights_of(path: Path, plugin: PlugIn) -> DefaultModelLoader.Source:
    """Where the backbone's weights are: in the export, or as `ollm_rl` names it."""
    if (path / BACKBONE / "config.json").is_file():
        return DefaultModelLoader.Source(str(path / BACKBONE), None, prefix=OF_BACKBONE)
    if plugin.backbone == "tiny":
        raise ValueError("this export has the backbone 'tiny', which is made in memory; export with bundle=true")
    name = str(smollm2_dir()) if plugin.backbone == "smollm2" else plugin.backbone
    return DefaultModelLoader.Source(name, plugin.revision, prefix=OF_BACKBONE)
