"""A server for the page whose answers are written down here: what a real one seldom sends, and sends too slowly for tests."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Event, Thread
from typing import Any

from navtoken.serving.app import PAGE
from navtoken.serving.guards import SECURITY_HEADERS

Body = dict[str, Any]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """What a request is answered, part by part."""

    parts: Iterable[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    pause: float = 0.0
    """Seconds after each part."""


@dataclass
class PageServer:
    """Where it listens, and what it has seen."""

    address: str
    bodies: list[Body] = field(default_factory=list)
    gone: Event = field(default_factory=Event)
    """Set when a client hung up before its answer was whole."""


def policy(reference: str, threshold: float | None = None, **fields: Any) -> Body:
    """As GET /v1/pair lists one."""
    plain = {"reference": reference, "threshold": threshold, "signal": None, "low": None, "high": None}
    return plain | {"llm_above": None, "description": ""} | fields


PAIR = {
    "name": "navtoken",
    "slm": {"reference": "small", "parameters": 37_700},
    "llm": {"reference": "large", "parameters": 1_170_000},
    "context": 1024,
    "policy": "router,threshold=0.0074,weights=8b1110f8",
    "threshold": 0.0074123,
    "policies": [
        policy(
            "router", 0.0074123, signal="p(divergent)", low=0.0, high=1.0, llm_above=True,
            description="a trained network reads every draft",
        ),
        policy(
            "entropy:0.67", 0.67, signal="entropy of the SLM (nats)", low=0.0, high=3.0, llm_above=True,
            description="the LLM writes where the SLM is uncertain",
        ),
        policy(
            "margin:0.1", 0.1, signal="margin of the SLM", low=0.0, high=1.0, llm_above=False,
            description="the LLM writes where the SLM's two best are close",
        ),
        policy("llm", description="the LLM alone"),
    ],
    "max_top_logprobs": 20,
    "max_n": 16,
    "examples": ["Numbers 3 7 12 target 33 :", "Compute (4 + 17) - 15 :"],
}  # fmt: skip


def token(text: str, writer: str = "slm", entropy: float = 0.1, **fields: Any) -> Body:
    """As an answer's details have one."""
    plain = {
        "id": 1,
        "text": text,
        "special": text == "<|end|>",
        "writer": writer,
        "entropy": entropy,
        "entropy_slm": entropy,
    }
    plain |= {"entropy_llm": None, "logprob": -0.1, "p_divergent": None, "draft": None}
    return plain | {"alternatives": [{"id": 1, "text": text, "logprob": -0.1}]} | fields


def replaced(text: str, draft: str, entropy: float = 0.9) -> Body:
    """A token of the LLM, and the draft in whose place it stands."""
    others = [(1, text, -0.2), (7, draft, -1.9), (8, " 12", -4.0), (9, "\n", -5.0), (10, ".", -9.0)]
    alternatives = [{"id": key, "text": name, "logprob": logprob} for key, name, logprob in others]
    told = {"entropy_llm": 0.4, "logprob": -0.2, "p_divergent": 0.71, "draft": {"id": 7, "text": draft}}
    return token(text, "llm", entropy, alternatives=alternatives, **told)


def chunk(*tokens: Body, finish: str | None = None, **summary: Any) -> bytes:
    """An event; the one that finishes sums its own tokens up, where `summary` does not say otherwise."""
    told: Body = {"tokens": list(tokens)}
    if finish:
        llm = sum(one["writer"] == "llm" for one in tokens)
        told |= {
            "policy": "entropy:0.67",
            "llm_share": llm / max(1, len(tokens)),
            "seed": 248_756_777_812_734,
        }
        told |= {"slm_tokens": len(tokens) - llm, "llm_tokens": llm}
        told["seconds"] = {"queued": 0.001, "first_token": 0.119, "total": 2.4}
        told["cost"] = {
            "average_activated_parameters": 387_000.0, "flops": 3.94e8, "bytes": 2.46e8, "slm_passes": 140,
            "llm_passes": 41, "catchup_tokens": 95, "discarded_drafts": 0, "router_calls": 140,
        }  # fmt: skip
    content = "".join(one["text"] for one in tokens)
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish, "navtoken": told | summary}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\r\n\r\n"


def refusal(status: int, message: str, param: str | None = None, **headers: str) -> Reply:
    """An error before anything was written."""
    error = {"message": message, "type": "error", "param": param, "code": None}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(
        [json.dumps({"error": error}).encode()], status, {"content-type": "application/json"} | headers
    )


@contextmanager
def page_server(
    answer: Callable[[Body], Reply], key: str | None = None, pair: Body = PAIR
) -> Iterator[PageServer]:
    """Serve the page as a real server does, its headers included, and answer questions as `answer` says."""

    class Handler(BaseHTTPRequestHandler):
        # Parts must arrive as they were cut.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path in PAGE:
                name, media_type = PAGE[self.path]
                content = files("navtoken.serving").joinpath("assets", name).read_bytes()
                self._send(Reply([content], headers={"content-type": media_type}))
            elif self.path == "/v1/pair":
                found = Reply([json.dumps(pair).encode()], headers={"content-type": "application/json"})
                self._send(found if self._welcome() else refusal(401, "no key"))
            else:
                self._send(refusal(404, f"nothing at {self.path}"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.bodies.append(body)
            self._send(answer(body) if self._welcome() else refusal(401, "no key"))

        def _welcome(self) -> bool:
            return key is None or self.headers["authorization"] == f"Bearer {key}"

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in (SECURITY_HEADERS | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for part in reply.parts:
                    self.wfile.write(part)
                    time.sleep(reply.pause)
            except OSError:
                seen.gone.set()

        def log_message(self, *_: Any) -> None:
            """Not among the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    seen = PageServer(f"http://127.0.0.1:{server.server_port}/")
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
