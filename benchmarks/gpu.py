"""What only a GPU can say, in one script of at most 8 minutes on an H100.

    python benchmarks/gpu.py [--parts engine long iteration conversion lora ppo] [--seconds 480] [--out FILE] [--small]

* engine: tokens a second of SmolLM2 and of the paper's 1.5B shape with random weights at 64, 256 and 512 texts, and of the latter with
  2,048 and 8,192 tokens behind them, beside its body and head alone as CUDA graphs;
* long: the 1.5B shape with 8,192 new tokens in 2 GiB of cache, as `rollout.py --sections paper`;
* iteration: GRPO's on the 1.5B shape, 32 problems x 8 samples of 256 tokens, with its parts;
* conversion: tokens a second that go through the body of that shape while hidden states are made, and seconds of a whole conversion;
* lora: seconds of sampling in LoRA-GRPO's iterations on SmolLM2, with the engine's graphs kept and made anew in every iteration;
* ppo: seconds of an iteration on SmolLM2, where Ray is installed.

What was measured is written after every part, so that a script that is cut off has not run in vain; a part is left out once `--seconds` are
over. `--small` runs everything on a model of a few thousand parameters, to see that the script itself works. Prints one JSON line last.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rollout import QUICK
from rollout_long import paper
from rollout_sections import decode_rates, random_lm, seconds_of

from agents.grpo import GRPO
from ollm_rl.models.backbone import prefill_prefix
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.conversion import convert
from ollm_rl.options.hidden_cache import texts_of
from ollm_rl.options.modules import PlugIn
from ollm_rl.session.callbacks import Callback
from ollm_rl.session.local import Session, make_session

SHAPE = "deepseek_r1_1_5b"


class Watching(Callback):
    """Keeps what every iteration logs."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def on_iteration_end(self, agent: Any, step: int, metrics: dict[str, Any]) -> None:
        times = {k: v for k, v in metrics.items() if k.startswith(("time/", "profile/"))}
        self.found.append({**times, "tokens": metrics.get("train_tokens")})


class Work:
    """The parts; sessions are made when first asked for."""

    def __init__(self, small: bool):
        self.small = small
        self._made: dict[str, Session] = {}

    @property
    def session(self) -> Session:
        if "small" not in self._made:
            name, kind = ("tiny", "float32") if self.small else ("smollm2", "bfloat16")
            self._made["small"] = make_session(name, "chain_sum", dtype=kind, convert=QUICK)
        return self._made["small"]

    @property
    def large(self) -> Session:
        """Random weights in the paper's shape, a plug-in with a reader."""
        if "large" not in self._made:
            mine = self.session
            backbone = mine.backbone if self.small else random_lm(SHAPE, mine.backbone).backbone
            plugin = PlugIn.beside(backbone, PlugInConfig()).eval()
            self._made["large"] = Session(
                backbone, plugin, mine.task, mine.judge, {"max_new_tokens": 256, "profile": True}
            )
        return self._made["large"]

    def engine(self) -> dict[str, Any]:
        sizes = (4,) if self.small else (64, 256, 512)
        behind = ((4, 64),) if self.small else ((128, 2048), (64, 8192))
        found: dict[str, Any] = {"smollm2": {f"{n} texts after 64": decode_rates(self.session.lm, n) for n in sizes}}
        found["1.5B"] = {f"{n} texts after 64": decode_rates(self.large.lm, n) for n in sizes}
        for n, tokens in behind:
            found["1.5B"][f"{n} texts after {tokens}"] = decode_rates(self.large.lm, n, tokens, generate=False)
        return found

    def long(self) -> dict[str, Any]:
        if self.small:
            return paper(self.session, 0.01, most=1024, length=200, behind=(64, 1000), num_slots=8, lm=self.large.lm)
        return paper(self.session, lm=self.large.lm)

    def iteration(self) -> dict[str, Any]:
        watching = Watching()
        episodes = 16 if self.small else 256
        agent = GRPO(self.large, total_episodes=2 * episodes, problems_per_iteration=episodes // 8, num_problems=64)
        agent.learn(callbacks=[watching])
        return {"iterations": watching.found}  # the first captures graphs

    def conversion(self) -> dict[str, Any]:
        large, n = self.large, 64 if self.small else 1024
        problems = large.task.problems("sft", n, 0)
        kv = prefill_prefix(large.backbone, large.prompter.prefix)

        def states() -> int:
            shortlist, reader = large.plugin.config.shortlist, large.lm.reader
            texts = texts_of(large.backbone, large.prompter, kv, problems, shortlist, reader)
            return sum(len(large.prompter.encode(p)) for p in problems) + sum(len(text.states) for text in texts)

        states()
        seconds, tokens = seconds_of(states)
        settings = vars(QUICK) if self.small else {"num_solutions": n, "num_heldout": 64}
        whole, _ = seconds_of(lambda: convert(large.backbone, large.task, ConversionConfig(**{**settings, "seed": 7})))
        return {"tokens_per_s": tokens / seconds, "solutions": n, "conversion_seconds": whole}

    def lora(self) -> dict[str, Any]:
        from agents.lora_grpo import LoRAGRPO

        found = {}
        for name in ("kept", "made anew"):
            agent = LoRAGRPO(
                self.session, begin="base", num_examples=3, problems_per_iteration=8, total_episodes=4 * 64, num_problems=64,
                **({"rank": 2} if self.small else {}),
            )  # fmt: skip
            if name == "made anew":
                agent.acting_session.backbone_changed = lambda agent=agent: _anew(agent)
            watching = Watching()
            with tempfile.TemporaryDirectory() as folder:
                agent.learn(folder, callbacks=[watching])
            found[name] = watching.found
        return found

    def ppo(self) -> dict[str, Any] | str:
        if find_spec("ray") is None:
            return "Ray is not installed"
        from agents.ppo import PPO

        watching = Watching()
        with tempfile.TemporaryDirectory() as folder:
            PPO(self.session, total_episodes=3 * 64, num_problems=64).learn(folder, callbacks=[watching])
        return {"iterations": watching.found}


def _anew(agent: Any) -> None:
    engine = agent.acting_session.engine
    engine.refresh()
    engine._make_graphs()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("engine", "long", "iteration", "conversion", "lora", "ppo")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.small:
        print("there is no GPU on this machine; --small runs the script on a CPU", file=sys.stderr)
        return 2
    work, start = Work(given.small), time.monotonic()
    found: dict[str, Any] = {
        "command": "python benchmarks/gpu.py " + " ".join(sys.argv[1:]), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }  # fmt: skip
    failed = False
    for name in given.parts:
        if time.monotonic() - start > given.seconds:
            found[name] = "left out: no time was left"
            continue
        part: Callable[[], Any] = getattr(work, name)
        begin = time.monotonic()
        try:
            found[name] = part()
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            found[name], failed = f"{type(error).__name__}: {error}", True
        found[f"{name}_seconds"] = round(time.monotonic() - begin, 1)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    work.session.close()
    print(json.dumps(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
