"""Requests and answers of the OpenAI API as this server understands them: what it takes, what it refuses, and how answers look.

Settings of the API that this server does not have are refused unless they ask for nothing, and unknown ones are refused too: an answer
should not look as if a setting had been heeded.
"""

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ollm_rl.errors import did_you_mean
from ollm_rl.options.enumeration import NO_LATENT
from ollm_rl.serving.batching import Said

MOST_ANSWERS = 128  # of a request
MOST_STOPS = 4
# Of the API, without meaning here: they change no answer.
NO_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls",
})  # fmt: skip
# Of the API, and not here: only what asks for nothing is taken.
NOTHING: dict[str, tuple[Any, ...]] = {
    "top_p": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none", "auto"),
    "functions": ([],), "function_call": ("none",), "response_format": ({"type": "text"},), "modalities": (["text"],), "echo": (False,),
    "suffix": ("",), "best_of": (), "audio": (), "prediction": (), "reasoning_effort": ("none",), "verbosity": (), "web_search_options": (),
}  # fmt: skip


class Refused(Exception):
    """A request that gets an error.

    Args:
        status: of HTTP. message: for a person. code: for a program. param: the setting that is wrong.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        """The error as the API has it."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """What a stream has besides."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


Stop = Annotated[str, Field(min_length=1)]


class Asking(BaseModel):
    """What requests for chats and for completions share."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    CHAT: ClassVar[bool]

    model: str
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    latents: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tokens_wanted(self) -> int | None:
        """Most tokens of an answer; None: the server's own."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """How many options are wanted beside every token; None: no log-probabilities."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse what is not here."""
        for name, value in (self.model_extra or {}).items():
            if name in NO_EFFECT or value is None:
                continue
            if name not in NOTHING:
                known = {*type(self).model_fields, *NO_EFFECT, *NOTHING}
                raise Refused(
                    400, f"unknown setting '{name:.80}'.{did_you_mean(name, known)}", "unknown_parameter", name
                )
            if not any(type(value) is not bool and value == nothing or value is nothing for nothing in NOTHING[name]):
                expected = " or ".join(map(repr, NOTHING[name])) or "null"
                message = f"{name}={value!r:.80} is not supported by this server; leave it out, or give {expected}"
                raise Refused(400, message, "unsupported_parameter", name)
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options needs stream=true", "invalid_value", "stream_options")


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        said = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": said}


class ChatRequest(Asking):
    """The body of `POST /v1/chat/completions`."""

    CHAT: ClassVar[bool] = True

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def tokens_wanted(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused(400, "top_logprobs needs logprobs=true", "invalid_value", "top_logprobs")


class CompletionRequest(Asking):
    """The body of `POST /v1/completions`."""

    CHAT: ClassVar[bool] = False

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several."""
        given: Any = self.prompt
        one = isinstance(given, str) or not given or isinstance(given[0], int)
        return [given] if one else given


Form = TypeVar("Form", ChatRequest, CompletionRequest)


def parsed(kind: type[Form], body: bytes) -> Form:
    """A request's body.

    Raises:
        Refused: it is none.
    """
    try:
        form = kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        # Of a union every member complains: what was nearest to right got furthest.
        first = max(found, key=lambda e: len(e["loc"]))
        if first["type"] == "json_invalid":
            raise Refused(400, f"the body is no JSON: {first['msg']:.200}", "invalid_json") from None
        param = ".".join(
            str(p) for p in first["loc"] if not (isinstance(p, str) and ("[" in p or p in ("str", "constrained-str")))
        )
        where = f"{param}: " if param else "the body: "
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise Refused(400, f"{where}{first['msg']:.200}", code, param or None) from None
    form.check()
    return form


class Shape:
    """How the answers to one request look.

    Args:
        token_text: a token as text. served: name of the model. fingerprint: of its weights.
    """

    def __init__(
        self,
        form: ChatRequest | CompletionRequest,
        token_text: Callable[[int], str],
        ends: Sequence[int],
        fingerprint: str,
    ):
        self.form, self.token_text, self.ends = form, token_text, frozenset(ends)
        chat, kind = form.CHAT, ("chat.completion" if form.CHAT else "text_completion")
        self.head: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if chat and form.stream else kind,
            "created": int(time.time()), "model": form.model, "system_fingerprint": fingerprint,
        }  # fmt: skip
        self._told: dict[int, int] = {}  # characters of each choice, for the offsets of completions

    def whole(self, choices: list[dict[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one."""
        return {**self.head, "choices": choices, "usage": dict(usage)}

    def choice(self, index: int, text: str, said: Sequence[Said], finish: str | None, at: int = 0) -> dict[str, Any]:
        """One of its choices, or what is new of it in a stream; `at`: tokens that it has had before."""
        form = self.form
        if form.CHAT:
            turn = {"content": text} if form.stream else {"role": "assistant", "content": text, "refusal": None}
            own: dict[str, Any] = {"delta" if form.stream else "message": turn}
        else:
            own = {"text": text}
        own |= {"index": index, "logprobs": self._log_probs(index, said), "finish_reason": finish}
        if form.latents:
            own["latents"] = [self._decision(at + i, s) for i, s in enumerate(said) if s.latent != NO_LATENT]
        return own

    def _decision(self, position: int, said: Said) -> dict[str, Any]:
        options = [
            {"latent": z, "token": self.token_text(token), "logprob": _finite(p)} for z, token, p in said.options
        ]
        return {
            "position": position,
            "latent": said.latent,
            "token": self.token_text(said.token),
            "logprob": said.log_prob,
            "options": options,
        }

    def _log_probs(self, index: int, said: Sequence[Said]) -> dict[str, Any] | None:
        if (top := self.form.top) is None:
            return None
        shown = [s for s in said if s.token not in self.ends]
        if self.form.CHAT:
            return {"content": [self._of_chat(s, top) for s in shown], "refusal": None}
        texts, offsets = [self.token_text(s.token) for s in shown], []
        for text in texts:
            offsets.append(self._told.get(index, 0))
            self._told[index] = offsets[-1] + len(text)
        tops = [{self.token_text(t): _finite(p) for _, t, p in _options(s)[:top]} for s in shown]
        return {
            "tokens": texts, "token_logprobs": [_finite(s.log_prob) for s in shown], "text_offset": offsets, "top_logprobs": tops if top else None,
        }  # fmt: skip

    def _of_chat(self, said: Said, top: int) -> dict[str, Any]:
        tops = [self._token(t, p) for _, t, p in _options(said)[:top]]
        return {**self._token(said.token, said.log_prob), "top_logprobs": tops}

    def _token(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self.token_text(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in text
        return {"token": text, "logprob": _finite(log_prob), "bytes": list(text.encode()) if whole else None}


def _options(said: Said) -> list[tuple[int, int, float]]:
    """All that could be said: where nobody had a choice, the token itself."""
    return said.options or [(NO_LATENT, said.token, 0.0)]


def _finite(log_prob: float) -> float:
    """JSON has no infinity; the API's stand-in for it."""
    return log_prob if math.isfinite(log_prob) else -9999.0


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """What a request took; the end-of-text token is one of an answer's."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
