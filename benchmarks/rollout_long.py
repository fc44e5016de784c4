"""Long texts: how many at once in a cache of a given size, and what it costs short ones.

`benchmarks/rollout.py --sections long` calls this. Lengths are log-normal (sigma 1), of mean 1,000 and at most 8,192 tokens, and do not
depend on what is said. `whole`: every row has room for the longest text, as many rows as the budget holds; `blocks`: rows share it.
"""

import time
from statistics import mean, median
from typing import Any

from rollout_sections import long_tailed

from agents.random import Random
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.engine import RolloutEngine, cache_bytes
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.session.local import Session


class Watched(RolloutEngine):
    """Remembers the rows of every step, and the tokens that were read anew."""

    at_once: list[int]
    begun: int
    again: int

    def advance(self, tokens, rows=None):
        super().advance(tokens, rows)
        self.at_once.append(len(tokens))

    def admit(self, prompts, room=None):
        self.begun += sum(map(len, prompts))
        super().admit(prompts, room)


class Whole(Watched):
    """Rows that all have room for the longest text."""

    def _blocks_within(self, own_tokens: int) -> int:
        return 0


def long(
    session: Session, small: Session, rows_of_budget: int = 12, texts: int = 200, length: int = 1000, most: int = 8192,
    repeats: int = 3,
) -> dict[str, Any]:  # fmt: skip
    """Episodes at once with `small`, where only bookkeeping is timed; seconds with `session`, at an eighth of the lengths.

    Args:
        rows_of_budget: how many of the longest texts the cache holds.
    """
    counts = {}
    small.backbone.context_limit = None, ""  # a random model may say anything beyond its positions
    for name, kind in (("whole", Whole), ("blocks", Watched)):
        engine = _engine(kind, small, rows_of_budget, most)
        counts[name] = _play(engine, small, texts, length, most)
    seconds = {
        "mean": length // 8, "longest": most // 8, "texts": texts // 2,
        **_timed(session, rows_of_budget, texts // 2, length // 8, most // 8, repeats),
    }  # fmt: skip
    ratio = counts["blocks"]["at_once"] / counts["whole"]["at_once"]
    return {"rows_of_budget": rows_of_budget, "texts": texts, "episodes": counts, "at_once_over_whole": ratio,
            "seconds": seconds, "short_in_blocks_over_whole": _short(session, most // 8, repeats)}  # fmt: skip


def _engine(kind: type, session: Session, rows: int, most: int, num_slots: int = 512) -> Any:
    shared, per_token = cache_bytes(session.backbone, session.plugin.config.reader_depth, len(session.prompter.prefix))
    gib = (shared + per_token * rows * (most + 64) * 1.001) / 2**30
    engine = kind(session.lm, session.prompter, num_slots=num_slots, max_new_tokens=most, kv_cache_gib=gib)
    engine.eos_ids = []
    return engine


def _play(engine: Any, session: Session, texts: int, length: int, most: int) -> dict[str, float]:
    engine.at_once, engine.begun, engine.again = [], 0, 0
    lengths = long_tailed(texts, 0, length, most)
    problems = session.problems("train", texts, 0)
    requests = [Request(p, i, max_new_tokens=int(n)) for i, (p, n) in enumerate(zip(problems, lengths, strict=True))]
    act, start = PolicyAdapter(Random(session), deterministic=False), time.perf_counter()
    tokens = sum(len(e.tokens) for _, e in rollout(engine, requests, act, keep_hidden=False))
    taken = time.perf_counter() - start
    prompts = sum(len(session.prompter.encode(p)) for p in problems)
    busy = [n for n in engine.at_once if n >= 1][: max(1, len(engine.at_once) // 2)]  # while requests wait
    return {
        "at_once": mean(busy), "most_at_once": max(engine.at_once), "read_anew": (engine.begun - prompts) / tokens,
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
    assert blocks.kv.blocks is not None and whole.kv.blocks is None
    problems = session.problems("train", texts, 0)
    requests = [Request(p, i, max_new_tokens=tokens) for i, p in enumerate(problems)]
    act = PolicyAdapter(Random(session), deterministic=False)

    def play(engine: Any) -> float:
        engine.at_once, engine.begun, engine.eos_ids = [], 0, []
        start = time.perf_counter()
        for _ in rollout(engine, requests, act, keep_hidden=False):
            pass
        return time.perf_counter() - start

    play(whole), play(blocks)
    return median(play(whole) / play(blocks) for _ in range(repeats))
