"""One server of the embedded pair for all tests that leave nothing behind on it."""

from collections.abc import Iterator

import pytest

from live_server import LiveServer, embedded_pair, serving


@pytest.fixture(scope="session")
def embedded() -> Iterator[LiveServer]:
    with serving(embedded_pair(), keep_alive_seconds=0.2) as live:
        yield live
