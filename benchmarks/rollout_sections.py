"""The engine apart from its race with others: how full it stays, what environments and length cost, and what it holds.

`benchmarks/rollout.py --sections ...` calls these. Each returns a few figures for its JSON line.
"""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

import envs  # noqa: F401 (registers the environments)
from agents.random import Random
from ollm_rl.common.progress import track
from ollm_rl.config.compose import compose
from ollm_rl.models.attention import IMPLEMENTATION, KVCache
from ollm_rl.models.backbone import Backbone, prefill_prefix
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.session.local import Session

CONTEXTS = (64, 512, 4096)


class Counted(RolloutEngine):
    """Remembers how many rows every decode step had."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows: list[int] = []

    def advance(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        self.rows.append(len(tokens))
        super().advance(tokens, rows)


def long_tailed(n: int, seed: int, mean: float = 40, most: int = 400) -> np.ndarray:
    """n lengths from 1 to `most`, log-normal (sigma 1) and scaled to `mean`."""
    draws = np.random.default_rng(seed).lognormal(0, 1, n)
    low, high = 0.0, 10.0 * mean
    while high - low > 1e-3:  # clipping lowers the mean: find the scale that has it
        scale = (low + high) / 2
        low, high = (scale, high) if np.clip(draws * scale, 1, most).mean() < mean else (low, scale)
    return np.clip(draws * high, 1, most).round().astype(int)


def occupancy(session: Session, episodes: int = 10_000, slots: int = 64, seed: int = 0) -> dict:
    """Share of slots that a decode step uses, on long-tailed lengths: texts end where a length says, never by themselves."""
    lengths = long_tailed(episodes, seed)
    engine = Counted(session.lm, session.prompter, num_slots=slots, max_new_tokens=int(lengths.max()))
    engine.eos_ids = []
    problems = session.problems("train", episodes, seed)
    # One problem a request: samples of one problem would share rows, and a row fewer is no slot that stands empty.
    requests = [Request(p, i, max_new_tokens=int(lengths[i])) for i, p in enumerate(problems)]
    act, done = PolicyAdapter(Random(session), deterministic=False), 0
    until = 0  # steps before the last request has begun
    with track("occupancy", episodes, "episodes") as bar:
        for _ in rollout(engine, requests, act, keep_hidden=False):
            done += 1
            bar.advance()
            if done + slots <= episodes:
                until = len(engine.rows)
    return {
        "episodes": episodes, "slots": slots, "mean_length": float(lengths.mean()), "longest": int(lengths.max()),
        "occupancy": mean(engine.rows) / slots, "occupancy_while_requests_wait": mean(engine.rows[:until]) / slots,
    }  # fmt: skip


def environments(session: Session, num_envs: int = 64, episodes: int = 192, repeats: int = 3, seed: int = 0) -> dict:
    """The environments with random latents beside the engine, both with verdicts; and one environment beside a bare loop.

    Rates are of tokens through the decode steps. The bare loop is body and head of one row at a time.
    """
    problems = session.problems("train", episodes, seed)
    engine = RolloutEngine(session.lm, session.prompter, num_slots=num_envs, max_new_tokens=session.task.max_new_tokens)
    requests = [Request(p, i) for i, p in enumerate(problems)]
    act = PolicyAdapter(Random(session), deterministic=False)

    def of_engine() -> float:
        before, start = engine.num_tokens, time.perf_counter()
        session.judge([episode for _, episode in rollout(engine, requests, act, keep_hidden=False)])
        return (engine.num_tokens - before) / (time.perf_counter() - start)

    def of_vector(**skipping: float) -> float:
        env = gymnasium.make_vec(
            "ollm_rl/LatentReasoning-v0", num_envs, "vector_entry_point", session=session, num_problems=len(problems),
            problem_seed=seed, **skipping,
        )  # fmt: skip
        env.reset(seed=seed)
        env.action_space.seed(seed)
        stepped, ended, start = env.unwrapped.engine, 0, time.perf_counter()
        before = stepped.num_tokens
        while ended < len(problems):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended += int((terminated | truncated).sum())
        return (stepped.num_tokens - before) / (time.perf_counter() - start)

    single = gymnasium.make("ollm_rl/LatentReasoning-v0", session=session, skip_forced=False)
    single.action_space.seed(seed)
    runs = []
    with track("environments", repeats, "repeats") as bar:
        for i in range(repeats):
            steps, per_step = _single_steps(single, 5, seed + 100 * i)
            bare = _bare_steps(session, steps)
            rates = of_engine(), of_vector(), of_vector(wait_for=0.75), of_vector(skip_forced=False)
            runs.append((*rates, per_step, bare))
            bar.advance()
    engine_rate, skipping, most, stepping, per_step, bare = zip(*runs, strict=True)
    return {
        "num_envs": num_envs, "episodes": len(problems), "engine_tokens_per_s": median(engine_rate),
        "env_tokens_per_s": median(skipping), "env_over_engine": _ratio(skipping, engine_rate),
        "env_over_engine_wait_for_0.75": _ratio(most, engine_rate),
        "env_over_engine_every_token": _ratio(stepping, engine_rate),
        "single_step_ms": 1e3 * median(per_step), "single_over_bare": _ratio(per_step, bare),
    }  # fmt: skip


def _single_steps(env: gymnasium.Env, episodes: int, seed: int) -> tuple[list[int], float]:
    """Steps of whole episodes: the own length of the text at each, and seconds a step (resets are not counted)."""
    lengths: list[int] = []
    seconds = 0.0
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        ended = False
        while not ended:
            lengths.append(int(env.unwrapped.batch.engine.lengths[0]))
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            seconds += time.perf_counter() - start
            ended = terminated or truncated
    return lengths, seconds / len(lengths)


@torch.inference_mode()
def _bare_steps(session: Session, lengths: list[int]) -> float:
    """Seconds a step of one row through body and head, at these lengths."""
    backbone = session.backbone
    kv = KVCache(1, max(lengths) + 1, prefill_prefix(backbone, session.prompter.prefix))
    token = torch.ones(1, 1, dtype=torch.long, device=backbone.device)
    start = time.perf_counter()
    for length in lengths:
        hidden = backbone.hidden(token, torch.full((1, 1), length, device=backbone.device), kv)
        int(backbone.logits(hidden[:, 0]).argmax())
    return (time.perf_counter() - start) / len(lengths)


def growth(session: Session, small: Session, few: int = 1000, many: int = 20_000, steps: int = 20) -> dict:
    """Time a token against the number of episodes (`small`) and against the context (`space`).

    `attention_ms` is what `scaled_dot_product_attention` alone takes for a step of all layers at the same context.
    """
    per_token = {n: _time_per_token(small, n) for n in (few, many)}
    contexts = {c: _step_at(session, c, steps) for c in CONTEXTS}
    return {
        "ms_per_token": {str(n): 1e3 * t for n, t in per_token.items()},
        "many_over_few_episodes": per_token[many] / per_token[few],
        "step_ms": {str(c): 1e3 * step for c, (step, _) in contexts.items()},
        "attention_ms": {str(c): 1e3 * attention for c, (_, attention) in contexts.items()},
    }


def _time_per_token(session: Session, episodes: int) -> float:
    engine = RolloutEngine(session.lm, session.prompter, num_slots=128, max_new_tokens=8)
    problems = session.problems("train", min(episodes, 1000), 0)
    requests = [Request(problems[i % len(problems)], i) for i in range(episodes)]
    act, start = PolicyAdapter(Random(session), deterministic=False), time.perf_counter()
    tokens = sum(len(e.tokens) for _, e in rollout(engine, requests, act, keep_hidden=False))
    return (time.perf_counter() - start) / tokens


@torch.inference_mode()
def _step_at(session: Session, context: int, steps: int, rows: int = 8) -> tuple[float, float]:
    """Median seconds of a decode step of the engine with so many own tokens before it, and of its attention alone."""
    engine = RolloutEngine(
        session.lm, session.prompter, num_slots=rows, max_new_tokens=steps + 1, max_prompt_tokens=context
    )
    engine.admit([[1] * 8] * rows)
    engine.lengths[:] = context
    taken = [_seconds(lambda: engine.advance(engine.options.tokens[:, 0])) for _ in range(steps)]
    shape = session.backbone.model.config
    key = next(iter(engine.kv.keys.values()))[:, :, :context]
    query = key.new_ones(rows, shape.num_attention_heads, 1, key.shape[-1])

    def attention() -> None:
        for _ in range(shape.num_hidden_layers):
            F.scaled_dot_product_attention(query, key, key, enable_gqa=True)

    return median(taken), median(_seconds(attention) for _ in range(steps))


def memory(session: Session, kv_cache_gib: float = 0.25, episodes: int = 192, seed: int = 0) -> dict:
    """Peak memory of a rollout above that of the loaded model, beside the stated budget."""
    requests = [Request(p, i) for i, p in enumerate(session.problems("train", episodes, seed))]
    act = PolicyAdapter(Random(session), deterministic=False)
    gc.collect()
    loaded = _reset_peak()
    engine = RolloutEngine(
        session.lm,
        session.prompter,
        num_slots=256,
        max_new_tokens=session.task.max_new_tokens,
        kv_cache_gib=kv_cache_gib,
    )
    for _ in rollout(engine, requests, act):
        pass
    above = _peak() - loaded
    return {"kv_cache_gib": kv_cache_gib, "slots": engine.num_slots, "peak_above_model_gib": above / 2**30}


def _reset_peak() -> int:
    """Memory in use, in bytes; the peak counts from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def gpu(session: Session, batches: tuple[int, ...] = (64, 256), long: tuple[int, int] = (128, 2048)) -> dict | str:
    """Rates on a GPU, for this backbone and for the paper's 1.5B shape with random weights.

    `long`: texts and own tokens before them, of a decode at length; `training` are tokens a second of whole texts as long.
    """
    if not torch.cuda.is_available():
        return "none: no GPU on this machine"
    shapes: dict[str, dict] = {}
    for lm in (session.lm, random_lm("deepseek_r1_1_5b", session.backbone)):
        found = shapes[lm.backbone.name] = {f"{b} texts after 64": decode_rates(lm, b) for b in batches}
        if lm is not session.lm:
            found[f"{long[0]} texts after {long[1]}"] = decode_rates(lm, *long, generate=False)
            found["training"] = training_rates(lm.backbone, length=long[1])
    return {"device": torch.cuda.get_device_name(), "dtype": str(session.backbone.dtype), "shapes": shapes}


def reader(
    session: Session, depths: tuple[int, ...] = (0, 1, 2), problems: int = 8, samples: int = 8, new_tokens: int = 64,
    repeats: int = 3,
) -> dict:  # fmt: skip
    """Tokens a second of whole episodes of `new_tokens`, prompts included, with random readers of some depths beside none.

    `ratio_to_none` has the ratio of every repetition, in which all depths run one after the other, and `median_ratio` their median.
    """
    asked = [p for p in session.problems("train", problems, 0) for _ in range(samples)]
    requests, episodes = [Request(p, i, max_new_tokens=new_tokens) for i, p in enumerate(asked)], len(asked)
    engines = []
    for depth in depths:
        plugin = PlugIn.beside(session.backbone, PlugInConfig(reader_depth=depth)).eval()
        lm = OptionLM(session.backbone, plugin)
        engines.append(RolloutEngine(lm, session.prompter, num_slots=episodes, max_new_tokens=new_tokens))
        engines[-1].eos_ids = []
    act = PolicyAdapter(Random(session), deterministic=False)

    def play(engine: RolloutEngine) -> None:
        for _ in rollout(engine, requests, act, keep_hidden=False):
            pass

    for engine in engines:
        play(engine)
    seconds = [[_seconds(lambda engine=engine: play(engine)) for engine in engines] for _ in range(repeats)]
    columns = list(zip(*seconds, strict=True))
    ratios = {
        d: [n / c for n, c in zip(columns[0], column, strict=True)] for d, column in zip(depths, columns, strict=True)
    }
    return {
        "episodes": episodes, "new_tokens": new_tokens,
        "tokens_per_s": {d: episodes * new_tokens / median(c) for d, c in zip(depths, columns, strict=True)},
        "ratio_to_none": ratios, "median_ratio": {d: median(r) for d, r in ratios.items()},
    }  # fmt: skip


def random_lm(backbone: str, like: Backbone) -> OptionLM:
    """A backbone of a configured shape with random weights, and a random plug-in; tokenizer, device and dtype of `like`."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**compose([f"backbone={backbone}"]).config.backbone.shape)
        )
    model = model.to(like.dtype).to_empty(device=like.device)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(like.device)
    model.set_attn_implementation(IMPLEMENTATION)
    lm = Backbone(backbone, model, like.tokenizer, like.dtype, like.device, "random weights")
    return OptionLM(lm, PlugIn.beside(lm, PlugInConfig()).eval())


@torch.inference_mode()
def decode_rates(
    lm: OptionLM, batch: int, prompt: int = 64, steps: int = 64, repeats: int = 3, generate: bool = True
) -> dict:
    """Tokens a second at a full batch: the engine with random latents, the same without CUDA graphs, its backbone's body
    and head alone as CUDA graphs (the limit), and `generate`; and of the prompts' prefill.
    """
    backbone = lm.backbone
    engine = RolloutEngine(lm, NoPrefix(), num_slots=batch, max_new_tokens=steps, max_prompt_tokens=prompt)
    ids = torch.randint(3, backbone.vocab_size, (batch, prompt), device=backbone.device)

    def of_engine() -> None:
        engine.lengths = engine.lengths.new_full((batch,), prompt)
        for _ in range(steps):
            latents = torch.randint(lm.num_options, (batch, 1), device=backbone.device)
            engine.advance(engine.options.tokens.gather(1, latents)[:, 0])

    def without_graphs() -> None:
        kept, engine.graphs.enabled = engine.graphs.enabled, False
        of_engine()
        engine.graphs.enabled = kept

    def bare() -> None:
        lengths, tokens = torch.full((batch,), prompt, device=backbone.device), ids[:, 0]
        for step in range(steps):
            backbone.logits(engine.graphs.hidden(tokens, lengths + step))

    def by_generate() -> None:
        backbone.model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=steps, max_new_tokens=steps, do_sample=True,
            top_k=0, pad_token_id=0,
        )  # fmt: skip

    peers = {"engine": of_engine, "without_graphs": without_graphs, "limit": bare}
    if generate:
        peers["generate"] = by_generate
    taken: dict[str, list[float]] = {name: [] for name in ("prefill", *peers)}
    prompts = ids.tolist()
    for _ in range(repeats + 1):
        engine.clear()
        taken["prefill"].append(_seconds(lambda: engine.admit(prompts)))
        for name, peer in peers.items():
            taken[name].append(_seconds(peer))
    seconds = {name: median(found[1:]) for name, found in taken.items()}  # the first pays for kernels and memory
    rates = {name: batch * (prompt if name == "prefill" else steps) / each for name, each in seconds.items()}
    return {
        "tokens_per_s": rates, "ratio_to_limit": rates["engine"] / rates["limit"], "graphs": engine.graphs.enabled,
        "ratio_to_generate": rates["engine"] / rates["generate"] if generate else None,
    }  # fmt: skip


def training_rates(backbone: Backbone, length: int, texts: int = 4, rank: int = 16, repeats: int = 3) -> dict:
    """Tokens a second of whole texts: forward (the states that a conversion caches), and LoRA's forward and backward.

    The body's states are scored in parts, each computed anew in the backward pass, as the log-probabilities of a policy's update.
    """
    from peft import LoraConfig, get_peft_model
    from torch.utils.checkpoint import checkpoint

    ids = torch.randint(3, backbone.vocab_size, (texts, length), device=backbone.device)
    body = backbone.model.base_model

    def forward() -> None:
        with torch.inference_mode():
            body(input_ids=ids, use_cache=False)

    taken = {"forward": [_seconds(forward) for _ in range(repeats + 1)]}
    model: Any = get_peft_model(backbone.model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))

    def scored(states: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model.get_output_embeddings()(states).float(), tokens, reduction="sum")

    def update() -> None:
        states = (
            model.get_base_model().base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        )
        parts = zip(states.split(1024), ids[:, 1:].flatten().split(1024), strict=True)
        loss: Any = sum(checkpoint(scored, *part, use_reentrant=False) for part in parts)
        loss.backward()

    taken["lora_update"] = [_seconds(update) for _ in range(repeats + 1)]
    return {name: texts * length / median(found[1:]) for name, found in taken.items()}


class NoPrefix:
    """In a prompter's place where prompts are tokens."""

    prefix: list[int] = []


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    """What it takes, and gives."""
    start = time.perf_counter()
    found = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of runs that stood side by side."""
    return median(a / b for a, b in zip(above, below, strict=True))
