"""Evaluation through the server: `ollm-rl serve`, the official openai client, and the verifier on what comes back.

    python examples/evaluate_server.py policy=runs/demo/grpo-0/policy        # after `make demo`: greedy accuracy 0.825
    python examples/evaluate_server.py --problems 8 agent=prior task=chain_sum backbone=tiny

All that follows the options goes to `ollm-rl serve`. At temperature 0 the answers are the engine's greedy ones, so the accuracy is the one of
`results.json`. It needs the extra `serve`, and `pip install openai`.
"""

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from openai import OpenAI

import ollm_rl as ol


@contextmanager
def served(overrides: list[str]) -> Iterator[OpenAI]:
    """A server on a free port, until the block ends."""
    command = [sys.executable, "-m", "ollm_rl", "serve", *overrides, "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            said = ""
            while not (found := re.search(r"http://\S+/v1", said)):
                line = server.stdout.readline()
                if not line:
                    raise SystemExit(f"the server ended before it was ready:\n{said}")
                said += line
            yield OpenAI(base_url=found[0], api_key="any")
        finally:
            server.send_signal(signal.SIGINT)
            server.stdout.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--task", default="chain_sum", help="whose test problems are asked")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("overrides", nargs="*", help="of `ollm-rl serve`")
    args = parser.parse_args()

    problems = ol.make_task(args.task).problems("test", args.problems)
    with served(args.overrides) as client, ol.Verifier() as verifier:
        [model] = client.models.list().data

        def ask(problem: ol.Problem) -> str:
            question = [{"role": "user", "content": problem.problem}]
            answer = client.chat.completions.create(model=model.id, messages=question, temperature=0)
            return answer.choices[0].message.content or ""

        with ThreadPoolExecutor(args.clients) as pool:
            texts = list(pool.map(ask, problems))
        verdicts = verifier.check_many([(p.answer, text) for p, text in zip(problems, texts, strict=True)])
    right = sum(v.correct for v in verdicts)
    print(f"{model.id}: greedy accuracy {right / len(problems):.3f} through the server (n = {len(problems)})")


if __name__ == "__main__":
    main()
