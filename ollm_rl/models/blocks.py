"""Blocks of a cache: a text takes as many as it has tokens, and texts that began alike share them.

A cache whose rows have room for the longest text holds few of them, though most texts are short. In blocks of some tokens
each row takes what it needs (Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention"). A full block is never written again, so rows that were forked from one share it.
"""

from collections.abc import Sequence

import numpy as np


class CacheFullError(RuntimeError):
    """More blocks were needed than there are: whoever steps many texts has to look at `Blocks.lacking` first."""


class Blocks:
    """Which blocks hold the tokens of which row.

    Args:
        rows: of the cache. count: blocks that there are. size: tokens of one. capacity: most tokens of a row.

    Attributes:
        table: (rows, most blocks of a row) int64, the blocks of a row's tokens in order; behind them block 0, which is
            nobody's: what fills up a batch may write there.
    """

    def __init__(self, rows: int, count: int, size: int, capacity: int):
        self.count, self.size = count, size
        self.table = np.zeros((rows, -(-capacity // size)), dtype=np.int64)
        self.used = np.zeros(rows, dtype=np.int64)
        self.references = np.zeros(count + 1, dtype=np.int64)
        self._free = list(range(count, 0, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def of(self, tokens: int) -> int:
        """How many hold so many tokens."""
        return -(-tokens // self.size)

    def clear(self) -> None:
        """No row has any."""
        self.drop(np.flatnonzero(self.used))

    def drop(self, rows: Sequence[int] | np.ndarray) -> None:
        """These rows have no tokens any more."""
        for row in rows:
            mine = self.table[row, : self.used[row]]
            self._give_back(mine)
            mine[:] = 0
            self.used[row] = 0

    def reserve(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Blocks for so many tokens (n,) in each of the rows (n,), besides what they have.

        Raises:
            CacheFullError: there are not enough.
        """
        lacking = -(-lengths // self.size) - self.used[rows]
        for i in np.flatnonzero(lacking > 0):
            row, more = rows[i], int(-(-lengths[i] // self.size) - self.used[rows[i]])  # a row may be named twice
            for _ in range(more):
                self.table[row, self.used[row]] = self._take()
                self.used[row] += 1

    def lacking(self, rows: np.ndarray, lengths: np.ndarray) -> int:
        """How many blocks short the cache is of `select` followed by one more token for each of the rows (n,).

        Args:
            lengths: (n,) tokens that they have.
        """
        again = np.ones(len(rows), dtype=bool)
        again[np.unique(rows, return_index=True)[1]] = False
        partial = lengths % self.size != 0
        new = int((again & partial).sum() + (~partial).sum())
        if new <= self.free:
            return 0
        kept = np.unique(np.concatenate([self.table[row, : self.used[row]] for row in rows]))
        return max(0, len(kept) + new - self.count)

    def select(self, rows: np.ndarray, lengths: np.ndarray) -> list[tuple[int, int]]:
        """Row i becomes what row `rows[i]` was, which has `lengths[i]` tokens; all others have none.

        Returns:
            which blocks have to be copied, and to which ones: those that are not full, of rows that are named again.
        """
        if np.array_equal(rows, np.arange(len(rows))) and not self.used[len(rows) :].any():
            return []  # all stay where they are
        table, used = self.table[rows], self.used[rows]
        for mine, n in zip(table, used, strict=True):
            self.references[mine[:n]] += 1
        for row in np.flatnonzero(self.used):
            self._give_back(self.table[row, : self.used[row]])
        self.table[:] = 0
        self.used[:] = 0
        self.table[: len(rows)], self.used[: len(rows)] = table, used
        copies, seen = [], set[int]()
        for i, row in enumerate(rows):
            if int(row) in seen and lengths[i] % self.size:
                copies.append(self._own_last(i, int(lengths[i])))
            seen.add(int(row))
        return copies

    def share(self, source: int, target: int, length: int) -> tuple[int, int] | None:
        """`target` gets the first `length` tokens of `source`; the block to copy and its copy, unless all are full."""
        self.drop([target])
        n = self.of(length)
        self.table[target, :n] = self.table[source, :n]
        self.references[self.table[target, :n]] += 1
        self.used[target] = n
        return self._own_last(target, length) if length % self.size else None

    def _own_last(self, row: int, length: int) -> tuple[int, int]:
        """A block of its own for the row's last tokens."""
        at = self.of(length) - 1
        old, new = int(self.table[row, at]), self._take()
        self.table[row, at] = new
        self._give_back(np.array([old]))
        return old, new

    def _take(self) -> int:
        if not self._free:
            raise CacheFullError(f"all {self.count} blocks of {self.size} tokens of the KV cache are taken")
        block = self._free.pop()
        self.references[block] = 1
        return block

    def _give_back(self, blocks: np.ndarray) -> None:
        self.references[blocks] -= 1
        self._free += blocks[self.references[blocks] == 0].tolist()
