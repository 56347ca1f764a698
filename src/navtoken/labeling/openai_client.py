"""Asking an OpenAI-compatible endpoint many things at once, for hours, without losing what was paid for.

One event loop in a thread of its own holds all requests: they share a concurrency limit, a pause that the server asks for, and
one deadline each that also ends an answer that trickles. Callers stay synchronous: keyed bodies go in, keyed answers come
out as they arrive.

Trouble comes in two kinds. A request that still fails after its retries, or that the server will not take as it is,
is a `RequestError`: a value, the caller's to count. A refused key, an unknown model, an endpoint that is gone concern
every request to come: `EndpointError`, raised, so that a run stops instead of going on for nothing.

The key is read from the environment and never from a reference or an option, both of which are recorded.
"""

import asyncio
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from threading import Thread
from time import monotonic
from typing import Any, Self, TypeVar

import httpx2

KEY_ENV = "NAVTOKEN_API_KEY"
"""Variable of the environment that holds the key where no other is named; without it none is sent."""
LONGEST_WAIT = 600.0
"""Seconds. A server that asks to be left alone for longer (a quota of the day) ends the run."""
LONGEST_BACKOFF = 30.0
FEWEST_FAILURES = 4
"""So many requests must fail in a row, and as many as there are at once, for an endpoint to count as gone."""
QUOTED = 300
"""Characters of a server's words that a message repeats."""
PASSING = frozenset((408, 409, 425, 429))
"""Statuses below 500 that another try may change."""
OF_THE_REQUEST = frozenset((400, 413, 422))
"""Statuses that say something of one request (too long, say), not of the endpoint."""

K = TypeVar("K")
T = TypeVar("T")
Body = dict[str, Any]
Job = Coroutine[Any, Any, T]


class EndpointOptionError(ValueError):
    """An address or option of an endpoint that cannot be used."""


class EndpointError(ConnectionError):
    """The endpoint as a whole does not serve: a refused key, an unknown model, nobody there."""


class RequestError(ConnectionError):
    """One request that got no answer."""


class BadAnswerError(ValueError):
    """An answer that lacks what was asked for."""


@dataclass(frozen=True)
class EndpointOptions:
    """Where an endpoint is, and how hard it is asked."""

    url: str
    """Address up to and with the version: http://localhost:8000/v1."""
    model: str
    """The model's name there."""
    key_env: str | None = None
    """Variable of the environment that holds the API key; None is NAVTOKEN_API_KEY, where that is set."""
    concurrency: int = 16
    """Requests under way at once."""
    retries: int = 6
    """Further tries of a request that failed for a reason that may pass."""
    timeout: float = 600.0
    """Seconds within which an answer must be complete: it is not streamed, so a long one takes its whole time."""
    backoff: float = 0.5
    """Seconds before the first retry, doubled for each further one, with some chance in it."""
    price_in: float = 0.0
    """Price of a million prompt tokens, in any currency."""
    price_out: float = 0.0
    """Price of a million completion tokens."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not self.model:
            raise EndpointOptionError(f"no model is named for {self.url}; name the one that it serves")
        for name, least in (("concurrency", 1), ("retries", 0), ("price_in", 0.0), ("price_out", 0.0)):
            if not getattr(self, name) >= least:
                raise EndpointOptionError(f"{name} is {getattr(self, name)}; give at least {least}")
        for name in ("timeout", "backoff"):
            if not getattr(self, name) > 0:
                raise EndpointOptionError(f"{name} is {getattr(self, name)}; give seconds above 0")

    def key(self) -> str | None:
        """The API key. Raises `EndpointOptionError` where a variable is named and is not set."""
        key = os.environ.get(self.key_env or KEY_ENV, "").strip()
        if self.key_env and not key:
            raise EndpointOptionError(f"the environment has no {self.key_env}; set it to the API key")
        if not (key.isascii() and key.isprintable()):
            raise EndpointOptionError(f"{self.key_env or KEY_ENV} holds characters that no API key has")
        return key or None


def _check_url(url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise EndpointOptionError(f"'{url}' is no address ({error}); write http://HOST:PORT/v1") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EndpointOptionError(f"'{url}' is no address of an endpoint; write http://HOST:PORT/v1")
    if parsed.userinfo or parsed.query:
        # Not repeated: what is in it may be a key.
        raise EndpointOptionError(
            f"the address of {parsed.host} holds a name, a password or a query, and addresses are recorded; keep keys in the "
            "environment"
        )


@dataclass
class Costs:
    """What an endpoint was asked, and what it says that took. Tries that failed may have been charged all the same."""

    requests: int = 0
    """Answered."""
    retries: int = 0
    """Tries again."""
    failures: int = 0
    """Requests given up."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, usage: object) -> None:
        """Count an answer by its `usage`; endpoints that send none are counted by requests alone."""
        self.requests += 1
        if isinstance(usage, Mapping):
            self.prompt_tokens += _count(usage.get("prompt_tokens"))
            self.completion_tokens += _count(usage.get("completion_tokens"))


class Endpoint:
    """An OpenAI-compatible endpoint and the requests to it. A context manager; `close` ends what is under way."""

    def __init__(self, options: EndpointOptions) -> None:
        """Raises `EndpointOptionError` for a key that is missing. Nothing is sent yet."""
        self.options = options
        self.costs = Costs()
        key = options.key()
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(options.timeout, pool=None),
            limits=httpx2.Limits(max_connections=options.concurrency),
        )
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(options.concurrency)
        self._quiet_until = 0.0
        self._failed_in_a_row = 0
        self._closed = False
        # A daemon: leaving the program must not wait for a server.
        self._thread = Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def run(self, jobs: Iterable[tuple[K, Job[T]]]) -> Iterator[tuple[K, T | RequestError]]:
        """Run keyed jobs, which `post`; yields what they return as they end, or the `RequestError` that ended one.

        `jobs` is read as slots become free. Raises `EndpointError`, and what else a job raises; the other jobs end with it.
        """
        jobs = iter(jobs)
        flying: dict[Future[T], K] = {}
        try:
            while True:
                for key, job in islice(jobs, 2 * self.options.concurrency - len(flying)):
                    flying[self._submit(job)] = key
                if not flying:
                    return
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    answer = _outcome(future)
                    yield flying.pop(future), answer
        finally:
            for future in flying:
                future.cancel()

    def answers(
        self, path: str, asked: Iterable[tuple[K, Body]], read: Callable[[Body], T]
    ) -> Iterator[tuple[K, T | RequestError]]:
        """Post keyed bodies to `path`: `run` with one request to a job."""
        return self.run((key, self.post(path, body, read)) for key, body in asked)

    def ask(self, path: str, body: Body, read: Callable[[Body], T]) -> T:
        """One request. Raises `RequestError` and `EndpointError`."""
        ((_, answer),) = self.answers(path, [(None, body)], read)
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def post(self, path: str, body: Body, read: Callable[[Body], T]) -> T:
        """What `read` makes of the answer, after as many tries as it takes and is allowed: for use in jobs.

        `read` raises `BadAnswerError` for an answer without what it needs: that is tried again too. Raises
        `RequestError` and `EndpointError`.
        """
        async with self._slots:
            for attempt in range(self.options.retries + 1):
                await self._pause()
                try:
                    sent = await self._sent(path, body)
                    answer = read(sent)
                except (_Trouble, BadAnswerError) as trouble:
                    last: Exception = trouble
                else:
                    self._failed_in_a_row = 0
                    self.costs.add(sent.get("usage"))
                    return answer
                if isinstance(last, _Trouble) and last.final:
                    # The endpoint is there: it looked at the request.
                    self._failed_in_a_row = 0
                    raise self._failed(str(last))
                if attempt < self.options.retries:
                    self.costs.retries += 1
                    await self._back_off(attempt, last)
            raise self._given_up(str(last))

    def summary(self) -> dict[str, Any]:
        """Costs so far, JSON-serialisable; `price` where prices were given."""
        counts: dict[str, Any] = {"url": self.options.url, "model": self.options.model, **vars(self.costs)}
        if self.options.price_in or self.options.price_out:
            prompt, completion = self.costs.prompt_tokens, self.costs.completion_tokens
            price = prompt * self.options.price_in + completion * self.options.price_out
            counts["price"] = round(price / 1e6, 6)
        return counts

    def close(self) -> None:
        """End what is under way, and let go of all connections."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _submit(self, job: Job[T]) -> Future[T]:
        if self._closed:
            job.close()
            raise EndpointError(f"{self.options.url} is closed already; open another endpoint")
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _sent(self, path: str, body: Body) -> Body:
        """One try. Raises `_Trouble`, and `EndpointError` for what no try can mend."""
        url = f"{self.options.url.rstrip('/')}/{path}"
        try:
            async with asyncio.timeout(self.options.timeout):
                response = await self._client.post(url, json=body)
        except TimeoutError as error:
            raise _Trouble(f"no answer in {self.options.timeout:g} s") from error
        except httpx2.HTTPError as error:
            raise _Trouble(f"{type(error).__name__}: {error}") from error
        if response.is_success:
            return _decoded(response)
        said = f"status {response.status_code}: {_said(response)}"
        if response.status_code in OF_THE_REQUEST:
            raise _Trouble(said, final=True)
        if response.status_code in PASSING or response.status_code >= 500:
            raise _Trouble(said, wait=_retry_after(response.headers.get("retry-after")))
        raise EndpointError(f"{url} with model '{self.options.model}' answers {said}; {_remedy(response)}")

    async def _pause(self) -> None:
        """Wait while the server wants to be left alone."""
        while (left := self._quiet_until - monotonic()) > 0:
            await asyncio.sleep(left)

    async def _back_off(self, attempt: int, trouble: Exception) -> None:
        asked = trouble.wait if isinstance(trouble, _Trouble) else None
        if asked is not None and asked > LONGEST_WAIT:
            raise EndpointError(
                f"{self.options.url} asks to be left alone for {asked:.0f} s ({trouble}); run the same again later to go on"
            )
        # Chance parts those who failed together.
        delay = min(LONGEST_BACKOFF, self.options.backoff * 2**attempt) * random.uniform(0.5, 1.0)
        if asked is not None:
            self._quiet_until = max(self._quiet_until, monotonic() + asked)
            delay = max(delay, asked)
        await asyncio.sleep(delay)

    def _failed(self, why: str) -> RequestError:
        self.costs.failures += 1
        return RequestError(f"{self.options.url}: {why}")

    def _given_up(self, why: str) -> RequestError:
        """A request whose tries are used up; raises `EndpointError` once they all are, one after another."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(FEWEST_FAILURES, self.options.concurrency):
            raise EndpointError(
                f"{self.options.url}: {self._failed_in_a_row} requests in a row failed after {self.options.retries} retries "
                f"each, the last with {why}; see to the endpoint, then run the same again to go on"
            )
        return self._failed(f"{why}, after {self.options.retries} retries")


class _Trouble(Exception):
    """A try that failed."""

    def __init__(self, why: str, final: bool = False, wait: float | None = None) -> None:
        """`final`: no further try will do better. `wait`: seconds for which the server asked to be left alone."""
        super().__init__(why)
        self.final = final
        self.wait = wait


def _outcome(future: Future[T]) -> T | RequestError:
    try:
        return future.result()
    except RequestError as error:
        return error
    except CancelledError as error:
        raise EndpointError("the endpoint was closed while requests were under way") from error


def first_choice(answer: Body) -> Body:
    """The first of an answer's choices. Raises `BadAnswerError`."""
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise BadAnswerError(f"the answer has no choices: {str(answer)[:QUOTED]}")
    choice: Body = choices[0]
    return choice


def _decoded(response: httpx2.Response) -> Body:
    try:
        answer = response.json()
    except ValueError as error:
        raise _Trouble(f"an answer that is no JSON: {response.text[:QUOTED]!r}") from error
    if not isinstance(answer, dict):
        raise _Trouble(f"an answer that is no object: {str(answer)[:QUOTED]}")
    return answer


def _said(response: httpx2.Response) -> str:
    """The server's own words."""
    try:
        answer = response.json()
    except ValueError:
        return " ".join(response.text[:QUOTED].split())
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:QUOTED]


def _remedy(response: httpx2.Response) -> str:
    if response.status_code in (401, 403):
        return f"set {KEY_ENV}, or the variable that key_env names, to a key that it takes"
    if response.is_redirect:
        return f"give the address that it points to: {response.headers.get('location')}"
    return "check the address (it ends in /v1 as a rule) and the model's name"


def _retry_after(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
