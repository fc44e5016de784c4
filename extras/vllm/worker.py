"""Greedy texts of a model by vLLM's `LLM()`, for `check.py`: runs in vLLM's environment, JSON in and a line of JSON out.

python extras/vllm/worker.py MODEL DTYPE SLOTS < job.json
"""

import json
import os
import sys
import time

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


def main() -> None:
    from vllm import LLM, SamplingParams

    path, dtype, slots = sys.argv[1], sys.argv[2], int(sys.argv[3])
    job = json.load(sys.stdin)
    began = time.perf_counter()
    model = LLM(path, dtype=dtype, max_model_len=job["length"], max_num_seqs=slots, enforce_eager=job["eager"])
    started = time.perf_counter() - began
    params = SamplingParams(temperature=0, max_tokens=job["max_tokens"], logprobs=1)
    texts = []
    for each in model.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], params, use_tqdm=False):
        said = each.outputs[0]
        log_probs = [step[token].logprob for token, step in zip(said.token_ids, said.logprobs, strict=True)]
        texts.append({"tokens": list(said.token_ids), "log_probs": log_probs})
    print(json.dumps({"start_s": round(started, 1), "texts": texts}))


if __name__ == "__main__":
    main()
