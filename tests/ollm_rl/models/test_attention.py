"""The engine's attention gives what the model itself computes."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from ollm_rl.models.attention import IMPLEMENTATION, KVCache
from ollm_rl.models.backbone import Backbone, prefill_prefix
from ollm_rl.models.tiny import tiny_tokenizer

SIZES = dict(
    vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, eos_token_id=2,
)  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=9),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=9),
    "gpt2": GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256, eos_token_id=2),
}


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    return Backbone(name, model, tiny_tokenizer(), torch.float32, torch.device("cpu"), "test")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prefix_length", [0, 5])
def test_prefill_and_decode_equal_the_model(name, prefix_length):
    lm = backbone(name)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 259, (3, 17), generator=generator)
    shared = tokens[:1, :prefix_length].expand(3, -1)
    tokens = torch.cat([shared, tokens[:, prefix_length:]], 1)
    lm.model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = lm.model(tokens).logits
    lm.model.set_attn_implementation(IMPLEMENTATION)
    prefix = prefill_prefix(lm, tokens[0, :prefix_length].tolist())
    cache = KVCache(4, 32, prefix)
    own, n = tokens[:, prefix_length:], 17 - prefix_length
    first = lm.hidden(own[:, :6], torch.arange(6).expand(3, -1), cache)
    steps = [lm.hidden(own[:, t : t + 1], torch.full((3, 1), t), cache) for t in range(6, n)]
    logits = lm.logits(torch.cat([first, *steps], 1))
    torch.testing.assert_close(logits, expected[:, prefix_length:], atol=2e-4, rtol=1e-3)


def test_naming_rows_changes_nothing():
    lm = backbone("llama")
    tokens = torch.randint(3, 259, (3, 8), generator=torch.Generator().manual_seed(2))
    cache = KVCache(3, 16)
    lm.hidden(tokens, torch.arange(8).expand(3, -1), cache)
    all_rows = lm.hidden(torch.tensor([[5], [6], [7]]), torch.full((3, 1), 8), cache)
    two = lm.hidden(torch.tensor([[7], [5]]), torch.full((2, 1), 8), cache, torch.tensor([2, 0]))
    torch.testing.assert_close(two, all_rows[[2, 0]])
