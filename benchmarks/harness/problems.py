"""The test problems of a task as JSON lines, for harnesses that are not ours: `python benchmarks/harness/problems.py chain_sum 200 > chain_sum.jsonl`."""

import json
import sys

import ollm_rl as ol

if __name__ == "__main__":
    name, n = sys.argv[1], int(sys.argv[2])
    for problem in ol.make_task(name).problems("test", n, seed=0):
        print(json.dumps({"problem": problem.problem, "answer": problem.answer}))
