"""Whole texts for the training of a reader: from disk, or from the backbone anew in every epoch."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ollm_rl.models.backbone import Backbone, prefill_prefix
from ollm_rl.options.hidden_cache import Recorder, texts_of
from ollm_rl.options.hidden_states import EASY_NATS, HiddenStates, HiddenStore, Text, joined
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter

CHUNK = 64  # consecutive texts that are read at a time
POOL = 8  # chunks that are shuffled together
# Batches come in few shapes: memory that held one fits the next, and the products' code is made once for each.
TOKENS = 128  # of which a batch has a multiple
POSITIONS = 64  # likewise, if there are so many


class Texts(ABC):
    """Solutions with the states of some layers at every token.

    Attributes:
        copies: how often each pair of problem and solution is there: counted at its first place, zero at the others.
        num_positions: solution tokens in all.
    """

    def __init__(self, prompter: Prompter, problems: Sequence[Problem]):
        self.problems = list(problems)
        pairs = [(prompter.own(p), p.solution or "") for p in problems]
        count, seen = Counter(pairs), set[tuple[str, str]]()
        self.copies: list[int] = []
        for pair in pairs:
            self.copies.append(0 if pair in seen else count[pair])
            seen.add(pair)
        lengths = {pair: len(prompter.encode_solution(pair[1])) for pair in seen}
        self.num_positions = sum(lengths[pair] for pair in pairs)

    def __len__(self) -> int:
        return len(self.problems)

    @abstractmethod
    def some(self, start: int, stop: int) -> list[Text]:
        """Texts `start` to `stop - 1`."""


class StoredTexts(Texts):
    """Texts whose states are on disk."""

    def __init__(self, store: HiddenStore, prompter: Prompter, problems: Sequence[Problem]):
        super().__init__(prompter, problems)
        self.store = store

    def some(self, start: int, stop: int) -> list[Text]:
        return self.store.some_texts(start, stop)


class RecomputedTexts(Texts):
    """Texts whose states are computed whenever they are asked for, and kept nowhere; arguments as in `texts_of`."""

    def __init__(
        self, backbone: Backbone, prompter: Prompter, problems: Sequence[Problem], shortlist: int, layers: Sequence[int]
    ):
        super().__init__(prompter, problems)
        self.backbone, self.prompter = backbone, prompter
        self.shortlist, self.reader = shortlist, Recorder(layers)
        self.prefix = prefill_prefix(backbone, prompter.prefix)

    def some(self, start: int, stop: int) -> list[Text]:
        part = self.problems[start:stop]
        texts = texts_of(self.backbone, self.prompter, self.prefix, part, self.shortlist, self.reader)
        for text in texts:
            text.states.hidden = text.states.hidden.bfloat16()
            text.taps = None if text.taps is None else text.taps.bfloat16()
        return texts


@dataclass
class TextBatch:
    """Texts one behind the other, T tokens in all; T is zero where nobody wants to read them.

    Attributes:
        taps: (T, m d). lengths: tokens of each text. places: (N,) where among the tokens the positions of `states` stand.
        weight: (N,) how often the text of each is among the solutions.
    """

    taps: Tensor
    lengths: list[int]
    places: Tensor
    states: HiddenStates
    weight: Tensor

    @classmethod
    def of(cls, texts: Sequence[Text], copies: Sequence[int] | None = None) -> "TextBatch":
        taps = [text.taps for text in texts if text.taps is not None]
        lengths = [len(tap) for tap in taps]
        counts = [len(text.states) for text in texts]
        ends = accumulate(lengths)
        places = torch.cat([torch.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
        often = torch.tensor([1] * len(texts) if copies is None else copies, dtype=torch.float32)
        weight = often.repeat_interleave(torch.tensor(counts))
        return cls(torch.cat(taps), lengths, places, joined([text.states for text in texts]), weight)

    @classmethod
    def plain(cls, states: HiddenStates) -> "TextBatch":
        """Positions without their texts."""
        none = torch.zeros(len(states), dtype=torch.long)
        return cls(states.hidden[:0], [], none, states, torch.ones(len(states)))

    def rounded(self) -> "TextBatch":
        """The same with texts of zeros behind it that nobody asks about, for a multiple of `TOKENS`."""
        more, longest = -len(self.taps) % TOKENS, max(self.lengths)
        fill = [min(longest, more - start) for start in range(0, more, longest)]  # a longer one would widen all
        zeros = self.taps.new_zeros(more, self.taps.shape[1])
        return replace(self, taps=torch.cat([self.taps, zeros]), lengths=self.lengths + fill)

    def select(self, keep: Tensor) -> "TextBatch":
        """The same texts with some of the positions."""
        return replace(self, places=self.places[keep], states=self.states.select(keep), weight=self.weight[keep])


def text_batches(
    texts: Texts, batch_size: int, generator: torch.Generator, easy_keep_prob: float
) -> Iterator[TextBatch]:
    """One epoch, in batches of whole texts with at least `batch_size` positions between them, the last excepted.

    Chunks come in random order, and their texts are shuffled `POOL` chunks at a time. Equal texts come once, and weigh
    as many as they are (`Texts.copies`). Every text is there whole, but of the positions of which the backbone is sure only
    a share counts, drawn anew.
    """
    waiting: list[Text] = []
    often: list[int] = []
    positions = 0
    starts = torch.randperm(-(-len(texts) // CHUNK), generator=generator) * CHUNK
    for group in starts.split(POOL):
        pool = [
            (text, texts.copies[at])
            for start in group.tolist()
            for at, text in enumerate(texts.some(start, start + CHUNK), start)
            if texts.copies[at]
        ]
        for i in torch.randperm(len(pool), generator=generator).tolist():
            waiting.append(pool[i][0])
            often.append(pool[i][1])
            positions += len(waiting[-1].states) * often[-1]
            if positions >= batch_size:
                yield _thinned(TextBatch.of(waiting, often).rounded(), generator, easy_keep_prob)
                waiting, often, positions = [], [], 0
    if waiting:
        yield _thinned(TextBatch.of(waiting, often).rounded(), generator, easy_keep_prob)


def num_text_batches(texts: Texts, batch_size: int) -> int:
    """How many batches `text_batches` gives, about: a batch is over by half a text on average."""
    return max(1, round(texts.num_positions / (batch_size + texts.num_positions / len(texts) / 2)))


def _thinned(batch: TextBatch, generator: torch.Generator, easy_keep_prob: float) -> TextBatch:
    """All positions of which the backbone is not sure and a share of the others, rounded up to a multiple of `POSITIONS`."""
    drawn = torch.rand(len(batch.places), generator=generator)
    drawn[batch.states.entropy >= EASY_NATS] = -1.0
    count = -(-int((drawn < easy_keep_prob).sum()) // POSITIONS) * POSITIONS
    return batch.select(drawn.argsort(stable=True)[:count].sort().values)


def in_order(texts: Texts) -> Iterator[TextBatch]:
    """All texts with all positions."""
    for start in range(0, len(texts), CHUNK):
        yield TextBatch.of(texts.some(start, start + CHUNK))
