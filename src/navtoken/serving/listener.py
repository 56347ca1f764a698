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
from navtoken.serving.connections import connections
from navtoken.serving.errors import ServingError
from navtoken.serving.server import Server

FAREWELL_SECONDS = 5
"""For connections to end once the engine has."""
FORCED_SECONDS = 0.5
"""For the engine to end, where nobody is to be waited for: a step mostly takes less, and clients then hear why."""
START_SECONDS = 60.0


def url_of(host: str, port: int) -> str:
    """The address as a client writes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Listener(uvicorn.Server):
    """Serves until it is told to stop."""

    def __init__(self, server: Server, **options: Any) -> None:
        """`options` are those of `uvicorn.Config` that a server does not set itself."""
        wanted = server.options
        config = uvicorn.Config(
            create_app(server),
            http=connections(wanted.stalled_seconds),
            ws="none",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=wanted.max_header,
            timeout_graceful_shutdown=round(wanted.shutdown_seconds) + 2 * FAREWELL_SECONDS,
            timeout_keep_alive=30,
            host=wanted.host,
            port=wanted.port,
            **options,
        )
        super().__init__(config)
        self.served = server
        self.thread: threading.Thread | None = None
        """Where it runs, if not in the main one."""

    @property
    def port(self) -> int:
        """Where it listens, once it has started."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def address(self) -> str:
        """URL of what it serves, once it has started."""
        return url_of(self.served.options.host, self.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, let what runs finish, say farewell to the rest. Told to stop once more, wait for nobody."""
        closing = asyncio.ensure_future(self._close())
        await super().shutdown(sockets)
        await closing

    async def _close(self) -> None:
        # Beside uvicorn's own wait, which on newer Pythons goes on until the last connection has ended, however often it is told to stop.
        closing = asyncio.ensure_future(self.served.close())
        while not (closing.done() or self.force_exit):
            await asyncio.wait((closing,), timeout=0.1)
        if self.force_exit:
            self.served.abort()
        await asyncio.wait((closing,), timeout=FORCED_SECONDS if self.force_exit else None)
        end = time.monotonic() + FAREWELL_SECONDS
        while self.server_state.connections and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.05)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


@contextmanager
def listening_in_thread(server: Server) -> Iterator[Listener]:
    """Serve at the options' address while the block runs. Raises `ServingError`."""
    listener = Listener(server, log_config=None)
    listener.thread = thread = threading.Thread(target=listener.run, name="listener", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not listener.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            # Else one that is only late would serve on, for nobody.
            listener.should_exit = True
            raise ServingError("the server in this process did not start; see what it logged")
        time.sleep(0.01)
    try:
        yield listener
    finally:
        listener.should_exit = True
        thread.join(server.options.shutdown_seconds + 3 * FAREWELL_SECONDS)
