"""What a reader makes of whole texts: the states [h; g] of solutions, kept beside their hidden states."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ollm_rl.common.cache import made_by_one
from ollm_rl.common.distributed import processes
from ollm_rl.common.progress import track
from ollm_rl.common.spent import counted
from ollm_rl.models.backbone import Backbone, prefill_prefix
from ollm_rl.options.hidden_cache import are_stored, cached_hidden_states, texts_of
from ollm_rl.options.hidden_states import HiddenStore
from ollm_rl.options.modules import digest
from ollm_rl.options.reader import Block, Reader
from ollm_rl.options.sequences import CHUNK, TextBatch
from ollm_rl.tasks import Problem
from ollm_rl.tasks.prompts import Prompter


class WholeTexts:
    """Attention of texts, one behind the other, each to itself; in memory, with gradients.

    Args:
        lengths: tokens of each text.
    """

    def __init__(self, lengths: list[int]):
        self.count, self.longest = len(lengths), max(lengths)
        self.rows = torch.arange(self.count).repeat_interleave(torch.tensor(lengths))
        self.columns = torch.cat([torch.arange(length) for length in lengths])

    def __call__(self, block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (self._side_by_side(each) for each in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)[self.rows, self.columns].flatten(1)[None]

    def _side_by_side(self, x: Tensor) -> Tensor:
        """From (1, heads, T, e) to (n, heads, t, e), zeros after each text's end."""
        grid = x.new_zeros(self.count, self.longest, x.shape[1], x.shape[3])
        grid[self.rows, self.columns] = x[0].transpose(0, 1)
        return grid.transpose(1, 2)


def read(reader: Reader, batch: TextBatch) -> Tensor:
    """g (N, r) at the positions of a batch."""
    attention = WholeTexts(batch.lengths)
    g = reader(batch.taps[None], attention.columns.to(batch.taps.device)[None], attention)
    return g[0, batch.places.to(batch.taps.device)]


@torch.no_grad()
def read_states(
    backbone: Backbone, prompter: Prompter, problems: list[Problem], shortlist: int, reader: Reader | None
) -> HiddenStore:
    """Stored states of solutions as a plug-in reads them: h, or [h; g] if it has a reader.

    What the layers gave is taken from where a conversion has stored it; where it has not, the backbone reads the texts again.
    """
    if reader is None:
        return cached_hidden_states(backbone, prompter, problems, shortlist)
    tapped = are_stored(backbone, prompter, problems, shortlist, reader.layers)
    store = cached_hidden_states(backbone, prompter, problems, shortlist, reader.layers if tapped else ())
    frozen = reader.frozen(backbone.dtype, backbone.device)
    folder = store.path / f"read_{digest(reader.state_dict())[:16]}"
    us = processes()
    with made_by_one(folder):
        missing = [i for i, shard in enumerate(store.shards) if not (folder / shard.name).exists()]
        mine = [i for i in missing if i % us.count == us.index]
        spans = [range(store.texts[i - 1] if i else 0, store.texts[i]) for i in mine]
        kv = prefill_prefix(backbone, prompter.prefix) if mine and not tapped else None
        folder.mkdir(exist_ok=True)
        with counted(folder) if mine else nullcontext(), track("reading", sum(map(len, spans)), "solutions") as bar:
            for i, span in zip(mine, spans, strict=True):
                parts = []
                for at in range(span.start, span.stop, CHUNK):
                    some = range(at, min(at + CHUNK, span.stop))
                    if tapped:
                        batch = TextBatch.of(store.some_texts(some.start, some.stop))
                        parts.append(read(frozen, replace(batch, taps=batch.taps.to(backbone.device))).cpu())
                    else:
                        texts = texts_of(backbone, prompter, kv, problems[some.start : some.stop], shortlist, frozen)
                        parts += [text.taps[-len(text.states) :] for text in texts if text.taps is not None]
                    bar.advance(len(some))
                scratch = folder / f"{store.shards[i].name}.{us.index}"
                save_file({"read": torch.cat(parts).bfloat16().contiguous()}, scratch)
                scratch.replace(folder / store.shards[i].name)
        us.wait()
    return HiddenStore(store.path, shortlist, folder)
