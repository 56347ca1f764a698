"""Who is let in, how large and how slow a request may be, which names are answered, and what is written down."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from live_server import LiveServer, chat_body, embedded_pair, serving
from navtoken.serving import guards

KEY = "sesame-ä"
CHAT = "/v1/chat/completions"
CLOSED = ("/v1/models", "/v1/pair", "/version", "/openapi.json")
PAGE = ("/", "/assets/page.css", "/assets/page.js", "/favicon.ico")


@pytest.fixture(scope="module")
def keyed() -> Iterator[LiveServer]:
    """A server that has a key and little patience, and writes prompts down."""
    with serving(
        embedded_pair(), api_key=KEY, max_body=20_000, max_header=4096, body_seconds=0.3, log_prompts=True
    ) as live:
        yield live


@pytest.fixture(scope="module")
def protected() -> Iterator[LiveServer]:
    with serving(
        embedded_pair(), api_key="k", protect_health=True, protect_metrics=True, allowed_hosts=("*",)
    ) as live:
        yield live


def raw(live: LiveServer, *parts: bytes, pause: float = 0.0, host: str = "localhost") -> tuple[int, bytes]:
    """Send bytes as they are; returns the status and all that came back."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part.replace(b"{host}", host.encode()))
                time.sleep(pause)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return int(answer.split(b" ", 2)[1]), answer


def post_head(*headers: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: {host}", "Connection: close", "Content-Type: application/json"]
    head = "\r\n".join([*lines, *headers]) + f"\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    return head.encode()


def bare(live: LiveServer, path: str, **headers: Any) -> Any:
    """GET without the key of the fixture."""
    return live.http.get(path, headers={"authorization": ""} | headers)


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"],
)
def test_no_key_or_another_is_a_401(keyed: LiveServer, authorization: str) -> None:
    answer = bare(keyed, "/v1/models", authorization=authorization.encode())
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in answer.text


@pytest.mark.parametrize("path", CLOSED)
def test_all_but_the_page_and_its_watchers_is_closed(keyed: LiveServer, path: str) -> None:
    assert bare(keyed, path).status_code == 401
    assert keyed.http.get(path).status_code == 200
    for other in (f"/{path}", f"{path}/", f"/v1/..{path}", f"/assets/..{path}"):
        assert (
            raw(keyed, f"GET {other} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())[0]
            == 401
        )


def test_the_key_is_asked_before_the_body_is_read(keyed: LiveServer) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10000000\r\n\r\n"
    assert raw(keyed, head.encode())[0] == 401
    assert bare(keyed, "/v1/nothing").status_code == 401


@pytest.mark.parametrize("path", [*PAGE, "/health", "/metrics"])
def test_the_page_and_its_watchers_are_open(keyed: LiveServer, path: str) -> None:
    assert bare(keyed, path).status_code in (200, 204)


def test_watchers_may_need_the_key_too(protected: LiveServer) -> None:
    for path in ("/health", "/metrics"):
        assert bare(protected, path).status_code == 401
        assert protected.http.get(path).status_code == 200
    assert bare(protected, "/").status_code == 200


def test_keys_are_compared_in_constant_time(keyed: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return False

    monkeypatch.setattr(guards.secrets, "compare_digest", compare)
    assert keyed.http.get("/v1/models").status_code == 401
    assert len(compared) == 1 and compared[0][1] == KEY.encode()


def test_a_body_above_the_limit_is_a_413(keyed: LiveServer) -> None:
    big = chat_body(messages=[{"role": "user", "content": "x" * 30_000}])
    answer = keyed.http.post(CHAT, json=big)
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "invalid_request_error"
    # Said, but not sent.
    assert raw(keyed, post_head("Content-Length: 20001"))[0] == 413
    assert keyed.http.post(CHAT, json=chat_body()).status_code == 200


def test_chunks_above_the_limit_are_a_413(keyed: LiveServer) -> None:
    def chunks() -> Iterator[bytes]:
        yield json.dumps(chat_body()).encode()
        yield b" " * 25_000

    assert keyed.http.post(CHAT, content=chunks()).status_code == 413

    def few() -> Iterator[bytes]:
        yield from (bytes([byte]) for byte in json.dumps(chat_body()).encode())

    answer = keyed.http.post(CHAT, content=few(), headers={"content-type": "application/json"})
    assert answer.status_code == 200


def test_headers_above_the_limit_are_refused(keyed: LiveServer) -> None:
    status, _ = raw(keyed, post_head("Content-Length: 2", "X-Long: " + "x" * 10_000), b"{}")
    assert status in (400, 431)
    assert raw(keyed, b"GET /" + b"x" * 10_000)[0] in (400, 431)


def test_a_body_that_does_not_come_is_a_408(keyed: LiveServer) -> None:
    began = time.monotonic()
    assert raw(keyed, post_head("Content-Length: 100"), b"{")[0] == 408
    assert 0.25 < time.monotonic() - began < 10
    # Nor does one that comes byte by byte hold the connection longer.
    assert raw(keyed, post_head("Content-Length: 100"), *[b" "] * 5, pause=0.1)[0] == 408


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "localhost:123", "LOCALHOST", "127.0.0.1:80"]
)
def test_own_names_are_answered(keyed: LiveServer, host: str) -> None:
    assert keyed.http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.nip.io", "[::2]", "", "["],
)
def test_other_names_are_not(keyed: LiveServer, protected: LiveServer, host: str) -> None:
    for path in ("/health", "/", "/v1/models"):
        answer = keyed.http.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_host")
    assert protected.http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nothing", "/health", "/metrics"])
def test_every_answer_has_security_headers(keyed: LiveServer, path: str) -> None:
    for answer in (keyed.http.get(path), bare(keyed, path), keyed.http.post(path)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
    ids = {keyed.http.get(path).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_errors_of_the_framework_have_the_same_shape(keyed: LiveServer) -> None:
    missing, wrong = keyed.http.get("/v1/nothing"), keyed.http.get(CHAT)
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert wrong.headers["allow"] == "POST"
    for answer in (missing, wrong):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def secret(text: str) -> dict[str, Any]:
    return chat_body(messages=[{"role": "user", "content": text}], max_tokens=6)


def written(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server wrote; the client in the same process writes down what it likes."""
    own = ("navtoken", "uvicorn.error", "asyncio", "root", "fastapi", "starlette")
    return [record.getMessage() for record in caplog.records if record.name.startswith(own)]


def test_logs_hold_no_prompt(embedded: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        text = embedded.http.post(CHAT, json=secret("xyzzy")).json()["choices"][0]["message"]["content"]
        embedded.events(CHAT, secret("xyzzy"))
        embedded.http.post(CHAT, json=secret("xyzzy") | {"xyzzy": 1})
        embedded.http.post(CHAT, json=secret("xyzzy") | {"model": "xyzzy"})
        embedded.http.get("/xyzzy")
    lines = written(caplog)
    assert text and not any("xyzzy" in line or text in line for line in lines)
    (own,) = [line for line in lines if CHAT in line and " 200 " in line][:1]
    assert "xyzzy" not in own


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_written_down_where_asked_for(
    keyed: LiveServer, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    with caplog.at_level(logging.INFO, "navtoken.serving"):
        answer = keyed.http.post(CHAT, json=secret("a\nb") | {"n": 2, "stream": stream})
        whole = keyed.http.post(CHAT, json=secret("a\nb") | {"n": 2}).json()
        keyed.wait_until_idle()
    (line,) = [
        line for line in written(caplog) if "prompts" in line and answer.headers["x-request-id"] in line
    ]
    told = json.loads(line.split(" ", 1)[1])
    assert told["prompts"] == ["<|user|>a\nb<|assistant|>"]
    assert told["responses"] == [choice["message"]["content"] for choice in whole["choices"]]
    assert "\n" not in line
    assert not any(KEY in line for line in written(caplog))


def test_completions_are_written_down_too(keyed: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "navtoken.serving"):
        body = {"model": "navtoken", "prompt": ["one", "two"], "echo": True, "logprobs": 0, "temperature": 0}
        keyed.http.post("/v1/completions", json=body | {"max_tokens": 0})
        told = keyed.http.post("/v1/completions", json=body | {"max_tokens": 3, "n": 2}).json()["choices"]
    lines = [json.loads(line.split(" ", 1)[1]) for line in written(caplog) if "prompts" in line]
    assert lines[0] == {"prompts": ["one", "two"], "responses": []}
    assert lines[1]["prompts"] == ["one", "two"]
    assert lines[1]["responses"] == [choice["text"][3:] for choice in told]
