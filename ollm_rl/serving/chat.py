"""Talk to a trained policy in the terminal, token by token, with the options of every decision on demand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList, TextIteratorStreamer

from ollm_rl.errors import CheckpointError, ConfigurationError
from ollm_rl.options.hf import FLOOR, OptionLMForCausalLM

HELP = "/latents shows the options of every decision, /new begins anew, /quit ends"
SHOWN = 8  # options of a decision, the likeliest first


def load_model(path: str | Path) -> tuple[OptionLMForCausalLM, Any]:
    """An exported model and its tokenizer.

    Raises:
        CheckpointError: there is none.
    """
    model = OptionLMForCausalLM.from_pretrained(path)
    try:
        return model, AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has no tokenizer ({error}). Export again.") from error


@dataclass
class Decision:
    """A position at which the options say different tokens: those, with their probabilities, and the one that was said."""

    tokens: list[int]
    probabilities: list[float]
    said: int = -1


class _Watch(LogitsProcessor):  # type: ignore[misc]
    """Notes the decisions of the one text that is generated; it changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Decision] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        possible = (scores[0] > FLOOR / 2).nonzero()[:, 0]
        order = possible[scores[0, possible].argsort(descending=True)]
        self.steps.append(Decision(order.tolist(), scores[0, order].exp().tolist()))
        return scores


@dataclass
class Conversation:
    """Turns so far, and the model that answers.

    Args:
        temperature: 0 for the likeliest text. max_new_tokens: of an answer, None for what the model was exported with.
        seed: of sampled answers.
    """

    model: Any
    tokenizer: Any
    temperature: float = 0.0
    max_new_tokens: int | None = None
    seed: int = 0
    turns: list[dict[str, str]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def answer(self, said: str) -> Iterator[str]:
        """The pieces of the answer as they are generated; afterwards `decisions` has what was decided.

        Raises:
            ConfigurationError: the conversation is longer than the model can read.
        """
        turns = [*self.turns, {"role": "user", "content": said}]
        inputs = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        limit = self.model._backbone[0].context_limit[0]
        new = self.max_new_tokens or self.model.generation_config.max_new_tokens
        if limit is not None and length + new > limit:
            raise ConfigurationError(
                f"{length} tokens of conversation and {new} of an answer are more than the {limit} that the model reads; /new begins anew"
            )
        watch, streamer = _Watch(), TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampled = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        result: list[Any] = []

        def generate() -> None:
            try:
                torch.manual_seed(self.seed + len(turns))
                result.append(
                    self.model.generate(
                        **inputs,
                        streamer=streamer,
                        max_new_tokens=new,
                        logits_processor=LogitsProcessorList([watch]),
                        **sampled,
                    )
                )
            except BaseException as error:
                result.append(error)
                streamer.end()

        worker = Thread(target=generate, daemon=True)
        worker.start()
        yield from streamer
        worker.join()
        [found] = result
        if isinstance(found, BaseException):
            raise found
        tokens = found[0, length:].tolist()
        self.turns = [*turns, {"role": "assistant", "content": self.tokenizer.decode(tokens, skip_special_tokens=True)}]
        for decision, token in zip(watch.steps, tokens, strict=False):
            decision.said = token
        self.decisions = [d for d in watch.steps if len(d.tokens) > 1]

    def new(self) -> None:
        """Forget all turns."""
        self.turns, self.decisions = [], []


def options_of(decision: Decision, tokenizer: Any) -> Text:
    """A decision in a line: the token that was said, and what the options offered."""
    line = Text("  ")
    for token, probability in list(zip(decision.tokens, decision.probabilities, strict=True))[:SHOWN]:
        shown = repr(tokenizer.decode([token]))
        line.append(f"{shown} {probability:.2f}", style="bold" if token == decision.said else "dim")
        line.append("  ")
    return line


def talk(conversation: Conversation, latents: bool, console: Console, ask: Callable[[], str] | None = None) -> None:
    """Read what the user says, and answer, until the end of the input or /quit."""
    console.print(HELP, style="dim", highlight=False)
    while True:
        try:
            said = (ask() if ask else console.input("> ", markup=False)).strip()
        except EOFError:
            return
        if said == "/quit":
            return
        if said == "/new":
            conversation.new()
        elif said == "/latents":
            latents = not latents
            console.print(f"options are {'shown' if latents else 'not shown'}", style="dim")
        elif said.startswith("/"):
            console.print(HELP, style="dim", highlight=False)
        elif said:
            try:
                for piece in conversation.answer(said):
                    console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            except ConfigurationError as error:
                console.print(str(error), style="red", markup=False)
                continue
            console.print()
            if latents:
                for decision in conversation.decisions:
                    console.print(options_of(decision, conversation.tokenizer), soft_wrap=True)
