"""An option language model as an ordinary model of transformers, for other tools to score and to sample from.

`forward` gives log-probabilities of the next token, of one of two `kind`s:

* `mixture`: log sum_z pi0(z | h) p(x | h, z) (arXiv 2604.19087, section 3), what the model says if the prior picks the latent
  and the token is drawn from the option. Every token has a probability.
* `policy`: log sum_z pi(z | h) [option z says x] over the canonical latents z, what a latent policy says in the engine. All but
  K tokens are impossible, which is `next_token.FLOOR` here.

Importing this module registers the classes with transformers, so that `AutoModelForCausalLM.from_pretrained(directory)` gives such
a model. The directory holds the plug-in, the policy if there is one, and the name of the backbone or its weights.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from ollm_rl.errors import CheckpointError
from ollm_rl.models import driving
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.config import EXPORT_KINDS
from ollm_rl.options.enumeration import Options
from ollm_rl.options.modules import PlugIn, checkpoint_dir
from ollm_rl.options.next_token import by_mixture, by_policy
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.options.reader import Block, Reader, in_prefix

BACKBONE = "backbone"  # directory of the backbone's weights, where they are along


class OptionLMConfig(PretrainedConfig):
    """The backbone's configuration as `text_config`; which backbone, and the plug-in's sizes, are in `plugin.json`.

    Attributes:
        kind: what `forward` gives, `mixture` or `policy`.
    """

    model_type = "option_lm"
    sub_configs = {"text_config": AutoConfig}

    def __init__(self, text_config: Any = None, kind: str = "mixture", **kwargs: Any):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config, self.kind = text_config, kind
        super().__init__(**kwargs)


class OptionLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A frozen backbone with its plug-in: the mixture over the latents, or what a latent policy says.

    Attributes:
        watch: of kind `policy`, called with the options and the log-probabilities (n, K) of their latents whenever these are asked for.
    """

    config_class = OptionLMConfig
    base_model_prefix = "body"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _tied_weights_keys: dict[str, str] = {}

    def __init__(
        self,
        config: OptionLMConfig,
        backbone: Backbone | None = None,
        plugin: PlugIn | None = None,
        policy: LatentPolicy | None = None,
    ):
        if backbone is None or plugin is None:
            raise CheckpointError(
                "an option LM is a backbone and its plug-in; make it with from_pretrained(<directory>) or "
                "OptionLMForCausalLM.of(backbone, plugin)"
            )
        super().__init__(config)
        self.lm, self.plugin, self.policy = backbone.model, plugin, policy
        self.watch: Callable[[Options, Tensor], None] | None = None
        self._backbone = [backbone]  # in lists: not modules of this one
        reader = plugin.reader
        self._reader = None if reader is None else [reader.frozen(backbone.dtype, backbone.device)]

    @classmethod
    def of(cls, backbone: Backbone, plugin: PlugIn, policy: LatentPolicy | None = None) -> "OptionLMForCausalLM":
        """From parts in memory: with a policy of that kind, else the mixture."""
        own = copy.deepcopy(backbone.model.config)  # transformers sets the attention of what it is given
        if plugin.reader is not None:
            _add_layers(own.get_text_config(), len(plugin.reader.blocks))
        config = OptionLMConfig(
            own, vocab_size=backbone.vocab_size, hidden_size=backbone.hidden_size,
            eos_token_id=backbone.eos_ids, bos_token_id=own.bos_token_id, pad_token_id=backbone.tokenizer.pad_token_id,
            architectures=[cls.__name__], is_encoder_decoder=False, kind="mixture" if policy is None else "policy",
        )  # fmt: skip
        model = cls(config, backbone, plugin, policy).eval()
        model.set_attn_implementation("sdpa")  # which ours is outside of the engine
        model.generation_config = backbone.model.generation_config
        config.dtype = config.text_config.dtype = backbone.dtype
        return model

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: Any, **kwargs: Any) -> "OptionLMForCausalLM":  # type: ignore[override]
        """Load from a directory that `save_pretrained`, an export or a conversion wrote, or from the hub.

        Args:
            backbone: one that is loaded already, in place of the one that the directory names.
            dtype, device_map: of the backbone, as for other models; a device_map must be one device.

        Raises:
            CheckpointError: nothing there, or it was made for another backbone.
        """
        backbone, path = kwargs.get("backbone"), checkpoint_dir(path)
        made_for = PlugIn.from_pretrained(path)
        if backbone is None:
            dtype = str(kwargs.get("dtype") or "auto").removeprefix("torch.")
            if dtype == "auto" and _facts(path).get("kind") == "policy":  # what it learned to choose by has a precision
                dtype = str(_facts(path).get("dtype") or dtype)
            place = kwargs.get("device_map") or "auto"
            device = str(place.get("", "auto") if isinstance(place, dict) else place)  # {"": "cpu"} is one device too
            along = (path / BACKBONE / "config.json").is_file()
            if along:
                backbone = load_backbone(str((path / BACKBONE).resolve()), dtype, device)
            else:
                backbone = load_backbone(made_for.backbone, dtype, device, made_for.revision, adapter=made_for.adapter)
        plugin = PlugIn.from_pretrained(path, backbone)
        model = cls.of(backbone, plugin, policy_in(path, plugin))
        if (path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
        return model

    def save_pretrained(self, path: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the plug-in, which names its backbone, the policy if there is one, the configuration and the tokenizer; then
        `push_to_hub=True` uploads them to `repo_id`, by default the directory's name."""
        backbone = self._backbone[0]
        self.plugin.save_pretrained(path)
        if self.policy is not None:
            self.policy.save_pretrained(
                path, backbone=backbone.name, fingerprint=backbone.fingerprint, plugin=self.plugin.digest()
            )
        self.config.save_pretrained(path)
        backbone.tokenizer.save_pretrained(path)
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", Path(path).name), **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities of the next token as logits (n, t, vocab) float32; `labels` give the mean cross-entropy, or its sum
        divided by `num_items_in_batch`.

        Whatever else is given goes to the backbone's body: what `generate`, continuous batching and trainers hand over.
        """
        body: dict[str, Any] = dict(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs,
        )  # fmt: skip
        if self._reader is None:
            out = self._backbone[0].body(**body)
            states = out.last_hidden_state
        else:
            out, states = self._read(self._reader[0], body, kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # 0 keeps all
        hidden = states[:, keep]
        say = self.mixture if self.policy is None else self.by_policy
        logits = say(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
        loss = None
        if labels is not None:
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.get("hidden_states"),
            attentions=out.get("attentions"),
        )  # fmt: skip

    def _read(self, reader: Reader, body: dict[str, Any], kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The body's output, and the states (n, t, s) with what the reader makes of them.

        The reader's blocks are layers of the same cache, so that it is reordered, cropped and paged with the others.
        """
        backbone, own = self._backbone[0], self.config.get_text_config()
        wanted = own.use_cache if body["use_cache"] is None else body["use_cache"]
        if (
            wanted and body["past_key_values"] is None and "cache" not in kwargs
        ):  # the body's own would have no layer for it
            body["past_key_values"] = DynamicCache(config=own)
        past = body["past_key_values"]
        embeds = body["inputs_embeds"]
        if embeds is None:
            embeds = backbone.model.get_input_embeddings()(body["input_ids"])
        at = body["position_ids"]
        if at is None:
            at = torch.arange(embeds.shape[1], device=embeds.device)[None] + (past.get_seq_length() if past else 0)
        mask = body["attention_mask"]
        if isinstance(mask, dict):
            mask = mask["full_attention"]
        else:
            mask = create_causal_mask(
                own, embeds, mask, past, body["position_ids"], layer_idx=own.num_hidden_layers - 1
            )
        with backbone.tap(reader.layers) as taps:
            out = backbone.body(**body)

        def attention(block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if past is not None:
                key, value = past.update(key, value, block.layer_idx)
            function = ALL_ATTENTION_FUNCTIONS.get_interface(own._attn_implementation, eager_attention_forward)
            attended, _ = function(block, query, key, value, mask, scaling=block.head_dim**-0.5, dropout=0.0, **kwargs)
            return attended.flatten(2)

        states = out.last_hidden_state
        at = at.expand(len(states), -1)
        read = reader(taps(states), at, attention, self._in_prefix(body["input_ids"], at))
        return out, torch.cat([states, read.to(states.dtype)], -1)

    def _in_prefix(self, ids: Tensor | None, positions: Tensor) -> Tensor | None:
        """(n, t) `ollm_rl.options.reader.in_prefix`, as far as that is known."""
        if ids is None or not self.plugin.prefix:
            return None
        return in_prefix(torch.tensor(self.plugin.prefix, device=ids.device), ids, positions)

    def mixture(self, hidden: Tensor) -> Tensor:
        """As `ollm_rl.options.next_token.by_mixture`."""
        return by_mixture(self._backbone[0], self.plugin, hidden)

    def by_policy(self, hidden: Tensor) -> Tensor:
        """As `ollm_rl.options.next_token.by_policy`."""
        assert self.policy is not None
        return by_policy(self._backbone[0], self.plugin, self.policy, hidden, self.watch)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """As for other models; `sdpa` leaves the backbone's attention to us, so that the engine can drive it again."""
        if attn_implementation != "sdpa":
            super().set_attn_implementation(attn_implementation, *args, **kwargs)
            return
        for config in (self.config, self.config.text_config):  # continuous batching makes masks by what they say
            config._attn_implementation = attn_implementation
        driving.prepare(self.lm)

    def get_output_embeddings(self):
        return self.lm.get_output_embeddings()

    def get_input_embeddings(self):
        return self.lm.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        return self._backbone[0].device


def _facts(path: Path) -> dict[str, Any]:
    """What a directory's configuration says; nothing where there is none."""
    found = json.loads((path / "config.json").read_text()) if (path / "config.json").is_file() else {}
    return found if isinstance(found, dict) else {}


def policy_in(path: Path, plugin: PlugIn) -> LatentPolicy | None:
    """The policy of a directory of that kind."""
    if (kind := _facts(path).get("kind", "mixture")) not in EXPORT_KINDS:
        raise CheckpointError(f"{path / 'config.json'}: kind {kind!r}; expected one of {', '.join(EXPORT_KINDS)}")
    if kind == "mixture":
        return None
    policy = LatentPolicy.from_pretrained(path, plugin.fingerprint, plugin.digest())
    return policy.to(plugin.standardize.mean.device).eval().requires_grad_(False)


def _add_layers(config: Any, count: int) -> None:
    """Make room for layers that attend to everything: caches and masks are made by this configuration."""
    types, _ = get_layer_types_and_kwargs(config)
    config.num_hidden_layers += count
    if set(types) != {"full_attention"} or getattr(config, "layer_types", None):
        config.layer_types = [*types, *["full_attention"] * count]


AutoConfig.register(OptionLMConfig.model_type, OptionLMConfig, exist_ok=True)
AutoModelForCausalLM.register(OptionLMConfig, OptionLMForCausalLM, exist_ok=True)
