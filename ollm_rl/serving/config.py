"""Settings of exports, of conversations and of the page to play on. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from ollm_rl.common.settings import Config, setting
from ollm_rl.tasks.base import SPLITS


@dataclass(frozen=True)
class ExportConfig(Config):
    """What `export` writes, and where."""

    section: ClassVar[str] = "export"

    out: str | None = setting(None, "the directory, new or an earlier export", path=True)
    kind: str = setting(
        "policy",
        "policy: logits are what the trained policy says; mixture: the mixture over the latents under the prior, in which every token has a probability",
        choices=("policy", "mixture"),
    )
    bundle: bool = setting(False, "write the backbone's weights too, so that the directory stands alone")
    push_to_hub: str | None = setting(None, "also upload it to this repository of the hub, such as user/model")


@dataclass(frozen=True)
class ChatConfig(Config):
    """How `chat` answers."""

    section: ClassVar[str] = "chat"

    temperature: float = setting(0.0, "0: the likeliest text", at_least=0)
    max_new_tokens: int | None = setting(
        None, "most tokens of an answer; null: those that it was trained with", at_least=1
    )
    latents: bool = setting(
        False, "show at every decision which tokens the options offered; /latents turns it on and off"
    )


@dataclass(frozen=True)
class PlayConfig(Config):
    """What `play` serves, and where."""

    section: ClassVar[str] = "play"

    host: str = setting(
        "127.0.0.1", "address to listen at; any but this machine's own lets others play, for there is no password"
    )
    port: int = setting(0, "0: any that is free", at_least=0, at_most=65535)
    split: str = setting("test", "where the problems come from", choices=SPLITS)
    num_problems: int = setting(20, "problems to play", at_least=1)
    search_budget: int = setting(500, "tokens that a search from here may generate", at_least=1)
    open_browser: bool = setting(False, "open the page in this machine's browser")
