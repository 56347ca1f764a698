"""A real server on a free port, in a thread: what a client meets, disconnects and all; and the models to hold it against."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers import AutoModelForCausalLM

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.commands.serve import ServeOptions, make_server
from navtoken.engine import EngineOptions
from navtoken.serving.listener import Listener, listening_in_thread
from navtoken.serving.options import ServerOptions
from navtoken.serving.server import Server

EMBEDDED = Path(str(files("navtoken.embedded")))
ENGINE = EngineOptions(cache_gib=0.05, max_rows=16)
QUESTION = "What is 3 + 4 * 5?"
PATIENCE = 60.0
"""Seconds; the machines that run tests are slow."""


class LiveServer:
    """A server that listens, and its address."""

    def __init__(self, server: Server, listener: Listener) -> None:
        self.server = server
        self.listener = listener
        self.address = listener.address
        self.port = listener.port
        key = server.options.key
        headers = {} if key is None else {b"authorization": f"Bearer {key}".encode()}
        self.http = httpx2.Client(base_url=self.address, timeout=PATIENCE, headers=headers, trust_env=False)

    def chat(self, **fields: Any) -> httpx2.Response:
        """Post a greedy chat of few tokens, changed by `fields`."""
        return self.http.post("/v1/chat/completions", json=chat_body(**fields))

    def complete(self, **fields: Any) -> httpx2.Response:
        """Post a greedy completion of few tokens, changed by `fields`."""
        return self.http.post("/v1/completions", json=completion_body(**fields))

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """All events of a stream; the last must be [DONE], and is left out."""
        answer = self.http.post(path, json=body | {"stream": True})
        assert answer.status_code == 200, answer.text
        parts = [part for part in answer.text.split("\n\n") if part and not part.startswith(":")]
        assert all(part.startswith("data: ") for part in parts)
        assert parts.pop() == "data: [DONE]"
        return [json.loads(part.removeprefix("data: ")) for part in parts]

    def wait_until_ended(self, seconds: float = 30.0) -> float:
        """Until its thread has ended; returns after how many seconds that was, and fails where it goes on."""
        started, thread = time.monotonic(), self.listener.thread
        assert thread is not None
        thread.join(seconds)
        assert not thread.is_alive(), "the server goes on"
        return time.monotonic() - started

    def wait_until_idle(self, seconds: float = 10.0) -> None:
        """Until no row is left; fails where one stays."""
        end = time.monotonic() + seconds
        while (health := self.server.engine.health()).num_running + health.num_waiting:
            assert time.monotonic() < end, health
            time.sleep(0.01)


def chat_body(**fields: Any) -> dict[str, Any]:
    """A greedy chat of few tokens."""
    plain = {"model": "navtoken", "max_tokens": 8, "temperature": 0}
    return plain | {"messages": [{"role": "user", "content": QUESTION}]} | fields


def completion_body(**fields: Any) -> dict[str, Any]:
    """A greedy completion of few tokens."""
    return {"model": "navtoken", "prompt": QUESTION, "max_tokens": 8, "temperature": 0} | fields


@contextmanager
def serving(pair: ModelPair, policy: str | None = None, **options: Any) -> Iterator[LiveServer]:
    """Serve a pair while the block runs; `options` are those of the server."""
    wanted = ServerOptions(**{"port": 0, "engine": ENGINE} | options)
    made = make_server(ServeOptions(policy, server=wanted), pair)
    with listening_in_thread(made) as listener:
        live = LiveServer(made, listener)
        try:
            yield live
        finally:
            live.http.close()


@cache
def embedded_pair() -> ModelPair:
    """The pair that ships in the package, once for all tests of a process."""
    torch.set_num_threads(1)
    return load_pair()


@cache
def plain_model(name: str) -> Any:
    """A model of the embedded pair as `transformers` alone loads it, in float32: the reference."""
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / name, dtype=torch.float32).eval()


@torch.no_grad()
def plain_logprobs(name: str, token_ids: list[int]) -> torch.Tensor:
    """(T, V) log-probabilities of each next token after each of these."""
    logits_TV: torch.Tensor = plain_model(name)(torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits_TV.log_softmax(-1)
