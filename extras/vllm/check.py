"""Does vLLM say what the exported model says, and how fast? In the project's environment, with vLLM in its own:

    python extras/vllm/check.py runs/demo/grpo-0/policy --vllm PYTHON [--out DIRECTORY] [--problems 50] [--seconds 30]

PYTHON is that of the environment of `requirements.lock`. Parts, each left in DIRECTORY and not made again if it is there:

* exports: the policy, which names its backbone, and the mixture with its backbone along
* hf: greedy texts of the exports by transformers, in float32 and bf16
* llm: the same prompts by `LLM()`, and its tokens a second
* serve: `vllm serve` and `ollm-rl serve`, 32 clients of the official library for a while each, and the engine alone

Then it compares and writes `benchmarks/results/vllm.json`. Where bf16 texts part, both tokens are looked at from the same text before
them, in float32: `margin` is the difference of their log pi; where no option says one of them there, it is how far the head's logits of
the option that changed are apart. `rounding` is the most that bf16 moves what the margin was made of, at that text, by transformers alone.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ollm_rl as ol
import ollm_rl.options.hf  # noqa: F401  registers the classes
from ollm_rl.options.enumeration import option_logits
from ollm_rl.options.next_token import FLOOR
from ollm_rl.options.policies import Sampling
from ollm_rl.rollout.sampler import Request, rollout

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CLIENTS = 32
LENGTH = 512  # tokens of a prompt and its answer
MODELS = (("policy", "float32"), ("policy", "bfloat16"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--vllm", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=Path("runs/vllm_check"))
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    agent = ol.load_agent(asked.policy)
    for kind in ("policy", "mixture"):
        if not (asked.out / kind).is_dir():
            ol.export(agent, asked.out / kind, kind=kind, bundle=kind == "mixture")
    problems = agent.session.problems("test", asked.problems)
    tokenizer = AutoTokenizer.from_pretrained(asked.out / "policy")
    prompts = [
        list(tokenizer.apply_chat_template([{"role": "user", "content": p.problem}], add_generation_prompt=True, return_dict=False))
        for p in problems
    ]  # fmt: skip
    budget = agent.session.engine_settings["max_new_tokens"]
    hf = {f"{kind} {dtype}": part(asked.out, f"hf_{kind}_{dtype}", lambda k=kind, d=dtype: by_hf(asked.out / k, d, prompts, budget))
          for kind, dtype in MODELS}  # fmt: skip
    llm = {f"{kind} {dtype}": part(asked.out, f"llm_{kind}_{dtype}", lambda k=kind, d=dtype: by_llm(asked, k, d, prompts, budget))
           for kind, dtype in MODELS}  # fmt: skip
    served = part(asked.out, "serve", lambda: by_servers(asked, agent, [p.problem for p in problems]))
    found = {
        "command": " ".join(["python extras/vllm/check.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work, no GPU, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "versions": versions(asked.vllm), "problems": asked.problems,
        "same_texts": {name: sum(a["tokens"] == b["tokens"] for a, b in zip(hf[name]["texts"], llm[name]["texts"], strict=True)) for name in hf},
        "log_probs_apart_at_most": {name: apart(hf[name]["texts"], llm[name]["texts"]) for name in hf},
        "bfloat16_parts": where_texts_part(asked.out / "policy", prompts, hf["policy bfloat16"], llm["policy bfloat16"]),
        "start_s": {name: round(each["start_s"], 1) for name, each in llm.items()},
        "llm_tokens_per_s": {name: [round(r["tokens_per_s"], 1) for r in each["rates"]] for name, each in llm.items()},
        "llm_cpu_s_per_1000_tokens": {name: [round(r["cpu_s_per_1000_tokens"], 1) for r in each["rates"]] for name, each in llm.items()},
        **served,
    }  # fmt: skip
    (ROOT / "benchmarks" / "results" / "vllm.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def part(out: Path, name: str, make: Any) -> Any:
    """What `make` gives, or gave before."""
    file = out / f"{name}.json"
    if not file.is_file():
        print(f"{name} ...", file=sys.stderr, flush=True)
        file.write_text(json.dumps(make()))
    return json.loads(file.read_text())


@torch.inference_mode()
def by_hf(path: Path, dtype: str, prompts: list[list[int]], budget: int) -> dict[str, Any]:
    """Greedy texts, and the log-probabilities of their tokens."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="cpu")
    texts: list[dict[str, Any]] = [{} for _ in prompts]
    ends = set(model.generation_config.eos_token_id)
    for length in sorted({len(ids) for ids in prompts}):  # side by side, without padding
        places = [i for i, ids in enumerate(prompts) if len(ids) == length]
        ids = torch.tensor([prompts[i] for i in places])
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=budget, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        likely = torch.stack([step.log_softmax(-1) for step in said.logits], 1)
        for row, place in enumerate(places):
            tokens = said.sequences[row, length:].tolist()
            stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
            log_probs = [float(likely[row, i, token]) for i, token in enumerate(tokens[:stop])]
            texts[place] = {"tokens": tokens[:stop], "log_probs": log_probs}
    return {"texts": texts}


def by_llm(asked: Any, kind: str, dtype: str, prompts: list[list[int]], budget: int) -> dict[str, Any]:
    """What `worker.py` finds."""
    job = {"prompts": prompts, "max_tokens": budget, "length": LENGTH, "repeats": 3 if dtype == "bfloat16" else 1}
    command = [str(asked.vllm), str(HERE / "worker.py"), str(asked.out / kind), dtype, str(CLIENTS)]
    ran = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads([line for line in ran.stdout.splitlines() if line.startswith("{")][-1])


def by_servers(asked: Any, agent: Any, problems: list[str]) -> dict[str, Any]:
    """The engine alone, `ollm-rl serve` and `vllm serve` on the same problems, greedy, one after the other."""
    engine, requests = (
        agent.session.new_engine(num_slots=CLIENTS),
        [Request(p, 0) for p in agent.session.problems("test", len(problems))],
    )
    act, texts, rates = Sampling(agent.policy, deterministic=True), {}, []
    for again in range(4):
        began, cpu = time.perf_counter(), time.process_time()
        said = list(rollout(engine, requests, act, keep_hidden=False))
        tokens = sum(len(episode.tokens) for _, episode in said)
        if again:  # the first one compiles
            rates.append(
                [
                    round(tokens / (time.perf_counter() - began), 1),
                    round((time.process_time() - cpu) / tokens * 1000, 1),
                ]
            )
        texts = {place: episode.text for place, episode in said}
    agent.session.close()
    found: dict[str, Any] = {
        "engine_tokens_per_s": [r[0] for r in rates],
        "engine_cpu_s_per_1000_tokens": [r[1] for r in rates],
    }
    ours = [
        sys.executable,
        "-m",
        "ollm_rl",
        "serve",
        f"policy={asked.out / 'policy'}",
        "port=8231",
        "model=served",
        f"slots={CLIENTS}",
    ]
    theirs = [
        str(asked.vllm.with_name("vllm")), "serve", str(asked.out / "policy"), "--port", "8232", "--served-model-name", "served",
        "--max-model-len", str(LENGTH), "--max-num-seqs", str(CLIENTS),
    ]  # fmt: skip
    for name, command, port in (("ollm_rl_serve", ours, 8231), ("vllm_serve", theirs, 8232)):
        process = subprocess.Popen(command, stdout=sys.stderr, env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "2"})
        try:
            await_health(process, port)
            job = {"url": f"http://127.0.0.1:{port}/v1", "clients": CLIENTS, "seconds": asked.seconds, "prompts": problems,
                   "temperature": 0.0, "stream": False}  # fmt: skip
            command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), "--clients"]
            ran = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
        figures = json.loads(ran.stdout)
        answers = figures.pop("texts")
        figures["other_text_than_engine"] = sum(
            text != texts[place].strip() and text != texts[place] for place, text in answers
        )
        found[name] = figures
    return found


def await_health(process: subprocess.Popen[Any], port: int) -> None:
    """Until the server answers."""
    import urllib.request

    for _ in range(1200):
        if process.poll() is not None:
            sys.exit(f"{process.args}: ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    sys.exit("the server does not come up")


def apart(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The largest difference of log-probabilities of the same tokens after the same text."""
    most = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for t, u, p, q in zip(a["tokens"], b["tokens"], a["log_probs"], b["log_probs"], strict=False):
            if t != u:
                break
            most = max(most, abs(p - q))
    return most


@torch.inference_mode()
def where_texts_part(path: Path, prompts: list[list[int]], ours: Any, theirs: Any) -> list[dict[str, Any]]:
    """Where two texts first differ in bf16, and by how much that was decided in float32."""
    places = []
    for number, (a, b) in enumerate(zip(ours["texts"], theirs["texts"], strict=True)):
        both = list(zip(a["tokens"], b["tokens"], strict=False))
        places += [(number, i, *pair) for i, pair in enumerate(both) if pair[0] != pair[1]][:1]
    found = {
        d: looked_at(path, d, [prompts[n] + ours["texts"][n]["tokens"][:i] for n, i, *_ in places])
        for d in ("float32", "bfloat16")
    }
    parts = []
    for (number, at, first, second), fine, rough in zip(places, found["float32"], found["bfloat16"], strict=True):
        p, q = fine["says"][[first, second]], rough["says"][[first, second]]
        if min(p.min(), q.min()) > FLOOR:
            margin, rounding, what = float(p[0] - p[1]), float((p - q).abs().max()), "log pi"
        else:  # an option says another token
            by_option = fine["options"][:, [first, second]], rough["options"][:, [first, second]]
            z = int((by_option[0][:, 0] - by_option[0][:, 1]).abs().argmin())
            margin = float(by_option[0][z, 0] - by_option[0][z, 1])
            rounding, what = float((by_option[0][z] - by_option[1][z]).abs().max()), f"logits of option {z}"
        parts.append(
            {
                "problem": number,
                "position": at,
                "tokens": [first, second],
                "what": what,
                "margin": abs(margin),
                "rounding": rounding,
            }
        )
    return parts


def looked_at(path: Path, dtype: str, texts: list[list[int]]) -> list[dict[str, Any]]:
    """At the end of each text: log pi of every token, and the options' logits of every token (K, vocab)."""
    if not texts:
        return []
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="cpu")
    backbone, seen, found = model._backbone[0], [], []
    say = model.by_policy
    model.by_policy = lambda hidden: (seen.append(hidden), say(hidden))[1]
    for ids in texts:
        says = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
        h = seen[-1]
        everything = torch.arange(backbone.vocab_size)[None]
        found.append(
            {"says": says, "options": option_logits(backbone, model.plugin, h, backbone.logits(h), everything)[0]}
        )
    return found


def versions(python: Path) -> dict[str, str]:
    """Of what matters, there."""
    code = "import importlib.metadata as m; print({n: m.version(n) for n in ('vllm-cpu', 'torch', 'transformers')})"
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(said.replace("'", '"'))


if __name__ == "__main__":
    main()
