"""The reader: the same states by every way that leads to them, its training, and what is stored for it."""

import copy
import shutil

import pytest
import torch

from ollm_rl.errors import ConfigurationError
from ollm_rl.models.backbone import Backbone
from ollm_rl.options import hidden_cache
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.conversion import convert
from ollm_rl.options.hf import OptionLMForCausalLM
from ollm_rl.options.hidden_cache import Recorder, cached_hidden_states, compute_hidden_states
from ollm_rl.options.modules import PlugIn
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.reader import reader_layers
from ollm_rl.options.reader_training import texts_for
from ollm_rl.options.reading import read, read_states
from ollm_rl.options.sequences import POSITIONS, TOKENS, TextBatch, num_text_batches, text_batches
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.tasks import ChainSum
from ollm_rl.tasks.prompts import Prompter
from tests.architectures import ARCHITECTURES, random_backbone

SIZES = dict(num_options=3, decoder_width=16, encoder_width=16, prior_width=16, shortlist=20, reader_width=16)
TASK = ChainSum(num_examples=1)


def with_reader(backbone: Backbone, depth: int) -> PlugIn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PlugIn.beside(backbone, PlugInConfig(**SIZES, reader_depth=depth)).eval()


@pytest.fixture(params=ARCHITECTURES)
def backbone(request):
    return random_backbone(request.param)


@pytest.mark.parametrize("depth", [1, 2])
def test_every_way_gives_the_same_states(backbone, depth):
    """Prefill, decode steps, forks, whole texts in memory, and the model of transformers."""
    prompter = Prompter.for_task(backbone, TASK)
    lm = OptionLM(backbone, with_reader(backbone, depth))
    lm.plugin.prefix = prompter.prefix
    problems = TASK.problems("sft", 3)
    engine = RolloutEngine(lm, prompter, num_slots=6, max_new_tokens=60)
    prompts = [prompter.encode(p) for p in problems]
    golds = [prompter.encode_solution(p.solution)[:5] for p in problems]
    engine.admit(prompts)
    for step in range(4):
        if step == 2:  # forked and out of order: rows are copied
            engine.select(torch.tensor([0, 2, 1, 0]))
            engine.select(torch.tensor([3, 2, 1]))
        engine.advance(torch.tensor([gold[step] for gold in golds]))
    stepped = engine.hidden.clone()
    engine.clear()
    engine.admit([p + g[:4] for p, g in zip(prompts, golds, strict=True)])
    torch.testing.assert_close(engine.hidden, stepped, atol=1e-4, rtol=1e-4)
    assert engine.hidden.shape[1] == backbone.hidden_size + 16

    whole = compute_hidden_states(backbone, prompter, problems, 20, lm.reader)
    for i in range(len(problems)):
        torch.testing.assert_close(whole.select(whole.owner == i).hidden[4], stepped[i], atol=1e-4, rtol=1e-4)

    model = OptionLMForCausalLM.of(backbone, lm.plugin)
    ids = torch.tensor([prompter.prefix + prompts[0] + golds[0][:4]])
    with torch.inference_mode():
        mine = model.mixture(stepped[:1])[0]
        torch.testing.assert_close(model(ids).logits[0, -1], mine, atol=1e-3, rtol=1e-3)
        start = model(ids[:, :-3], use_cache=True)
        ended = model(ids[:, -3:], past_key_values=start.past_key_values)
        torch.testing.assert_close(ended.logits[0, -1], mine, atol=1e-3, rtol=1e-3)
        padded = torch.cat([ids.new_zeros(1, 2), ids], 1)  # the prefix is known again wherever it begins
        seen = (torch.arange(padded.shape[1]) >= 2).long()[None]
        at = (seen.cumsum(-1) - 1).clamp_min(0)
        left = model(padded, attention_mask=seen, position_ids=at)
        torch.testing.assert_close(left.logits[0, -1], mine, atol=1e-3, rtol=1e-3)


def test_stored_texts_are_read_as_the_engine_reads_them(tiny, own_cache):
    """From what is stored of the layers, with gradients, as in training."""
    backbone, prompter = tiny.backbone, tiny.prompter
    problems = tiny.task.problems("sft", 70)
    plugin = with_reader(backbone, 2)
    config = ConversionConfig(plugin=plugin.config)
    store = texts_for(backbone, prompter, problems, config, plugin.reader.layers)
    batch = TextBatch.of(store.some(60, 70))
    g = read(plugin.reader, batch)
    whole = compute_hidden_states(backbone, prompter, problems[60:], 48, plugin.reader)
    torch.testing.assert_close(g, whole.hidden[:, backbone.hidden_size :], atol=0.05, rtol=0.05)  # stored in bfloat16
    assert torch.equal(batch.states.gold, whole.gold)
    g.sum().backward()
    assert plugin.reader.reads.weight.grad is not None


def test_texts_come_whole_and_once_an_epoch(tiny, own_cache):
    """Equal ones together, weighing as many as they are; of positions of which the backbone is sure, a share."""
    plugin = with_reader(tiny.backbone, 1)
    problems = [*tiny.task.problems("sft", 130), *tiny.task.problems("sft", 20)]
    config = ConversionConfig(plugin=plugin.config)
    texts = texts_for(tiny.backbone, tiny.prompter, problems, config, plugin.reader.layers)
    batches = list(text_batches(texts, 200, torch.Generator().manual_seed(0), 1.0))
    assert all(len(batch.taps) == sum(batch.lengths) and len(batch.taps) % TOKENS == 0 for batch in batches)
    total = sum(len(tiny.prompter.encode_solution(p.solution)) for p in problems)
    assert sum(float(batch.weight.sum()) for batch in batches) == total == texts.num_positions
    assert all(batch.weight.sum() >= 200 for batch in batches[:-1])
    assert len(batches) == pytest.approx(num_text_batches(texts, 200), abs=2)
    owners = torch.cat([batch.states.owner.unique() for batch in batches])
    assert len(owners.unique()) == len(owners) == len({(p.problem, p.solution) for p in problems})
    thinned = list(text_batches(texts, 200, torch.Generator().manual_seed(0), 0.0))
    uncertain = [int((batch.states.entropy >= 0.1).sum()) for batch in batches]
    for batch, count in zip(thinned, uncertain, strict=True):
        assert (batch.states.entropy >= 0.1).sum() == count <= len(batch.places) < count + POSITIONS
        assert (batch.places.diff() > 0).all()


def test_recomputed_texts_are_the_stored_ones(tiny, own_cache):
    """`convert.reader_states` changes what is on disk, and nothing else."""
    plugin = with_reader(tiny.backbone, 1)
    problems = tiny.task.problems("sft", 40)
    parts = {}
    for states in ("stored", "recomputed"):
        config = ConversionConfig(plugin=plugin.config, reader_states=states)
        texts = texts_for(tiny.backbone, tiny.prompter, problems, config, plugin.reader.layers)
        parts[states] = TextBatch.of(texts.some(3, 9))
    torch.testing.assert_close(parts["stored"].taps, parts["recomputed"].taps, atol=0.02, rtol=0.02)
    assert torch.equal(parts["stored"].places, parts["recomputed"].places)
    assert torch.equal(parts["stored"].states.target, parts["recomputed"].states.target)


def test_the_seed_determines_a_conversion_with_a_reader(tiny, tmp_path, monkeypatch):
    """Whatever random numbers were drawn before it, in this process or another."""
    settings = dict(num_solutions=40, num_heldout=20, epochs=1, prior_epochs=1, reader_epochs=1, batch_size=256)
    found = []
    for drawn, seed in ((1, 0), (2, 0), (1, 5)):
        monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / f"{drawn}-{seed}"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            sizes = PlugInConfig(reader_depth=1, reader_width=24)
            found.append(convert(tiny.backbone, tiny.task, ConversionConfig(**settings, seed=seed, plugin=sizes)))
    same, again, other = (plugin.digest() for plugin in found)
    assert same == again != other


def test_a_plug_in_does_not_go_on_over_another_reader(tiny, tmp_path, monkeypatch):
    """Neither a finished one is taken from the cache, nor the training of one gone on with."""
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    settings = dict(num_solutions=40, num_heldout=20, epochs=2, prior_epochs=1, reader_epochs=1, batch_size=256)
    config = ConversionConfig(**settings, plugin=PlugInConfig(reader_depth=1, reader_width=24))
    expected = convert(tiny.backbone, tiny.task, config)
    assert convert(tiny.backbone, tiny.task, config).path == expected.path
    shutil.rmtree(tmp_path / "plugins")

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as another:
        another.setattr("ollm_rl.options.reader_training.VERSION", "of another code")
        another.setattr("ollm_rl.options.training._train_prior", stopped)
        with pytest.raises(KeyboardInterrupt):
            convert(tiny.backbone, tiny.task, config)
    assert [*tmp_path.glob("plugins/*.training/state.pt")]
    again = convert(tiny.backbone, tiny.task, config)
    assert again.path == expected.path and again.digest() == expected.digest()
    assert [*tmp_path.glob("plugins/*.training/state.pt")], "it went on with what the other reader had begun"


@pytest.mark.parametrize("states", ["stored", "recomputed"])
def test_a_conversion_with_a_reader(tiny, own_cache, tmp_path, states):
    """It comes back from disk, says what the reader adds, and its policies read [h; g]."""
    sizes = PlugInConfig(reader_depth=1, reader_width=24)
    settings = dict(num_solutions=60, num_heldout=20, epochs=1, prior_epochs=1, batch_size=256, reader_epochs=2)
    config = ConversionConfig(**settings, reader_states=states, plugin=sizes)
    plugin = convert(tiny.backbone, tiny.task, config)
    assert plugin.state_size == tiny.backbone.hidden_size + 24
    for which in ("with", "without"):
        assert set(plugin.report["reader"][which]) == {"token_accuracy", "nll"}
    again = PlugIn.from_pretrained(plugin.path, tiny.backbone)
    assert again.digest() == plugin.digest()
    other = copy.deepcopy(plugin)
    other.reader.reads.weight.data += 1
    assert other.digest() != plugin.digest()  # a policy that reads another reader's states is told so
    stored = read_states(tiny.backbone, tiny.prompter, tiny.task.problems("sft", 60, 0), 48, plugin.reader).all()
    assert stored.hidden.shape[1] == plugin.state_size


@pytest.mark.parametrize("states", ["stored", "recomputed"])
def test_seconds_of_a_conversion_are_those_of_all_parts_cached_or_not(tiny, tmp_path, monkeypatch, states):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    settings = dict(num_solutions=40, num_heldout=20, epochs=1, prior_epochs=1, batch_size=256, reader_epochs=2)
    config = ConversionConfig(**settings, reader_states=states, plugin=PlugInConfig(reader_depth=1, reader_width=24))
    first = convert(tiny.backbone, tiny.task, config).report
    parts = [float(path.read_text()) for kind in ("hidden", "readers") for path in tmp_path.glob(f"{kind}/**/seconds")]
    assert len(parts) >= 5  # states of both splits, what was read of both, and the reader
    assert first["seconds"] > sum(parts) > first["reader"]["seconds"] > 0
    shutil.rmtree(tmp_path / "plugins")
    again = convert(tiny.backbone, tiny.task, config).report
    assert again["seconds"] > sum(parts) and again["reader"]["seconds"] == first["reader"]["seconds"]


def test_which_layers_are_read():
    assert reader_layers(PlugInConfig(), 30) == (12, 18, 24, 30)
    assert reader_layers(PlugInConfig(), 2) == (1, 2)
    assert reader_layers(PlugInConfig(reader_layers=[0, 7]), 30) == (0, 7)
    for wrong in ([], [31], [-1], [3, 3]):
        with pytest.raises(ConfigurationError, match="plugin.reader_layers=.*from 0 to 30"):
            reader_layers(PlugInConfig(reader_layers=wrong), 30)


def test_layers_are_read_only_where_a_reader_asks(tiny):
    """The body's hooks record nothing for calls that want no layers."""
    ids = torch.tensor([[5, 6, 7]])
    from ollm_rl.models.attention import KVCache

    plain = tiny.backbone.hidden(ids, torch.arange(3)[None], KVCache(1, 3))
    both = tiny.backbone.hidden(ids, torch.arange(3)[None], KVCache(1, 3), reader=Recorder((1, 2)))
    d = tiny.backbone.hidden_size
    assert torch.equal(both[..., :d], plain) and torch.equal(
        both[..., 2 * d :], plain
    )  # the last is what the head reads
    entered = tiny.backbone.hidden(ids, torch.arange(3)[None], KVCache(1, 3), reader=Recorder((0,)))[..., d:]
    assert torch.equal(entered, tiny.backbone.model.get_input_embeddings()(ids))
    with tiny.backbone.tap((1,)):
        pass
    again = tiny.backbone.hidden(ids, torch.arange(3)[None], KVCache(1, 3))
    assert torch.equal(again, plain)


def test_read_states_of_several_shards(tiny, tmp_path, monkeypatch):
    """From stored layers, with equal texts in other shards, and from the backbone anew: what one pass gives."""
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path))
    monkeypatch.setattr(hidden_cache, "SHARD", 20)
    backbone, prompter = tiny.backbone, tiny.prompter
    problems = [*tiny.task.problems("sft", 33), *tiny.task.problems("sft", 12)]
    lm = OptionLM(backbone, with_reader(backbone, 1))
    reader = lm.plugin.reader
    whole = compute_hidden_states(backbone, prompter, problems, 48, lm.reader)
    anew = read_states(backbone, prompter, problems, 48, reader).all()
    store = cached_hidden_states(backbone, prompter, problems, 48, reader.layers)
    assert len(store.shards) == 3
    stored = read_states(backbone, prompter, problems, 48, reader).all()
    for found in (anew, stored):  # kept in bfloat16
        assert torch.equal(found.gold, whole.gold) and torch.equal(found.owner, whole.owner)
        torch.testing.assert_close(found.hidden.float(), whole.hidden, atol=0.05, rtol=0.05)
    texts = store.some_texts(15, 45)
    assert [len(text.taps) for text in texts] == [
        len(prompter.encode(p)) + len(prompter.encode_solution(p.solution)) - 1 for p in problems[15:45]
    ]
