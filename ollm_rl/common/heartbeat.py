"""A count that grows while this process gets on, by which a cluster tells slow workers from those that hang."""

_count = 0


def beat() -> None:
    """Some work was done: a pass through the backbone, a verdict, a unit of a progress bar."""
    global _count
    _count += 1


def count() -> int:
    """How often, so far."""
    return _count
