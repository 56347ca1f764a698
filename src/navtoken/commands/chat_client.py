"""The side of `navtoken chat` that talks to a server: one question's answer, token by token, with who wrote which.

There is no second way: for a local pair the server runs in this process, on a free port and under a key that nobody else has.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

import httpx2
from pydantic import ValidationError

from navtoken.checkpoints import ModelPair
from navtoken.commands.serve import ServeOptions, make_server
from navtoken.labeling.openai_client import EndpointOptionError, EndpointOptions
from navtoken.serving.answers import Navigation, PairAnswer, TokenDetail
from navtoken.serving.listener import listening_in_thread

ALTERNATIVES = 5
_TEXTS = ("reasoning_content", "content")
READ_SECONDS = 600.0
QUOTED = 300
"""Characters of a server's words that are repeated."""
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""Sequences of which more than the escape character is to go."""
_VERSION = re.compile(r"/v\d\w*(/|$)")


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
        """`base` is the server's address, with or without its version; `proxies` heeds those of the environment. Raises
        `ChatError`."""
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ChatError("the key in NAVTOKEN_API_KEY has characters that no key has")
        try:
            EndpointOptions(base, model or "the first")
        except EndpointOptionError as error:
            raise ChatError(str(error)) from error
        # Other versions have other names: /v1beta/openai, /api/v4.
        address = base.rstrip("/") + ("" if _VERSION.search(httpx2.URL(base).path) else "/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx2.Timeout(30.0, read=READ_SECONDS)
        self._http = httpx2.Client(base_url=address, headers=headers, timeout=timeout, trust_env=proxies)
        self.pair: PairAnswer | None = self._pair()
        """What a server of ours says of its pair; None for others."""
        self.model = model or self._first_model()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, messages: Sequence[Mapping[str, str]], settings: Settings) -> Iterator[Part]:
        """Stream an answer. Raises `ChatError`; whoever stops listening ends it at the server, too."""
        # What was typed in another encoding, and what a server made of half a character, cannot be sent as it is.
        body = json.dumps(self._body(messages, settings), ensure_ascii=False).encode("utf-8", "replace")
        headers = {"content-type": "application/json"}
        try:
            with self._http.stream("POST", "/chat/completions", content=body, headers=headers) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise ChatError(_refusal(answer))
                yield from self._parts(answer)
        except httpx2.HTTPError as error:
            raise ChatError(f"the server went away ({type(error).__name__})") from error

    def _parts(self, answer: httpx2.Response) -> Iterator[Part]:
        finished = False
        for data in _events(answer.iter_bytes()):
            if data == "[DONE]":
                return
            event = _object(data)
            if event.get("error") is not None:
                raise ChatError(_said(event))
            choices = event.get("choices") or []
            if not isinstance(choices, list):
                raise ChatError(f"the server's answer has no choices: {cleaned(data[:QUOTED])!r}")
            for choice in choices:
                part = _part(choice)
                finished = finished or part.finish_reason is not None
                yield part
        # Some servers hang up without a farewell.
        if not finished:
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
        found = self._get("/models")
        try:
            return str(found["data"][0]["id"])
        except (LookupError, TypeError):
            raise ChatError("the server names no model; give --model") from None

    def _pair(self) -> PairAnswer | None:
        answer = self._got("/pair")
        # Not 403: some gateways have that for every path that they do not know.
        if answer.status_code in (401, 503):
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
    """Serve a pair in this process, for one client: address and key are its own. Raises `ChatError`, `OptionError` and
    `ServingError`."""
    own = replace(options.server, host="127.0.0.1", port=0, api_key=secrets.token_hex(16), allowed_hosts=())
    server = make_server(replace(options, server=own), pair)
    with (
        listening_in_thread(server) as listener,
        ChatClient(listener.address, own.key, proxies=False) as client,
    ):
        yield client


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


def _events(parts: Iterable[bytes]) -> Iterator[str]:
    """The data of a stream's events, which may take several lines."""
    data: list[str] = []
    for number, line in enumerate(chain(_lines(parts), ("",))):
        field, _, value = (line if number else line.removeprefix("\ufeff")).partition(":")
        if field == "data":
            data.append(value.strip())
        elif not line and data:
            yield "\n".join(data)
            data.clear()


def _part(choice: object) -> Part:
    delta = choice.get("delta") or {} if isinstance(choice, dict) else None
    if not (isinstance(choice, dict) and isinstance(delta, dict)):
        raise ChatError(f"the server's answer has no text: {cleaned(str(choice)[:QUOTED])!r}")
    text, finished = [delta.get(name) or "" for name in _TEXTS], choice.get("finish_reason")
    if not all(isinstance(each, str) for each in (*text, finished or "")):
        raise ChatError(f"the server's answer has no text: {cleaned(str(choice)[:QUOTED])!r}")
    try:
        told = None if choice.get("navtoken") is None else Navigation.model_validate(choice["navtoken"])
    except ValidationError as error:
        raise ChatError(
            "the server's tokens are not as this version knows them; take the same version"
        ) from error
    tokens = (told.tokens if told else None) or ()
    return Part("".join(text), tokens, told if finished else None, finished or None)


def _object(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ChatError(f"the server does not speak JSON: {cleaned(text[:QUOTED])!r}") from None
    if not isinstance(found, dict):
        raise ChatError(f"the server sent no object: {cleaned(text[:QUOTED])!r}")
    return found


def _said(body: Mapping[str, Any]) -> str:
    """A server's own words, in one line."""
    error = body.get("error", body)
    words = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(cleaned(str(words)[:QUOTED]).split())


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
    except (ValueError, RecursionError):
        body = None
    said = body if isinstance(body, dict) else {"error": answer.text}
    return f"the server answers {status}: {_said(said)}"
