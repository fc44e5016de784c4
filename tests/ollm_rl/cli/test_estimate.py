"""What a configuration would take, counted on the meta device."""

import re

import pytest

from ollm_rl.cli.estimate import estimate
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "billions"), [("deepseek_r1_1_5b", 1.777088), ("qwen2_5_7b", 7.615617), ("qwen2_5_32b", 32.763876)]
)
@pytest.mark.parametrize("sizes", ["paper", "paper_reader"])
def test_sizes_of_the_papers_plugin(name, billions, sizes):
    settings = compose([f"plugin={sizes}", f"backbone={name}", "backbone.dtype=bfloat16"])
    backbone, plugin, training, disk, rollouts = estimate(settings.config)
    assert int(backbone.split()[2].replace(",", "")) == pytest.approx(billions * 1e9, rel=1e-6)
    share = float(re.findall(r"([\d.]+)%", plugin)[0])
    if name == "deepseek_r1_1_5b":
        assert 1.54 <= share <= 1.58
    weights = float(re.findall(r"weights ([\d.]+) GiB", rollouts)[0])
    assert weights == pytest.approx(billions * 1e9 * 2 / 2**30, rel=0.01)
    assert training.startswith("memory for training: ")
    assert disk.startswith("disk for hidden states: at most ") and ("recomputed" in disk) == (sizes == "paper_reader")


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="plugin.decoder_depth=0"):
        estimate(compose(["backbone=tiny", "plugin.decoder_depth=0"]).config)
