"""When a connection is cut: where its client takes nothing, and not where it takes little."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from navtoken.serving.connections import Connection, connections


class Timer:
    """One that goes off when it is told to."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self.seconds = seconds
        self.goes_off = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Timers:
    """What a connection asks of the event loop."""

    def __init__(self) -> None:
        self.made: list[Timer] = []

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> Timer:
        self.made.append(Timer(seconds, lambda: call(*args)))
        return self.made[-1]

    @property
    def running(self) -> list[Timer]:
        return [timer for timer in self.made if not timer.is_cancelled]

    def pass_(self) -> None:
        """Let the one that runs go off."""
        (timer,) = self.running
        assert timer.seconds == 60.0
        timer.is_cancelled = True
        timer.goes_off()


class Transport(asyncio.Transport):
    """Holds as many bytes as it is told."""

    size = 0
    limit: int | None = None
    is_aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limit = high

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        pass


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def connection(timers: Timers, transport: Transport) -> Connection:
    loop: Any = timers
    made = connections(60.0)(Config(lambda: None), ServerState(), {}, loop)
    made.connection_made(transport)
    assert transport.limit == 0, "a little that is left over is not noticed"
    return made


def test_who_takes_little_by_little_is_not_hung_up_on(
    connection: Connection, transport: Transport, timers: Timers
) -> None:
    transport.size = 500
    connection.pause_writing()
    for size in (400, 300, 299):
        transport.size = size
        timers.pass_()
        assert not transport.is_aborted
    timers.pass_()
    assert transport.is_aborted and not timers.running


@pytest.mark.parametrize("ended", [Connection.resume_writing, lambda each: each.connection_lost(None)])
def test_nobody_looks_once_all_is_taken_or_the_client_is_gone(
    connection: Connection, transport: Transport, timers: Timers, ended: Callable[[Connection], None]
) -> None:
    transport.size = 500
    connection.pause_writing()
    ended(connection)
    assert timers.made and not timers.running
