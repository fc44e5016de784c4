"""Decode steps as CUDA graphs: on a GPU, launching a small model's kernels one by one takes longer than running them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ollm_rl.models.attention import KVCache

log = logging.getLogger(__name__)
SPAN = 64  # spans of the cache are rounded up to multiples of this
States = Callable[[Tensor, Tensor, KVCache, Tensor | None, int | None], Tensor]
TOLERANCE = 0.05  # of the hidden states' deviation: more than roundings of bf16 between two batch sizes


class GraphedSteps:
    """A step of one token of each of the first rows of a cache, captured once for every size of batch and span.

    A batch is padded to a power of two, at least two, with rows that are free, where a write does no harm. A graph is used only if its
    first replay gives what the ordinary call gives; if it does not, or cannot be captured, `enabled` becomes False.

    Args:
        states: gives what is read (n, t, s) after tokens (n, t) at positions (n, t), with the cache, its rows and its span.
        modules: what `states` runs.
    """

    def __init__(self, states: States, kv: KVCache, device: torch.device, modules: Sequence[nn.Module] = ()):
        self.states, self.kv, self.modules = states, kv, modules
        self._made_for = _how_they_run(modules)
        self.enabled = device.type == "cuda"
        self._steps: dict[tuple[int, int], Callable[[], Tensor]] = {}
        self._memory = torch.cuda.graph_pool_handle() if self.enabled else None  # one for all: they run one at a time
        self._tokens = torch.zeros(kv.slots, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros(kv.slots, 1, dtype=torch.long, device=device)

    @property
    def stale(self) -> bool:
        """Weights lie elsewhere, or modules do something else, than when this was made. Weights that changed in place are read anew."""
        return self._made_for != _how_they_run(self.modules)

    @torch.inference_mode()
    def hidden(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """States (n, s) of tokens (n,) at own positions `lengths` (n,) of rows 0 to n - 1."""
        n, slots, capacity = len(tokens), self.kv.slots, self.kv.capacity
        rows = min(max(2, 1 << (n - 1).bit_length()), slots)
        span = min(-(-(int(lengths.max()) + 1) // SPAN) * SPAN, capacity)
        self._tokens.zero_()[:n, 0] = tokens
        self._positions.zero_()[:n, 0] = lengths
        usable = self.enabled and rows > 1  # one row of one slot is run as a pair, see `Backbone.hidden`
        if usable and (rows, span) not in self._steps:
            self._capture(rows, span)
        if not usable or not self.enabled:
            return self.states(tokens[:, None], lengths[:, None], self.kv, None, None)[:, 0]
        return self._steps[rows, span]()[:n].clone()

    def _step(self, rows: int, span: int) -> Tensor:
        return self.states(self._tokens[:rows], self._positions[:rows], self.kv, None, span)[:, 0]

    def _capture(self, rows: int, span: int) -> None:
        try:
            expected = self._step(rows, span)  # warms up as well: nothing is allocated or chosen during the capture
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                captured = self._step(rows, span)
            graph.replay()
            off = (captured.float() - expected.float()).abs().max() / expected.float().std()
            if off > TOLERANCE:
                raise RuntimeError(f"a replay differs from the ordinary step by {off:.2f} deviations")
        except RuntimeError as error:
            log.warning("decoding without CUDA graphs: %s", str(error).splitlines()[0])
            self.enabled = False
            return

        def replay() -> Tensor:
            graph.replay()
            return captured

        self._steps[rows, span] = replay


def _how_they_run(modules: Sequence[Any]) -> list[Any]:
    """Where weights lie, and what layers do with adapters (peft)."""
    found: list[Any] = []
    for module in (part for whole in modules for part in whole.modules()):
        adapted = hasattr(module, "base_layer")
        adapters = (module.merged, module.disable_adapters, tuple(module.active_adapters)) if adapted else ()
        places = [tensor.data_ptr() for tensor in (*module.parameters(False), *module.buffers(False))]
        found.append((id(module), adapters, places))
    return found
