"""The tiny session with an engine of another size."""

from collections.abc import Iterator

import pytest

from ollm_rl.session.local import Session


def resized(session: Session, **settings) -> Iterator[Session]:
    """`space` with these engine settings; afterwards as it was, for it is shared."""
    before = session.engine_settings
    session.engine_settings = settings
    session.__dict__.pop("engine", None)
    yield session
    session.engine_settings = before
    session.__dict__.pop("engine", None)


@pytest.fixture
def short(tiny):
    """Texts of at most 3 tokens, so that all of them can be listed."""
    yield from resized(tiny, num_slots=64, max_new_tokens=3)


@pytest.fixture
def roomy(tiny):
    """Room for whole solutions."""
    yield from resized(tiny, num_slots=16, max_new_tokens=80)
