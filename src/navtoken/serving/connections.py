"""A connection that ends where its client takes nothing.

Uvicorn closes a connection once all that was written has gone out, which for a client that does not read is never: neither a timeout of
the application nor a shutdown would get rid of it. Here a connection whose client takes nothing for long is cut, whatever was sent; the
application hears of it as of any client that hangs up.
"""

import asyncio
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)


class Connection(H11Protocol):
    """One client's."""

    stalled_seconds: float
    """It may take nothing for so long."""
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whatever is left over counts: by default less than 64 KiB would wait for ever without a word.
        transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unwatch()
        self._watch_from(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._unwatch()
        super().resume_writing()

    def _watch_from(self, size: int) -> None:
        self._watch = self.loop.call_later(self.stalled_seconds, self._look, size)

    def _look(self, before: int) -> None:
        size = self.transport.get_write_buffer_size()
        if size < before:
            self._watch_from(size)
            return
        logger.info("a client took nothing for %g s; it is hung up on", self.stalled_seconds)
        self.transport.abort()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def connections(stalled_seconds: float) -> type[Connection]:
    """The kind of connection whose clients may take nothing for so long: uvicorn makes them itself, and tells them nothing of ours."""
    return type("Connection", (Connection,), {"stalled_seconds": stalled_seconds})
