# %% [markdown]
# # 6. On a Ray cluster
#
# **Claim: `rollout=ray` moves the language model to workers, on this machine or on others, and what is learned stays the same.** Nearly all the
# time of reinforcement learning on a language model goes into generating texts. Workers do that; the process that you started learns, and holds
# no model.
#
# It needs `pip install -c constraints.txt -e '.[rllib]'`. Here the cluster is this machine.

# %%
import json
import logging
import os
from pathlib import Path

from safetensors.numpy import load_file

from ollm_rl.cli.app import main as ollm_rl

BACKBONE = os.environ.get("TUTORIAL_BACKBONE", "smollm2")
TINY = BACKBONE == "tiny"

# %% [markdown]
# ## The same run, twice
#
# Commands are the same in Python: a list of the words after `ollm-rl`. First without workers. `rollout.chunk` is the number of episodes in a
# unit of work; it is fixed here so that both runs cut the work alike.

# %%
common = ["train", "agent=grpo", f"backbone={BACKBONE}", "rollout.chunk=16", "agent.total_episodes=128"]
common += ["evaluate.num_problems=20", "evaluate.samples=0"]
if TINY:
    common += ["convert.num_solutions=60", "convert.num_heldout=20", "convert.epochs=1", "convert.prior_epochs=1"]
    common += ["convert.reader_epochs=1", "agent.total_episodes=16", "agent.num_generations=4"]
    common += ["agent.problems_per_iteration=4", "engine.max_new_tokens=12", "evaluate.num_problems=4"]
ollm_rl([*common, f"name=alone_{BACKBONE}"])

# %% [markdown]
# Now with two workers. Each loads the model and has an engine of its own. The policy, a few hundred kilobytes, travels to them once an iteration;
# tokens, verdicts and the states at decision points come back.

# %%
logging.getLogger("ray").setLevel(logging.ERROR)
ollm_rl([*common, "rollout=ray", "rollout.num_workers=2", "rollout.address=local", f"name=workers_{BACKBONE}"])

# %% [markdown]
# ## What has changed?
#
# An episode depends on its problem, its seed and the policy, and on nothing else: not on the worker, nor on who else is there. (In the run that this page
# shows, the machine was short of memory and Ray ended both workers on the way. They were replaced.) Compare the weights:

# %%
weights = [load_file(f"runs/{name}_{BACKBONE}/policy/policy.safetensors") for name in ("alone", "workers")]
largest = max(float(abs(weights[0][key] - weights[1][key]).max()) for key in weights[0])
print("largest difference between the two policies' weights:", largest)

# %% [markdown]
# In float32, with the same `rollout.chunk` and as many threads, the difference is zero to the bit, and a test holds it there. In bfloat16, on other
# machines, the last digit of a sum may round otherwise.
#
# What the workers cost is logged:


# %%
def last(name):
    return json.loads(Path(f"runs/{name}_{BACKBONE}/metrics.jsonl").read_text().splitlines()[-1])


alone, workers = last("alone"), last("workers")
print(f"reward in the last iteration: {alone['reward']:.3f} alone, {workers['reward']:.3f} with workers")
for key in sorted(key for key in workers if key.startswith("ray/")):
    print(f"{key:24} {workers[key]:.4g}")

# %% [markdown]
# `ray/bytes_per_episode` is what came back for an episode, `ray/broadcast_s` the seconds for sending the policy. `ray/died`, `ray/hung` and `ray/raised`
# count workers that were lost: each is replaced, and its units of work are run again to the same episodes.
#
# ## On other machines
#
# Nothing in the command changes but the address and the numbers:
#
# ```
# ray job submit --working-dir . -- python -m ollm_rl train agent=grpo rollout=ray rollout.num_workers=8 rollout.num_gpus_per_worker=1 runs_dir=/shared/runs
# ```
#
# - `configs/cluster/` has files for AWS, Google Cloud, your own machines and Kubernetes.
# - `rollout.max_staleness=1` lets workers go on while the learner learns; every episode knows the policy that it was sampled with.
# - `ollm-rl compare agents=[prior,grpo] seeds=[0,1,2] rollout.address=auto` runs agents and seeds side by side, a worker each.
# - The same command again continues an interrupted run from its last checkpoint.
#
# **What this does not show.** A gain in speed: two workers on a machine with two cores share what one process had, so this page shows that the
# result is the same, and not that it comes sooner. With engines that only wait, 16 workers reached 0.95 and 64 workers 0.89 of the throughput of as
# many single ones (`benchmarks/scaling.py`); real clusters of that size were not to be had.
#
# That was the last tutorial. Guides for single questions, and every setting, are on this site.
