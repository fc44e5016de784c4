"""How fast the rollout engine is beside `generate` and beside the backbone alone.

    python benchmarks/rollout.py [--problems 32] [--samples 8] [--new-tokens 64] [--repeats 3] [--seed 0]
        [--batches 32 64 128 256] [--dtype bfloat16] [--plugin DIRECTORY] [--out FILE] [--check FILE]
        [--sections peers occupancy environments growth memory reader step long paper engines gpu]
        [--llama-cpp BUILD GGUF] [--vllm PYTHON]

The workload is GRPO's: samples of every problem from the prior, after the task's few-shot examples. In every repetition all peers run
one after the other:

* engine: whole episodes with options, policy and verdicts, all of the group's tokens counted that belong to an answer;
* limit: the bare backbone, body and head, on the decode steps of these episodes: as many rows at the same lengths;
* rows: the same on the steps that the engine made, in which episodes that said the same so far are one row;
* one: the latter with one option decoded, and all: with all K;
* generate: `transformers`' `generate` with sampling, left-padded, at its best batch size (found in a first round), the same
  prompts; the tokens of a row up to its end of text are counted.

`tokens_per_s` counts a group's shared beginning for every sample, as `generate` computes it; `rows_per_s` counts what went
through the model. `ratio_to_limit` compares tokens a second; `ratio_to_rows` is the time of the engine's own steps, bare, over its
whole time, prefill included. Medians over repetitions.
The other sections are in `rollout_sections.py`, `rollout_step.py`, `rollout_long.py` and `rollout_peers.py`. Prints one JSON line last; `--check` ends with 1 if a ratio is more
than 10% below that file's.
"""

import argparse
import copy
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import rollout_long
import rollout_peers
import rollout_sections as sections
import rollout_step
import torch
from torch import Tensor

from agents.prior import Prior
from ollm_rl.common.progress import track
from ollm_rl.models.attention import KVCache
from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.session.local import Session, make_session

# Ratios that `--check` guards, by where they stand in the result; the larger the better, or the smaller.
LARGER = (
    "ratio_to_generate", "ratio_to_limit", "ratio_to_rows", "engines.unshared.ratio_to_vllm", "engines.groups.ratio_to_vllm",
    "engines.unshared.ratio_to_llama_cpp", "engines.groups.ratio_to_llama_cpp", "long.at_once_over_whole",
    "long.seconds.blocks_over_whole", "long.short_in_blocks_over_whole",
)  # fmt: skip
SMALLER = tuple(f"step.{n}.ratio_to_products.{kind}" for n in rollout_step.ROWS for kind in ("shared", "own"))
QUICK = ConversionConfig(num_solutions=200, num_heldout=20, epochs=1, prior_epochs=1)  # of `tiny`, for its speed only
SECTIONS = (
    "peers",
    "occupancy",
    "environments",
    "growth",
    "memory",
    "reader",
    "step",
    "long",
    "paper",
    "engines",
    "gpu",
)


class Traced(RolloutEngine):
    """Remembers the lengths of the rows of every decode step."""

    trace: list[Tensor]

    def advance(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        self.trace.append((self.lengths if rows is None else self.lengths[rows]).clone())
        super().advance(tokens, rows)


class Workload:
    """The problems, and every peer's way to run them."""

    def __init__(self, session: Session, problems: int, samples: int, new_tokens: int, slots: int, seed: int):
        self.session, self.new_tokens, self.seed = session, new_tokens, seed
        self.backbone, self.prompter = session.backbone, session.prompter
        chosen = session.problems("tune", problems, seed)
        self.requests = [
            Request(p, seed * 100_003 + i * samples + j) for i, p in enumerate(chosen) for j in range(samples)
        ]
        self.engine = Traced(session.lm, self.prompter, num_slots=slots, max_new_tokens=new_tokens)
        self.prompts = [[*self.prompter.prefix, *self.prompter.encode(r.problem)] for r in self.requests]
        longest = max(map(len, self.prompts)) - len(self.prompter.prefix)
        self.kv = KVCache(slots, longest + new_tokens, self.engine.prefix)
        self.one = self._first_option(session.lm)
        self.act = PolicyAdapter(Prior(session), deterministic=False)

    @staticmethod
    def _first_option(lm: OptionLM) -> OptionLM:
        plugin = copy.deepcopy(lm.plugin)
        for name in ("scale", "shift"):
            table = getattr(plugin.decoder, name)
            setattr(plugin.decoder, name, torch.nn.Parameter(table[:1].detach().clone()))
        return OptionLM(lm.backbone, plugin)

    def run_engine(self) -> dict[str, float]:
        """Episodes to their verdicts."""
        self.engine.trace = []
        start = time.perf_counter()
        with torch.inference_mode():
            episodes = [episode for _, episode in rollout(self.engine, self.requests, self.act)]
            self.session.judge(episodes)
        self._wait()
        steps = self.engine.trace
        starts = torch.tensor([len(self.prompter.encode(e.problem)) for e in episodes], device=self.backbone.device)
        made = torch.tensor([len(e.tokens) for e in episodes], device=self.backbone.device)
        self.unshared = [(starts + t)[made > t + 1] for t in range(int(made.max()) - 1)]
        return {
            "seconds": time.perf_counter() - start,
            "tokens": sum(len(e.tokens) for e in episodes),
            "rows": sum(map(len, steps)),
        }

    @torch.inference_mode()
    def run_steps(self, steps: list[Tensor], lm: OptionLM | None = None) -> dict[str, float]:
        """Decode steps of rows at these lengths: bare, or with the options of `lm`."""
        start = time.perf_counter()
        for lengths in steps:
            tokens = torch.ones(len(lengths), 1, dtype=torch.long, device=self.backbone.device)
            states = self.backbone.hidden if lm is None else lm.states
            hidden = states(tokens, lengths[:, None], self.kv)[:, 0]
            logits = self.backbone.logits(hidden)
            if lm is not None:
                lm.options(hidden, logits)
        self._wait()
        return {"seconds": time.perf_counter() - start, "rows": sum(map(len, steps))}

    @torch.inference_mode()
    def run_generate(self, batch: int, batches: int = 1) -> dict[str, float]:
        """`generate` on so many batches of the workload's prompts."""
        torch.manual_seed(self.seed)
        tokens, start = 0, time.perf_counter()
        for i in range(batches):
            prompts = self.prompts[i * batch : (i + 1) * batch]
            longest = max(map(len, prompts))
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.backbone.device)
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=ids.device)
            out = self.backbone.model.generate(
                ids, attention_mask=mask, max_new_tokens=self.new_tokens, do_sample=True, temperature=1.0, top_k=0,
                eos_token_id=self.backbone.eos_ids, pad_token_id=0,
            )  # fmt: skip
            for row in out[:, longest:].tolist():
                ends = [row.index(e) + 1 for e in self.backbone.eos_ids if e in row]
                tokens += min(ends, default=len(row))
        self._wait()
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def _wait(self) -> None:
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize()


def measure(work: Workload, batches: list[int], repeats: int) -> dict[str, Any]:
    """All peers in alternation."""
    batches = sorted({min(b, len(work.requests)) for b in batches})
    with track("rollout", len(batches) + 6 * repeats + 1, "runs") as bar:
        rates = {}
        for batch in batches:
            run = work.run_generate(batch)
            rates[batch] = run["tokens"] / run["seconds"]
            bar.advance(1, f"generate at {batch}: {rates[batch]:.0f} tokens a second")
        best = max(rates, key=rates.__getitem__)
        work.run_engine()  # what runs first pays for memory and the verifier's workers
        bar.advance()
        peers = {
            "engine": work.run_engine,
            "limit": lambda: work.run_steps(work.unshared),
            "rows": lambda: work.run_steps(work.engine.trace),
            "one": lambda: work.run_steps(work.engine.trace, work.one),
            "all": lambda: work.run_steps(work.engine.trace, work.session.lm),
            "generate": lambda: work.run_generate(best, max(1, 128 // best)),
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
        for _ in range(repeats):
            for name, peer in peers.items():
                runs[name].append(peer())
                bar.advance(1, name)
    seconds = {name: [run["seconds"] for run in done] for name, done in runs.items()}
    engine = [run["tokens"] / run["seconds"] for run in runs["engine"]]
    generate = [run["tokens"] / run["seconds"] for run in runs["generate"]]
    limit = [run["rows"] / run["seconds"] for run in runs["limit"]]
    return {
        "tokens_per_s": median(engine),
        "rows_per_s": median(run["rows"] / run["seconds"] for run in runs["engine"]),
        "generate_tokens_per_s": median(generate),
        "generate_batch": best,
        "generate_by_batch": {str(b): round(r, 1) for b, r in rates.items()},
        "ratio_to_generate": median(engine[i] / generate[i] for i in range(repeats)),
        "limit_tokens_per_s": median(limit),
        "ratio_to_limit": median(engine[i] / limit[i] for i in range(repeats)),
        "ratio_to_rows": median(seconds["rows"][i] / seconds["engine"][i] for i in range(repeats)),
        "all_options_over_one": median(seconds["all"][i] / seconds["one"][i] for i in range(repeats)),
        "tokens": runs["engine"][0]["tokens"],
        "rows": runs["engine"][0]["rows"],
        "seconds": {name: [round(s, 2) for s in values] for name, values in seconds.items()},
    }


def worse(result: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """The ratios of both that are more than 10% worse than the committed ones."""
    complaints = []
    for name in (*LARGER, *SMALLER):
        now, before = _at(result, name), _at(committed, name)
        if now is None or before is None:
            continue
        if name in LARGER and now < 0.9 * before:
            complaints.append(f"{name} is {now:.2f}, more than 10% below the committed {before:.2f}")
        if name in SMALLER and now > 1.1 * before:
            complaints.append(f"{name} is {now:.2f}, more than 10% above the committed {before:.2f}")
    return complaints


def _at(found: Any, name: str) -> float | None:
    """What stands under a dotted name."""
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--plugin")
    parser.add_argument("--task", default="chain_sum")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--llama-cpp", nargs=2, type=Path, metavar=("BUILD", "GGUF"))
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", type=Path)
    given = parser.parse_args()
    session = make_session(given.backbone, given.task, given.plugin, given.dtype)
    result = {
        "command": "python benchmarks/rollout.py " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "machine": platform.machine(), "torch": torch.__version__, "dtype": given.dtype, "seed": given.seed,
        "episodes": given.problems * given.samples, "repeats": given.repeats,
    }  # fmt: skip
    for name in given.sections:
        if name == "peers":
            work = Workload(session, given.problems, given.samples, given.new_tokens, given.slots, given.seed)
            result |= measure(work, given.batches, given.repeats)
        elif name == "growth":
            result[name] = sections.growth(session, make_session("tiny", given.task, dtype="float32", convert=QUICK))
        elif name == "occupancy":  # of slots, which does not depend on the model
            result[name] = sections.occupancy(make_session("tiny", given.task, dtype="float32", convert=QUICK))
        elif name == "environments":
            result[name] = sections.environments(session, repeats=given.repeats)
        elif name == "step":
            result[name] = rollout_step.step(session, repeats=given.repeats)
        elif name == "engines":
            if given.vllm or given.llama_cpp:
                result[name] = rollout_peers.engines(session, given.vllm, given.llama_cpp, given.repeats)
        elif name == "long":
            result[name] = rollout_long.long(session, repeats=given.repeats)
        elif name == "paper":
            result[name] = rollout_long.paper(session)
        elif name == "reader":
            result[name] = sections.reader(session, repeats=given.repeats)
        else:
            result[name] = getattr(sections, name)(session)
    session.close()
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    complaints = worse(result, json.loads(given.check.read_text())) if given.check else []
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(json.dumps(result))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
