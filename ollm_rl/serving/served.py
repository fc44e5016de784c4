"""A policy as it is served: its model, its engines, and how conversations and texts become its prompts."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ollm_rl.common.settings import settings_of
from ollm_rl.errors import ConfigurationError
from ollm_rl.models.backbone import Backbone
from ollm_rl.options.option_lm import OptionLM
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.rollout.config import EngineConfig
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.serving.chat import load_model
from ollm_rl.serving.config import ServeConfig
from ollm_rl.serving.export import why_not_alone
from ollm_rl.session.agent import Agent
from ollm_rl.tasks.chat_template import chat_template, tokenizer_with
from ollm_rl.tasks.prompts import Prompter


class Asked(NamedTuple):
    """A prompt as the engine takes it.

    Attributes:
        tokens: after the task's shared prefix if `shared`, which it begins with. num_tokens: of the whole prompt.
    """

    tokens: list[int]
    shared: bool
    num_tokens: int


class Unreadable(Exception):
    """A prompt of which no tokens can be made."""


@dataclass
class Served:
    """A policy, and what it answers with.

    Attributes:
        name: which clients ask for. prompter: of its task. tokenizer: with the task's prompt as its chat template.
        engine: settings of its engine. max_new_tokens: of an answer of which nothing else is said.
        most: tokens of a prompt, after the shared prefix, and its answer together.
    """

    name: str
    lm: OptionLM
    policy: LatentPolicy
    prompter: Prompter
    tokenizer: Any
    engine: dict[str, Any]
    max_new_tokens: int
    most: int

    @classmethod
    def of(cls, agent: Agent, config: ServeConfig, path: str | None) -> "Served":
        """An agent that is a policy alone.

        Args:
            path: where it comes from, after which it is called if nothing else is said.

        Raises:
            ConfigurationError: it is more than a latent policy that follows from the states alone, or texts of such a length cannot be read.
        """
        if why := why_not_alone(agent):
            raise ConfigurationError(
                f"serve takes agents whose policy is a net on the states alone (grpo, ppo, distill, prior), not this one: {why}"
            )
        session = agent.session
        if session.lm is None:
            raise ConfigurationError("serve needs the model in its own process; use rollout=local")
        policy = agent.policy
        assert isinstance(policy, LatentPolicy)
        tokenizer = tokenizer_with(chat_template(session.prompter), session.backbone.tokenizer)
        return cls._within(config, path, session.lm, policy, session.prompter, tokenizer, session.engine_settings)

    @classmethod
    def exported(cls, path: str, config: ServeConfig) -> "Served":
        """An exported model.

        Raises:
            ConfigurationError: it is a mixture, or texts of such a length cannot be read. CheckpointError: there is none.
        """
        model, tokenizer = load_model(path)
        if model.policy is None:
            raise ConfigurationError(
                f"{path} is of kind=mixture, which draws tokens, not latents; expected kind=policy. Export again."
            )
        backbone: Backbone = model._backbone[0]
        # Its chat template has the examples: they need not be given again.
        prompter = Prompter(SimpleNamespace(tokenizer=tokenizer, eos_ids=backbone.eos_ids), [])
        engine = {"max_new_tokens": model.generation_config.max_new_tokens}
        return cls._within(config, path, OptionLM(backbone, model.plugin), model.policy, prompter, tokenizer, engine)

    @classmethod
    def _within(
        cls,
        config: ServeConfig,
        path: str | None,
        lm: OptionLM,
        policy: LatentPolicy,
        prompter: Prompter,
        tokenizer: Any,
        engine: dict[str, Any],
    ) -> "Served":
        """Within what the backbone can read."""
        new: int = engine["max_new_tokens"]
        positions, setting = lm.backbone.context_limit
        most, prefix = config.max_text_tokens, len(prompter.prefix)
        if positions is not None:
            most = min(most, positions - prefix)
        if most <= new:
            raise ConfigurationError(
                f"serve.max_text_tokens={config.max_text_tokens} beside {prefix} tokens of worked examples and {positions} positions of the backbone "
                f"({setting}) leaves {max(most, 0)} for a prompt and an answer of {new}; expected more. Raise it, or lower engine.max_new_tokens."
            )
        own = {k: v for k, v in engine.items() if k in settings_of(EngineConfig)} | {"num_slots": config.slots}
        return cls(config.model or _name(path), lm, policy, prompter, tokenizer, own, new, most)

    def new_engine(self, shared: bool) -> RolloutEngine:
        """An engine for prompts that begin with the task's shared prefix, or for those that do not."""
        prompter, most = self.prompter, self.most
        if not shared:
            prompter, most = copy.copy(prompter), self.limit(False)
            prompter.prefix = []
        return RolloutEngine(self.lm, prompter, **(self.engine | {"max_prompt_tokens": most - self.max_new_tokens}))

    def limit(self, shared: bool) -> int:
        """Tokens of a prompt, from where its engine reads it, and its answer together."""
        return self.most if shared else self.most + len(self.prompter.prefix)

    def decoder(self) -> Any:
        """Tokens to text, by a tokenizer of its own: one thread must not use another's."""
        own = copy.deepcopy(self.prompter.tokenizer)
        return lambda tokens: str(own.decode(tokens, skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """One token as text."""
        return str(self.tokenizer.decode([token]))

    def chat(self, messages: Sequence[dict[str, Any]]) -> Asked:
        """The prompt of a conversation: that of the task, the worked examples before it.

        Raises:
            Unreadable: the chat template refuses it.
        """
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of its own
            raise Unreadable(f"the model's chat template refuses these messages: {error}") from error
        return self._asked(text, add_special_tokens=not self.prompter.tokenizer.chat_template)

    def raw(self, text: str) -> Asked:
        """A text to go on with, as it is."""
        return self._asked(text, add_special_tokens=True)

    def tokens(self, tokens: Sequence[int]) -> Asked:
        """The same of tokens; where there are none, the one that texts begin with.

        Raises:
            Unreadable: a number is no token.
        """
        size, cut, prefix = self.lm.backbone.vocab_size, len(self.prompter.prefix), self.prompter.prefix
        if wrong := [t for t in tokens if not 0 <= t < size]:
            raise Unreadable(f"{wrong[0]} is no token of this model; expected numbers from 0 to {size - 1}")
        bos = self.tokenizer.bos_token_id
        given = list(tokens) or [self.lm.backbone.eos_ids[0] if bos is None else bos]
        if len(given) > cut and given[:cut] == prefix:
            return Asked(given[cut:], True, len(given))
        return Asked(given, False, len(given))

    def _asked(self, text: str, add_special_tokens: bool) -> Asked:
        if (own := self.prompter.after_prefix(text)) is not None:
            return Asked(own, True, len(self.prompter.prefix) + len(own))
        return self.tokens(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def _name(path: str | None) -> str:
    """What a policy is called: after the directory of its run."""
    if path is None:
        return "prior"
    place = Path(path).expanduser().resolve()
    return place.parent.name if place.name == "policy" else place.name
