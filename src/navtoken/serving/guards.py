"""What stands before every request: who may ask, under which name, how large, and what is written down of it.

Plain ASGI: Starlette's `BaseHTTPMiddleware` would buffer streams and hide disconnects.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from navtoken.serving.errors import ApiError, BadRequest, TooLarge, TooSlow, Unauthorized
from navtoken.serving.metrics import Metrics
from navtoken.serving.options import ServerOptions
from navtoken.serving.transcript import request_id as current_request

logger = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
OPEN_PATHS = ("/", "/assets/page.css", "/assets/page.js", "/favicon.ico")
"""The page itself has no secret: it asks for the key."""


class Guard:
    """Lets requests through, or answers them itself."""

    def __init__(self, app: ASGIApp, options: ServerOptions, metrics: Metrics) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._key = None if options.key is None else options.key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        request_id = secrets.token_hex(8)

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        current_request.set(request_id)
        try:
            self._check(scope)
            body = await self._in_time(scope, receive)
            await self._app(scope, _replayed(body, receive), noted)
        except ApiError as error:
            await answer(noted, error)
        finally:
            # The route's own path, or clients could make a metric for each path that they think of.
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()
            seconds = time.monotonic() - started
            logger.info("%s %s %s %d %.3f s", request_id, scope["method"], path, status, seconds)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._options.hosts and _host(headers.get("host", "")) not in self._options.hosts:
            raise BadRequest(
                "this server is not known under that name (--allowed-hosts)", code="unknown_host"
            )
        if self._key is not None and self._needs_key(scope["path"]) and not self._has_key(headers):
            raise Unauthorized(
                "the key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    def _needs_key(self, path: str) -> bool:
        if path == "/health":
            return self._options.protect_health
        if path == "/metrics":
            return self._options.protect_metrics
        return path not in OPEN_PATHS

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        assert self._key is not None
        # Bytes: the comparison takes no other characters than ASCII in text, and takes as long for a near miss as for a far one.
        # Latin-1 is how Starlette reads the bytes that were sent, of which the key is UTF-8.
        sent = given.strip().encode("latin-1")
        return scheme.lower() == "bearer" and secrets.compare_digest(sent, self._key)

    async def _in_time(self, scope: Scope, receive: Receive) -> bytes:
        seconds = self._options.body_seconds
        try:
            return await asyncio.wait_for(self._body(scope, receive), seconds)
        except TimeoutError:
            raise TooSlow(f"the body was not there after {seconds:g} s") from None

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._options.max_body
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise TooLarge(f"the body has {length} bytes, at most {limit} are taken")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > limit:
                raise TooLarge(f"the body has more than {limit} bytes")
            if not message.get("more_body", False):
                return bytes(body)


async def answer(send: Send, error: ApiError) -> None:
    """Send an error as a response."""
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever else comes: the disconnect."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _host(header: str) -> str:
    """A Host header's name, without its port."""
    try:
        return (
            header
            if not header
            else f"[{name}]"
            if ":" in (name := urlsplit(f"//{header}").hostname or "")
            else name
        )
    except ValueError:
        return ""
