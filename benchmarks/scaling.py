"""Rollout workers from 1 to 64 on one machine: the pool, the policies and the episodes are real, the engine only waits.

    python benchmarks/scaling.py [--workers 1 2 4 8 16 32 64] [--staleness 1] [--updates 12] [--rows-ms 60 1.7]
        [--update-ms 0.4] [--episode-kb 10] [--policy-kb 1500] [--out FILE]

A unit of work is half of a worker's 64 episodes an update, with long-tailed lengths (log-normal, mean 20 tokens, at most 160); a decode step with r rows
lasts `a + b r` ms (`--rows-ms a b`, measured with SmolLM2 on 2 cores), the learner's update `--update-ms` an episode. Every update
takes 64 episodes a worker, so that the number of updates stays the same (weak scaling). Throughput is episodes over the time between
the first update and the last; efficiency is throughput over workers times that of one worker. Prints one JSON line last.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import ray

from agents.async_sampler import AsyncGroupSampler
from ollm_rl.cluster.pool import Pool, start_ray

CHUNK, GROUP = 64, 8


class Waiting:
    """In the place of a worker's session."""

    heartbeat = None


def wait(made: Waiting, policy: bytes, lengths: list[int], a: float, b: float, size: int) -> bytes:
    """A chunk: as long as an engine would take for texts that start together, and as many bytes back."""
    ends, steps, total = sorted(lengths), 0, 0.0
    for i, length in enumerate(ends):
        total += (length - steps) * (a + b * (len(ends) - i)) / 1000
        steps = length
    time.sleep(total)
    return bytes(size * len(lengths))


class Simulated:
    """A session as `AsyncGroupSampler` sees it."""

    def __init__(self, workers: int, staleness: int, args: argparse.Namespace):
        self.max_staleness, self.seed, self.args = staleness, 0, args
        self.pool = Pool(Waiting, num_workers=workers, num_cpus=0.01, hang_s=600)
        self.draw = np.random.default_rng(0)
        self.under_way: dict[int, tuple[int, int]] = {}
        self.bytes_back = self.bytes_out = 0
        self.busy = 0.0

    def chunk_of(self, episodes: int) -> int:
        return CHUNK

    def submit(self, requests, act, version: int, chunk: int) -> list[int]:
        ref = self.pool.put(act)
        self.bytes_out += len(act) * len(self.pool)  # every worker fetches it at most once
        tickets = []
        for at in range(0, len(requests), chunk):
            n = len(requests[at : at + chunk])
            lengths = np.clip(self.draw.lognormal(0, 0.8, n) * 15, 2, 160).round().astype(int).tolist()
            a, b = self.args.rows_ms
            ticket = self.pool.submit(wait, lengths, a, b, int(1000 * self.args.episode_kb), common=[ref])
            self.under_way[ticket] = (n, version)
            tickets.append(ticket)
        return tickets

    def finished(self):
        result = self.pool.next()
        n, version = self.under_way.pop(result.ticket)
        self.bytes_back += result.num_bytes
        self.busy += result.work_s
        return result.ticket, [SimpleNamespace(policy_version=version) for _ in range(n)]


def measure(workers: int, staleness: int, args: argparse.Namespace) -> dict:
    """Some updates with so many workers, the first of which is not counted."""
    session = Simulated(workers, staleness, args)
    groups = CHUNK // GROUP * workers
    ahead = AsyncGroupSampler(session, [SimpleNamespace()], groups, GROUP)
    policy = bytes(1000 * args.policy_kb)
    idle, lags = 0.0, []
    for update in range(args.updates + 1):
        if update == 1:
            start, session.bytes_back, session.bytes_out, session.busy, idle, lags = (
                time.monotonic(),
                0,
                0,
                0.0,
                0.0,
                [],
            )
        began = time.monotonic()
        episodes, lag = ahead.take(update, lambda: policy, (args.updates + 1 - update) * groups)
        idle += time.monotonic() - began
        lags.append(lag)
        time.sleep(len(episodes) * args.update_ms / 1000)
    took = time.monotonic() - start
    session.pool.close()
    done = args.updates * groups * GROUP
    return {
        "workers": workers, "episodes": done, "seconds": took, "episodes_per_s": done / took,
        "worker_busy": session.busy / took / workers, "learner_idle": idle / took, "staleness": float(np.mean(lags)),
        "dropped": ahead.dropped, "bytes_back_per_s": session.bytes_back / took, "bytes_out_per_s": session.bytes_out / took,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--staleness", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--rows-ms", nargs=2, type=float, default=[60.0, 1.7])
    parser.add_argument("--update-ms", type=float, default=0.4)
    parser.add_argument("--episode-kb", type=float, default=10.0)
    parser.add_argument("--policy-kb", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start_ray("local", num_cpus=4)
    rows = []
    for staleness in args.staleness:
        one = None
        for workers in args.workers:
            row = {"max_staleness": staleness, **measure(workers, staleness, args)}
            one = one or row["episodes_per_s"] / row["workers"]
            row["efficiency"] = row["episodes_per_s"] / workers / one
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    result = {
        "command": " ".join(["python benchmarks/scaling.py", *sys.argv[1:]]),
        "ray": ray.__version__,
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
