"""What a conversion says of its options holds in rollouts."""

from ollm_rl.options.config import ConversionConfig
from ollm_rl.options.conversion import _say_what_lacks
from ollm_rl.options.quality import measure
from ollm_rl.options.reading import read_states


def held_out(tiny):
    reader = tiny.plugin.reader
    return read_states(tiny.backbone, tiny.prompter, tiny.problems("tune", 30), tiny.plugin.config.shortlist, reader)


def test_what_is_not_on_the_backbones_shortlist_is_said_by_no_option(tiny):
    states = held_out(tiny)
    block = states.block(0, len(states))
    missing = block.target == block.ids.shape[1] - 1
    assert missing.any() and not missing.all()
    whole = measure(tiny.backbone, tiny.plugin, states)
    assert whole["gold_on_shortlist"]["all"] == float((~missing).float().mean())
    assert whole["coverage"]["all"] <= whole["gold_on_shortlist"]["all"]
    assert whole["prior_token_accuracy"]["all"] <= whole["coverage"]["all"]


def test_what_lacks_is_said(caplog):
    def lines(listed, covered):
        caplog.clear()
        _say_what_lacks({"gold_on_shortlist": {"all": listed}, "coverage": {"uncertain": covered}}, ConversionConfig())
        return [record.getMessage() for record in caplog.records]

    assert "plugin.shortlist" in lines(0.5, 0.4)[0] and "at 50% of the positions" in lines(0.5, 0.4)[0]
    assert "convert.epochs" in lines(0.99, 0.4)[0]
    assert lines(0.99, 0.99) == []
