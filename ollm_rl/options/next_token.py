"""What an option LM says next: log-probabilities of the tokens, by the mixture over the latents or by a latent policy.

Serves every model that has the states in hand: that of transformers (`ollm_rl.options.hf`), and the plug-in of vLLM (`extras/vllm`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ollm_rl.models.backbone import Backbone
from ollm_rl.options.enumeration import Options, enumerate_options
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.policies import LatentPolicy

CHUNK = 64  # positions whose K x vocabulary logits are held at a time
# Log-probability of a token that no option says: e to this is zero at any temperature below 100, and beams and sums stay finite.
FLOOR = -1e4


def by_mixture(backbone: Backbone, plugin: PlugIn, hidden: Tensor, policy: LatentPolicy | None = None) -> Tensor:
    """log sum_z pi0(z | h) p(x | h, z) for states (n, s): (n, vocab) float32, or float64 if they are; `policy` in place of the prior."""
    parts = []
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    for h in hidden.split(CHUNK):
        options = backbone.after_head(backbone.head(h[:, None, : backbone.hidden_size] + plugin.biases(h).to(h.dtype)))
        weights = (plugin.prior_logits(h) if policy is None else policy(h)).to(wide).log_softmax(-1)
        parts.append((options.to(wide).log_softmax(-1) + weights[..., None]).logsumexp(1))
    return torch.cat(parts) if parts else hidden.new_zeros(0, backbone.vocab_size, dtype=wide)


def by_policy(
    backbone: Backbone,
    plugin: PlugIn,
    policy: LatentPolicy,
    hidden: Tensor,
    watch: Callable[[Options, Tensor], None] | None = None,
) -> Tensor:
    """log sum_z pi(z | h) [option z says x] over the canonical latents, for states (n, s): (n, vocab) float32, `FLOOR` for tokens
    that no option says.

    Args:
        watch: is called with the options and the log-probabilities (n, K) of their latents.
    """
    said = hidden.new_full((len(hidden), backbone.vocab_size), FLOOR, dtype=torch.float32)
    for at in range(0, len(hidden), CHUNK):
        h = hidden[at : at + CHUNK]
        with torch.inference_mode():
            options = enumerate_options(backbone, plugin, h)
        tokens, mask = options.tokens.clone(), options.mask.clone()  # outside of inference mode: gradients may pass
        likely = policy(h, mask)
        if watch is not None:
            watch(options, likely)
        rows, latents = mask.nonzero(as_tuple=True)  # one latent for each token that can be said
        said[at + rows, tokens[rows, latents]] = likely[rows, latents].clamp_min(FLOOR)
    return said
