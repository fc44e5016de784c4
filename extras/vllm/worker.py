"""Texts of a model by vLLM's `LLM()`, for `check.py`: runs in vLLM's environment, a JSON line in and one out.

python extras/vllm/worker.py MODEL DTYPE SLOTS < prompts.json
"""

import json
import os
import sys
import time

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


def main() -> None:
    import psutil
    from vllm import LLM, SamplingParams

    def cpu_s() -> float:
        """Of this process and of those that vLLM started."""
        us = psutil.Process()
        times = [p.cpu_times() for p in (us, *us.children(recursive=True))]
        return sum(t.user + t.system for t in times)

    path, dtype, slots = sys.argv[1], sys.argv[2], int(sys.argv[3])
    asked = json.load(sys.stdin)
    began = time.perf_counter()
    model = LLM(path, dtype=dtype, max_model_len=asked["length"], max_num_seqs=slots, enable_prefix_caching=True)
    started = time.perf_counter() - began
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    params = SamplingParams(temperature=0, max_tokens=asked["max_tokens"], logprobs=2)
    found = model.generate(prompts, params, use_tqdm=False)
    plain = SamplingParams(temperature=0, max_tokens=asked["max_tokens"])
    rates = []
    for _ in range(asked["repeats"]):
        model.reset_prefix_cache()
        cpu, began = cpu_s(), time.perf_counter()
        said = model.generate(prompts, plain, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(each.outputs[0].token_ids) for each in said)
        rates.append(
            {
                "tokens_per_s": tokens / seconds,
                "cpu_s_per_1000_tokens": (cpu_s() - cpu) / tokens * 1000,
                "tokens": tokens,
            }
        )
    texts = [
        {
            "tokens": list(each.outputs[0].token_ids),
            "log_probs": [
                lp[token].logprob for token, lp in zip(each.outputs[0].token_ids, each.outputs[0].logprobs, strict=True)
            ],
        }
        for each in found
    ]
    print(json.dumps({"start_s": started, "texts": texts, "rates": rates}))


if __name__ == "__main__":
    main()
