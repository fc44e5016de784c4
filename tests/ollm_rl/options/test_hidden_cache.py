"""The store of hidden states: what it holds, how it is read, and that it continues."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from ollm_rl.errors import ConfigurationError, DataError
from ollm_rl.options import hidden_cache, hidden_states
from ollm_rl.options.hidden_cache import cached_hidden_states, compute_hidden_states
from ollm_rl.options.hidden_states import HiddenStates, blocks, shuffled
from ollm_rl.tasks import ChainSum


@pytest.fixture
def problems():
    return ChainSum(min_terms=2, max_terms=3).problems("sft", 90, 0)


@pytest.fixture
def small_shards(monkeypatch, tmp_path):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    monkeypatch.setattr(hidden_cache, "SHARD", 20)
    monkeypatch.setattr(hidden_states, "BLOCK", 64)
    monkeypatch.setattr(hidden_states, "WINDOW", 4)
    return tmp_path


def test_shards_hold_what_one_pass_computes(tiny, problems, small_shards):
    store = cached_hidden_states(tiny.backbone, tiny.prompter, problems, 48)
    assert len(store.shards) == 5
    whole = compute_hidden_states(tiny.backbone, tiny.prompter, problems, 48)
    found = store.all()
    assert found.hidden.dtype == torch.bfloat16
    for name in ("gold", "owner"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    torch.testing.assert_close(found.logits, whole.logits, atol=1e-4, rtol=1e-4)
    # Batches of other shapes round otherwise on some processors: candidates that all but tie may change places, and the
    # last may tie with one that was dropped. All others, and the places of gold tokens among them, are equal.
    gaps = whole.logits[:, :-1].diff().abs()
    apart = torch.nn.functional.pad(gaps, (1, 0), value=1.0).minimum(torch.nn.functional.pad(gaps, (0, 1)))
    clear = torch.nn.functional.pad(apart > 1e-3, (0, 1), value=True)
    assert clear.float().mean() > 0.9 and torch.equal(found.ids[clear], whole.ids[clear])
    placed = clear.gather(1, whole.target[:, None])[:, 0]
    assert torch.equal(found.target[placed], whole.target[placed])
    assert torch.equal(found.ids.gather(1, found.target[:, None])[:, 0].long(), found.gold)
    torch.testing.assert_close(found.hidden.float(), whole.hidden, atol=1e-2, rtol=1e-2)
    joined = torch.cat([part.gold for part in blocks(store)])
    assert torch.equal(joined, whole.gold)


def test_a_shorter_shortlist_is_the_beginning_of_the_longer(tiny, problems, small_shards):
    store = cached_hidden_states(tiny.backbone, tiny.prompter, problems, 5)
    assert cached_hidden_states(tiny.backbone, tiny.prompter, problems, 48).path == store.path
    short, whole = store.all(), compute_hidden_states(tiny.backbone, tiny.prompter, problems, 5)
    for name in ("ids", "target"):
        assert torch.equal(getattr(short, name), getattr(whole, name)), name
    torch.testing.assert_close(short.logits, whole.logits, atol=1e-4, rtol=1e-4)


def test_equal_pairs_are_run_once_and_an_interrupted_run_continues(tiny, problems, small_shards, monkeypatch):
    ran: list[str] = []
    compute = hidden_cache._batch_states
    monkeypatch.setattr(hidden_cache, "_batch_states", lambda *given: (ran.extend(given[2]), compute(*given))[1])
    store = cached_hidden_states(tiny.backbone, tiny.prompter, problems, 48)
    assert len(ran) == len({(p.problem, p.solution) for p in problems}) < len(problems)
    before = store.all()
    ran.clear()
    store.shards[3].unlink()
    again = cached_hidden_states(tiny.backbone, tiny.prompter, problems, 48).all()
    assert 0 < len(ran) <= 20
    for f in fields(HiddenStates):
        torch.testing.assert_close(getattr(again, f.name), getattr(before, f.name), atol=1e-2, rtol=1e-2)


def test_states_are_said_to_be_from_the_cache_by_a_process_that_did_not_make_them(
    tiny, problems, small_shards, monkeypatch, caplog
):
    with caplog.at_level("INFO"):
        for _ in range(2):
            cached_hidden_states(tiny.backbone, tiny.prompter, problems[:5], 48)
        assert "from the cache" not in caplog.text
        monkeypatch.setattr(hidden_cache, "_announced", set())  # as another process begins
        for _ in range(2):
            cached_hidden_states(tiny.backbone, tiny.prompter, problems[:5], 48)
    assert caplog.text.count("hidden states of 5 solutions: from the cache") == 1


def test_an_epoch_shows_every_position_once(tiny, problems, small_shards):
    store = cached_hidden_states(tiny.backbone, tiny.prompter, problems, 48)
    everything = store.all()
    seen = []
    for rows, batch in shuffled(store, 16, torch.Generator().manual_seed(0), easy_keep_prob=1.0):
        assert torch.equal(batch.gold, everything.gold[rows])
        seen += rows.tolist()
    assert len(set(seen)) == len(seen) > len(store) - 16
    sure = everything.entropy < hidden_states.EASY_NATS
    some = [rows for rows, _ in shuffled(store, 16, torch.Generator().manual_seed(0), easy_keep_prob=0.0)]
    assert not sure[torch.cat(some)].any()


def test_what_is_left_of_much_data_is_a_batch(tiny, problems, monkeypatch):
    """Few positions of many may survive the skipping of easy ones; an epoch had no batch, and training nothing to learn from."""
    states = compute_hidden_states(tiny.backbone, tiny.prompter, problems, 48)
    hard = torch.zeros(len(states), dtype=torch.bool)
    hard[::37] = True
    states.entropy = torch.where(hard, 1.0, 0.01)
    batches = list(shuffled(states, 128, torch.Generator().manual_seed(0), easy_keep_prob=0.0))
    assert len(states) > 2 * 128 > 128 > hard.sum()
    assert [sorted(rows.tolist()) for rows, _ in batches] == [hard.nonzero()[:, 0].tolist()]
    states.entropy = torch.full_like(states.entropy, 0.01)
    with pytest.raises(ConfigurationError, match="convert.easy_keep_prob=0.0 skips all"):
        list(shuffled(states, 128, torch.Generator().manual_seed(0), easy_keep_prob=0.0))


def test_hidden_states_are_progress(tiny, problems):
    """No step of an engine, but a worker that is at it does not hang."""
    before = tiny.heartbeat
    compute_hidden_states(tiny.backbone, tiny.prompter, problems[:8], 48)
    assert tiny.heartbeat > before


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_entropies_are_the_same_with_any_number_of_threads(rows):
    logits = 3 * torch.randn(20, rows, 49_152, generator=torch.Generator().manual_seed(0)).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(torch.stack([hidden_cache._entropy(few) for few in logits]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_solutions_that_the_backbone_cannot_read_are_left_out(tiny, problems, monkeypatch, caplog):
    from ollm_rl.options.conversion import _fitting

    lengths = [len(tiny.prompter.encode(p)) + len(tiny.prompter.encode_solution(p.solution)) for p in problems]
    limit = len(tiny.prompter.prefix) + sorted(lengths)[45]
    monkeypatch.setattr(tiny.backbone, "context_limit", (limit, "max_position_embeddings"))
    with caplog.at_level("WARNING"):
        found = _fitting(tiny.backbone, tiny.prompter, problems)
    assert found == [p for p, n in zip(problems, lengths, strict=True) if len(tiny.prompter.prefix) + n <= limit]
    assert f"{90 - len(found)} of 90 solutions" in caplog.text
    monkeypatch.setattr(tiny.backbone, "context_limit", (10, "max_position_embeddings"))
    with pytest.raises(DataError, match="90 of 90 solutions"):
        _fitting(tiny.backbone, tiny.prompter, problems)


@pytest.mark.slow
def test_processes_of_a_launcher_share_the_shards(tmp_path):
    """`accelerate launch` with two processes on the CPU: the same plug-in as one process makes, but for copies."""
    keys = ["backbone=tiny", "backbone.dtype=float32", "convert.num_solutions=1200", "convert.num_heldout=20"]
    keys += ["convert.reader_epochs=1", "convert.epochs=1", "convert.prior_epochs=1", f"runs_dir={tmp_path}/runs"]
    keys += [f"plugin.{part}_width=48" for part in ("reader", "encoder", "decoder", "prior")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "ollm_rl"]
    for name, command in (("two", launch), ("one", [sys.executable, "-m", "ollm_rl"])):
        env = os.environ | {"OLLM_RL_CACHE": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, "convert", *keys, f"name={name}"], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads((tmp_path / "runs" / name / "conversion.json").read_text()) for name in ("one", "two"))
    assert two["num_positions"] == one["num_positions"]
    assert two["prior_token_accuracy"]["all"] == pytest.approx(one["prior_token_accuracy"]["all"], abs=0.02)
