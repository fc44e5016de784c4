"""Random small models of the architectures that the toolkit is for."""

from typing import Any

import torch

from ollm_rl.models.backbone import Backbone
from ollm_rl.models.tiny import tiny_tokenizer

SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=2048, initializer_range=0.3,
)  # fmt: skip
MLA = dict(
    num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12,
)  # fmt: skip
# Every scale, cap and multiplier is away from 1, so that one that is left out shows.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "qwen2": ("Qwen2", SIZES),
    "qwen3": ("Qwen3", SIZES | {"head_dim": 8}),
    "gemma2": ("Gemma2", SIZES | {"head_dim": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 4.0,
                                  "query_pre_attn_scalar": 5, "sliding_window": 16}),
    "gemma3": ("Gemma3Text", SIZES | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 5,
                                      "final_logit_softcapping": 7.0}),
    "mistral": ("Mistral", SIZES | {"sliding_window": 16}),
    "phi3": ("Phi3", SIZES),
    "olmo2": ("Olmo2", SIZES),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048, "initializer_range": 0.3,
                      "scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("GPTNeoX", {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "qwen3_moe": ("Qwen3Moe", SIZES | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
                                       "moe_intermediate_size": 16, "mlp_only_layers": []}),
    "granite": ("Granite", SIZES | {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7,
                                    "attention_multiplier": 0.4}),
    "cohere": ("Cohere", SIZES | {"logit_scale": 0.3, "use_qk_norm": True}),
    "cohere2": ("Cohere2", SIZES | {"logit_scale": 0.3, "sliding_window": 16, "head_dim": 8}),
    "stablelm": ("StableLm", SIZES | {"qk_layernorm": True}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "nemotron": ("Nemotron", SIZES),
    "deepseek_v3": ("DeepseekV3", SIZES | MLA | {
        "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "routed_scaling_factor": 1.7}),
    "minicpm3": ("MiniCPM3", SIZES | MLA | {"scale_emb": 2.0, "scale_depth": 1.2, "dim_model_base": 16}),
}  # fmt: skip
# What the engine cannot drive, and a word of the reason.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "lfm2": ("Lfm2", SIZES | {"layer_types": ["conv", "full_attention"]}, "1 of its 2 layers keep a state"),
    "qwen3_next": ("Qwen3Next", SIZES | {
        "layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        "1 of its 2 layers keep a state"),
    "falcon_h1": ("FalconH1", SIZES | {
        "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
        "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0}, "are off by"),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3},
              "attention interface"),
    "falcon": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, "attention interface"),
    "gptj": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "attention interface"),
    "mpt": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}, "attention interface"),
    "gpt_oss": ("GptOss", SIZES | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, "attention sinks"),
}  # fmt: skip


def random_model(name: str) -> Any:
    """A transformers model of that architecture with random weights, the same every time."""
    import transformers

    tokenizer = tiny_tokenizer()
    prefix, settings = (ARCHITECTURES.get(name) or REFUSED[name])[:2]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **settings,
    )  # fmt: skip
    head = "LMHeadModel" if name == "gpt2" else "ForCausalLM"
    kind = getattr(transformers, {"Gemma3Text": "Gemma3"}.get(prefix, prefix) + head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).float().eval()


def random_backbone(name: str) -> Backbone:
    return Backbone(name, random_model(name), tiny_tokenizer(), torch.float32, torch.device("cpu"), "random")
