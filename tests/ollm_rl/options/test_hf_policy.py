"""The option LM of kind `policy`: its logits are the engine's policy, however it is driven."""

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from ollm_rl.errors import CheckpointError
from ollm_rl.models.loading import load_backbone
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.hf import BACKBONE, OptionLMForCausalLM
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.next_token import FLOOR
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.tasks.base import Problem
from ollm_rl.tasks.prompts import Prompter
from tests.architectures import random_backbone

NEW = 8


def parts(name, reader_depth):
    """A random backbone with a random plug-in and a policy that is not its prior."""
    backbone = random_backbone(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = PlugInConfig(
            num_options=5, decoder_width=16, encoder_width=16, prior_width=16, shortlist=20, reader_depth=reader_depth,
            init_scale=3.0,
        )  # fmt: skip
        plugin = PlugIn.beside(backbone, sizes)
        plugin.prefix = Prompter(backbone, []).prefix  # which a conversion notes down, and an export too
        policy = LatentPolicy.from_prior(plugin)
        for parameter in policy.net.parameters():
            parameter.data.normal_(0, 0.15)
    return backbone, plugin.eval(), policy.eval().requires_grad_(False)


@pytest.fixture(params=[(n, d) for n in ("llama", "qwen2", "gemma3", "gpt2") for d in (0, 2)], ids=str)
def made(request):
    backbone, plugin, policy = parts(*request.param)
    return backbone, plugin, policy, OptionLMForCausalLM.of(backbone, plugin, policy)


def engine_of(backbone, plugin, max_new_tokens=NEW):
    return RolloutEngine(
        OptionLM(backbone, plugin), Prompter(backbone, []), num_slots=16, max_new_tokens=max_new_tokens
    )


def prompts(engine):
    problems = [Problem(str(i), text, "") for i, text in enumerate(("1 + 2", "a longer one: 7 - 3 - 2", "x"))]
    return problems, [engine.prompter.prefix + engine.prompter.encode(p) for p in problems]


def padded(texts, pad):
    longest = max(map(len, texts))
    ids = torch.tensor([[pad] * (longest - len(t)) + t for t in texts])
    return ids, torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in texts])


def settings(backbone):
    return dict(max_new_tokens=NEW, eos_token_id=backbone.eos_ids, pad_token_id=backbone.eos_ids[0])


def test_logits_are_the_policy_of_the_engine(made):
    """At every position of the engine's own texts: log pi(z | h) where an option says the token, `FLOOR` elsewhere."""
    backbone, plugin, policy, model = made
    engine = engine_of(backbone, plugin)
    problems, ids = prompts(engine)
    for _, episode in rollout(engine, [Request(p, i) for i, p in enumerate(problems)], Sampling(policy)):
        text = ids[int(episode.problem.id)]
        with torch.inference_mode():
            logits = model(torch.tensor([text + episode.tokens])).logits[0]
        at, decisions = len(text) - 1, 0
        for position, (token, latent) in enumerate(zip(episode.tokens, episode.latents, strict=True)):
            row = logits[at + position]
            assert torch.isclose(row.exp().sum(), torch.tensor(1.0), atol=1e-5)
            if latent < 0:
                assert row[token] == 0 and int((row > FLOOR).sum()) == 1
                continue
            likely, mask = policy(episode.hidden[decisions], episode.mask[decisions])[None], episode.mask[decisions]
            assert int((row > FLOOR).sum()) == int(mask.sum()) > 1
            expected = sorted(likely.flatten()[mask.flatten()].tolist())
            assert sorted(row[row > FLOOR].tolist()) == pytest.approx(expected, abs=1e-5)
            assert float(row[token]) == pytest.approx(float(likely.flatten()[latent]), abs=1e-5)
            decisions += 1
        assert decisions


def test_greedy_texts_are_the_engines(made):
    """One by one, side by side with padding on the left, in continuous batching, as a stream, and by beams of one."""
    from transformers import ContinuousBatchingConfig, GenerationConfig, TextStreamer

    backbone, plugin, policy, model = made
    engine = engine_of(backbone, plugin)
    problems, ids = prompts(engine)
    found = dict(rollout(engine, [Request(p, 0) for p in problems], Sampling(policy, deterministic=True)))
    expected = [found[i].tokens for i in range(len(problems))]

    def cut(tokens):
        ends = [i for i, t in enumerate(tokens) if t in backbone.eos_ids]
        return tokens[: ends[0] + 1] if ends else tokens

    own = settings(backbone)
    for text, tokens in zip(ids, expected, strict=True):
        said = model.generate(torch.tensor([text]), do_sample=False, **own)[0, len(text) :].tolist()
        assert cut(said) == tokens
    together, mask = padded(ids, backbone.eos_ids[0])
    said = model.generate(together, attention_mask=mask, do_sample=False, **own)[:, together.shape[1] :].tolist()
    assert [cut(t) for t in said] == expected
    batch = model.generate_batch(
        inputs=ids, generation_config=GenerationConfig(do_sample=False, **{**own, "eos_token_id": backbone.eos_ids[0]}),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=128), progress_bar=False,
    )  # fmt: skip
    assert [cut(batch[key].generated_tokens) for key in sorted(batch)] == expected
    streamed = model.generate(
        torch.tensor([ids[0]]), do_sample=False, streamer=TextStreamer(backbone.tokenizer, skip_prompt=True), **own
    )
    assert cut(streamed[0, len(ids[0]) :].tolist()) == expected[0]


def test_beams_score_texts_by_what_the_policy_gives_them(made):
    backbone, plugin, policy, model = made
    _, [text, *_] = prompts(engine_of(backbone, plugin))
    own = settings(backbone) | {"eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}
    ids = torch.tensor([text])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=4, num_return_sequences=4, **own
    )
    for tokens, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits[0]
        likely = [float(logits[i - 1, tokens[i]]) for i in range(len(text), len(tokens))]
        assert min(likely) > FLOOR / 2  # every token is one that an option says
        assert score == pytest.approx(sum(likely) / NEW, abs=1e-4)


@pytest.mark.slow
def test_samples_are_drawn_as_the_engine_draws_them():
    """2,000 draws of a decision each, by `generate` and by the engine, against pi(z | h)."""
    backbone, plugin, policy = parts("llama", 2)
    model = OptionLMForCausalLM.of(backbone, plugin, policy)
    engine = engine_of(backbone, plugin, max_new_tokens=1)
    [problem, *_], [text, *_] = prompts(engine)
    with torch.inference_mode():
        row = model(torch.tensor([text])).logits[0, -1]
    said = (row > FLOOR).nonzero()[:, 0].tolist()
    assert len(said) > 1
    torch.manual_seed(0)
    drawn = model.generate(
        torch.tensor([text]), do_sample=True, num_return_sequences=2000, **settings(backbone) | {"max_new_tokens": 1}
    )[:, -1].tolist()
    of_engine = [e.tokens[0] for _, e in rollout(engine, [Request(problem, i) for i in range(2000)], Sampling(policy))]
    expected = (row[said].double().softmax(-1) * 2000).tolist()
    for tokens in (drawn, of_engine):
        assert set(tokens) <= set(said)
        assert chisquare([tokens.count(t) for t in said], expected).pvalue > 0.01


@pytest.mark.parametrize("along", [False, True], ids=["named", "bundled"])
def test_it_comes_back_from_its_directory(tiny, tmp_path, along):
    policy = LatentPolicy.from_prior(tiny.plugin)
    policy.net[-1].bias.data[1] += 1.0
    model = OptionLMForCausalLM.of(tiny.backbone, tiny.plugin, policy)
    model.save_pretrained(tmp_path)
    if along:
        tiny.backbone.model.save_pretrained(tmp_path / BACKBONE)
        tiny.backbone.tokenizer.save_pretrained(tmp_path / BACKBONE)
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    assert again.config.kind == "policy"
    assert (Path(again._backbone[0].name).name == BACKBONE) == along
    ids = torch.tensor([tiny.backbone.tokenizer("6 + 0 - 1 = ?")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_kind_that_nobody_knows_is_refused(tiny, tmp_path):
    tiny.lm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"kind": "critic"}))
    with pytest.raises(CheckpointError, match="policy, mixture"):
        OptionLMForCausalLM.from_pretrained(tmp_path)


def test_an_adapter_that_was_merged_leaves_with_its_weights(tmp_path):
    """The backbone is a directory that peft wrote; bundled, the export stands alone."""
    import peft

    model = random_backbone("llama").model
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    merged = peft.get_peft_model(model, config).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    random_backbone("llama").tokenizer.save_pretrained(tmp_path / "merged")
    backbone = load_backbone(str(tmp_path / "merged"), dtype="float32")
    plugin = PlugIn.beside(backbone, PlugInConfig(num_options=3, decoder_width=16, encoder_width=16, prior_width=16))
    exported = OptionLMForCausalLM.of(backbone, plugin, LatentPolicy.from_prior(plugin))
    exported.save_pretrained(tmp_path / "out")
    backbone.model.save_pretrained(tmp_path / "out" / BACKBONE)
    backbone.tokenizer.save_pretrained(tmp_path / "out" / BACKBONE)
    (tmp_path / "merged").rename(tmp_path / "gone")
    again = OptionLMForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, exported(ids).logits)
