"""The embedded LLM behind a completions endpoint of vLLM's shape, as a process of its own: `python llm_server.py`.

It prints its port once it serves. Token ids in and out, stop strings, `return_token_ids`; requests are decoded together by
this project's engine, so an endpoint's tokens can be compared with those of an engine in the test's own process.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from subprocess import PIPE, Popen
from threading import Thread
from typing import Any

MODEL = "embedded-llm"
Body = dict[str, Any]


@contextmanager
def llm_server() -> Iterator[str]:
    """Start the server; yields its address."""
    with Popen([sys.executable, str(Path(__file__))], stdout=PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


class Decoder:
    """Decodes whatever requests there are, in one thread."""

    def __init__(self) -> None:
        from navtoken.checkpoints import load_pair
        from navtoken.engine import Engine, EngineOptions
        from navtoken.policies.rules import LLMPolicy

        pair = load_pair("embedded:llm", "embedded:llm")
        self.engine = Engine(pair, LLMPolicy(), EngineOptions(cache_gib=0.2))
        self._asked: Queue[tuple[Body, Future[Body]]] = Queue()

    def complete(self, body: Body) -> Body:
        told: Future[Body] = Future()
        self._asked.put((body, told))
        return told.result()

    def serve(self) -> None:
        flying: dict[Any, Future[Body]] = {}
        while True:
            while not flying or not self._asked.empty():
                body, told = self._asked.get()
                try:
                    flying[self._added(body)] = told
                except ValueError as error:
                    told.set_exception(error)
            for event in self.engine.step():
                if event.finish_reason is not None:
                    flying.pop(event.sequence).set_result(self._answer(event.sequence))

    def _added(self, body: Body) -> Any:
        from navtoken.engine import SamplingParams

        names = ("temperature", "top_p", "min_p", "repetition_penalty", "ignore_eos", "min_tokens")
        sampling = SamplingParams(
            stop=tuple(body.get("stop", ())),
            top_k=max(0, body["top_k"]),
            **{name: body[name] for name in names},
        )
        return self.engine.add(body["prompt"], sampling, body["max_tokens"], body["seed"])

    def _answer(self, row: Any) -> Body:
        text = self.engine.pair.tokenizer.decode(row.response_ids, skip_special_tokens=True)
        choice = {
            "index": 0,
            "text": text,
            "token_ids": row.response_ids,
            "prompt_token_ids": row.token_ids[: row.prompt_len],
            "finish_reason": row.finish_reason,
            "stop_reason": row.stop_string,
        }
        usage = {"prompt_tokens": row.prompt_len, "completion_tokens": len(row.response_ids)}
        return {"object": "text_completion", "model": MODEL, "choices": [choice], "usage": usage}


def main() -> None:
    decoder = Decoder()
    Thread(target=decoder.serve, daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            known = self.path == "/v1/completions" and body["model"] == MODEL and body["return_token_ids"]
            status, answer = (200, None) if known else (404, {"error": {"message": "not here"}})
            try:
                answer = answer or decoder.complete(body)
            except ValueError as error:
                status, answer = 400, {"error": {"message": str(error)}}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
