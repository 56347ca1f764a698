"""The client against a real server that fails in every way that servers do."""

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from fake_endpoint import FakeEndpoint, Reply, Seen, chat, free_port
from navtoken.labeling.openai_client import (
    KEY_ENV,
    BadAnswerError,
    Endpoint,
    EndpointError,
    EndpointOptionError,
    EndpointOptions,
    RequestError,
    _retry_after,
    first_choice,
)

CHAT = "chat/completions"


@pytest.fixture(autouse=True)
def _no_key_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def endpoint(url: str, **changes: Any) -> Endpoint:
    return Endpoint(EndpointOptions(url, "m", **({"backoff": 0.01, "concurrency": 4} | changes)))


def content(answer: dict[str, Any]) -> str:
    message = first_choice(answer).get("message")
    if not isinstance(message, dict):
        raise BadAnswerError("no message")
    return str(message["content"])


def bodies(number: int) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((index, {"index": index}) for index in range(number))


def test_every_request_ends_in_its_own_answer_through_faults_that_pass() -> None:
    faults = [
        Reply("busy", 429),
        Reply({"error": {"message": "oh"}}, 500),
        Reply(drop=True),
        Reply("<html>a proxy's page</html>"),
        Reply({"choices": []}),
        Reply([1, 2]),
        Reply({"detail": "later"}, 503, {"retry-after": "0"}),
    ]
    tries: Counter[int] = Counter()

    def answer(seen: Seen) -> Reply:
        index = seen.body["index"]
        tries[index] += 1
        return faults[index % len(faults)] if tries[index] == 1 else chat(f"answer {index}")

    with FakeEndpoint(answer) as server, endpoint(server.url) as asked:
        answers = dict(asked.answers(CHAT, bodies(14), content))
        assert answers == {index: f"answer {index}" for index in range(14)}
        assert set(tries.values()) == {2}
        costs = asked.costs
        assert (costs.requests, costs.retries, costs.failures) == (14, 14, 0)
        assert (costs.prompt_tokens, costs.completion_tokens) == (140, 28)
        assert {seen.path for seen in server.seen} == {"/v1/chat/completions"}


def test_retries_end_and_the_request_alone_is_lost() -> None:
    def answer(seen: Seen) -> Reply:
        return Reply("no", 500) if seen.body["index"] == 3 else chat("yes")

    with FakeEndpoint(answer) as server, endpoint(server.url, retries=2) as asked:
        answers = dict(asked.answers(CHAT, bodies(6), content))
        lost = answers.pop(3)
        assert isinstance(lost, RequestError) and "after 2 retries" in str(lost) and "500" in str(lost)
        assert set(answers.values()) == {"yes"}
        assert sum(seen.body["index"] == 3 for seen in server.seen) == 3
        assert asked.costs.failures == 1


def test_a_request_that_the_server_will_not_take_is_not_repeated() -> None:
    with (
        FakeEndpoint(lambda seen: Reply({"error": {"message": "context of 4096 exceeded"}}, 400)) as server,
        endpoint(server.url) as asked,
    ):
        with pytest.raises(RequestError, match="context of 4096 exceeded"):
            asked.ask(CHAT, {}, content)
        assert len(server.seen) == 1


def test_retry_after_holds_all_requests_back() -> None:
    def answer(seen: Seen) -> Reply:
        first = seen is server.seen[0]
        return Reply("slow down", 429, {"retry-after": "0.4"}) if first else chat("ok")

    with FakeEndpoint(answer) as server, endpoint(server.url, concurrency=2) as asked:
        answers = dict(asked.answers(CHAT, bodies(8), content))
        assert set(answers.values()) == {"ok"}
        refused = server.seen[0].at
        # At most the one that was under way with it.
        assert sum(0 < seen.at - refused < 0.4 for seen in server.seen) <= 1


def test_retry_after_is_seconds_or_a_date() -> None:
    assert _retry_after("2.5") == 2.5
    assert _retry_after(None) is None
    assert _retry_after("soon") is None
    assert _retry_after("-1") == 0.0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert _retry_after(soon) == pytest.approx(30, abs=2)


def test_a_server_that_wants_a_day_of_rest_ends_the_run() -> None:
    with (
        FakeEndpoint(lambda seen: Reply("quota", 429, {"retry-after": "86400"})) as server,
        endpoint(server.url) as asked,
        pytest.raises(EndpointError, match="86400 s"),
    ):
        asked.ask(CHAT, {}, content)


@pytest.mark.parametrize("reply", [Reply("late", delay=1.5), Reply("", trickle=True)])
def test_the_deadline_is_for_the_whole_answer(reply: Reply) -> None:
    with FakeEndpoint(lambda seen: reply) as server, endpoint(server.url, timeout=0.2, retries=1) as asked:
        started = time.monotonic()
        with pytest.raises(RequestError, match=r"no answer in 0\.2 s"):
            asked.ask(CHAT, {}, content)
        assert 0.4 <= time.monotonic() - started < 1.4
        assert len(server.seen) == 2


def test_no_more_requests_at_once_than_allowed() -> None:
    with (
        FakeEndpoint(lambda seen: Reply(chat("ok").body, delay=0.03)) as server,
        endpoint(server.url, concurrency=3) as asked,
    ):
        assert len(list(asked.answers(CHAT, bodies(15), content))) == 15
        assert server.most_at_once == 3


def test_asked_is_read_as_slots_become_free() -> None:
    read: list[int] = []

    def many() -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(1000):
            read.append(index)
            yield index, {}

    with FakeEndpoint(lambda seen: chat("ok")) as server, endpoint(server.url) as asked:
        answers = asked.answers(CHAT, many(), content)
        next(answers)
        assert len(read) <= 16
        answers.close()


@pytest.mark.parametrize(
    ("status", "words"), [(401, KEY_ENV), (403, KEY_ENV), (404, "model's name"), (307, "elsewhere")]
)
def test_what_concerns_all_requests_is_raised(status: int, words: str) -> None:
    reply = Reply({"error": {"message": "refused"}}, status, {"location": "http://elsewhere/v1"})
    with FakeEndpoint(lambda seen: reply) as server, endpoint(server.url) as asked:
        with pytest.raises(EndpointError, match=words):
            list(asked.answers(CHAT, bodies(5), content))
        assert asked.costs.retries == 0


def test_an_endpoint_that_is_gone_ends_the_run() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with endpoint(url, retries=1) as asked, pytest.raises(EndpointError, match="4 requests in a row"):
        for _, answer in asked.answers(CHAT, bodies(50), content):
            assert isinstance(answer, RequestError)


def test_answers_in_between_keep_an_endpoint_alive() -> None:
    def answer(seen: Seen) -> Reply:
        return chat("ok") if seen.body["index"] % 3 == 0 else Reply("no", 500)

    with FakeEndpoint(answer) as server, endpoint(server.url, retries=0, concurrency=1) as asked:
        answers = [answer for _, answer in asked.answers(CHAT, bodies(30), content)]
        assert answers.count("ok") == 10 and asked.costs.failures == 20


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint(lambda seen: Reply("no", 401)) as server:
        with endpoint(server.url) as asked, pytest.raises(EndpointError):
            asked.ask(CHAT, {}, content)
        assert "authorization" not in server.seen[-1].headers
        monkeypatch.setenv(KEY_ENV, " secret-1 \n")
        with endpoint(server.url) as asked, pytest.raises(EndpointError) as raised:
            asked.ask(CHAT, {}, content)
        assert server.seen[-1].headers["authorization"] == "Bearer secret-1"
        assert "secret-1" not in str(raised.value) and "secret-1" not in str(asked.summary())
        monkeypatch.setenv("OTHER", "secret-2")
        with endpoint(server.url, key_env="OTHER") as asked, pytest.raises(EndpointError):
            asked.ask(CHAT, {}, content)
        assert server.seen[-1].headers["authorization"] == "Bearer secret-2"


def test_a_key_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    with pytest.raises(EndpointOptionError, match="no ABSENT"):
        endpoint("http://localhost/v1", key_env="ABSENT")
    monkeypatch.setenv(KEY_ENV, "schlüssel")
    with pytest.raises(EndpointOptionError, match="no API key has") as raised:
        endpoint("http://localhost/v1")
    assert "schl" not in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://", "", "http://[::1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(EndpointOptionError, match="write http://HOST:PORT/v1"):
        EndpointOptions(url, "m")


@pytest.mark.parametrize("url", ["http://me:hidden@host/v1", "http://host/v1?api_key=hidden"])
def test_addresses_hold_no_keys(url: str) -> None:
    with pytest.raises(EndpointOptionError, match="environment") as raised:
        EndpointOptions(url, "m")
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "changes", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0.0}, {"backoff": -1.0}, {"price_in": -1.0}]
)
def test_options_out_of_range(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(EndpointOptionError, match=name):
        EndpointOptions("http://localhost/v1", "m", **changes)


def test_the_summary_has_the_price() -> None:
    with (
        FakeEndpoint(lambda seen: chat("ok", 1000, 100)) as server,
        endpoint(server.url, price_in=2.0, price_out=10.0) as asked,
    ):
        list(asked.answers(CHAT, bodies(5), content))
        summary = asked.summary()
        assert summary["price"] == pytest.approx((5 * 1000 * 2.0 + 5 * 100 * 10.0) / 1e6)
        assert (summary["requests"], summary["model"], summary["url"]) == (5, "m", server.url)


def test_no_prices_no_price() -> None:
    with endpoint("http://localhost/v1") as asked:
        assert "price" not in asked.summary()


def test_an_answer_without_usage_is_counted_by_requests() -> None:
    with (
        FakeEndpoint(
            lambda seen: Reply({"choices": [{"message": {"content": "ok"}}], "usage": None})
        ) as server,
        endpoint(server.url) as asked,
    ):
        assert asked.ask(CHAT, {}, content) == "ok"
        assert (asked.costs.requests, asked.costs.prompt_tokens) == (1, 0)


def test_closing_ends_what_is_under_way() -> None:
    def answer(seen: Seen) -> Reply:
        return chat("ok") if seen.body["index"] == 0 else Reply("never", delay=3.0)

    with FakeEndpoint(answer) as server:
        asked = endpoint(server.url)
        answers = asked.answers(CHAT, bodies(4), content)
        assert next(answers) == (0, "ok")
        started = time.monotonic()
        asked.close()
        asked.close()
        answers.close()
        assert time.monotonic() - started < 2.0
        with pytest.raises(EndpointError, match="closed"):
            asked.ask(CHAT, {}, content)
