"""A real HTTP server on this machine that answers as a test tells it to, faults included."""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Self


@dataclass
class Reply:
    """What a request gets."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    """Close the connection without a word."""
    trickle: bool = False
    """Send a byte now and then, for ever."""


@dataclass
class Seen:
    """A request that came."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float


Answer = Callable[[Seen], Reply]


class FakeEndpoint:
    """Serves in a thread while the `with` block runs."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                seen = Seen(
                    self.path, body, {k.lower(): v for k, v in self.headers.items()}, time.monotonic()
                )
                endpoint._serve(self, seen)

            def log_message(self, *args: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            send(handler, self.answer(seen))
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self._lock:
                self._at_once -= 1

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    time.sleep(reply.delay)
    if reply.drop:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)
        return
    content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
    handler.send_response(reply.status)
    for name, value in reply.headers.items():
        handler.send_header(name, value)
    if reply.trickle:
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.02)
    handler.send_header("content-length", str(len(content.encode())))
    handler.end_headers()
    handler.wfile.write(content.encode())


def chat(text: str | None, prompt_tokens: int = 10, completion_tokens: int = 2) -> Reply:
    """A chat answer."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return Reply({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


def completion(
    token_ids: list[int] | None, finish: str = "stop", stop_reason: Any = None, text: str | None = None
) -> Reply:
    """A completion as vLLM answers it with `return_token_ids`."""
    choice = {"token_ids": token_ids, "finish_reason": finish, "stop_reason": stop_reason, "text": text}
    return Reply(
        {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": len(token_ids or ())}}
    )


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
