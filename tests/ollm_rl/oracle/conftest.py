"""The tiny workspace with an engine of another size."""

from collections.abc import Iterator

import pytest

from ollm_rl.session.local import Workspace


def resized(space: Workspace, **settings) -> Iterator[Workspace]:
    """`space` with these engine settings; afterwards as it was, for it is shared."""
    before = space.engine_settings
    space.engine_settings = settings
    space.__dict__.pop("engine", None)
    yield space
    space.engine_settings = before
    space.__dict__.pop("engine", None)


@pytest.fixture
def short(tiny):
    """Texts of at most 3 tokens, so that all of them can be listed."""
    yield from resized(tiny, num_slots=64, max_new_tokens=3)


@pytest.fixture
def roomy(tiny):
    """Room for whole solutions."""
    yield from resized(tiny, num_slots=16, max_new_tokens=80)
