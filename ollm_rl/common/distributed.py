"""Several processes of one command, as `accelerate launch` starts them: who this one is, and waiting for the others."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def processes() -> Processes:
    """The processes of this command; one, unless a launcher says otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState()
    return Processes(state.process_index, state.num_processes)
