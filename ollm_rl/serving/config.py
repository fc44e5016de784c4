"""Settings of exports, of conversations, of the page to play on and of the server. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from ollm_rl.common.settings import Config, setting
from ollm_rl.options.config import EXPORT_KINDS
from ollm_rl.tasks.base import SPLITS


@dataclass(frozen=True)
class ExportConfig(Config):
    """What `export` writes, and where."""

    section: ClassVar[str] = "export"

    out: str | None = setting(None, "the directory, new or an earlier export", path=True)
    kind: str = setting(
        "policy",
        "policy: logits are what the trained policy says; mixture: the mixture over the latents under the prior, in which every token has a probability",
        choices=EXPORT_KINDS,
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


@dataclass(frozen=True)
class ServeConfig(Config):
    """What `serve` offers, where, and to whom."""

    section: ClassVar[str] = "serve"

    host: str = setting("127.0.0.1", "address to listen at; any but this machine's own lets others ask")
    port: int = setting(8000, "0: any that is free", at_least=0, at_most=65535)
    api_key: str | None = setting(
        None, "what clients have to send as their key; null: the environment's OLLM_RL_API_KEY, and without that anybody may ask", literal=True
    )  # fmt: skip
    model: str | None = setting(None, "what the model is called; null: as the run of the policy", literal=True)
    slots: int = setting(64, "answers at once; others wait", at_least=1)
    max_queue: int = setting(256, "answers that may wait; more are refused", at_least=0)
    max_text_tokens: int = setting(
        1024, "most tokens of a prompt, the task's examples not counted, and its answer together", at_least=2
    )
    max_body_kib: int = setting(256, "most of a request's body", at_least=1)
    timeout_s: float = setting(
        120.0, "seconds for an answer, waiting included; also for what is under way at the end", above=0
    )
