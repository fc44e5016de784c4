"""Keys and values of texts that branches will go on from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ollm_rl.models.attention import KVCache
from ollm_rl.oracle.search import Branch, Search
from ollm_rl.rollout.engine import RolloutEngine


class KeptTexts:
    """Keys and values of texts that have ended, while their searches are open.

    Args:
        engine: the one that the texts are generated in.
        gib: memory that may be used; a text that finds no room is not kept.
    """

    def __init__(self, engine: RolloutEngine, gib: float):
        self.engine = engine
        self.cache = KVCache(max(1, int(gib * 2**30 / engine.kv.row_bytes)), engine.kv.capacity, engine.prefix)
        self.free = list(range(self.cache.slots))
        self.owners: dict[int, list[int]] = {}  # id of a search -> its rows

    def keep(self, texts: Sequence[tuple[Search, Branch, int]]) -> None:
        """Copy the engine rows of these texts, as far as there is room."""
        taken = [self.free.pop() for _ in range(min(len(self.free), len(texts)))]
        if not taken:
            return
        for (search, branch, _), row in zip(texts, taken, strict=False):
            branch.kept = row
            self.owners.setdefault(id(search), []).append(row)
        device = self.engine.device
        source = torch.tensor([row for _, _, row in texts[: len(taken)]], device=device)
        lengths = self.engine.lengths[source]
        self.cache.copy_rows(self.engine.kv, source, torch.tensor(taken, device=device), lengths)

    def forget(self, search: Search) -> None:
        """A search has ended: its rows are free."""
        self.free += self.owners.pop(id(search), [])

    def restore(self, rows: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Append the first `lengths` own tokens of kept rows to the engine; the numbers of its new rows."""
        device = self.engine.device
        return self.engine.restore(self.cache, torch.tensor(rows, device=device), torch.tensor(lengths, device=device))
