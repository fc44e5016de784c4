# %% [markdown]
# # 4. Your own agent, and other libraries
#
# **Claim: whatever maps hidden states to latents is an agent, and any library that speaks Gymnasium can train one.** You write a learner of your own,
# then meet the environment that Stable-Baselines3, CleanRL and RLlib train on.

# %%
import os

import numpy as np
import torch

import ollm_rl as ol

BACKBONE = os.environ.get("TUTORIAL_BACKBONE", "smollm2")
TINY = BACKBONE == "tiny"
SHORT = {"num_solutions": 60, "num_heldout": 20, "epochs": 1, "prior_epochs": 1, "reader_epochs": 1} if TINY else {}
backbone, task = ol.load_backbone(BACKBONE), ol.make_task("chain_sum")
plugin = ol.convert(backbone, task, **SHORT)
session = ol.Session(backbone, plugin, task, engine={"max_new_tokens": 12} if TINY else None)

# %% [markdown]
# ## The smallest agent
#
# `predict` gets hidden states (n, d) and gives latents (n,). This one always takes the same latent.


# %%
class Always(ol.Agent):
    latent = 0

    def predict(self, hidden, deterministic=True):
        return torch.full((len(hidden),), self.latent)


def said(row):
    low, high = row.accuracy_ci95
    return f"{row.accuracy:.3f} [{low:.2f}, {high:.2f}]"


N = 4 if TINY else 60
for Kind in (Always, "prior", "random"):
    agent = ol.make_agent(Kind, session)
    row = ol.evaluate(session, agent, num_problems=N, samples=0).rows[0]
    print(f"{row.agent:8} {said(row)}")

# %% [markdown]
# Always latent 0 comes to the same as the prior here: in training, option 0 learns every token of the solutions, so it says the likeliest one.
#
# ## A learner: REINFORCE
#
# A learner needs episodes with their rewards, and the log-probabilities of the choices that were made. `session.rollout` gives whole episodes;
# `Decisions` flattens the hidden states, masks and choices at their decision points. Start from the prior: a random policy would have to find
# first what the data shows.

# %%
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.rollout.episode import Decisions

policy = LatentPolicy.from_prior(plugin)
optimizer = torch.optim.Adam(policy.net.parameters(), lr=6e-4)
problems = session.problems("train", 500)


def sample(seed, groups=8, size=8):
    draw = np.random.default_rng(seed)
    chosen = [problems[i] for i in draw.integers(len(problems), size=groups) for _ in range(size)]
    return session.rollout([ol.Request(p, int(draw.integers(2**31))) for p in chosen], Sampling(policy))


# %% [markdown]
# The update: choices of episodes that did better than the mean of their group (the same problem) become likelier. The mask hides options
# that say the same token as a lower-numbered one.


# %%
def update(episodes, size=8):
    rewards = torch.tensor([e.reward for e in episodes])
    advantage = (rewards.view(-1, size) - rewards.view(-1, size).mean(1, keepdim=True)).flatten()
    deciding = [i for i, e in enumerate(episodes) if e.num_decisions]
    data = Decisions.of([episodes[i] for i in deciding])
    log_probs = policy(data.hidden.float(), data.mask).gather(1, data.z[:, None])[:, 0]
    loss = -(advantage[deciding][data.owner] * log_probs).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return rewards.mean().item()


# %%
rewards = [update(sample(seed)) for seed in range(2 if TINY else 12)]
print("share of right texts by iteration:", " ".join(f"{r:.2f}" for r in rewards))

# %% [markdown]
# To evaluate it like all others, put the policy into an agent. (`docs/agents.md` has the same learner as a class with checkpoints and resuming, so
# that `ollm-rl compare` can run it over seeds.)


# %%
class Mine(ol.Agent):
    def predict(self, hidden, deterministic=True, mask=None):
        with torch.no_grad():
            log_probs = self.policy(hidden.float(), mask)
        return log_probs.argmax(-1) if deterministic else torch.distributions.Categorical(logits=log_probs).sample()


mine = ol.make_agent(Mine, session)
mine.policy = policy
row = ol.evaluate(session, mine, num_problems=N, samples=0).rows[0]
print(f"REINFORCE after {64 * len(rewards)} episodes: {said(row)}")

# %% [markdown]
# ## The environment
#
# The same frozen model as a Gymnasium environment: the observation is the hidden state, an action is a latent, and the reward comes at the end.
# Forced positions are run through by themselves.

# %%
import gymnasium

import envs  # noqa: F401 (registers the environments)

env = gymnasium.make("ollm_rl/LatentReasoning-v0", session=session, render_mode="ansi")
hidden, info = env.reset(seed=0)
print(env.observation_space.shape, env.action_space, info["problem"])
hidden, reward, terminated, truncated, info = env.step(0)
print(env.render())

# %% [markdown]
# **Stable-Baselines3** takes it as it is. One episode at a time through a language model is slow, and PPO with random weights knows nothing of the
# prior, so these few steps are for showing how, and teach nothing. `examples/sb3_ppo.py` has both remedies: 32 episodes share every pass through
# the model, and the policy starts as the prior.

# %%
from stable_baselines3 import PPO

model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, gamma=1.0, seed=0, device="cpu")
model.learn(16)
latent, _ = model.predict(hidden, deterministic=True)
print("it chooses latent", int(latent))

# %% [markdown]
# ## CleanRL's way: the batched environment and your own loop
#
# `LatentReasoningVectorEnv` steps n episodes with one forward pass. An ended episode begins anew at the next step, as Gymnasium's NEXT_STEP has
# it; with `reset_mask` the ended ones begin at once, so that no step is spent on it.

# %%
from envs.batched import LatentReasoningVectorEnv

batch = LatentReasoningVectorEnv(num_envs=16, session=session, action_mask=True)
learned = LatentPolicy.from_prior(plugin)
adam = torch.optim.Adam(learned.net.parameters(), lr=1e-4)


def choices(seen):
    hidden, mask = torch.from_numpy(seen["observation"]), torch.from_numpy(seen["action_mask"]).bool()
    return hidden, mask, torch.distributions.Categorical(logits=learned(hidden, mask))


# %%
def collect(steps=16):
    rows, ended, seen = [], [], batch.reset(seed=1)[0]
    for _ in range(steps):
        with torch.no_grad():
            hidden, mask, chosen = choices(seen)
            action = chosen.sample()
        seen, reward, terminated, truncated, infos = batch.step(action.numpy())
        done = terminated | truncated
        rows.append((hidden, mask, action, chosen.log_prob(action), torch.tensor(reward).float(), torch.tensor(done)))
        if done.any():
            ended += infos["correct"][done].tolist()
            seen, _ = batch.reset(options={"reset_mask": done})
    return rows, ended


# %% [markdown]
# One PPO step without a critic: the return of a choice is the reward of its episode, where that has ended; the ratio of new to old probability is
# clipped. `examples/cleanrl_ppo.py` has the whole algorithm, with a critic, in 130 lines.


# %%
def ppo_step(rows):
    following, finished, loss = torch.zeros(16), torch.zeros(16, dtype=torch.bool), torch.zeros(())
    for hidden, mask, action, old, reward, done in reversed(rows):
        following = torch.where(done, reward, following)
        finished = finished | done
        new = torch.distributions.Categorical(logits=learned(hidden, mask)).log_prob(action)
        ratio, advantage = (new - old).exp(), (following - 0.5) * finished
        loss = loss - torch.min(advantage * ratio, advantage * ratio.clamp(0.8, 1.2)).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()


rows, ended = collect()
ppo_step(rows)
print(f"{len(ended)} episodes ended, {np.mean(ended or [0]):.2f} of them right")

# %% [markdown]
# ## RLlib
#
# `agent=ppo` is RLlib's PPO: its learner and its checkpoints, on whole episodes of the rollout engine. RLlib's stock runner works too
# (`examples/rllib_ppo.py`), with two traps that raise no error: `batch_mode="complete_episodes"` learns from short texts more often than they
# occur, and autoreset SAME_STEP loses the first step of every episode.

# %%
import logging

logging.disable(logging.WARNING)  # Ray and RLlib have much to say
ppo = ol.make_agent("ppo", session, total_episodes=32 if TINY else 512)
costs = ppo.learn()
row = ol.evaluate(session, ppo, num_problems=N, samples=0).rows[0]
print(f"RLlib's PPO after {costs['train_episodes']} episodes: {said(row)}")
session.close()

# %% [markdown]
# **What this does not show.** Which learner is best: these are single runs of different lengths with intervals of more than ten points to each side, and
# only `grpo` and `ppo` were tuned. Over three seeds and 300 problems each, `grpo` has 0.751 and `ppo` 0.790 on this task (n = 900, `benchmarks/README.md`).
#
# Next: [beside LoRA, honestly](5_beside_lora.md).
