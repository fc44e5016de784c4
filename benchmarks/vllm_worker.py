"""vLLM as a peer of `rollout_peers.py`: runs in an environment of its own, and answers a line with a line.

python benchmarks/vllm_worker.py MODEL_DIRECTORY
"""

import json
import os
import sys
import time

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")


def main() -> None:
    from vllm import LLM, SamplingParams

    made = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["batch"] not in made:
            made.clear()
            made[asked["batch"]] = LLM(
                sys.argv[1],
                dtype="bfloat16",
                max_model_len=1024,
                enable_prefix_caching=True,
                max_num_seqs=asked["batch"],
            )
        model = made[asked["batch"]]
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        params = [
            SamplingParams(temperature=1.0, max_tokens=n, min_tokens=n, ignore_eos=True) for n in asked["lengths"]
        ]
        model.generate(prompts[:1], params[:1], use_tqdm=False)
        start = time.perf_counter()
        found = model.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(output.token_ids) for each in found for output in each.outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
