"""Settings of a plug-in and of its conversion. Imports no torch: the command line checks them before anything is loaded."""

from dataclasses import asdict, dataclass, field

from ollm_rl.errors import ConfigurationError

OBJECTIVES = ("cover", "expected", "em", "gumbel")  # as `ollm_rl.options.objectives` has them


@dataclass(frozen=True)
class PlugInConfig:
    """Sizes of a plug-in.

    Attributes:
        num_options: K.
        encoder_width, decoder_width, prior_width: hidden units of a layer.
        encoder_depth, decoder_depth, prior_depth: hidden layers.
        shortlist: number of candidate tokens of a step.
        init_scale: standard deviation of the options' initial differences, in hidden units.

    Raises:
        ConfigurationError: a size that is not a positive integer, or K below 2.
    """

    num_options: int = 10
    encoder_width: int = 384
    encoder_depth: int = 2
    decoder_width: int = 384
    decoder_depth: int = 1
    prior_width: int = 384
    prior_depth: int = 2
    shortlist: int = 48
    init_scale: float = 1.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 2 if name in ("num_options", "shortlist") else 1
            if name != "init_scale" and (type(value) is not int or value < least):
                raise ConfigurationError(f"plugin.{name}={value}; expected an integer of at least {least}")
        if not self.init_scale > 0:
            raise ConfigurationError(
                f"plugin.init_scale={self.init_scale}; expected a positive number: options that start equal stay equal"
            )


@dataclass(frozen=True)
class ConversionConfig:
    """Settings of a conversion.

    Attributes:
        objective: `cover`, `expected`, `em` or `gumbel`, see `ollm_rl.options.objectives`.
        prior_target: `canonical` or `encoder`, see the module's text.
        num_solutions, num_heldout: pairs to train on (split `sft`) and to report on (split `tune`).
        epochs, prior_epochs: passes of phase 1 and 2.
        easy_keep_prob: share of the positions of which the backbone is sure that an epoch looks at.
        hard_assignment: share of the canonical option in q (objective `cover`).
        first_option_weight: weight of option 0's cross-entropy on every gold token (objective `cover`).
        off_shortlist_penalty: weight of keeping options to their shortlists (`ollm_rl.options.shortlist_loss`).
        bias_penalty: weight of the biases' squared norm, as a share of the hidden states'.
        kl_target: of q to the uniform distribution, in nats, or None (all objectives but `cover`).
        kl_rate: how fast the weight moves that holds it.
        temperature: of the draw (objective `gumbel`).
    """

    objective: str = "cover"
    prior_target: str = "canonical"
    num_solutions: int = 4000
    num_heldout: int = 300
    epochs: int = 6
    prior_epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    prior_dropout: float = 0.1
    easy_keep_prob: float = 0.25
    hard_assignment: float = 0.7
    first_option_weight: float = 1.0
    off_shortlist_penalty: float = 0.1
    bias_penalty: float = 0.1
    kl_target: float | None = None
    kl_rate: float = 0.02
    temperature: float = 1.0
    seed: int = 0
    plugin: PlugInConfig = field(default_factory=PlugInConfig)

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ConfigurationError(f"convert.objective={self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        if self.kl_target is not None and (isinstance(self.kl_target, str) or not self.kl_target > 0):
            raise ConfigurationError(
                f"convert.kl_target={self.kl_target!r}; expected null or a positive number of nats"
            )
        if self.prior_target not in ("canonical", "encoder"):
            raise ConfigurationError(f"convert.prior_target={self.prior_target!r}; expected 'canonical' or 'encoder'")
