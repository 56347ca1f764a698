"""The side of `navtoken chat` that talks to a server: one question's answer, token by token, with who wrote which.

There is no second way: for a local pair the server runs in this process, on a free port and under a key that nobody else has.
"""

import json
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import httpx2
import uvicorn
from pydantic import ValidationError

from navtoken.checkpoints import ModelPair
from navtoken.commands.serve import ServeOptions, make_server
from navtoken.serving.answers import Navigation, PairAnswer, TokenDetail
from navtoken.serving.app import create_app

ALTERNATIVES = 5
START_SECONDS = 60.0
READ_SECONDS = 600.0
QUOTED = 300
"""Characters of a server's words that are repeated."""
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""Sequences of which more than the escape character is to go."""


class ChatError(ConnectionError):
    """What keeps a question from being answered."""


@dataclass(frozen=True)
class Settings:
    """How a question is asked."""

    policy: str | None = None
    threshold: float | None = None
    system: str | None = None
    temperature: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Part:
    """What an event adds: tokens where the server tells them, else text alone."""

    text: str
    tokens: Sequence[TokenDetail] = ()
    summary: Navigation | None = None
    """At the end, from a server of ours."""
    finish_reason: str | None = None


class ChatClient:
    """One server, and one model of it."""

    def __init__(
        self, base: str, key: str | None = None, model: str | None = None, proxies: bool = True
    ) -> None:
        """`base` is the server's address, with or without /v1; `proxies` heeds those of the environment. Raises `ChatError`."""
        if key is not None and not key.isascii():
            raise ChatError("the key in NAVTOKEN_API_KEY has characters that no key has")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        address = base.rstrip("/").removesuffix("/v1")
        timeout = httpx2.Timeout(30.0, read=READ_SECONDS)
        try:
            self._http = httpx2.Client(base_url=address, headers=headers, timeout=timeout, trust_env=proxies)
        except httpx2.InvalidURL as error:
            raise ChatError(
                f"'{base}' is no address ({error}); give one like http://127.0.0.1:8000"
            ) from error
        self.pair: PairAnswer | None = self._pair()
        """What a server of ours says of its pair; None for others."""
        self.model = model or self._first_model()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, messages: Sequence[Mapping[str, str]], settings: Settings) -> Iterator[Part]:
        """Stream an answer. Raises `ChatError`; whoever stops listening ends it at the server, too."""
        try:
            with self._http.stream(
                "POST", "/v1/chat/completions", json=self._body(messages, settings)
            ) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise ChatError(_refusal(answer))
                yield from self._parts(answer)
        except httpx2.HTTPError as error:
            raise ChatError(f"the server went away ({type(error).__name__})") from error

    def _parts(self, answer: httpx2.Response) -> Iterator[Part]:
        for line in _lines(answer.iter_bytes()):
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            event = _object(data)
            if "error" in event:
                raise ChatError(cleaned(_message(event)))
            for choice in event.get("choices") or ():
                yield _part(choice)
        raise ChatError("the connection ended before the answer did")

    def _body(self, messages: Sequence[Mapping[str, str]], settings: Settings) -> dict[str, Any]:
        system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *messages],
            "stream": True,
            "temperature": settings.temperature,
        }
        optional: dict[str, Any] = {"seed": settings.seed, "max_tokens": settings.max_tokens}
        if self.pair is not None:
            optional |= {"policy": settings.policy, "threshold": settings.threshold}
            top = min(ALTERNATIVES, self.pair.max_top_logprobs)
            body |= {"token_details": True, "logprobs": True, "top_logprobs": top}
        return body | {name: value for name, value in optional.items() if value is not None}

    def _first_model(self) -> str:
        found = self._get("/v1/models")
        try:
            return str(found["data"][0]["id"])
        except (LookupError, TypeError):
            raise ChatError("the server names no model; give --model") from None

    def _pair(self) -> PairAnswer | None:
        answer = self._got("/v1/pair")
        if answer.status_code in (401, 403, 503):
            raise ChatError(_refusal(answer))
        try:
            return PairAnswer.model_validate_json(answer.content) if answer.status_code == 200 else None
        except ValidationError:
            return None

    def _get(self, path: str) -> Any:
        answer = self._got(path)
        if answer.status_code != 200:
            raise ChatError(_refusal(answer))
        return _object(answer.text)

    def _got(self, path: str) -> httpx2.Response:
        try:
            return self._http.get(path)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ChatError(
                f"nobody answers at {self._http.base_url} ({type(error).__name__}); check --url"
            ) from error


@contextmanager
def local_server(options: ServeOptions, pair: ModelPair) -> Iterator[ChatClient]:
    """Serve a pair in this process, for one client: address and key are its own."""
    own = replace(options.server, host="127.0.0.1", port=0, api_key=secrets.token_hex(16), allowed_hosts=())
    server = make_server(replace(options, server=own), pair)
    config = uvicorn.Config(
        create_app(server), host=own.host, port=0, http="h11", ws="none", access_log=False, log_config=None
    )
    running = _Uncaught(config)
    thread = threading.Thread(target=running.run, name="server", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not running.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ChatError("the server in this process did not start")
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        with ChatClient(f"http://{own.host}:{port}", own.key, proxies=False) as client:
            yield client
    finally:
        running.should_exit = True
        thread.join(10)


class _Uncaught(uvicorn.Server):
    """Leaves Ctrl-C to whoever reads from the terminal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def cleaned(text: str) -> str:
    """A server's text without what a terminal would take for commands, or what turns its direction."""
    return "".join(each for each in _CONTROL.sub("", text) if each.isprintable() or each in "\n\t")


def _lines(parts: Iterable[bytes]) -> Iterator[str]:
    """Lines of a stream. At CR and LF only: other ends of lines that Unicode knows may stand within JSON."""
    held = b""
    for part in parts:
        *whole, held = re.split(rb"\r\n|\n|\r(?!\Z)", held + part)
        yield from (line.decode(errors="replace") for line in whole)
    yield held.decode(errors="replace")


def _part(choice: Mapping[str, Any]) -> Part:
    delta = choice.get("delta") or {}
    text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
    try:
        told = None if choice.get("navtoken") is None else Navigation.model_validate(choice["navtoken"])
    except ValidationError as error:
        raise ChatError(
            "the server's tokens are not as this version knows them; take the same version"
        ) from error
    finished = choice.get("finish_reason")
    tokens = (told.tokens if told else None) or ()
    return Part(str(text), tokens, told if finished else None, finished)


def _object(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        raise ChatError(f"the server does not speak JSON: {cleaned(text[:QUOTED])!r}") from None
    if not isinstance(found, dict):
        raise ChatError(f"the server sent no object: {cleaned(text[:QUOTED])!r}")
    return found


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    return str(said)[:QUOTED]


def _refusal(answer: httpx2.Response) -> str:
    """Why a server does not answer, in one line."""
    status = answer.status_code
    if status == 401:
        return "the server wants another key; set NAVTOKEN_API_KEY"
    if status == 429:
        wait = answer.headers.get("retry-after", "")
        return f"the server is full; try again {f'in {wait} seconds' if wait.isdecimal() else 'later'}"
    try:
        body = json.loads(answer.text)
        said = _message(body) if isinstance(body, dict) else answer.text[:QUOTED]
    except ValueError:
        said = answer.text[:QUOTED]
    return f"the server answers {status}: {' '.join(cleaned(said).split())}"
