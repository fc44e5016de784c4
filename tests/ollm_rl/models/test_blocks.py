"""Whatever rows do, each block is somebody's or free, and what a row may write is its own."""

import numpy as np
import pytest

from ollm_rl.models.blocks import Blocks, CacheFullError


def check(blocks: Blocks, lengths: list[int]) -> None:
    rows = [blocks.table[row, : blocks.used[row]].tolist() for row in range(len(blocks.table))]
    for row, mine in enumerate(rows):
        length = lengths[row] if row < len(lengths) else 0
        assert len(mine) >= blocks.of(length) and 0 not in mine
        assert not blocks.table[row, blocks.used[row] :].any()
    taken = [b for mine in rows for b in mine]
    assert sorted(set(taken) | set(blocks._free)) == list(range(1, blocks.count + 1))
    assert len(set(taken)) + blocks.free == blocks.count
    assert all(blocks.references[b] == taken.count(b) for b in set(taken))
    for mine, length in zip(rows, lengths, strict=False):
        if length % blocks.size:
            assert taken.count(mine[blocks.of(length) - 1]) == 1, "two rows would write into one block"


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_changes(seed):
    rng = np.random.default_rng(seed)
    blocks, lengths = Blocks(rows=8, count=40, size=4, capacity=30), list[int]()
    content: list[list[int]] = []  # what each row's tokens are
    memory = np.zeros((41, 4), dtype=int)

    def write(row: int, token: int) -> None:
        at = lengths[row]
        memory[blocks.table[row, at // 4], at % 4] = token
        lengths[row] += 1
        content[row].append(token)

    for step in range(120):
        what = rng.integers(4)
        if what == 0 and len(lengths) < 8 and blocks.free > 12:
            n = int(rng.integers(1, 9))
            blocks.reserve(np.array([len(lengths)]), np.array([n]))
            lengths.append(0)
            content.append([])
            for i in range(n):
                write(len(lengths) - 1, 100 * step + i)
        elif what == 1 and lengths:
            rows = rng.integers(len(lengths), size=rng.integers(1, 9))
            lacking = blocks.lacking(rows, np.array(lengths)[rows])
            if lacking or max(lengths[r] for r in rows) >= 29:
                continue
            for old, new in blocks.select(rows, np.array(lengths)[rows]):
                memory[new] = memory[old]
            lengths, content = [lengths[r] for r in rows], [list(content[r]) for r in rows]
            blocks.reserve(np.arange(len(rows)), np.array(lengths) + 1)
            for row in range(len(rows)):
                write(row, 100 * step + row)
        elif what == 2 and lengths:
            row = int(rng.integers(len(lengths)))
            blocks.drop([row])
            lengths[row], content[row] = 0, []
        elif what == 3 and len(lengths) > 1 and blocks.free:
            source, target = rng.choice(len(lengths), 2, replace=False).tolist()
            pair = blocks.share(source, target, lengths[source])
            if pair is not None:
                memory[pair[1]] = memory[pair[0]]
            lengths[target], content[target] = lengths[source], list(content[source])
        check(blocks, lengths)
        for row, tokens in enumerate(content):
            found = memory[blocks.table[row]].reshape(-1)[: len(tokens)]
            assert found.tolist() == tokens
    blocks.clear()
    check(blocks, [])


def test_more_than_there_are_is_an_error_that_was_foreseen():
    blocks = Blocks(rows=4, count=3, size=4, capacity=16)
    blocks.reserve(np.array([0, 1]), np.array([4, 3]))
    assert blocks.lacking(np.array([0, 1]), np.array([4, 3])) == 0
    assert blocks.lacking(np.array([0, 0, 1]), np.array([4, 4, 3])) == 1
    assert blocks.lacking(np.array([1, 1, 1]), np.array([3, 3, 3])) == 0  # the first row's would be free
    with pytest.raises(CacheFullError, match="all 3 blocks of 4 tokens"):
        blocks.reserve(np.array([0]), np.array([12]))
