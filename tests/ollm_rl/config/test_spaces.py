"""Overrides with several values."""

import numpy as np
import pytest

from ollm_rl.config.spaces import product, read_axis
from ollm_rl.errors import ConfigurationError


def read(text, key="x", integer=False):
    return read_axis(f"grpo.{key}={text}" if key else f"grpo={text}", key, text, integer)


def test_one_value_is_no_axis():
    assert read("1e-4") is None and read("[1,2]") is None and read("a b{c") is None


def test_lists_ranges_and_settings_that_belong_together():
    assert [read("1,2").overrides(value) for value in read("1,2").values] == [(("x", "1"),), (("x", "2"),)]
    assert read("range(1,4)").values == ["1", "2", "3"]
    found = read("tag(log,interval(1e-5,1e-3))")
    assert (found.low, found.high, found.log) == (1e-5, 1e-3, True) and found.overrides(0.000123456) == (
        ("x", "0.0001235"),
    )
    assert read("interval(1,8)", integer=True).overrides(2.0) == (("x", "2"),)
    joint = read("{},{a:8,b:true},{a:4,c:null}", key="")
    assert joint.keys == {"a", "b", "c"} and joint.name == "a+b+c"
    assert joint.overrides("a=8,b=true") == (("a", "8"), ("b", "true")) and joint.overrides("as it is") == ()


def test_samples_are_within():
    random = np.random.default_rng(0)
    for axis in (read("interval(2,3)"), read("tag(log,interval(2,3))"), read("interval(2,3)", integer=True)):
        assert all(2 <= axis.sample(random) <= 3 for _ in range(50))
    assert {read("a,b").sample(random) for _ in range(50)} == {"a", "b"}
    assert len(product([read("1,2"), read("3,4,5", key="y")])) == 6


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("1,1", "x", "has 1 twice"),
        ("interval(2,1)", "x", "low below high"),
        ("tag(log,interval(0,1))", "x", "above 0"),
        ("tag(lin,interval(1,2))", "x", "expected interval"),
        ("1,2", "", "tried together"),
        ("{a:1},{a:1}", "", "twice"),
        ("{a:1", "", "cannot read"),
    ],
)
def test_mistakes_are_said(text, key, said):
    with pytest.raises(ConfigurationError, match=said):
        read(text, key)
    with pytest.raises(ConfigurationError, match="whole numbers"):
        read("interval(1,2.5)", integer=True)
