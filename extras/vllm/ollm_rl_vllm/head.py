"""The head of a backbone that vLLM holds, whole on every rank of its tensor parallelism."""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding


class GatheredHead:
    """What `ollm_rl.options.next_token` asks of a `Backbone`, from a causal LM of vLLM.

    Under tensor parallelism each rank has the rows of some tokens. Logits are gathered before the likeliest are taken, for a
    shortlist of one rank's tokens would be another one; the rows of the shortlist come from whoever has them. The rest, the
    options and the policy, is computed by every rank.

    Args:
        lm: of an architecture whose logits are what its head gives, without scale or cap.
    """

    changes_logits = False

    def __init__(self, lm: Any):
        self.lm = lm
        self.hidden_size, self.vocab_size = lm.config.hidden_size, lm.config.vocab_size

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of states (..., d)."""
        logits: Tensor = self.lm.logits_processor(self.lm.lm_head, hidden.flatten(0, -2))
        return logits.view(*hidden.shape[:-1], -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocab) of states (n, s), of which the first d columns are the backbone's."""
        return self.head(hidden[:, : self.hidden_size])

    def after_head(self, logits: Tensor) -> Tensor:
        return logits

    def likeliest(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits of each row, and their tokens."""
        return torch.topk(logits, min(k, logits.shape[-1]), dim=-1)

    def head_rows(self, ids: Tensor) -> Tensor:
        """Rows of the head (n, S, d) of token ids (n, S)."""
        rows: Tensor = VocabParallelEmbedding.forward(self.lm.lm_head, ids)  # a head's own `forward` raises
        return rows
