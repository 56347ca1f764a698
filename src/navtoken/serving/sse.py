"""Server-sent events as OpenAI's clients expect them, and what happens when a client goes away.

`StreamingResponse` of Starlette only learns of a disconnect when a send fails, which with uvicorn it never does. Here somebody
listens, so that a stream that nobody reads ends at once, and with it its rows.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from navtoken.serving.errors import ApiError, Failed

logger = logging.getLogger(__name__)

T = TypeVar("T")
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client hung up before its answer was there."""


def event(body: BaseModel) -> bytes:
    """One event."""
    return b"data: " + body.model_dump_json().encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they come; comments keep the connection alive where none come."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], keep_alive: float, forget: Callable[[], None]
    ) -> None:
        """`keep_alive` is how many seconds of silence a comment ends; `forget` is called at the end, even where nothing was sent."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._events = events
        self._keep_alive = keep_alive
        self._forget = forget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events or the client end."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._forget()
            await _ended(gone)
            if sending.done():
                sending.result()
            else:
                await _ended(sending)

    async def _send(self, send: Send) -> None:
        """Nothing is sent before the first event: until then what goes wrong still has a status of its own."""
        started = False

        async def start() -> None:
            nonlocal started
            if not started:
                started = True
                await send(
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )

        last = DONE
        try:
            async with aclosing(_with_pauses(self._events, self._keep_alive)) as parts:
                async for part in parts:
                    await start()
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except ApiError as error:
            if not started:
                raise
            last = _error(error)
        except Exception:
            if not started:
                raise
            logger.exception("a stream failed")
            last = _error(Failed("the request failed; see the server's log"))
        await start()
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def or_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work; raises `ClientGone`, and cancels the work, where the client hangs up first."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        await _ended(gone)
        await _ended(working)


async def _with_pauses(events: AsyncGenerator[bytes, None], seconds: float) -> AsyncGenerator[bytes, None]:
    """Events, with a comment after each pause of so many seconds."""
    async with aclosing(events) as parts:
        pending: asyncio.Future[bytes] | None = None
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(parts))
                done, _ = await asyncio.wait((pending,), timeout=seconds)
                if not done:
                    yield KEEP_ALIVE
                    continue
                try:
                    part = pending.result()
                except StopAsyncIteration:
                    return
                pending = None
                yield part
        finally:
            if pending is not None:
                await _ended(pending)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: "asyncio.Future[Any]") -> None:
    """Cancel what is not done, and wait until it has cleaned up."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    elif not task.cancelled():
        task.exception()


def _error(error: ApiError) -> bytes:
    return b"data: " + json.dumps(error.body).encode() + b"\n\n"
