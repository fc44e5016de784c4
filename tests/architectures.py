"""Random small models of the architectures that the toolkit is for."""

from typing import Any

import torch

from ollm_rl.attention import IMPLEMENTATION
from ollm_rl.backbone import Backbone, tiny_tokenizer

SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=2048, initializer_range=0.3,
)  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0, "sliding_window": 16}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 16}),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048, "initializer_range": 0.3}),
    "gpt_neox": ("GPTNeoX", {"num_key_value_heads": None}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
}


def random_model(name: str) -> Any:
    """A transformers model of that architecture with random weights, the same every time."""
    import transformers

    tokenizer = tiny_tokenizer()
    prefix, settings = ARCHITECTURES[name]
    sizes = {} if name == "gpt2" else SIZES
    values = {k: v for k, v in {**sizes, **settings}.items() if v is not None}
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **values,
    )  # fmt: skip
    head = "LMHeadModel" if name == "gpt2" else "ForCausalLM"
    kind = getattr(transformers, {"Gemma3Text": "Gemma3"}.get(prefix, prefix) + head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).float().eval()


def random_backbone(name: str) -> Backbone:
    model = random_model(name)
    model.set_attn_implementation(IMPLEMENTATION)
    return Backbone(name, model, tiny_tokenizer(), torch.float32, torch.device("cpu"), "random")
