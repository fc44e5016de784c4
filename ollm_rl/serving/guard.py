"""What stands before the server's routes: keys, hosts and sizes of requests, looked at before anything is parsed."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ollm_rl.serving.openai_types import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

BODY_S = 30.0  # for a body to arrive
DRAINED = 64  # times the largest body that is read and dropped, so that whoever sends it reads the answer
OPEN = "/health"  # needs no key, and says nothing


class Guard:
    """An ASGI application before another.

    Args:
        key: that requests have to bring; None: none. limit: bytes of a body.
        hosts: names by which requests may call this server, so that no page of another site that a browser here has open can ask; None: any.
        counted: is called with path and status of every answer.
    """

    def __init__(
        self, app: App, key: str | None, limit: int, hosts: frozenset[str] | None, counted: Callable[[str, int], None]
    ):
        self.app, self.limit, self.hosts, self.counted = app, limit, hosts, counted
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.counted(scope["path"], message["status"])
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            try:
                self._check_key(scope["path"], headers)
                self._check_host(headers)
            except Refused:
                with suppress(Refused):
                    await self._body(headers, receive)  # dropped: else whoever sends it may never read the answer
                raise
            body = b""
            if scope["method"] == "POST":
                body = await self._body(headers, receive)
                kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
                if kind != b"application/json":  # others can be sent by forms of any page
                    raise Refused(415, "expected Content-Type: application/json", "unsupported_media_type")
        except Refused as refused:
            await answer(counting, refused)
            return
        except ConnectionError:
            return
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, whole, counting)

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.key is None or path == OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key):
            raise Refused(
                401,
                "no or a wrong API key; expected the header Authorization: Bearer <key>",
                "invalid_api_key",
                **{"WWW-Authenticate": "Bearer"},
            )

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """A name that leads here need not be one of ours: whoever owns it could have it point here, and read along (DNS rebinding)."""
        if self.hosts is None:
            return
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if _name(host) not in self.hosts or origin not in ("", f"http://{host}"):
            raise Refused(
                403, f"host {host!r:.80} or origin {origin!r:.80} is not this server; expected {', '.join(sorted(self.hosts))}. Set serve.api_key "
                "to be asked under other names.", "wrong_host",
            )  # fmt: skip

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        said = headers.get(b"content-length", b"0")
        too_large = int(said) > self.limit if said.isdigit() else False
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    too_large |= size > self.limit
                    if too_large:
                        parts.clear()
                    else:
                        parts.append(chunk)
                    if not message.get("more_body", False) or size > DRAINED * self.limit:
                        break
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {BODY_S:.0f} seconds", "timeout") from None
        if too_large:
            raise Refused(413, f"the body is larger than {self.limit} bytes (serve.max_body_kib)", "request_too_large")
        return b"".join(parts)


async def answer(send: Send, refused: Refused) -> None:
    """Send an error."""
    content = json.dumps(refused.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **refused.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


def _name(host: str) -> str | None:
    """The host without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
