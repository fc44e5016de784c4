"""The settings of all agents that come with the toolkit. Imports no torch: the command line checks them before anything is loaded."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ollm_rl.common.settings import MOST_SEEDS, Config, setting
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.config import ConversionConfig
from ollm_rl.oracle.config import GIVING_UP, JUDGES, TREES, VALUED, SearchConfig, can_give_up

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
SCALES = ("group", "batch", "none")
NO_VALUE = (
    "agent=search: agent.judge={judge} needs a learned verifier; expected agent.policy=runs/<name>/policy of a run with value.enabled=true, "
    "agent.value= with the directory of one, or agent.judge=vote"
)
DEPLOYED_SEARCHES, DEPLOYED_JUDGES = (*TREES, "best_of_n"), tuple(j for j in JUDGES if j != "verdict")


# Iterations of 8 or 32 problems, and more passes over each: ways to make more of an episode.
SMALL, LARGE = "problems_per_iteration:8,minibatches:2", "problems_per_iteration:32,minibatches:4"
PASSES = "{num_iterations:4,target_kl:0.05},{minibatches:4,num_iterations:4,target_kl:0.1}"


@dataclass(frozen=True)
class AgentConfig(Config):
    """Of an agent without settings."""

    section: ClassVar[str] = "agent"
    default_space: ClassVar[tuple[str, ...]] = ()  # what `tune` tries where nothing else is said


@dataclass(frozen=True)
class GRPOConfig(AgentConfig):
    """Of `agents.grpo.GRPO`, with TRL's names where it has one."""

    default_space: ClassVar[tuple[str, ...]] = ("learning_rate=3e-4,6e-4,1e-3", f"{{}},{{{LARGE}}},{PASSES}")

    total_episodes: int = setting(4096, "training ends after this many", at_least=1)
    num_generations: int = setting(8, "episodes per problem: the group", at_least=2)
    problems_per_iteration: int = setting(8, "groups per iteration", at_least=1)
    learning_rate: float = setting(6e-4, "of Adam", above=0)
    minibatches: int = setting(2, "optimiser steps of a pass", at_least=1)
    num_iterations: int = setting(2, "passes per iteration", at_least=1)
    beta: float = setting(0.02, "weight of the KL to the prior (k3 estimator)", at_least=0)
    use_bias_correction_kl: bool = setting(True, "that KL times the probability ratio")
    epsilon: float = setting(0.2, "clipping range of the probability ratio, below 1", at_least=0)
    epsilon_high: float | None = setting(0.28, "the same above 1; null: `epsilon`", at_least=0)
    loss_type: str = setting("dapo", "how a loss per decision becomes one number", choices=LOSS_TYPES)
    scale_rewards: str = setting("none", "what advantages are divided by", choices=SCALES)
    pass_at_k: int = setting(1, "the objective is that one of k episodes is right; 1 is ordinary GRPO", at_least=1)
    min_entropy: float = setting(0.02, "decisions where the prior is surer than this (nats) do not count", at_least=0)
    forward_kl: float = setting(0.1, "weight of KL(prior || policy) at those decisions", at_least=0)
    target_kl: float = setting(
        0.02,
        "an iteration's updates end once the policy is this far (nats) from the one that sampled; 0: never",
        at_least=0,
    )
    max_decisions: int = setting(32, "the constant that `dr_grpo` divides by", at_least=1)
    num_problems: int = setting(2000, "training problems drawn from split `train`", at_least=1)
    save_every: int = setting(1, "iterations between checkpoints", at_least=1)
    path: str | None = setting(
        None, "directory of a policy, or of its run, to start from instead of the prior", of_run="policy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pass_at_k >= self.num_generations:
            raise self.refuse("pass_at_k", f"1 to {self.num_generations - 1}, less than agent.num_generations")

    @property
    def clip_high(self) -> float:
        """How far the probability ratio may exceed 1."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


@dataclass(frozen=True)
class SteerConfig(GRPOConfig):
    """Of `agents.controls.Steer`: GRPO's, and the gate."""

    learning_rate: float = setting(0.1, "of Adam", above=0)
    gated: bool = setting(False, "the vector times sigmoid(w h + b), which is learned too")


@dataclass(frozen=True)
class FirstDecisionsConfig(GRPOConfig):
    """Of `agents.controls.FirstDecisions`: GRPO's, and how many."""

    decisions: int = setting(4, "of a text, at which it chooses; the prior chooses at all others", at_least=1)


@dataclass(frozen=True)
class LocalConfig(GRPOConfig):
    """Of `agents.controls.Local`: GRPO's."""


@dataclass(frozen=True)
class BestPrefixConfig(AgentConfig):
    """Of `agents.controls.BestPrefix`."""

    num_openings: int = setting(24, "openings that are tried, the most frequent ones", at_least=1)
    num_problems: int = setting(
        200, "training problems: one sampled text each to find openings, one greedy answer for each of them", at_least=1
    )
    max_tokens: int = setting(16, "of an opening, at most", at_least=1)


@dataclass(frozen=True)
class ShortlistHeadConfig(GRPOConfig):
    """Of `agents.shortlist_head.ShortlistHead`: GRPO's, and those of the fit to solutions that comes before."""

    default_space: ClassVar[tuple[str, ...]] = ("learning_rate=1e-3,3e-3,1e-2", f"{{}},{{{SMALL}}},{PASSES}")

    problems_per_iteration: int = setting(32, "groups per iteration", at_least=1)
    learning_rate: float = setting(3e-3, "of Adam", above=0)
    minibatches: int = setting(4, "optimiser steps of a pass", at_least=1)
    beta: float = setting(0.02, "weight of the KL to the head that learning starts from (k3 estimator)", at_least=0)
    num_solutions: int = setting(ConversionConfig.num_solutions, "solutions that the head is fitted to", at_least=1)
    sft_seed: int = setting(ConversionConfig.seed, "of the solutions", at_least=0, at_most=MOST_SEEDS)
    sft_epochs: int = setting(6, "passes over the solutions", at_least=1)
    sft_learning_rate: float = setting(1e-3, "of AdamW in that fit", above=0)
    dropout: float = setting(0.1, "of the head's inputs in that fit", at_least=0, at_most=1)
    num_tokens: int | None = setting(
        None, "rows of the head; null: as many as make it as large as the plug-in", at_least=1
    )


@dataclass(frozen=True)
class PPOConfig(AgentConfig):
    """Of `agents.ppo.PPO`, with RLlib's names where it has one."""

    default_space: ClassVar[tuple[str, ...]] = (
        "learning_rate=5e-5,1e-4,3e-4",
        "{},{episodes_per_iteration:256},{episodes_per_iteration:128},{num_epochs:8}",
    )

    total_episodes: int = setting(6144, "training ends after this many", at_least=1)
    episodes_per_iteration: int = setting(64, "whole episodes that an update learns from", at_least=1)
    episodes_per_problem: int = setting(
        4, "episodes that share a problem, and run as one until they differ", at_least=1
    )
    algorithm: str = setting("PPO", "a name of RLlib's registry: PPO, APPO, IMPALA")
    learning_rate: float = setting(1e-4, "of Adam", above=0)
    num_epochs: int = setting(4, "passes per iteration", at_least=1)
    minibatch_size: int = setting(256, "decisions of a minibatch", at_least=1)
    grad_clip: float | None = setting(1.0, "largest norm of a gradient; null: no limit", above=0)
    gae_lambda: float = setting(1.0, "of generalised advantage estimation", at_least=0, at_most=1)
    clip_param: float = setting(0.2, "clipping range of the probability ratio", above=0)
    entropy_coeff: float = setting(0.0, "weight of the entropy")
    vf_loss_coeff: float = setting(0.5, "weight of the value head's loss", at_least=0)
    beta: float = setting(0.02, "weight of the KL to the prior (PPO only)", at_least=0)
    value_width: int = setting(128, "hidden units of the value head", at_least=1)
    min_entropy: float = setting(0.02, "decisions where the prior is surer than this (nats) do not count", at_least=0)
    num_env_runners: int = setting(
        0, "processes of RLlib that sample; 0: this one, or the workers of rollout=ray", at_least=0
    )
    num_problems: int = setting(2000, "training problems drawn from split `train`", at_least=1)
    training: dict[str, Any] = setting({}, "further settings of RLlib's algorithm, as its `training()` takes them")
    save_every: int = setting(1, "iterations between checkpoints", at_least=1)
    path: str | None = setting(
        None, "directory of a policy, or of its run, to start from instead of the prior", of_run="policy"
    )


@dataclass(frozen=True)
class DistillConfig(AgentConfig):
    """Of `agents.distill.Distill`."""

    rounds: int = setting(2, "of search and imitation, each on new problems", at_least=1)
    problems_per_round: int = setting(400, "problems that are searched in a round", at_least=1)
    search: str = setting("best_of_n", "how they are searched, as `oracle.search`")
    budget: int = setting(400, "generated tokens per problem and search", at_least=1)
    texts_per_problem: int = setting(4, "solved texts that are looked for, no two the same", at_least=1)
    width: int | None = setting(None, "as `oracle.width`", at_least=1)
    epochs: int = setting(8, "passes of imitation", at_least=1)
    learning_rate: float = setting(5e-4, "of AdamW", above=0)
    dropout: float = setting(0.1, "of the policy's inputs", at_least=0, at_most=1)
    batch_size: int = setting(512, "decisions of an optimiser step", at_least=1)


@dataclass(frozen=True)
class ReferenceConfig(AgentConfig):
    """Of `agents.reference.Reference`."""

    num_solutions: int = setting(
        ConversionConfig.num_solutions, "solutions, the clean ones of which are imitated", at_least=1
    )
    seed: int = setting(ConversionConfig.seed, "of the solutions", at_least=0, at_most=MOST_SEEDS)
    column: str = setting("style", "the column that marks clean solutions")
    value: str = setting("steps", "what it says of them")
    epochs: int = setting(6, "passes", at_least=1)
    learning_rate: float = setting(5e-4, "of AdamW", above=0)
    dropout: float = setting(0.1, "of the policy's inputs", at_least=0, at_most=1)


@dataclass(frozen=True)
class LoRASFTConfig(AgentConfig):
    """Of `agents.lora.LoRASFT`: an adapter fitted to solutions by TRL's `SFTTrainer`."""

    adapter: str = setting(
        "lora",
        "which: lora, or tiny_lora, which trains a few numbers for each layer (TinyLoRA, arXiv 2602.04118)",
        choices=("lora", "tiny_lora"),
    )
    rank: int | None = setting(
        None, "of the adapter; null: of lora, about as many parameters as the plug-in, of tiny_lora, 2", at_least=1
    )
    peft: dict[str, Any] = setting(
        {}, "further settings of PEFT's LoraConfig or TinyLoraConfig, such as {use_dora:true} or {u:13}"
    )
    num_examples: int = setting(0, "solved problems in its prompts", at_least=0)
    num_solutions: int = setting(ConversionConfig.num_solutions, "solutions that it is fitted to", at_least=1)
    sft_seed: int = setting(ConversionConfig.seed, "of the solutions", at_least=0, at_most=MOST_SEEDS)
    sft_epochs: int = setting(1, "passes over the solutions", at_least=1)
    sft_learning_rate: float = setting(5e-4, "of AdamW in that fit", above=0)
    sft_batch_size: int = setting(32, "solutions of an optimiser step", at_least=1)


@dataclass(frozen=True)
class LoRAGRPOConfig(LoRASFTConfig):
    """Of `agents.lora_grpo.LoRAGRPO`: TRL's `GRPOTrainer`; names and defaults of the objective are TRL's."""

    default_space: ClassVar[tuple[str, ...]] = (
        "learning_rate=1e-4,3e-4,1e-3",
        "{},{minibatches:2},{num_iterations:2},{problems_per_iteration:4}",
    )

    begin: str = setting(
        "sft", "`sft`: from the adapter of lora_sft; `base`: a new one (set num_examples too)", choices=("sft", "base")
    )
    total_episodes: int = setting(GRPOConfig.total_episodes, "training ends after this many", at_least=1)
    num_generations: int = setting(GRPOConfig.num_generations, "episodes per problem: the group", at_least=2)
    problems_per_iteration: int = setting(8, "groups per iteration, an optimiser step each, as TRL does it", at_least=1)
    learning_rate: float = setting(1e-4, "of AdamW", above=0)
    minibatches: int = setting(1, "optimiser steps of a pass", at_least=1)
    num_iterations: int = setting(1, "passes per iteration", at_least=1)
    micro_batch_size: int = setting(32, "episodes of a forward and backward pass", at_least=1)
    beta: float = setting(0.0, "weight of the KL to the model that training began with", at_least=0)
    epsilon: float = setting(0.2, "clipping range of the probability ratio, below 1", at_least=0)
    epsilon_high: float | None = setting(0.28, "the same above 1; null: `epsilon`", at_least=0)
    loss_type: str = setting("dapo", "how a loss per token becomes one number", choices=LOSS_TYPES)
    scale_rewards: str = setting("group", "what advantages are divided by", choices=SCALES)
    num_problems: int = setting(GRPOConfig.num_problems, "training problems drawn from split `train`", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_iteration % (self.minibatches * self.micro):
            raise ConfigurationError(
                f"an iteration has {self.per_iteration} episodes; expected a multiple of agent.minibatches={self.minibatches} "
                f"times agent.micro_batch_size={self.micro}"
            )

    @property
    def per_iteration(self) -> int:
        """Episodes of an iteration."""
        return self.problems_per_iteration * self.num_generations

    @property
    def micro(self) -> int:
        """Episodes of a forward and backward pass, no more than a minibatch has."""
        return min(self.micro_batch_size, max(1, self.per_iteration // self.minibatches))


@dataclass(frozen=True)
class SearchAgentConfig(AgentConfig):
    """Of `agents.search.SearchAgent`; the settings of searches are those of `SearchConfig`."""

    policy: str | None = setting(
        None,
        "directory of a trained policy, or of its run, `{seed}` in it being the run's seed; null: the prior",
        of_run="policy",
    )
    value: str | None = setting(
        None, "directory of a learned verifier, or of its run; null: the policy's", of_run="policy"
    )
    search: str = setting(SearchConfig.search, "where its texts come from", choices=DEPLOYED_SEARCHES)
    judge: str = setting("value", "what chooses among them", choices=DEPLOYED_JUDGES)
    budget: int = setting(SearchConfig.budget, "generated tokens per problem", at_least=1)
    max_tries: int | None = setting(SearchConfig.max_tries, "texts per problem; null: 16", at_least=1)
    accept: float = setting(
        SearchConfig.accept,
        "judge=value: it ends with a text that is right with this probability",
        at_least=0,
        at_most=1,
    )
    give_up: float = setting(
        SearchConfig.give_up,
        "judge=value, weighted_vote: best_first, puct and exhaustive leave a text, once there is another one, that will be right with less than this probability; 0: never",
        at_least=0,
        at_most=0.99,
    )
    width: int | None = setting(SearchConfig.width, "most texts of one problem at the same time", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.give_up and not can_give_up(self.search, self.judge):
            raise self.refuse("give_up", f"0 for {self.search} judged by {self.judge}: {GIVING_UP}")

    @property
    def needs_value(self) -> bool:
        """A learned verifier is asked."""
        return self.judge in VALUED
