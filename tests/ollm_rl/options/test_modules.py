"""Plug-in, options and conversion."""

import pytest
import torch

from ollm_rl.errors import ConfigurationError
from ollm_rl.options.config import ConversionConfig, PlugInConfig
from ollm_rl.options.conversion import convert
from ollm_rl.options.modules import PlugIn, canonical
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.reading import read_states
from ollm_rl.tasks import ChainSum
from ollm_rl.tasks.prompts import Prompter


def test_canonical_is_the_lowest_of_equals():
    mask = canonical(torch.tensor([[3, 3, 5, 3, 5], [1, 2, 3, 4, 5]]))
    assert mask.tolist() == [[True, False, True, False, False], [True] * 5]


def test_save_and_load(tiny, tmp_path):
    tiny.plugin.save_pretrained(tmp_path)
    again = PlugIn.from_pretrained(tmp_path, tiny.backbone)
    hidden = torch.randn(5, tiny.plugin.state_size)
    assert torch.equal(again.biases(hidden), tiny.plugin.biases(hidden))
    assert torch.equal(again.prior_logits(hidden), tiny.plugin.prior_logits(hidden))


@pytest.mark.parametrize(
    "objective", [pytest.param("cover", marks=pytest.mark.slow), pytest.param("expected", marks=pytest.mark.slow), "em"]
)
def test_conversion_improves_on_the_backbone(tiny, objective):
    config = ConversionConfig(
        objective=objective,
        num_solutions=100,
        num_heldout=30,
        epochs=3,
        prior_epochs=3,
        reader_epochs=1,
        batch_size=128,
    )
    task = ChainSum()
    plugin = convert(tiny.backbone, task, config)
    report = plugin.report
    assert report["coverage"]["all"] > report["backbone_token_accuracy"]["all"]
    assert report["distinct_tokens"]["uncertain"] > 1.2
    again = convert(tiny.backbone, task, config)
    assert (again.path, again.report) == (plugin.path, report)
    with pytest.raises(ConfigurationError, match="no setting 'epoch'.*Did you mean 'epochs'"):
        convert(tiny.backbone, task, epoch=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"num_solutions": 600, "reader_epochs": 2},
        # as docs/options.md has it without a reader
        {
            "num_solutions": 1000,
            "plugin": PlugInConfig(reader_depth=0),
            "hard_assignment": 0.7,
            "bias_penalty": 0.1,
            "first_option_weight": 1.0,
        },
    ],
    ids=["reader", "no_reader"],
)
def test_shortlist_decodes_like_the_whole_head_on_smollm2(smollm2, settings):
    task = ChainSum()
    prompter = Prompter.for_task(smollm2, task)
    config = ConversionConfig(num_heldout=10, prior_epochs=0, **settings)
    plugin = convert(smollm2, task, config)
    problems = task.problems("tune", 60, 0)
    states = read_states(smollm2, prompter, problems, config.plugin.shortlist, plugin.reader).all().hidden.float()
    lm, same = OptionLM(smollm2, plugin), []
    with torch.no_grad():
        for part in states.split(64):
            own = part[:, None, : smollm2.hidden_size]
            whole = ((own + plugin.biases(part)) @ smollm2.head.weight.T).argmax(-1)
            same.append(lm.options(part).tokens == whole)
    agreement = float(torch.cat(same).float().mean())
    assert agreement > 0.999
