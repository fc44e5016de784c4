"""How fast `ollm-rl serve` is beside the engine alone: clients at once against whole episodes of the same prompts.

    python benchmarks/serving.py policy=runs/demo/grpo-0/policy [clients=32] [seconds=60] [problems=128] [temperature=0] [any override]

In one process the engine, in another the clients, which share the processors with it. In turn:

* engine: `rollout` of requests with these prompts and seeds, `clients` rows at once, for a quarter of `seconds`; before, between and after the others;
* served: `clients` threads, each of which asks for the next prompt as soon as it has an answer, for `seconds`;
* streamed: the same as streams.

Tokens are those of answers that came to their end while it was measured, which begins when every row has had time for its first answer. `ratio` is
tokens a second over the mean of the engine's before and after it. `cpu_s_per_1000_tokens`: of the engine's process and of the clients', which other work
on the machine hardly changes. `lost` counts requests without an answer, `other_text` those with another than the engine's. Prints one JSON line last.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from statistics import mean, median
from typing import Any

WARM_S = 10.0  # before it is measured
OWN = {"clients": 32, "seconds": 60.0, "problems": 128, "temperature": 0.0}


def main() -> None:
    own: dict[str, Any] = dict(OWN)
    overrides = []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = type(own[key])(value)
        else:
            overrides.append(argument)
    print(json.dumps(measure(own, overrides)))


def measure(own: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """All figures."""
    from ollm_rl.config.compose import compose
    from ollm_rl.options.policies import Sampling
    from ollm_rl.rollout.sampler import Request, rollout
    from ollm_rl.serving.config import ServeConfig
    from ollm_rl.serving.opening import opened_agent
    from ollm_rl.serving.serve import Api, Server, bound, url
    from ollm_rl.serving.served import Served

    settings = compose(overrides)
    agent = opened_agent(settings, overrides, "serve")
    session = agent.session
    session.close()
    served = Served.of(agent, ServeConfig(model="served"), settings.config.policy)
    problems = session.problems("test", own["problems"])
    act = Sampling(served.policy, deterministic=not own["temperature"])
    requests = [Request(p, seed) for seed, p in enumerate(problems)]
    engine = session.new_engine(num_slots=own["clients"])
    texts = [""] * len(requests)
    if own["temperature"] not in (0.0, 1.0):
        sys.exit("temperature: expected 0 or 1, which the engine's episodes have")

    def alone() -> tuple[float, float]:
        """Tokens a second of the engine, and its CPU seconds for a thousand."""
        tokens, began, cpu, since = 0, time.perf_counter(), 0.0, 0.0
        for place, episode in rollout(engine, requests * 100, act, keep_hidden=False):
            now = time.perf_counter()
            texts[place % len(requests)] = episode.text
            if not since and now - began > WARM_S:
                since, cpu = now, time.process_time()
            elif since:
                tokens += len(episode.tokens)
                if now - since > own["seconds"] / 4:
                    break
        return tokens / (now - since), (time.process_time() - cpu) / tokens * 1000

    list(rollout(engine, requests[: own["clients"]], act, keep_hidden=False))  # compiles, and allocates
    engine_alone = [alone()]
    api = Api(served, ServeConfig(model="served", port=0))
    with bound("127.0.0.1", 0) as sock:
        ready = threading.Event()
        server = Server(api, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        ready.wait()
        found, answers = {}, {}
        for name, stream in (("served", False), ("streamed", True)):
            job = own | {"url": f"{url(sock)}/v1", "stream": stream, "prompts": [p.problem for p in problems]}
            cpu, tokens = time.process_time(), api.batcher.num_tokens
            ran = subprocess.run(
                [sys.executable, __file__, "--clients"], input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True
            )  # fmt: skip
            cpu, tokens = time.process_time() - cpu, api.batcher.num_tokens - tokens
            found[name] = json.loads(ran.stdout)
            answers[name] = found[name].pop("texts")
            found[name]["cpu_s_per_1000_tokens"] = {
                "server": round(cpu / tokens * 1000, 2), "clients": round(found[name].pop("cpu_s") / tokens * 1000, 2)
            }  # fmt: skip
            engine_alone.append(alone())
            beside = mean(rate for rate, _ in engine_alone[-2:])
            found[name]["ratio"] = round(found[name]["tokens_per_s"] / beside, 3)
        server.should_exit = True
        thread.join()
        api.batcher.close(timeout_s=0)
    for place, episode in rollout(engine, requests, act, keep_hidden=False):
        texts[place] = episode.text
    for name, given in answers.items():
        found[name]["other_text"] = sum(text != texts[place] for place, text in given)
    return {
        "command": " ".join(["python benchmarks/serving.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "backbone": session.backbone.name, "dtype": str(session.backbone.dtype).removeprefix("torch."), "task": session.task.name,
        **own, "engine": [{"tokens_per_s": round(rate, 1), "cpu_s_per_1000_tokens": round(cpu, 2)} for rate, cpu in engine_alone], **found,
    }  # fmt: skip


def clients() -> None:
    """Ask, from many threads at once, as the description on the standard input says; the figures as JSON."""
    import openai

    job = json.load(sys.stdin)
    client = openai.OpenAI(base_url=job["url"], api_key="any", max_retries=0, timeout=300)
    lock, counter, began = threading.Lock(), iter(range(10**9)), time.perf_counter()
    since, end = began + WARM_S, began + WARM_S + job["seconds"]
    latencies: list[float] = []
    firsts: list[float] = []
    texts: list[tuple[int, str]] = []
    counts = {"tokens": 0, "answers": 0, "lost": 0}

    def ask(place: int) -> tuple[str, int, float, float]:
        given: dict[str, Any] = {
            "model": "served", "messages": [{"role": "user", "content": job["prompts"][place]}], "temperature": job["temperature"], "seed": place,
        }  # fmt: skip
        began = time.perf_counter()
        if not job["stream"]:
            answer = client.chat.completions.create(**given)
            took = time.perf_counter() - began
            return answer.choices[0].message.content, answer.usage.completion_tokens, took, took
        text, first, tokens = "", None, 0
        for chunk in client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}):
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - began
                text += chunk.choices[0].delta.content
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        took = time.perf_counter() - began
        return text, tokens, took, first or took

    def work() -> None:
        while time.perf_counter() < end:
            with lock:
                place = next(counter) % len(job["prompts"])
            try:
                text, tokens, took, first = ask(place)
            except openai.OpenAIError as error:
                print(error, file=sys.stderr)
                text, tokens, took, first = None, 0, 0.0, 0.0
            with lock:
                counts["lost"] += text is None
                if text is not None and since < time.perf_counter() < end:
                    counts["answers"] += 1
                    counts["tokens"] += tokens
                    texts.append((place, text))
                    latencies.append(took)
                    firsts.append(first)

    threads = [threading.Thread(target=work) for _ in range(job["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = sorted(latencies)
    print(json.dumps({
        "tokens_per_s": round(counts["tokens"] / job["seconds"], 1), "answers": counts["answers"], "lost": counts["lost"],
        "latency_s": {"median": round(median(ordered), 3), "p95": round(ordered[int(0.95 * len(ordered))], 3)},
        "first_text_s": round(median(firsts), 3), "cpu_s": time.process_time(), "texts": texts,
    }))  # fmt: skip


if __name__ == "__main__":
    clients() if sys.argv[1:] == ["--clients"] else main()
