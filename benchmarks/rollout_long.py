"""Long texts: how many at once in a cache of a given size, and what it costs short ones.

`benchmarks/rollout.py --sections long` calls this. Lengths are log-normal (sigma 1), of mean 1,000 and at most 8,192 tokens, and do not
depend on what is said. `whole`: every row has room for the longest text, as many rows as the budget holds; `blocks`: rows share it.
`--sections paper` calls `paper`: the paper's 1.5B shape with 8,192 new tokens.
"""

import time
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from rollout_sections import NoPrefix, long_tailed, random_lm, seconds_of
from transformers import AutoModelForCausalLM, LlamaConfig

from agents.random import Random
from ollm_rl.models.backbone import Backbone
from ollm_rl.models.tiny import tiny_tokenizer
from ollm_rl.options.config import PlugInConfig
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.engine import RolloutEngine, cache_bytes
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.session.local import Session


class Watched(RolloutEngine):
    """Remembers the rows of every step, and how often some had to wait for room."""

    at_once: list[int]
    waits: int

    def advance(self, tokens, rows=None):
        super().advance(tokens, rows)
        self.at_once.append(len(tokens))

    def lacking(self, rows):
        short = super().lacking(rows)
        self.waits += short > 0
        return short


class Whole(Watched):
    """Rows that all have room for the longest text."""

    def _blocks_within(self, own_tokens: int) -> int:
        return 0


def long(
    session: Session, rows_of_budget: int = 12, texts: int = 200, length: int = 1000, most: int = 8192, repeats: int = 3
) -> dict[str, Any]:
    """Episodes at once with a random model of one small layer; tokens a second with `session`, at a sixteenth of the lengths.

    Args:
        rows_of_budget: how many of the longest texts the cache holds.
    """
    counts = {}
    small = _small(session, most)
    for name, kind in (("whole", Whole), ("blocks", Watched)):
        engine = _engine(kind, small, rows_of_budget, most)
        counts[name] = _play(engine, small, texts, length, most)
    seconds = {
        "mean": length // 16, "longest": most // 16, "texts": texts // 2,
        **_timed(session, rows_of_budget, texts // 2, length // 16, most // 16, repeats),
    }  # fmt: skip
    ratio = counts["blocks"]["at_once"] / counts["whole"]["at_once"]
    return {"rows_of_budget": rows_of_budget, "texts": texts, "episodes": counts, "at_once_over_whole": ratio,
            "seconds": seconds, "short_in_blocks_over_whole": _short(session, most // 16, repeats)}  # fmt: skip


def _small(session: Session, most: int) -> Session:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(**shape, max_position_embeddings=2 * most, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    backbone = Backbone("small", model, tiny_tokenizer(), torch.float32, torch.device("cpu"), "random weights")
    sizes = PlugInConfig(encoder_width=16, decoder_width=16, prior_width=16, reader_depth=0)
    return Session(backbone, PlugIn.beside(backbone, sizes).eval(), session.task, session.judge)


def _engine(kind: type, session: Session, rows: int, most: int, num_slots: int = 512) -> Any:
    shared, per_token = cache_bytes(session.backbone, session.plugin.config.reader_depth, len(session.prompter.prefix))
    gib = (shared + per_token * rows * (most + 64) * 1.001) / 2**30
    engine = kind(session.lm, session.prompter, num_slots=num_slots, max_new_tokens=most, kv_cache_gib=gib)
    engine.eos_ids = []
    return engine


def _play(engine: Any, session: Session, texts: int, length: int, most: int) -> dict[str, float]:
    engine.at_once, engine.waits = [], 0
    lengths = long_tailed(texts, 0, length, most)
    problems = session.problems("train", texts, 0)
    requests = [Request(p, i, max_new_tokens=int(n)) for i, (p, n) in enumerate(zip(problems, lengths, strict=True))]
    act, start = PolicyAdapter(Random(session), deterministic=False), time.perf_counter()
    tokens = sum(len(e.tokens) for _, e in rollout(engine, requests, act, keep_hidden=False))
    taken = time.perf_counter() - start
    said = np.cumsum(engine.at_once)
    busy = engine.at_once[: int((said < 0.75 * said[-1]).sum())]  # the last texts have all the room there is
    return {
        "at_once": mean(busy), "most_at_once": max(engine.at_once), "steps": len(engine.at_once), "waits": engine.waits,
        "tokens_per_s": tokens / taken, "cache_gib": (engine.kv.num_bytes + engine.prefix.num_bytes) / 2**30,
    }  # fmt: skip


def _timed(session: Session, rows: int, texts: int, length: int, most: int, repeats: int) -> dict[str, Any]:
    engines = {"whole": _engine(Whole, session, rows, most), "blocks": _engine(Watched, session, rows, most)}
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            found[name].append(_play(engine, session, texts, length, most)["tokens_per_s"])
    ratio = median(b / w for b, w in zip(found["blocks"], found["whole"], strict=True))
    return {"tokens_per_s": {name: median(each) for name, each in found.items()}, "blocks_over_whole": ratio}


def _short(session: Session, most: int, repeats: int, texts: int = 64, tokens: int = 64) -> float:
    """Tokens a second of short texts where rows share blocks, over those where each has room for the longest text."""
    whole = Watched(session.lm, session.prompter, num_slots=texts, max_new_tokens=most)
    blocks = _engine(Watched, session, texts // 2, most, num_slots=texts)
    problems = session.problems("train", texts, 0)
    requests = [Request(p, i, max_new_tokens=tokens) for i, p in enumerate(problems)]
    act = PolicyAdapter(Random(session), deterministic=False)

    def play(engine: Any) -> float:
        engine.at_once, engine.waits, engine.eos_ids = [], 0, []
        start = time.perf_counter()
        for _ in rollout(engine, requests, act, keep_hidden=False):
            pass
        return time.perf_counter() - start

    play(whole), play(blocks)
    return median(play(whole) / play(blocks) for _ in range(repeats))


@torch.inference_mode()
def paper(
    session: Session, gib: float = 2.0, most: int = 8192, length: int = 1000, behind: tuple[int, ...] = (64, 1024, 4096, 8128),
    steps: int = 3, num_slots: int = 64, lm: OptionLM | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Memory, rows and tokens a second of the paper's 1.5B shape, random weights, at texts of up to `most` new tokens.

    `whole`: as many rows as the budget holds of the longest texts, all with so many tokens behind them. `blocks`: as many rows as the
    same budget holds of texts that are under way to lengths of mean `length`, each at a place that is drawn evenly.

    Args:
        gib: `engine.kv_cache_gib`.
        num_slots: the most rows. lm: another shape.
    """
    lm = random_lm("deepseek_r1_1_5b", session.backbone) if lm is None else lm
    _, per_token = cache_bytes(lm.backbone, 0, 1)
    found: dict[str, Any] = {
        "kv_cache_gib": gib, "new_tokens": most, "cache_bytes_per_token": per_token,
        "weights_gib": sum(p.numel() * p.element_size() for p in lm.backbone.model.parameters()) / 2**30,
        "how": lm.backbone.how_it_decodes,
    }  # fmt: skip
    lengths = long_tailed(num_slots, 0, length, most)
    under_way = (lengths * np.random.default_rng(0).random(num_slots)).astype(int).clip(1)
    for name, kind in (("whole", Whole), ("blocks", Watched)):
        engine = kind(
            lm, NoPrefix(), num_slots=num_slots, max_new_tokens=most, max_prompt_tokens=64, kv_cache_gib=gib,
            cuda_graphs=name == "whole",
        )  # fmt: skip
        engine.at_once, engine.waits = [], 0
        rows, at = [], 0
        if name == "whole":
            rows = [[n] * engine.num_slots for n in behind]
        else:
            free = num_slots * engine.kv.capacity if engine.kv.blocks is None else engine.kv.blocks.free
            while at < num_slots and sum(-(-int(n) // 64) + 1 for n in under_way[: at + 1]) <= free:
                at += 1
            rows = [under_way[:at].tolist()]
        found[name] = {}
        for each in rows:
            found[name][f"after {round(mean(each))}"] = _rate_behind(engine, each, steps)
        found[name]["cache_gib"] = engine.kv.num_bytes / 2**30
        del engine
    return found


def _rate_behind(engine: Any, behind: list[int], steps: int) -> dict[str, float]:
    """Rows, and tokens a second of steps of these rows, so many own tokens behind each."""
    engine.clear()
    engine.admit([[3 + i % 100] for i in range(len(behind))])
    engine.lengths = torch.tensor(behind, device=engine.device)
    engine.kv.reserve(torch.arange(len(behind)), engine.lengths.cpu())
    taken = []
    for _ in range(steps + 2):
        engine.lengths = torch.tensor(behind, device=engine.device)
        seconds, _ = seconds_of(lambda: engine.advance(engine.options.tokens[:, 0]))
        taken.append(seconds)
    middle = median(taken[2:])
    return {"rows": len(behind), "ms": 1e3 * middle, "tokens_per_s": len(behind) / middle}
