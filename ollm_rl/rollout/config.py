"""Settings of the rollout engine. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from ollm_rl.common.settings import Config, setting


@dataclass(frozen=True)
class EngineConfig(Config):
    """The rollout engine, for training, evaluation and oracle alike."""

    section: ClassVar[str] = "engine"

    num_slots: int = setting(256, "episodes at once, at most", at_least=1)
    max_new_tokens: int | None = setting(None, "token budget of an episode; null: the task's", at_least=1)
    max_prompt_tokens: int = setting(
        64, "room for prompts after the shared prefix; grows by itself where it can", at_least=1
    )
    kv_cache_gib: float | None = setting(
        None, "budget of the KV cache; fewer episodes at once if it holds fewer; null: what num_slots take", above=0
    )
    kept_decisions: int | None = setting(
        None,
        "decision points of an episode that are kept to learn from, drawn evenly, where long texts have many; null: all",
        at_least=1,
    )
    cuda_graphs: bool = setting(True, "on a GPU, replay decode steps where that can be done")
    profile: bool = setting(False, "say where the time of rollouts goes")
