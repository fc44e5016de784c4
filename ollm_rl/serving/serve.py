"""`ollm-rl serve`: a trained policy behind the OpenAI API (docs/serve.md).

    POST /v1/chat/completions   the task's prompt around the conversation
    POST /v1/completions        a text goes on, as it is
    GET  /v1/models             the one model
    GET  /health                200, or 503 from the signal to end on
    GET  /metrics               for Prometheus

Needs the extra `serve`.
"""

import asyncio
import json
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ollm_rl.config.compose import Settings, to_dict
from ollm_rl.errors import ConfigurationError
from ollm_rl.serving.batching import FAILED, LATE, Batcher, Closed, Job, Piece, QueueFull
from ollm_rl.serving.config import ServeConfig
from ollm_rl.serving.export import is_export
from ollm_rl.serving.guard import Guard
from ollm_rl.serving.metrics import Metrics
from ollm_rl.serving.openai_types import ChatRequest, CompletionRequest, Refused, Shape, parsed, usage
from ollm_rl.serving.opening import opened_agent
from ollm_rl.serving.play import LOOPBACK
from ollm_rl.serving.served import Asked, Served, Unreadable

log = logging.getLogger(__name__)

KEY = "OLLM_RL_API_KEY"  # in the environment
KEPT_S = 65  # for which a connection without requests stays: longer than clients keep theirs
PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"})


def serve(settings: Settings, overrides: Sequence[str], say: Callable[[str], None]) -> None:
    """Serve the policy of a command line until SIGTERM or SIGINT.

    Args:
        overrides: as they were typed. say: is told the address.

    Raises:
        ConfigurationError: the policy cannot be served, or not at this address.
    """
    config = ServeConfig.of(to_dict(settings.config.serve))
    with bound(config.host, config.port) as sock:
        policy = settings.config.policy
        if policy is not None and is_export(Path(policy)):
            served = Served.exported(policy, config)
        else:
            agent = opened_agent(settings, overrides, "serve")
            agent.session.close()  # nothing is judged
            served = Served.of(agent, config, policy)
        api = Api(served, config)
        try:
            server = Server(api, lambda: say(f"serve: {url(sock)}/v1  model {api.served.name}  (Ctrl-C ends it)"))
            server.run(sockets=[sock])
        finally:
            api.batcher.close(timeout_s=0)
    say("serve: ended")


def bound(host: str, port: int) -> socket.socket:
    """A socket of that address, which does not listen yet: who comes before the model is loaded is turned away.

    Raises:
        ConfigurationError: that cannot be.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        raise ConfigurationError(
            f"serve.host={host} serve.port={port}: {error.strerror or error}; expected an address of this machine and a port that is free. "
            "serve.port=0 takes any."
        ) from error
    return sock


def url(sock: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Ends by SIGTERM or SIGINT: it takes no more connections, finishes what is under way and returns. A second signal drops that.

    Args:
        ready: is called when it listens.
    """

    def __init__(self, api: "Api", ready: Callable[[], None]):
        super().__init__(uvicorn.Config(
            api.guard, log_config=None, log_level="warning", access_log=False, server_header=False, ws="none",
            timeout_keep_alive=KEPT_S,
            timeout_graceful_shutdown=math.ceil(api.config.timeout_s),
        ))  # fmt: skip
        self.api, self.ready = api, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which ends the process by the signal in the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            self.force_exit = True
        self.api.draining = self.should_exit = True


class Api:
    """The application, with the batcher that it asks.

    Attributes:
        guard: the ASGI application, with its guard before it. draining: no more requests are taken.

    Raises:
        ConfigurationError: the key is none, or the engine cannot be made.
    """

    def __init__(self, served: Served, config: ServeConfig):
        self.served, self.config, self.draining = served, config, False
        key = os.environ.get(KEY) if config.api_key is None else config.api_key
        if key is not None and (not key.strip() or not key.isascii() or key != key.strip()):
            raise ConfigurationError(
                f"serve.api_key or {KEY} is empty, or has spaces at its ends or other characters than ASCII; expected a key"
            )
        local = config.host in LOOPBACK
        if key is None and not local:
            log.warning("serve.host=%s: whoever reaches this address can ask; set %s=<key>", config.host, KEY)
        self.batcher = Batcher(served.new_engine, served.policy, served.decoder(), config.max_queue)
        self.metrics = Metrics(self.batcher, PATHS)
        self.app = FastAPI(title="ollm_rl", docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        self.app.add_api_route("/v1/completions", self.completions, methods=["POST"], response_model=None)
        self.app.add_api_route("/v1/models", self.models, methods=["GET"], response_model=None)
        self.app.add_api_route("/v1/models/{name:path}", self.model, methods=["GET"], response_model=None)
        self.app.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        self.app.add_api_route("/metrics", self.prometheus, methods=["GET"], response_model=None)
        self.app.add_exception_handler(Refused, _refused)
        self.app.add_exception_handler(HTTPException, _no_route)
        self.app.add_exception_handler(Exception, _crashed)
        hosts = frozenset(LOOPBACK) if key is None and local else None
        self.guard = Guard(self.app, key, config.max_body_kib * 1024, hosts, self.metrics.counted)
        self.began = int(time.time())

    async def chat(self, request: Request) -> Response:
        form = parsed(ChatRequest, await request.body())
        self._check_model(form.model)
        try:
            asked = self.served.chat([message.plain() for message in form.messages])
        except Unreadable as error:
            raise Refused(400, str(error), "invalid_value", "messages") from None
        return await self._answer(request, form, [asked])

    async def completions(self, request: Request) -> Response:
        form = parsed(CompletionRequest, await request.body())
        self._check_model(form.model)
        try:
            asked = [self.served.raw(p) if isinstance(p, str) else self.served.tokens(p) for p in form.prompts]
        except Unreadable as error:
            raise Refused(400, str(error), "invalid_value", "prompt") from None
        return await self._answer(request, form, asked)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        self._check_model(name)
        return JSONResponse(self._model())

    async def health(self) -> Response:
        status = "draining" if self.draining else "ok" if self.batcher.alive else "failed"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def prometheus(self) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model(self) -> dict[str, Any]:
        return {"id": self.served.name, "object": "model", "created": self.began, "owned_by": "ollm_rl"}

    def _check_model(self, name: str) -> None:
        if name != self.served.name:
            message = f"the model {name!r:.80} does not exist; expected {self.served.name!r}"
            raise Refused(404, message, "model_not_found", "model")

    async def _answer(self, request: Request, form: ChatRequest | CompletionRequest, asked: list[Asked]) -> Response:
        """The answers to some prompts, in one or as a stream."""
        inbox: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        jobs = self._submit(form, asked, inbox)
        shape = Shape(
            form, self.served.token_text, self.served.lm.backbone.eos_ids, self.served.lm.backbone.fingerprint
        )
        prompt_tokens = sum(one.num_tokens for one in asked)
        if form.stream:
            events = self._events(form, jobs, inbox, shape, prompt_tokens)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            )
        collected = asyncio.create_task(self._collected(jobs, inbox))
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait((collected, gone), return_when=asyncio.FIRST_COMPLETED)
            if not collected.done():
                return Response(status_code=499)  # nobody reads it
            pieces = collected.result()
        finally:
            for task in (collected, gone):
                task.cancel()
            for job in jobs:
                job.cancelled = True
        choices = [shape.choice(i, piece.text, piece.said, piece.finish) for i, piece in enumerate(pieces)]
        return JSONResponse(shape.whole(choices, usage(prompt_tokens, sum(len(piece.said) for piece in pieces))))

    def _submit(
        self, form: ChatRequest | CompletionRequest, asked: list[Asked], inbox: "asyncio.Queue[tuple[int, Piece]]"
    ) -> list[Job]:
        """Hand the answers that are asked for to the engine.

        Raises:
            Refused: a prompt is too long, or too many answers are asked for.
        """
        loop, config, n = asyncio.get_running_loop(), self.config, form.n or 1
        most = self.batcher.slots + config.max_queue
        if n * len(asked) > most:
            raise Refused(
                400, f"{n * len(asked)} answers in one request; this server takes {most}", "too_many_answers", "n"
            )
        lengths = [self._tokens(form, one) for one in asked]
        seed = secrets.randbits(32) if form.seed is None else form.seed
        temperature = 1.0 if form.temperature is None else float(form.temperature)

        def told(index: int) -> Callable[[Piece], None]:
            def put(piece: Piece) -> None:
                loop.call_soon_threadsafe(inbox.put_nowait, (index, piece))

            return put

        jobs = [
            Job(
                one.tokens, one.shared, lengths[p], (seed + i) % 2**64, temperature, form.stops, time.monotonic() + config.timeout_s,
                told(p * n + i), bool(form.stream), bool(form.latents) or bool(form.top),
            )
            for p, one in enumerate(asked) for i in range(n)
        ]  # fmt: skip
        try:
            if self.draining:
                raise Closed
            self.batcher.submit(jobs)
        except QueueFull:
            raise Refused(
                429,
                f"{most} answers are under way or wait, and this server takes no more; try again",
                "queue_full",
                **{"Retry-After": "1"},
            ) from None
        except Closed:
            raise Refused(503, "the server is ending", "shutting_down", **{"Retry-After": "5"}) from None
        return jobs

    def _tokens(self, form: ChatRequest | CompletionRequest, asked: Asked) -> int:
        """Most tokens of an answer."""
        room = self.served.limit(asked.shared) - len(asked.tokens)
        wanted = form.tokens_wanted
        if room < 1 or (wanted is not None and wanted > room):
            whole, what = asked.num_tokens + room, "messages" if form.CHAT else "prompt"
            raise Refused(
                400, f"This model's maximum context length is {whole} tokens. However, you requested {asked.num_tokens + (wanted or 1)} tokens "
                f"({asked.num_tokens} in the {what}, {wanted or 1} in the completion). Reduce the length of the {what} or of the completion.",
                "context_length_exceeded", what,
            )  # fmt: skip
        return min(self.served.max_new_tokens, room) if wanted is None else wanted

    async def _collected(self, jobs: list[Job], inbox: "asyncio.Queue[tuple[int, Piece]]") -> list[Piece]:
        """The whole answers.

        Raises:
            Refused: not all came to an end.
        """
        pieces: dict[int, Piece] = {}
        while len(pieces) < len(jobs):
            index, piece = await inbox.get()
            if piece.finish in (FAILED, LATE):
                raise self._lost(piece.finish)
            pieces[index] = piece
            self.metrics.ended(jobs[index], time.monotonic())
        return [pieces[i] for i in range(len(jobs))]

    async def _events(
        self,
        form: ChatRequest | CompletionRequest,
        jobs: list[Job],
        inbox: "asyncio.Queue[tuple[int, Piece]]",
        shape: Shape,
        prompt_tokens: int,
    ) -> AsyncIterator[bytes]:
        """The answers as server-sent events, several in one where several are there."""
        with_usage = form.stream_options is not None and bool(form.stream_options.include_usage)
        more = {"usage": None} if with_usage else {}
        counts, left = [0] * len(jobs), len(jobs)

        def event(choice: dict[str, Any]) -> bytes:
            return _event({**shape.head, "choices": [choice], **more})

        try:
            if form.CHAT:
                for i in range(len(jobs)):
                    begun = {"role": "assistant", "content": "", "refusal": None}
                    yield event({"index": i, "delta": begun, "logprobs": None, "finish_reason": None})
            while left:
                found = [await inbox.get()]
                events: list[bytes] = []
                while not inbox.empty():
                    found.append(inbox.get_nowait())
                for index, piece in found:
                    if piece.finish in (FAILED, LATE):
                        yield b"".join(events) + _event(self._lost(piece.finish).body())
                        return
                    if piece.text or (piece.said and (form.top is not None or form.latents)):
                        events.append(event(shape.choice(index, piece.text, piece.said, None, counts[index])))
                    counts[index] += len(piece.said)
                    if piece.finish:
                        events.append(event(_last(shape.choice(index, "", [], piece.finish), form.CHAT)))
                        self.metrics.ended(jobs[index], time.monotonic())
                        left -= 1
                if events:
                    yield b"".join(events)
            if with_usage:
                yield _event({**shape.head, "choices": [], "usage": usage(prompt_tokens, sum(counts))})
            yield b"data: [DONE]\n\n"
        finally:  # also when the client has gone
            for job in jobs:
                job.cancelled = True

    def _lost(self, finish: str) -> Refused:
        if finish == LATE:
            message = f"the answer took longer than {self.config.timeout_s:g} seconds (serve.timeout_s)"
            return Refused(
                504, message, "timeout", **{"X-Should-Retry": "false"}
            )  # the official client would ask again
        return Refused(500, "the answer was lost to an error; the server's terminal has more", "engine_error")


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _last(choice: dict[str, Any], chat: bool) -> dict[str, Any]:
    """The last of a choice in a stream: why it ended, and no more text."""
    return choice | ({"delta": {}} if chat else {}) | {"logprobs": None}


async def _gone(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path!r:.80}: {error.detail}; expected one of {', '.join(sorted(PATHS))}"
    return JSONResponse(
        Refused(error.status_code, message, "unknown_url").body(), error.status_code, headers=error.headers
    )


async def _crashed(request: Request, error: Exception) -> Response:
    return JSONResponse(Refused(500, "an error of the server; its terminal has more", "internal_error").body(), 500)
