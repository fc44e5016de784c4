"""`ollm-rl play`: a game served to a browser on this machine.

    GET  /          the page
    GET  /state     the game (`Game.state`)
    POST /new       {"split": "test", "index": 3}, both optional: another problem
    POST /choose    {"latent": 3}
    POST /undo      {}
    POST /finish    {"by": "policy"} or {"by": "prior"}
    POST /search    {"budget": 500}, optional

Bodies and answers are JSON; every answer to a POST is the new state, or `{"error": "..."}` with a status from 400. A `turn` in a body has
to be that of the state: who looks at an older one is told so (409) instead of choosing something else than they see.

There is no password. The address is this machine's own unless `play.host` says otherwise. A page of another site that the same
browser has open is kept out: requests have to name this server as their host, and to come from its own page if from any.
"""

import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from ollm_rl.errors import ConfigurationError, OLLMError, RewardError
from ollm_rl.report.pages import page
from ollm_rl.serving.game import Game

log = logging.getLogger(__name__)

LARGEST = 10_000  # bytes of a request's body
PATIENCE_S = 10.0  # for a request to arrive
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ACTIONS: dict[str, tuple[Callable[..., None], dict[str, type]]] = {
    "/new": (Game.new, {"split": str, "index": int}),
    "/choose": (Game.choose, {"latent": int}),
    "/undo": (Game.undo, {}),
    "/finish": (Game.finish, {"by": str}),
    "/search": (Game.search, {"budget": int}),
}
NEEDED = {"/choose": "latent", "/finish": "by"}


class Refused(Exception):
    """A request that gets an answer with a status from 400."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class PlayServer(ThreadingHTTPServer):
    """Serves one game; requests wait for one another.

    Args:
        host, port: of `PlayConfig`.

    Raises:
        ConfigurationError: it cannot listen there.
    """

    def __init__(self, game: Game, host: str, port: int):
        self.game, self.lock, self.host = game, threading.Lock(), host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"play.host={host} play.port={port}: {error.strerror or error}; expected an address of this machine and a port that is free. "
                "play.port=0 takes any."
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def settle(self) -> None:
        """Wait for the request under way, and begin no other: a process that ends while a thread computes is aborted."""
        self.lock.acquire()


class _Handler(BaseHTTPRequestHandler):
    server: PlayServer
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        def answer(path: str) -> None:
            if path == "/":
                self._page()
            elif path == "/state":
                with self.server.lock:
                    self._send(self.server.game.state())
            elif path in ACTIONS:
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} is asked for with POST")
            else:
                raise _unknown(path)

        self._answer(answer)

    def do_POST(self) -> None:
        def answer(path: str) -> None:
            body = self._body()
            if path not in ACTIONS:
                raise _unknown(path)
            with self.server.lock:
                self._act(path, body)
                self._send(self.server.game.state())

        self._answer(answer)

    def _answer(self, answer: Callable[[str], None]) -> None:
        """What `answer` sends, or what was wrong."""
        try:
            self._check_source()
            answer(urlsplit(self.path).path)
        except Refused as refused:
            self._send({"error": str(refused)}, refused.status)
        except RewardError as error:  # no fault of the page's
            self._send({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)
        except OLLMError as error:
            self._send({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (ConnectionError, TimeoutError):  # the browser has gone
            self.close_connection = True
        except Exception as error:  # the server goes on, and the terminal says what it was
            log.exception("play: %s", self.path)
            said = f"{type(error).__name__}: {error}. The terminal has more."
            self._send({"error": said}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_source(self) -> None:
        """A name that leads here need not be one of ours: whoever owns it could have it point here, and read along (DNS rebinding)."""
        host = self.headers.get("Host", "")
        own = {*LOOPBACK, self.server.host.lower(), str(self.connection.getsockname()[0])}
        if _name(host) not in own:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"host {host!r:.80} is not this server; expected {', '.join(sorted(own))}. Set play.host=<name>.",
            )
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise Refused(HTTPStatus.FORBIDDEN, f"a page of {origin!r:.80} may not play here; open {self.server.url}")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length and a JSON object, such as {}")
        if int(length) > LARGEST:
            self.rfile.read(min(int(length), 100 * LARGEST))  # else whoever sends it never reads the answer
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {int(length)} bytes; expected at most {LARGEST}"
            )
        if self.headers.get_content_type() != "application/json":  # others can be sent by forms of any page
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"the body is no JSON ({error}); expected an object, such as {{}}"
            ) from None
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, f"the body is {body!r:.80}; expected an object, such as {{}}")
        return body

    def _act(self, path: str, body: dict[str, Any]) -> None:
        act, takes = ACTIONS[path]
        turn = body.pop("turn", None)
        if turn is not None and turn != self.server.game.turn:
            raise Refused(
                HTTPStatus.CONFLICT,
                f"the game has gone on since turn {turn!r:.40}; reload, and choose from what is there now",
            )
        if wrong := [key for key in body if key not in takes]:
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"{path} has no {wrong[0]!r:.40}; it takes {', '.join([*takes, 'turn'])}"
            )
        if path in NEEDED and NEEDED[path] not in body:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{path} needs {NEEDED[path]!r}")
        for key, value in body.items():
            if type(value) is not takes[key]:
                kind = "an integer" if takes[key] is int else "a text"
                raise Refused(HTTPStatus.BAD_REQUEST, f"{key}={value!r:.40}; expected {kind}")
        act(self.server.game, **body)

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        only = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'"
        with self.server.lock:
            text = play_page(self.server.game, nonce)
        headers = {"Content-Security-Policy": f"{only}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"}
        self._write(text.encode(), "text/html; charset=utf-8", HTTPStatus.OK, headers)

    def _send(self, value: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._write(json.dumps(value).encode(), "application/json", status, {})

    def _write(self, content: bytes, kind: str, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        for name, value in {**own, "X-Content-Type-Options": "nosniff", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for what matters."""


def play_page(game: Game, nonce: str) -> str:
    """The page. What the model says is not in it: the page asks for it, and puts it in as text.

    Args:
        nonce: that the browser demands of scripts which it is to run.
    """
    state = game.state()
    policy = f"policy: {state['policy']}" if state["policy"] else "no policy: the prior alone"
    facts = f"{state['backbone']} on {state['task']}, {state['num_latents']} latents, {policy}"
    return page("play.html.j2", title="You are the agent", facts=facts, nonce=nonce)


def _unknown(path: str) -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, f"nothing at {path!r:.80}; expected one of /, /state, {', '.join(ACTIONS)}")


def _name(host: str) -> str | None:
    """The host without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
