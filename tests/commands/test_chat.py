"""`navtoken chat`: against a real server of the embedded pair, and against servers that say odd things."""

import asyncio
import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from rich.console import Console

from live_server import LiveServer, embedded_pair, serving
from navtoken.cli import main
from navtoken.commands.chat import Chat, ChatOptions, run
from navtoken.commands.chat_client import ChatClient, ChatError, Settings
from navtoken.engine.options import OptionError
from navtoken.serving import listener
from navtoken.serving.listener import Listener

QUESTION = "Numbers 3 7 12 target 33 :"


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serving(embedded_pair()) as server:
        yield server


def console() -> Console:
    return Console(file=io.StringIO(), width=100, no_color=True)


def printed(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


@contextmanager
def talking(address: str, **options: Any) -> Iterator[Chat]:
    with ChatClient(address) as client:
        yield Chat(ChatOptions(url=address, **options), client, console())


# ---- a real server ------------------------------------------------------------------------------------------------


def test_an_answer_is_the_servers_and_tokens_are_marked(live: LiveServer) -> None:
    with talking(live.address) as chat:
        chat.greet()
        assert chat.take(QUESTION)
    asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": None, "token_details": True}
    choice = live.chat(**asked).json()["choices"][0]
    (answer,) = chat.answers
    assert answer.text == choice["message"]["content"]
    assert [token.model_dump() for token in answer.tokens] == [
        token | {"alternatives": answer.tokens[place].model_dump()["alternatives"]}
        for place, token in enumerate(choice["navtoken"]["tokens"])
    ]
    assert all(len(token.alternatives) == 5 for token in answer.tokens)
    said = " ".join(printed(chat.console).split())
    share = choice["navtoken"]["llm_share"]
    assert (
        f"{100 * share:.1f} % by the LLM" in said and f"{choice['navtoken']['llm_tokens']} LLM passes" in said
    )
    assert said.count("‹") >= choice["navtoken"]["llm_tokens"]


def test_commands_change_how_the_next_question_is_asked(live: LiveServer) -> None:
    with talking(live.address, max_tokens=12) as chat:
        for line in ("/policy entropy:0.67", "/threshold 0.1", QUESTION, "/policy llm", "/again"):
            chat.take(line)
        for line in (
            "/policy random:0.5",
            "/temperature 1",
            "/seed 5",
            QUESTION,
            QUESTION,
            "/seed 6",
            QUESTION,
        ):
            chat.take(line)
    policies = [answer.summary.policy for answer in chat.answers if answer.summary]
    assert policies[:2] == ["entropy:0.1", "llm"]
    assert chat.answers[1].question == QUESTION
    fifth, same, other = chat.answers[2:]
    assert fifth.text == same.text != other.text
    assert all(len(answer.tokens) <= 12 for answer in chat.answers)


def test_two_policies_are_compared(live: LiveServer) -> None:
    with talking(live.address, policy="slm", compare="llm", max_tokens=8) as chat:
        chat.take(QUESTION)
        chat.take("/compare off")
        chat.take(QUESTION)
    assert [answer.summary.llm_share for answer in chat.answers if answer.summary] == [0.0, 1.0, 0.0]


def test_navigation_tokens_are_listed_with_draft_and_alternatives(live: LiveServer) -> None:
    with talking(live.address) as chat:
        chat.take("/tokens")
        assert "no answer with tokens" in printed(chat.console)
        chat.take(QUESTION)
        chat.take("/tokens")
    tokens = chat.answers[0].tokens
    listed = printed(chat.console).rpartition("Navigation tokens")[2].splitlines()[4:]
    wanted = [
        place for place, token in enumerate(tokens) if token.writer == "llm" or (token.entropy or 0) >= 0.67
    ]
    assert [int(line.split()[0]) for line in listed if line.strip()] == wanted


def test_tokens_of_a_compared_answer_are_asked_for_by_its_policy(live: LiveServer) -> None:
    def listed(line: str) -> str:
        chat.console = console()
        chat.take(line)
        return printed(chat.console)

    with talking(live.address, policy="random:0.5", compare="slm", max_tokens=8) as chat:
        assert "no answer with tokens" in listed("/tokens slm")
        chat.take(QUESTION)
        chat.settings = Settings(policy="llm", max_tokens=1000)
        chat.take("x " * 800)
        for line in ("/tokens", "/tokens slm"):
            assert "under slm" in listed(line) and " LLM " not in listed(line)
        for line in ("/tokens random", "/tokens random:0.5"):
            assert "under random:0.5" in listed(line) and " LLM " in listed(line)
        said = " ".join(listed("/tokens llm").split())
        assert "no answer was under 'llm'; there are answers under slm, random:0.5" in said
        assert "/tokens POLICY" in listed("/help")


def test_the_end_of_a_sequence_is_counted_and_not_printed(live: LiveServer) -> None:
    with talking(live.address) as chat:
        chat.take(QUESTION)
    (answer,) = chat.answers
    assert (
        answer.ended == "stop"
        and [token.special for token in answer.tokens].index(True) == len(answer.tokens) - 1
    )
    assert answer.tokens[-1].text == "<|end|>" not in printed(chat.console)
    assert "".join(token.text for token in answer.tokens[:-1]) == answer.text


def test_each_question_of_the_embedded_pair_stands_alone_unless_told(live: LiveServer) -> None:
    with (
        talking(live.address, max_tokens=6) as alone,
        talking(live.address, max_tokens=6, history=True) as whole,
    ):
        for chat in (alone, whole):
            chat.take(QUESTION)
            chat.take(QUESTION)
    assert alone.messages == []
    assert alone.answers[0].text == alone.answers[1].text
    assert [message["role"] for message in whole.messages] == ["user", "assistant", "user", "assistant"]
    whole.take("/new")
    assert whole.messages == []


def test_refusals_are_one_line_and_the_conversation_goes_on(live: LiveServer) -> None:
    with talking(live.address, max_tokens=4, history=True) as chat:
        for line in ("/policy nothing", QUESTION, "/frobnicate", "/seed x", "/policy", QUESTION):
            assert chat.take(line)
        said = printed(chat.console)
        assert "no policy is called 'nothing'" in said
        assert "there is no /frobnicate" in said and "/seed x is no whole number" in said
        assert (
            chat.answers[0].ended.startswith("the server answers 400") and chat.answers[1].ended == "length"
        )
        assert len(chat.messages) == 2
        chat.settings = Settings(max_tokens=1000)
        chat.take("x " * 800)
        chat.take("/threshold nan")
        assert "/threshold nan is no number" in printed(chat.console)
        assert "/new forgets" in " ".join(printed(chat.console).split())
        assert not chat.take("/quit")


def test_ctrl_c_stops_the_answer_and_nothing_else(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with talking(live.address, history=True) as chat:
        show, seen = chat._show, []

        def interrupted(answer: Any, part: Any) -> None:
            seen.append(part)
            show(answer, part)
            if len(seen) == 5:
                raise KeyboardInterrupt

        monkeypatch.setattr(chat, "_show", interrupted)
        chat.take(QUESTION)
        assert chat.answers[0].ended == "stopped" and chat.messages == []
        live.wait_until_idle()
        chat.take("/max-tokens 3")
        chat.take(QUESTION)
        assert chat.answers[1].ended == "length" and len(chat.messages) == 2
        seen.clear()
        chat.take("/max-tokens 9")
        chat.compared = "slm"
        chat.take("/again")
        assert len(chat.answers) == 3, "the answer that is compared was asked for after Ctrl-C"
        assert [message["content"] for message in chat.messages] == [QUESTION, chat.answers[1].text.strip()]


def test_the_conversation_is_saved_whole(live: LiveServer, tmp_path: Path) -> None:
    with talking(live.address, max_tokens=5) as chat:
        chat.take(QUESTION)
        chat.take(f"/save {tmp_path / 'chat.json'}")
        chat.take(f"/save {tmp_path / 'no' / 'such' / 'folder' / 'x'}")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert saved == json.loads(json.dumps(chat.as_json()))
    assert saved["answers"][0]["navtoken"]["llm_share"] is not None


def test_a_local_pair_answers_what_is_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"{QUESTION}\n\n/policy slm\n{QUESTION}\n/quit\nnever asked\n")
    )
    result = run(ChatOptions(policy="llm", max_tokens=6), console(), embedded_pair())
    assert [answer["navtoken"]["policy"] for answer in result["answers"]] == ["llm", "slm"]
    assert json.dumps(result)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(OptionError, match="--url"):
        run(ChatOptions(model="x"), console(), embedded_pair())
    with pytest.raises(ChatError, match="no address|nobody answers"):
        run(ChatOptions(url="http://[::1"), console())
    with pytest.raises(ChatError, match="nobody answers"):
        run(ChatOptions(url="http://127.0.0.1:9"), console())


# ---- servers of others --------------------------------------------------------------------------------------------


@contextmanager
def stand_in(
    status: int,
    parts: list[bytes],
    headers: dict[str, str] | None = None,
    unknown: int = 404,
    version: str = "/v1",
) -> Iterator[str]:
    """An OpenAI-compatible server that is none of ours: it has one model, and answers with these bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == f"{version}/models"
            body = json.dumps({"data": [{"id": "other"}]} if known else {"detail": "Not Found"}).encode()
            self.send_response(200 if known else unknown)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{version}"
    finally:
        server.shutdown()


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\r\n\r\n"


def test_plain_text_streams_from_any_server_however_it_is_cut() -> None:
    whole = b": hello\n\n" + chunk("né\u2028 ") + chunk("数", "stop") + b"data: [DONE]\n\n"
    with stand_in(200, [whole[at : at + 1] for at in range(len(whole))]) as address, talking(address) as chat:
        chat.greet()
        chat.take("hi")
        assert chat.answers[0].text == "né\u2028 数" and chat.answers[0].ended == "stop"
        assert chat.client.model == "other" and len(chat.messages) == 2
        chat.take("/policy llm")
        chat.take("/compare llm")
        said = printed(chat.console)
    assert "né 数" in said and said.count("needs a server of navtoken's") == 2


def test_a_server_cannot_command_the_terminal() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07red\x1b[31m\r\x9b31m\u202e"
    error = json.dumps({"error": {"message": f"no{evil}"}}).encode()
    done = b"data: [DONE]\n\n"
    for status, parts in (
        (200, [chunk(evil, "stop"), done]),
        (200, [chunk("", f"stop{evil}"), done]),
        (400, [error]),
    ):
        with stand_in(status, parts) as address, talking(address) as chat:
            chat.take("hi")
            said = printed(chat.console)
            assert "red" in said
            assert not set(said) & set("\x1b\x07\r\x9b\u202e")


@pytest.mark.parametrize(
    ("status", "parts", "headers", "said"),
    [
        (401, [b"{}"], {}, "NAVTOKEN_API_KEY"),
        (429, [b"{}"], {"retry-after": "7"}, "in 7 seconds"),
        (503, [b'{"error": {"message": "the engine crashed"}}'], {}, "503: the engine crashed"),
        (500, [b"<html>"], {}, "500: <html>"),
        (200, [chunk("half"), b'data: {"error": {"message": "gone"}}\n\n'], {}, "gone"),
        (200, [chunk("half")], {}, "ended before"),
        (200, [b"data: no json\n\n"], {}, "does not speak JSON"),
        (200, [b"data: " + b"[" * 100_000 + b"\n\n"], {}, "does not speak JSON"),
        (200, [b'data: {"choices": "x"}\n\n'], {}, "has no choices"),
        (200, [b'data: {"choices": ["x"]}\n\n'], {}, "has no text"),
        (200, [b'data: {"choices": [{"delta": "x"}]}\n\n'], {}, "has no text"),
        (200, [b'data: {"choices": [{"delta": {"content": [1]}}]}\n\n'], {}, "has no text"),
        (200, [b'data: {"choices": [{"finish_reason": [1]}]}\n\n'], {}, "has no text"),
        (404, [b'{"detail": "Not Found"}'], {}, "404: {'detail': 'Not Found'}"),
    ],
)
def test_whatever_goes_wrong_is_one_line(
    status: int, parts: list[bytes], headers: dict[str, str], said: str
) -> None:
    with stand_in(status, parts, headers) as address, talking(address) as chat:
        assert chat.take("hi")
        assert said in " ".join(printed(chat.console).split())
        assert chat.messages == []


@pytest.mark.parametrize(
    "parts",
    [
        [chunk("yes", "stop")],
        [b"\xef\xbb\xbf" + chunk("yes", "stop"), b"data: [DONE]\n\n"],
        [chunk("yes", "stop").rstrip()],
        [
            b'data: {"choices":\n: a comment\ndata: [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}\n\n'
        ],
        [b'data: {"error": null, "choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}\n\n'],
    ],
)
def test_an_answer_counts_however_a_server_wraps_it(parts: list[bytes]) -> None:
    with stand_in(200, parts) as address, talking(address) as chat:
        chat.take("hi")
        assert (chat.answers[0].text, chat.answers[0].ended) == ("yes", "stop")


def test_half_characters_are_sent_as_question_marks() -> None:
    half = b'data: {"choices": [{"delta": {"content": "a\\ud800"}, "finish_reason": "stop"}]}\n\n'
    with stand_in(200, [half]) as address, talking(address) as chat:
        chat.take("caf\udce9")
        chat.take("again")
        assert [answer.ended for answer in chat.answers] == ["stop", "stop"]
        assert chat.messages[0]["content"] == "caf?"


def test_a_gateway_that_forbids_unknown_paths_can_be_asked() -> None:
    parts = [chunk("yes", "stop")]
    with stand_in(200, parts, unknown=403) as address, talking(address) as chat:
        chat.take("hi")
        assert chat.answers[0].text == "yes"


def test_an_address_may_have_another_version() -> None:
    with stand_in(200, [chunk("yes", "stop")], version="/api/v4") as address, talking(address) as chat:
        assert address.endswith("/api/v4") and chat.client.model == "other"


@pytest.mark.parametrize("key", ["", " ", "abc\n"])
def test_a_key_that_is_empty_or_has_a_line_end_does_not_keep_from_asking(key: str) -> None:
    with stand_in(200, []) as address, ChatClient(address, key) as client:
        assert client.model == "other"


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:9", "http://127.0.0.1:9/?key=secret"])
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ChatError, match="keep keys in the environment") as raised:
        ChatClient(address)
    assert "secret" not in str(raised.value)


def test_an_error_of_several_lines_is_told_in_one() -> None:
    with stand_in(200, [b'data: {"error": {"message": "a\\nb"}}\n\n']) as address, talking(address) as chat:
        chat.take("hi")
        assert "navtoken: a b\n" in printed(chat.console)


# ---- a local pair's server that does not start ------------------------------------------------------------------------


def test_a_server_of_its_own_that_starts_too_late_is_told_in_a_line_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    goes_on, started = Event(), Listener.startup

    async def late(self: Listener, sockets: Any = None) -> None:
        await asyncio.to_thread(goes_on.wait, 30)
        await started(self, sockets)

    monkeypatch.setattr(Listener, "startup", late)
    monkeypatch.setattr(listener, "START_SECONDS", 0.2)
    before = set(enumerate_threads())
    assert main(["chat"]) == 2
    told = capsys.readouterr().err
    assert "did not start" in told and "Traceback" not in told
    (own,) = [each for each in set(enumerate_threads()) - before if each.name == "listener"]
    goes_on.set()
    own.join(20)
    assert not own.is_alive(), "it serves on, for nobody"


def test_the_server_in_this_process_listens_where_its_options_say() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(embedded_pair(), port=port) as live:
        assert live.address == f"http://127.0.0.1:{port}" and live.http.get("/health").status_code == 200
