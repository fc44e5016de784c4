"""How a session gets to another process: models are not sent, so it becomes the session that is open there.

Agents and searches hold a session and travel between processes (Ray workers, copies that RLlib and Gymnasium make). On arrival
every session in them becomes the receiver's own, which was opened from the same configuration (`ollm_rl.session.opening`).
"""

from typing import Any, ClassVar, Self

# A configuration as plain values, and the chosen group members.
SerializedSettings = tuple[dict[str, Any], dict[str, str]]


class SentByName:
    """What a session inherits so that it can be pickled and copied without its model.

    Attributes:
        current: the session that all others become when they arrive in this process.
        serialized_settings: the configuration that it was opened with, if any: what another process needs to open the same.
    """

    current: "ClassVar[SentByName | None]" = None
    serialized_settings: SerializedSettings | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _current, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # Gymnasium copies the arguments of environments; the model in here is meant to be shared


def make_current(session: SentByName) -> None:
    """From now on, sessions that arrive in this process become `session`."""
    SentByName.current = session


def _current() -> SentByName:
    if SentByName.current is None:
        raise RuntimeError(
            "a session was pickled and is now wanted in a process that has none: models are not sent. Open one there, and call "
            "ollm_rl.session.transport.make_current with it."
        )
    return SentByName.current
