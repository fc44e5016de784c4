# %% [markdown]
# # 5. Beside LoRA, honestly
#
# **Claim: which answers better depends on the task, latents are cheaper, and latents over a model that was fitted first are as good or better.** An adapter changes what the model knows; a
# latent policy chooses among what it knows. This page runs both, small, and then shows the measured comparison.
#
# It needs `pip install -c constraints.txt -e '.[trl]'`.

# %%
import json
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt

import ollm_rl as ol

BACKBONE = os.environ.get("TUTORIAL_BACKBONE", "smollm2")
TINY = BACKBONE == "tiny"
SHORT = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1} if TINY else {}
backbone, task = ol.load_backbone(BACKBONE), ol.make_task("chain_sum")
session = ol.Session(
    backbone, ol.convert(backbone, task, **SHORT), task, engine={"max_new_tokens": 12} if TINY else None
)

# %% [markdown]
# ## What is fair
#
# Both sides get the same frozen model to begin with, the same solutions, problems, verdicts, token budget and decode path. They differ in what
# they may change:
#
# | | latents (`grpo`) | LoRA (`lora_sft`, `lora_grpo`) |
# |---|---|---|
# | learns | which of ten options | adapters in all layers |
# | before RL | conversion: hidden states are computed once | SFT: forward and backward through the model |
# | an RL update | a small net on stored hidden states | forward and backward through the model |
# | prompt | three solved examples | none: it has seen solutions |
#
# ## Both, small
#
# LoRA is fitted to a few hundred solutions here, not to 4,000, so that the page is done in minutes. **That is a handicap for LoRA; do not
# take a verdict from this cell.**

# %%
few = {"num_solutions": 16 if TINY else 240, "sft_batch_size": 16}
small = (
    {"total_episodes": 16, "num_generations": 4, "problems_per_iteration": 2, "minibatches": 1}
    if TINY
    else {"total_episodes": 64}
)
agents = {
    "prior": ol.make_agent("prior", session),
    "grpo": ol.make_agent("grpo", session, total_episodes=64 if TINY else 768),
    "lora_sft": ol.make_agent("lora_sft", session, **few),
    "lora_grpo": ol.make_agent("lora_grpo", session, **few, **small),
}

# %%
results = {}
for name, agent in agents.items():
    start = time.monotonic()
    agent.learn()
    seconds = time.monotonic() - start
    row = ol.evaluate(session, agent, num_problems=4 if TINY else 50, samples=0, name=name).rows[0]
    results[name] = row
    low, high = row.accuracy_ci95
    print(f"{name:10} {row.accuracy:.3f} [{low:.2f}, {high:.2f}]  learning took {seconds:.0f} s", flush=True)

# %% [markdown]
# (Seconds are of a shared machine, and the conversion of the latents' plug-in, some minutes, came from the cache. `lora_grpo` begins
# with the adapter of `lora_sft`, which is kept in the cache as well: its seconds are those of RL alone. `lora_sft` had been begun before and went on from a
# checkpoint here; from the beginning it takes longer.)
#
# ## The measured comparison
#
# Three seeds of 100 problems, 2,000 solutions for both sides, three tasks. The figures are in `benchmarks/results/headline.json`, with the commands in
# `benchmarks/README.md`. `fitted_grpo` is `grpo` over the backbone that `lora_sft` fitted; `_2` and `_3` are epochs of that fit.

# %%
stored = json.loads((Path(ol.__file__).parent.parent / "benchmarks" / "results" / "headline.json").read_text())
SHOWN = ("prior", "grpo", "grpo_long", "lora_grpo", "lora_grpo_2", "lora_grpo_3", "fitted_grpo", "fitted_grpo_3")
measured = {}
for task in ("chain_sum", "leg_counting", "shortest_path"):
    measured[task] = [row for row in stored[task]["pooled"] if row["agent"] in SHOWN]
    print(task)
    for row in measured[task]:
        low, high = row["accuracy_ci95"]
        print(
            f"   {row['agent']:13} {row['accuracy']:.3f} [{low:.2f}, {high:.2f}]  {row['total_seconds']:5.0f} s from nothing"
        )

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", sharey=True)
for axes, (name, rows) in zip(panels, measured.items(), strict=True):
    for row in rows:
        kind = "latents" if "lora" not in row["agent"] else "LoRA"
        axes.plot([row["total_seconds"]], [row["accuracy"]], "o" if kind == "latents" else "s", label=row["agent"])
    axes.set(title=name, xlabel="seconds from nothing", ylim=(0, 1), xlim=(0, 3900))
    axes.legend(fontsize=6)
panels[0].set_ylabel("greedy accuracy")
plt.show()
session.close()

# %% [markdown]
# What to read from it:
#
# - **Grid paths: latents win until LoRA's third epoch**, 0.49 against 0.29, in a third of the seconds. After three epochs LoRA-RL has 0.46, a tie.
# - **Sums: a tie**, 0.71 each, with one epoch of LoRA's fit. Latents take 336 s from nothing, LoRA-RL 956 s.
# - **Word problems: LoRA wins**, 0.90 against 0.72. It has learned to multiply from the solutions, which a frozen model cannot.
# - **Both can be had**: merge the SFT adapter into the backbone, freeze that, convert, and train latents over it. Beside LoRA-RL with two
#   epochs of its fit (0.78 on sums, 0.94 on word problems) that is ahead on sums (0.84) and grid paths (0.41 against 0.29); on word problems (0.96) it is not settled.
#   With three epochs, on sums, latents have 0.89, LoRA-RL 0.83. On grid paths latents have 0.39 with 768 episodes, LoRA-RL 0.46. With 4,096 latents have 0.69, LoRA-RL 0.59 (two seeds, n = 200), in 13 times their seconds of RL.
#
# **What this does not show.** Larger models: all of it is a model of 135 million parameters. LoRA's fit was hardly tuned; unless another number is said, it has one epoch on sums and word
# problems, two on grid paths.
#
# Take latents if the model knows how and does not do it; take LoRA if it does not know how.
#
# Next: [on a Ray cluster](6_ray_cluster.md).
