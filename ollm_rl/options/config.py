"""Settings of a plug-in and of its conversion. Imports no torch: the command line checks them before anything is loaded."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ollm_rl.common.settings import MOST_SEEDS, Config, setting

OBJECTIVES = ("cover", "expected", "em", "gumbel")  # as `ollm_rl.options.objectives` has them


EXPORT_KINDS = ("policy", "mixture")  # what the logits of an option LM are as a model of transformers


@dataclass(frozen=True)
class PlugInConfig(Config):
    """Sizes of a plug-in."""

    section: ClassVar[str] = "plugin"

    num_options: int = setting(10, "K", at_least=2)
    encoder_width: int = setting(384, "hidden units of a layer of the encoder", at_least=1)
    encoder_depth: int = setting(2, "hidden layers of the encoder", at_least=1)
    decoder_width: int = setting(384, "hidden units of a layer of the decoder", at_least=1)
    decoder_depth: int = setting(1, "hidden layers of the decoder", at_least=1)
    prior_width: int = setting(384, "hidden units of a layer of the prior", at_least=1)
    prior_depth: int = setting(2, "hidden layers of the prior", at_least=1)
    shortlist: int = setting(48, "candidate tokens of a step", at_least=2)
    init_scale: float = setting(
        1.0, "standard deviation of the options' initial differences; options that start equal stay equal", above=0
    )
    reader_depth: int = setting(
        1, "attention blocks of the reader; 0: the plug-in reads the last state only", at_least=0
    )
    reader_width: int = setting(384, "numbers that the reader gives beside a state", at_least=1)
    reader_layers: list[int] | None = setting(
        None,
        "layers whose states the reader takes (0: what enters the first); null: four at equal distances, the last among them",
    )


@dataclass(frozen=True)
class PlugInChoice(PlugInConfig):
    """Which plug-in: one that is there, or the sizes of a new one."""

    path: str | None = setting(
        None,
        "directory of a plug-in, or of a run with one; null converts one, or takes it from the cache",
        of_run="plugin",
    )


@dataclass(frozen=True)
class ConvertConfig(Config):
    """How a plug-in is trained."""

    section: ClassVar[str] = "convert"

    objective: str = setting("cover", "what phase 2 minimises (the options), see docs/options.md", choices=OBJECTIVES)
    prior_target: str = setting("canonical", "what the prior imitates in phase 3", choices=("canonical", "encoder"))
    solutions: str = setting(
        "given",
        "worked solutions: the task's own, right ones that were sampled, or both",
        choices=("given", "sampled", "both"),
    )
    sampled_by: str | None = setting(
        None, "sampled: directory of a trained agent, or of its run, that is asked; null: the backbone", of_run="policy"
    )
    sampling_temperature: float = setting(0.7, "sampled: of the backbone", above=0)
    rounds: int = setting(
        1, "sampled: rounds of asking; from the second on, the prior of what was found so far is asked", at_least=1
    )
    samples_per_problem: int = setting(8, "sampled: texts of a problem", at_least=1)
    solutions_per_problem: int = setting(4, "sampled: right texts of a problem that are kept, at most", at_least=1)
    wrong_share: float = setting(
        0.0, "sampled: share of wrong texts among those that are kept", at_least=0, at_most=0.9
    )
    num_solutions: int = setting(4000, "solutions of split `sft` to train on", at_least=1)
    num_heldout: int = setting(300, "solutions of split `tune` to report on", at_least=1)
    epochs: int = setting(6, "passes of phase 2, the options", at_least=0)
    prior_epochs: int = setting(6, "passes of phase 3, the prior", at_least=0)
    batch_size: int = setting(1024, "positions of an optimiser step", at_least=1)
    learning_rate: float = setting(1e-3, "of AdamW", above=0)
    weight_decay: float = setting(0.01, "of AdamW", at_least=0)
    prior_dropout: float = setting(0.1, "of the inputs in phase 3", at_least=0, at_most=1)
    easy_keep_prob: float = setting(
        0.25, "share of the positions of which the backbone is sure that an epoch looks at", at_least=0, at_most=1
    )
    hard_assignment: float = setting(1.0, "cover: share of the canonical option in q", at_least=0, at_most=1)
    first_option_weight: float = setting(
        6.0, "cover: weight of option 0's cross-entropy on every gold token", at_least=0
    )
    off_shortlist_penalty: float = setting(0.1, "weight of keeping options to their shortlists", at_least=0)
    bias_penalty: float = setting(
        0.03, "weight of the biases' squared norm, relative to the hidden states'", at_least=0
    )
    kl_target: float | None = setting(
        None, "nats from the uniform distribution that expected, em and gumbel hold; the paper's is 0.2", above=0
    )
    kl_rate: float = setting(0.02, "how fast the weight moves that holds it", at_least=0)
    temperature: float = setting(1.0, "gumbel: of the draw", above=0)
    reader_epochs: int = setting(5, "passes over the solutions in which a reader is trained", at_least=1)
    reader_learning_rate: float = setting(
        3e-3, "of Muon for the reader's matrices and of AdamW for its other weights", above=0
    )
    reader_dropout: float = setting(0.1, "of what the reader's blocks add, and of its inputs", at_least=0, at_most=1)
    reader_states: str = setting(
        "stored",
        "what the reader is trained on: states of all tokens on disk, or computed anew in every pass",
        choices=("stored", "recomputed"),
    )
    seed: int = setting(0, "of the solutions, and of training on them", at_least=0, at_most=MOST_SEEDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sampled_by", "rounds"):
            if self.solutions == "given" and getattr(self, name) != getattr(ConvertConfig, name):
                raise self.refuse(name, "it together with convert.solutions=sampled or both")


@dataclass(frozen=True)
class ConversionConfig(ConvertConfig):
    """A whole conversion: how a plug-in is trained, and its sizes."""

    plugin: PlugInConfig = field(default_factory=PlugInConfig)

    def training(self) -> dict[str, Any]:
        """What a plug-in depends on beside its texts; how those came about does not matter."""
        how = (
            "solutions", "sampled_by", "sampling_temperature", "rounds", "samples_per_problem", "solutions_per_problem", "wrong_share",
        )  # fmt: skip
        return {name: value for name, value in asdict(self).items() if name not in how}


@dataclass(frozen=True)
class ValueConfig(Config):
    """A learned verifier beside the policy."""

    section: ClassVar[str] = "value"

    enabled: bool = setting(False, "learn one from verdicts on training problems, after the policy")
    num_problems: int = setting(400, "problems of split `train` whose texts it learns from", at_least=2)
    samples: int = setting(8, "texts of the policy for each of them", at_least=1)
    beginnings: int = setting(
        8,
        "beginnings of each text that a second net learns from, so that a search can give a text up (oracle.give_up); 0: none",
        at_least=0,
    )
    width: int = setting(256, "hidden units", at_least=1)
    dropout: float = setting(0.7, "of its inputs and hidden units, while it learns", at_least=0, at_most=0.95)
    epochs: int = setting(20, "at most: the best one on a tenth of the problems is kept", at_least=1)
    learning_rate: float = setting(1e-3, "of AdamW", above=0)
    weight_decay: float = setting(0.1, "of AdamW", at_least=0)
    batch_size: int = setting(128, "texts of a step", at_least=1)
