"""Streams as clients meet them: their shape, characters that are never cut, silence, hanging up, and errors before and within."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from live_server import LiveServer, chat_body, completion_body, embedded_pair, serving
from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.policies.rules import RandomPolicy
from navtoken.serving import listener
from tiny_models import tiny_pair

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}


def test_a_chat_stream_begins_with_the_role_and_ends_as_the_whole_answer_does(embedded: LiveServer) -> None:
    wanted = {"n": 2, "temperature": 1, "seed": 3, "max_tokens": 20, "token_details": True}
    whole = embedded.chat(**wanted).json()
    events = embedded.events(CHAT, chat_body(**wanted, stream_options={"include_usage": True}))
    assert len({event["id"] for event in events}) == 1
    *chunks, last = events
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in chunks)
    for choice in whole["choices"]:
        own = [told for event in chunks for told in event["choices"] if told["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in told["delta"] for told in own[1:])
        assert "".join(told["delta"].get("content", "") for told in own) == choice["message"]["content"]
        assert [told["finish_reason"] for told in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        tokens = [token for told in own if told["navtoken"] for token in told["navtoken"]["tokens"]]
        # Other batches round their figures differently.
        told_of = ("id", "text", "writer")
        assert [[token[name] for name in told_of] for token in tokens] == [
            [token[name] for name in told_of] for token in choice["navtoken"]["tokens"]
        ]
        timeless = {"seconds", "tokens"}
        assert {name: value for name, value in own[-1]["navtoken"].items() if name not in timeless} == {
            name: value for name, value in choice["navtoken"].items() if name not in timeless
        }


def test_usage_comes_on_request_only(embedded: LiveServer) -> None:
    events = embedded.events(CHAT, chat_body())
    assert all(event["choices"] and event["usage"] is None for event in events)


def test_an_echo_comes_before_what_follows_it(embedded: LiveServer) -> None:
    wanted = {"prompt": "Numbers 3 7", "echo": True, "logprobs": 1, "max_tokens": 6}
    whole = embedded.complete(**wanted).json()["choices"][0]
    told = [event["choices"][0] for event in embedded.events(COMPLETIONS, completion_body(**wanted))]
    assert told[0]["text"] == "Numbers 3 7"
    assert "".join(each["text"] for each in told) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for each in told for value in each["logprobs"][name]] == whole["logprobs"][name]


def test_no_chunk_holds_a_part_of_a_character() -> None:
    """A byte-level tokenizer's tokens are parts of characters; a stop string may lie within them."""
    pair = bytewise_pair()
    with serving(pair, policy="llm") as live:
        body = completion_body(prompt=[3, 4, 5], max_tokens=150, temperature=2, seed=4)
        # Special tokens are in the details only.
        body |= {"logit_bias": {"0": -100, "1": -100}}
        whole = live.complete(**body).json()["choices"][0]["text"]
        told = [event["choices"][0]["text"] for event in live.events(COMPLETIONS, body)]
        details = live.complete(**body, token_details=True).json()["choices"][0]["navtoken"]["tokens"]
    assert any(ord(character) > 127 and character != "\ufffd" for character in whole), whole
    assert "".join(told) == whole == "".join(token["text"] for token in details)
    # Only what is no character at all may be replaced, and then as the whole text has it.
    assert sum(text.count("\ufffd") for text in told) == whole.count("\ufffd")


def bytewise_pair() -> ModelPair:
    """A tiny pair each of whose tokens is a byte, most of them of two-byte characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from navtoken.report.pieces import _byte_alphabet

    pair = tiny_pair()
    alphabet = _byte_alphabet()
    bytes_ = [0x61, *range(0xC3, 0xCB), *range(0x80, 0xC0)]
    vocab = {"<bos>": 0, "<eos>": 1} | {alphabet[byte]: 2 + place for place, byte in enumerate(bytes_)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>")
    # New ones: other tests share the tiny pair.
    slm, llm = (LoadedModel(each.model, tokenizer, each.reference) for each in (pair.slm, pair.llm))
    return ModelPair(slm, llm)


def test_silence_is_filled_with_comments(embedded: LiveServer) -> None:
    thread = embedded.server.engine
    step = thread._engine.step  # type: ignore[union-attr]
    thread._engine.step = lambda: (time.sleep(0.5), step())[1]  # type: ignore[union-attr,method-assign]
    try:
        answer = embedded.http.post(CHAT, json=chat_body(stream=True, max_tokens=2))
    finally:
        thread._engine.step = step  # type: ignore[union-attr,method-assign]
    assert answer.text.startswith(": keep-alive\n\n")
    parts = [part for part in answer.text.split("\n\n") if part]
    assert parts[-1] == "data: [DONE]" and parts.count(": keep-alive") >= 2


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_row_at_the_next_step(embedded: LiveServer, stream: bool) -> None:
    written = sum(embedded.server.engine.ledger.written)
    body = json.dumps(chat_body(stream=stream, **LONG)).encode()
    with socket.create_connection(("127.0.0.1", embedded.port)) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until = time.monotonic() + 20
        while not embedded.server.engine.health().num_running:
            assert time.monotonic() < until
            time.sleep(0.005)
    embedded.wait_until_idle(5)
    assert sum(embedded.server.engine.ledger.written) - written < 900
    assert not embedded.server.engine._owners and not embedded.server.engine._in_flight
    pools = embedded.server.engine._engine.memory.pools  # type: ignore[union-attr]
    assert [pool.num_used for pool in pools] == [0, 0]


def test_the_openai_client_may_leave_a_stream(embedded: LiveServer) -> None:
    client = OpenAI(base_url=f"{embedded.address}/v1", api_key="none", max_retries=0)
    with client.chat.completions.create(
        **chat_body(max_tokens=900), stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    embedded.wait_until_idle(5)


def test_what_goes_wrong_before_the_first_token_has_a_status(embedded: LiveServer) -> None:
    for fields, status in (
        ({"model": "nobody"}, 404),
        ({"max_tokens": 5000}, 400),
        ({"policy": "oracle"}, 400),
    ):
        answer = embedded.http.post(CHAT, json=chat_body(stream=True, **fields))
        assert answer.status_code == status and "error" in answer.json()


class Breaking(RandomPolicy):
    """Breaks the engine at its fifth step."""

    steps = 0

    def judge_drafts(self, drafts: Any) -> Any:
        Breaking.steps += 1
        if Breaking.steps == 5:
            raise RuntimeError("broken")
        return super().judge_drafts(drafts)


def test_a_crash_within_a_stream_is_told_and_health_comes_back_by_itself() -> None:
    with serving(embedded_pair()) as live:
        live.server.offered.served = Breaking(0.3)
        made, thread = Event(), live.server.engine
        make = thread._make_engine
        thread._make_engine = lambda: (made.wait(30), make())[1]
        answer = live.http.post(CHAT, json=chat_body(stream=True, max_tokens=50))
        assert answer.status_code == 200
        *_, last = [part for part in answer.text.split("\n\n") if part]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "crashed" in error["message"] and "[DONE]" not in answer.text
        assert (health(live)["status"], health(live)["error"]) == ("dead", "RuntimeError")
        made.set()
        end = time.monotonic() + 30
        while live.http.get("/health").status_code == 503:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert (health(live)["status"], health(live)["error"], health(live)["crashes"]) == ("ok", None, 1)
        assert live.chat().status_code == 200


def health(live: LiveServer) -> Any:
    return live.http.get("/health").json()


def test_what_outlasts_the_shutdown_is_told_so() -> None:
    with serving(embedded_pair(), shutdown_seconds=0.3) as live:
        step = live.server.engine._engine.step  # type: ignore[union-attr]
        live.server.engine._engine.step = lambda: (time.sleep(0.02), step())[1]  # type: ignore[union-attr,method-assign]
        asked = chat_body(stream=True, **LONG)
        with live.http.stream("POST", CHAT, json=asked) as answer, ThreadPoolExecutor() as others:
            whole = others.submit(live.http.post, CHAT, json=chat_body(**LONG))
            lines = answer.iter_lines()
            next(lines)
            while live.server.engine.health().num_running < 2:
                time.sleep(0.01)
            live.listener.should_exit = True
            told = [line for line in lines if line.startswith("data: ")]
            assert whole.result().status_code == 503
    assert "shutting down" in json.loads(told[-1][6:])["error"]["message"]


def test_told_twice_to_stop_it_waits_for_nobody() -> None:
    """Not for a step that does not come back either."""
    goes_on, begun = Event(), Event()
    with serving(embedded_pair(), shutdown_seconds=100) as live:
        step = live.server.engine._engine.step  # type: ignore[union-attr]

        def stalling_step() -> Any:
            if begun.is_set():
                goes_on.wait(60)
            return step()

        live.server.engine._engine.step = stalling_step  # type: ignore[union-attr,method-assign]
        try:
            with live.http.stream("POST", CHAT, json=chat_body(stream=True, **LONG)) as answer:
                lines = answer.iter_lines()
                next(lines)
                begun.set()
                live.listener.should_exit = True
                wait_for(lambda: live.server.engine.health().status == "closing")
                live.listener.force_exit = True
                assert live.wait_until_ended(20) < 5
                with suppress(httpx2.HTTPError):
                    list(lines)
                assert live.server.engine._thread.is_alive(), "the step came back"
        finally:
            goes_on.set()


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


@contextmanager
def reads_nothing(live: LiveServer, **fields: Any) -> Iterator[None]:
    """A client that sends a chat request and takes nothing of the answer."""
    body = chat_body(n=8, token_details=True, logprobs=True, top_logprobs=20, **(LONG | fields))
    content = json.dumps(body).encode()
    # Connections inherit it: what nobody takes is soon more than the kernel holds.
    live.listener.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", live.port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        wait_for(lambda: live.server.engine.health().num_running)
        yield


def buffered(live: LiveServer) -> int:
    """Bytes that no client takes."""
    connections = list(live.listener.server_state.connections)
    return sum(each.transport.get_write_buffer_size() for each in connections)  # type: ignore[union-attr]


def test_who_takes_nothing_is_hung_up_on() -> None:
    with serving(embedded_pair(), stalled_seconds=0.5) as live, reads_nothing(live, stream=True):
        live.wait_until_idle(60)
        assert sum(live.server.engine.ledger.written) < 8 * 900, "it decoded to the end for nobody"
        wait_for(lambda: not live.listener.server_state.connections, 10)
        live.listener.should_exit = True
        assert live.wait_until_ended() < 5, "it waits for who is gone"


def test_who_takes_nothing_of_a_whole_answer_is_hung_up_on() -> None:
    with serving(embedded_pair(), stalled_seconds=0.5) as live, reads_nothing(live, max_tokens=12):
        wait_for(lambda: buffered(live))
        # Sooner than an idle connection is ended.
        wait_for(lambda: not live.listener.server_state.connections, 15)


def test_a_client_that_takes_nothing_does_not_keep_the_server_from_stopping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "FAREWELL_SECONDS", 0.5)
    with serving(embedded_pair(), shutdown_seconds=0.3) as live, reads_nothing(live, stream=True):
        wait_for(lambda: buffered(live))
        live.listener.should_exit = True
        live.wait_until_ended()
        assert not live.listener.server_state.connections


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_gone_while_the_prompt_is_made_costs_no_row(stream: bool) -> None:
    with serving(embedded_pair()) as live:
        prompts, submitted, goes_on = live.server.prompts, [], Event()
        make, begun = prompts._rendered, Event()
        prompts._rendered = lambda request: (begun.set(), goes_on.wait(30), make(request))[2]  # type: ignore[method-assign]
        submit = live.server.engine.submit
        live.server.engine.submit = lambda job: (submitted.append(job), submit(job))[1]  # type: ignore[method-assign]
        body = json.dumps(chat_body(stream=stream)).encode()
        with socket.create_connection(("127.0.0.1", live.port)) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            client.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert begun.wait(30)
        end = time.monotonic() + 30
        while 'status="499"' not in live.http.get("/metrics").text:
            assert time.monotonic() < end, "nobody noticed that the client was gone"
            time.sleep(0.01)
        goes_on.set()
        assert live.chat().status_code == 200
        assert len(submitted) == 1


def test_a_full_queue_is_told_before_the_prompt_is_made() -> None:
    with serving(embedded_pair(), max_queue=0) as live:
        made: list[Any] = []
        live.server.prompts._plain = made.append  # type: ignore[method-assign,assignment]
        with live.server.engine.preparing(live.server.engine.max_rows):
            answer = live.complete(prompt="x " * 1000)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert live.complete(n=live.server.engine.max_rows + 1).status_code == 400
        assert made == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_place_that_was_held_is_taken_before_another_request_has_its_turn(stream: bool) -> None:
    with serving(embedded_pair()) as live:
        engine, in_between = live.server.engine, []
        preparing = engine.preparing

        @contextmanager
        def watched(weight: int) -> Iterator[None]:
            with preparing(weight):
                yield
            assert engine._loop is not None
            engine._loop.call_soon(lambda: in_between.append(sum(engine._in_flight.values())))

        engine.preparing = watched  # type: ignore[method-assign]
        assert live.chat(n=3, stream=stream, max_tokens=30).status_code == 200
        assert in_between == [3]
        live.wait_until_idle()
        assert not engine._in_flight


def test_a_full_queue_sends_clients_away_and_says_for_how_long() -> None:
    async def ask(live: LiveServer, num: int) -> list[httpx2.Response]:
        async with httpx2.AsyncClient(timeout=60) as http:
            asked = [http.post(live.address + CHAT, json=chat_body(n=8, max_tokens=60)) for _ in range(num)]
            return list(await asyncio.gather(*asked))

    with serving(embedded_pair(), max_queue=8) as live:
        answers = asyncio.run(ask(live, 6))
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) >= 3 and statuses.count(429) >= 1
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
        live.wait_until_idle()
        assert live.chat(n=25).status_code == 400
