"""Uvicorn around one server, told what it cannot know: how large a request may be, and that the engine ends before connections do.

By itself uvicorn waits for its connections and tells the application afterwards. A stream that outlasts the wait would be cut off without
a word; here the engine is closed first, so whoever is still waiting hears that the server shuts down.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from navtoken.serving.app import create_app
from navtoken.serving.errors import ServingError
from navtoken.serving.server import Server

FAREWELL_SECONDS = 5
"""For connections to end once the engine has."""
START_SECONDS = 60.0


class Listener(uvicorn.Server):
    """Serves until it is told to stop."""

    def __init__(self, server: Server, **options: Any) -> None:
        """`options` are those of `uvicorn.Config` that a server does not set itself."""
        wanted = server.options
        config = uvicorn.Config(
            create_app(server),
            http="h11",
            ws="none",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=wanted.max_header,
            timeout_graceful_shutdown=round(wanted.shutdown_seconds) + 2 * FAREWELL_SECONDS,
            timeout_keep_alive=30,
            **options,
        )
        super().__init__(config)
        self.served = server

    @property
    def port(self) -> int:
        """Where it listens, once it has started."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, let what runs finish, say farewell to the rest."""
        closing = asyncio.ensure_future(self._close())
        await super().shutdown(sockets)
        await closing

    async def _close(self) -> None:
        # Beside uvicorn's own wait, which on newer Pythons goes on until the last connection has ended, however often it is told to stop.
        closing = asyncio.ensure_future(self.served.close())
        while not (closing.done() or self.force_exit):
            await asyncio.wait((closing,), timeout=0.1)
        if self.force_exit:
            await self.served.engine.close(0.0)
        await closing


@contextmanager
def listening_in_thread(server: Server) -> Iterator[Listener]:
    """Serve on a free port of this machine while the block runs. Raises `ServingError`."""
    listener = Listener(server, host="127.0.0.1", port=0, log_config=None)
    thread = threading.Thread(target=listener.run, name="listener", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not listener.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ServingError("the server in this process did not start; see what it logged")
        time.sleep(0.01)
    try:
        yield listener
    finally:
        listener.should_exit = True
        thread.join(server.options.shutdown_seconds + 3 * FAREWELL_SECONDS)
