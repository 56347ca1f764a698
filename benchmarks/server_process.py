"""Servers as processes of their own, for benchmarks that ask them over HTTP."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from measuring import BenchmarkError
from navtoken.checkpoints import resolve_folder

BIN = Path(sys.executable).parent
LLM = "embedded:llm"
START_SECONDS = 120.0


class Served(NamedTuple):
    """A server that answers."""

    base: str
    """Its address, with /v1."""
    pid: int


@contextmanager
def navtoken_server(*args: str, policy: str = "llm") -> Iterator[Served]:
    """`navtoken serve` with the embedded pair."""
    command = [str(BIN / "navtoken"), "serve", "--port", "0", "--policy", policy, *args]
    with _process(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"API: (http\S+)", line):
                yield Served(found.group(1), process.pid)
                return
        raise BenchmarkError(f"the server did not start: {' '.join(command)}")


@contextmanager
def transformers_server(*args: str) -> Iterator[tuple[Served, str]]:
    """`transformers serve` with the embedded LLM; yields the model's name, too."""
    folder = str(resolve_folder(LLM))
    port = _free_port()
    command = [str(BIN / "transformers"), "serve", folder, "--device", "cpu", "--port", str(port), *args]
    with _process(command, stdout=subprocess.DEVNULL) as process:
        base = f"http://localhost:{port}/v1"
        _wait_for(f"http://localhost:{port}/health", process)
        yield Served(base, process.pid), folder


@contextmanager
def _process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=_environment(), **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def _environment() -> Mapping[str, str]:
    # One thread for either server: the models are so small that a second one would only wait.
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(
                f"the server ended with {process.returncode}; is transformers[serving] installed?"
            )
        try:
            if httpx2.get(url, timeout=5).status_code < 500:
                return
        except httpx2.HTTPError:
            time.sleep(0.5)
    raise BenchmarkError(f"nobody answers at {url}")
