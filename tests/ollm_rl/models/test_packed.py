"""Decode steps by compiled functions and packed weights give what ordinary ones give, row by row."""

import ctypes
import platform

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from ollm_rl.models import kernels as compiled
from ollm_rl.models.attention import KVCache
from ollm_rl.models.backbone import Backbone, prefill_prefix
from ollm_rl.models.blocks import Blocks
from ollm_rl.models.tiny import tiny_tokenizer
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM

SIZES = dict(
    vocab_size=259, hidden_size=192, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=512, eos_token_id=2,
)  # fmt: skip
PACKED = {
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
}
ORDINARY = {  # in which only the attention is compiled
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "granite": GraniteConfig(**SIZES),
    "narrow window": MistralConfig(**SIZES, sliding_window=20),
}
pytestmark = pytest.mark.skipif(bool(compiled.why_not(torch.float32)), reason=compiled.why_not(torch.float32))


def backbone(config, dtype=torch.float32) -> Backbone:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for p in model.parameters():  # biases and norms of a new model say nothing
        p.data += 0.1 * torch.randn_like(p)
    return Backbone("random", model, tiny_tokenizer(), dtype, torch.device("cpu"), "test")


class Texts:
    """Some rows of unequal lengths after a shared prefix, and the same steps taken either way."""

    def __init__(self, lm: Backbone, prefix_length: int, lengths=(3, 40, 17, 1, 29), steps: int = 4):
        self.lm, self.steps = lm, steps
        generator = torch.Generator().manual_seed(1)
        self.prompts = torch.randint(3, 259, (len(lengths), max(lengths)), generator=generator)
        self.lengths = torch.tensor(lengths)
        self.new = torch.randint(3, 259, (steps, len(lengths)), generator=generator)
        self.prefix_tokens = list(range(3, 3 + prefix_length))

    def run(self, compiled_steps: bool, reader=None, rows=None) -> torch.Tensor:
        """States (steps, n, s) of all rows, or of the steps' `rows` only."""
        lm, n = self.lm, len(self.prompts)
        lm.compiled = compiled_steps
        kv = KVCache(n + 2, 64, prefill_prefix(lm, self.prefix_tokens))
        positions = torch.arange(self.prompts.shape[1]).expand(n, -1)
        lm.hidden(self.prompts, positions, kv, reader=reader)
        states = []
        for t, tokens in enumerate(self.new):
            at = self.lengths + t
            if rows is None:
                states.append(lm.hidden(tokens[:, None], at[:, None], kv, reader=reader)[:, 0])
            else:
                states.append(lm.hidden(tokens[rows, None], at[rows, None], kv, rows, reader=reader)[:, 0])
        return torch.stack(states)


@pytest.mark.parametrize("prefix_length", [0, 5, 16, 37])
@pytest.mark.parametrize("name", [*PACKED, *ORDINARY])
def test_steps_are_the_ordinary_ones(name, prefix_length):
    lm = backbone({**PACKED, **ORDINARY}[name])
    assert (lm._steps.get() is not None) == (name in PACKED)
    texts = Texts(lm, prefix_length)
    torch.testing.assert_close(texts.run(True), texts.run(False), atol=2e-5, rtol=1e-5)
    hidden = texts.run(True)[0]
    lm.compiled = True
    mine = lm.logits(hidden)
    lm.compiled = False
    torch.testing.assert_close(mine, lm.logits(hidden), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_in_bf16_they_are_so_up_to_roundings(name):
    """Attention keeps float32 between its two products, where PyTorch rounds: so they may differ by roundings, and do no worse."""
    exact = Texts(backbone(PACKED[name]), 16)
    lm = backbone(PACKED[name], torch.bfloat16)
    exact.lm.model.load_state_dict({k: v.float() for k, v in lm.model.state_dict().items()})
    texts, true = Texts(lm, 16), exact.run(False)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert lm._steps.get() is None
    off = [float((texts.run(way).float() - true).abs().mean()) for way in (True, False)]
    assert off[0] < 1.2 * off[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_how_many_there_are(dtype):
    lm = backbone(PACKED["llama"], dtype)
    texts = Texts(lm, 5, lengths=(3, 40, 17, 1, 29, 8, 9, 10, 11, 12, 13))
    together = texts.run(True)
    for rows in ([0], [7], [10, 3], [1, 2, 3, 4, 5], list(range(11))[::-1]):
        torch.testing.assert_close(texts.run(True, rows=torch.tensor(rows)), together[:, rows], atol=0, rtol=0)


@pytest.mark.parametrize("layers", [[0, 1, 2], [2], [1]])
def test_a_reader_reads_the_same_states(layers):
    lm = backbone(PACKED["llama"])
    sizes = PlugInConfig(num_options=3, encoder_width=16, decoder_width=16, prior_width=16, reader_depth=1, reader_width=64,
                         reader_layers=layers)  # fmt: skip
    reader = OptionLM(lm, PlugIn.beside(lm, sizes)).reader
    texts = Texts(lm, 5)
    both = texts.run(True, reader)
    assert both.shape[-1] == 192 + 64
    torch.testing.assert_close(both, texts.run(False, reader), atol=2e-5, rtol=1e-5)


def test_weights_that_change_and_adapters_that_learn_are_followed():
    lm = backbone(PACKED["llama"])
    texts = Texts(lm, 5)
    before = texts.run(True)
    with torch.no_grad():
        lm.model.model.layers[1].mlp.down_proj.weight += 0.1
    changed = texts.run(True)
    assert (changed - before).abs().max() > 1e-3
    torch.testing.assert_close(changed, texts.run(False), atol=2e-5, rtol=1e-5)
    model = get_peft_model(lm.model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.eval()
    packed = lm._steps.get()
    torch.testing.assert_close(texts.run(True), changed, atol=2e-5, rtol=1e-5)  # they begin as nothing
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.1)
    learned = texts.run(True)
    assert (learned - changed).abs().max() > 1e-3
    torch.testing.assert_close(learned, texts.run(False), atol=2e-5, rtol=1e-5)
    assert lm._steps.get() is packed, "weights were laid out anew for an adapter"
    with model.disable_adapter():
        torch.testing.assert_close(texts.run(True), changed, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(texts.run(True), learned, atol=0, rtol=0)


@pytest.mark.parametrize("what", ["weight", "adapter"])
def test_weights_that_are_replaced_are_followed(what):
    lm = backbone(PACKED["llama"])
    model = get_peft_model(lm.model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.eval()
    texts = Texts(lm, 5)
    before = texts.run(True)
    module = lm.model.model.layers[0].self_attn.q_proj
    if what == "weight":
        module.base_layer.weight.data = module.base_layer.weight.data * 2
    else:
        for side in (module.lora_A, module.lora_B):
            side["default"].weight = torch.nn.Parameter(torch.randn_like(side["default"].weight), requires_grad=False)
    after = texts.run(True)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, texts.run(False), atol=5e-5, rtol=1e-4)


def test_a_number_that_is_none_stays_with_its_row():
    lm = backbone(PACKED["llama"], torch.bfloat16)
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[7] = float("nan")
    texts = Texts(lm, 0, steps=1)
    texts.new[0, 1] = 7
    states = texts.run(True)[0]
    assert states.isnan().any(-1).tolist() == [False, True, False, False, False]


def test_functions_that_compute_something_else_are_not_used(monkeypatch, caplog):
    """Every model is tried when it is loaded; here a norm that forgets what it adds."""
    add_norm = compiled.Kernels.add_norm
    monkeypatch.setattr(compiled.Kernels, "add_norm", lambda self, h, delta, *rest: add_norm(self, h, None, *rest))
    with caplog.at_level("INFO"):
        lm = backbone(PACKED["llama"])
    assert not lm.compiled and "are not compiled: the engine's logits are off by" in caplog.text


@pytest.mark.parametrize(
    "compiler, reason",
    [("there-is-none", "no C compiler 'there-is-none'"), ("false", "ended with 1"), ("cat", "ended with 1")],
)
def test_without_a_compiler_the_reason_is_said(compiler, reason, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    compiled._library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert compiled.kernels(torch.float32) is None
            lm = backbone(PACKED["llama"])
            assert reason in compiled.why_not(torch.float32) and reason in caplog.text
            assert lm._steps.get() is None
            Texts(lm, 5).run(True)
    finally:
        compiled._library.cache_clear()


def test_the_library_is_kept_and_a_cache_that_may_only_be_read_will_do(monkeypatch, tmp_path):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    first = compiled._built(False)
    made = first.stat().st_mtime_ns
    assert compiled._built(False) == first and first.stat().st_mtime_ns == made
    assert [p.name for p in first.parent.iterdir()] == [first.name]
    monkeypatch.setenv("OLLM_RL_CACHE", "/proc/nowhere")
    assert compiled._built(False).exists()


@pytest.mark.parametrize("compiled_steps", [True, False])
@pytest.mark.parametrize("size", [5, 16])
@torch.inference_mode()
def test_rows_that_share_blocks_hold_the_same(size, compiled_steps):
    lm = backbone(PACKED["llama"])
    lm.compiled = compiled_steps
    prefix = prefill_prefix(lm, [5, 6, 7])
    texts, states = [[9, 8, 7] * 7, [11] * 16, [4, 5]], []
    lengths = torch.tensor([len(text) for text in texts])
    for blocks in (None, Blocks(6, 40, size, 40)):
        kv = KVCache(6, 40, prefix, blocks)
        kv.reserve(torch.arange(3), lengths)
        found = lm.texts(texts, kv)
        kv.select(torch.tensor([0, 2, 1, 0, 2]), lengths[[0, 2, 1, 0, 2]])
        at = lengths[[0, 2, 1, 0, 2]]
        for step in range(6):
            kv.reserve(torch.arange(5), at + 1)
            found.append(lm.hidden(torch.arange(5)[:, None] + 20 + step, at[:, None], kv)[:, 0])
            at = at + 1
        other = KVCache(3, 40, prefix, None if blocks is None else Blocks(3, 30, 7, 40))
        other.copy_rows(kv, torch.tensor([4, 0]), torch.tensor([0, 2]), at[[4, 0]])
        other.reserve(torch.tensor([0, 2]), at[[4, 0]] + 1)
        found.append(lm.hidden(torch.tensor([[50], [51]]), at[[4, 0], None], other, torch.tensor([0, 2]))[:, 0])
        states.append(torch.cat([each.flatten() for each in found]))
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_processors_without_pairs_of_products_attend_alike(dtype, monkeypatch, tmp_path):
    if platform.machine() != "x86_64" or not torch.cpu._is_avx2_supported():
        pytest.skip("another processor")
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    flags = tuple(flag.replace("-march=native", "-march=x86-64-v3") for flag in compiled.FLAGS)
    native = compiled.kernels(dtype)
    monkeypatch.setattr(compiled, "FLAGS", flags)
    other = compiled.Kernels(ctypes.CDLL(str(compiled._built(dtype == torch.bfloat16))))
    torch.manual_seed(0)
    query, key, value = (torch.randn(7, heads, 64).to(dtype) for heads in (6, 2, 2))
    at = torch.tensor([0, 3, 16, 31, 40, 47, 33])
    prefix = torch.randn(2, 2, 21, 64).to(dtype)
    found = []
    for functions in (native, other):
        keys, values = (torch.randn(7, 2, 48, 64, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (1, 2))
        shared = functions.prefix_keys(prefix[0]), prefix[1]
        table = torch.arange(7)[:, None]
        found.append(functions.attend(query, key, value, None, keys, values, table, at, shared, 0.125))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found[0], found[1], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 2000, 48), (2, 48, 48), (1, 70, 1), (5, 130, 48)])
def test_the_largest_are_those_of_a_stable_sort(dtype, shape):
    n, v, k = shape
    functions = compiled.kernels(dtype)
    if functions is None:
        pytest.skip(compiled.why_not(dtype))
    x = (
        torch.randn(n, v, generator=torch.Generator().manual_seed(0)).round(decimals=1).to(dtype) + 0.0
    )  # many are equal
    x[0, :3], x[-1, 5] = float("-inf"), float("inf")
    values, places = functions.top(x, k)
    ordered = x.float().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(places, ordered.indices[:, :k]) and torch.equal(values.float(), ordered.values[:, :k])
