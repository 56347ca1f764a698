"""The page in a real browser: against a real server, and against one that sends what a real one seldom does."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from live_server import LiveServer, embedded_pair, serving

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
SECONDS = 30_000

if not CHROMIUM.exists() and "CI" not in os.environ:
    pytest.skip("needs Debian's chromium at /usr/bin/chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of which nothing may go wrong unseen."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(SECONDS)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    yield opened
    opened.close()
    assert not faults


def tokens(page: Page, side: int = 0) -> Any:
    return page.locator(f'.answer[data-side="{side}"] .text > .t')


def error(page: Page, side: int = 0) -> Any:
    return page.locator(f'.answer[data-side="{side}"] .error')


def text_of(page: Page, side: int = 0) -> str:
    return "".join(tokens(page, side).all_text_contents())


# ---- a real server ------------------------------------------------------------------------------------------------


def test_two_policies_answer_side_by_side_and_show_who_wrote_what(page: Page, embedded: LiveServer) -> None:
    page.goto(embedded.address)
    page.locator(".chips button").first.click()
    question = page.locator("#question").input_value()
    page.check("#compare")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("100.0 % by the LLM", timeout=SECONDS)
    messages = [{"role": "user", "content": question}]
    for side, policy in enumerate(("router", "llm")):
        asked = {"messages": messages, "policy": policy, "token_details": True, "max_tokens": None}
        choice = embedded.chat(**asked).json()["choices"][0]
        told = choice["navtoken"]["tokens"]
        assert [token["text"] for token in told] == tokens(page, side).all_text_contents()
        by_llm = page.locator(f'.answer[data-side="{side}"] .text > .t.llm').count()
        assert by_llm == sum(token["writer"] == "llm" for token in told) == choice["navtoken"]["llm_tokens"]
        shaded = page.locator(f'.answer[data-side="{side}"] .text > .t:is(.u1, .u2, .u3)').count()
        assert shaded == sum(token["entropy"] >= 0.25 for token in told)
    figures = page.locator('.answer[data-side="1"] .figures')
    expect(figures).to_contain_text("LLM passes")


def test_the_threshold_moves_and_another_answer_comes(page: Page, embedded: LiveServer) -> None:
    page.goto(embedded.address)
    expect(page.locator(".chips button")).to_have_count(3)
    for value, share in (("0", "100.0 %"), ("1", "0.0 %")):
        page.locator('.policy[data-side="0"] input[type=number]').fill(value)
        page.locator('.policy[data-side="0"] input[type=number]').press("Tab")
        page.click("#go")
        expect(page.locator("#status")).to_contain_text(f"{share} by the LLM", timeout=SECONDS)
    slider = page.locator('.policy[data-side="0"] input[type=range]')
    slider.focus()
    slider.press("Home")
    assert float(page.locator('.policy[data-side="0"] input[type=number]').input_value()) == 0
    page.locator('.policy[data-side="0"] select').select_option(label="slm")
    assert not slider.is_visible()


def test_tokens_are_reached_by_keyboard_and_tell_their_alternatives(page: Page, embedded: LiveServer) -> None:
    page.goto(embedded.address)
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("by the LLM", timeout=SECONDS)
    card = page.locator("#card")
    page.locator("#compare").focus()
    page.keyboard.press("Tab")
    expect(card).to_contain_text("written by the")
    assert page.locator("#card tr").count() == 5
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    page.keyboard.press("ArrowDown")
    assert int(page.evaluate("document.activeElement.dataset.index")) > 5
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    assert page.locator('.text > .t[tabindex="0"]').count() == 1
    tokens(page).nth(2).hover()
    expect(card).to_be_visible()


def test_the_page_asks_for_the_key_and_keeps_it_for_the_session_only(page: Page) -> None:
    with serving(embedded_pair(), api_key="secret") as live:
        page.goto(live.address)
        expect(page.locator("#status")).to_contain_text("API key")
        page.locator("summary").click()
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        expect(page.locator(".chips button")).to_have_count(3)
        page.click("#go")
        expect(page.locator("#status")).to_contain_text("by the LLM", timeout=SECONDS)
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, embedded: LiveServer, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(embedded.address)
    page.check("#compare")
    page.locator("summary").click()
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("by the LLM", timeout=SECONDS)
    tokens(page).nth(8).hover()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# ---- a server that sends what it is told to -----------------------------------------------------------------------

PAIR = {
    "name": "navtoken",
    "slm": {"reference": "small", "parameters": 1000},
    "llm": {"reference": "large", "parameters": 1_000_000},
    "context": 100,
    "policy": "llm",
    "threshold": None,
    "policies": [
        {
            "reference": "llm",
            "threshold": None,
            "signal": None,
            "low": None,
            "high": None,
            "llm_above": None,
            "description": "",
        }
    ],
    "max_top_logprobs": 20,
    "max_n": 4,
    "examples": ["what?"],
}
SUMMARY = {
    "policy": "llm",
    "llm_share": 1.0,
    "slm_tokens": 0,
    "llm_tokens": 3,
    "seed": 1,
    "seconds": {"queued": 0.0, "first_token": 0.1, "total": 0.3},
    "cost": {
        "average_activated_parameters": 1.0,
        "flops": 1.0,
        "bytes": 1.0,
        "slm_passes": 0,
        "llm_passes": 3,
        "catchup_tokens": 0,
        "discarded_drafts": 0,
        "router_calls": 0,
    },
}


def token(text: str) -> dict[str, Any]:
    return {
        "id": 1,
        "text": text,
        "writer": "llm",
        "entropy": 0.5,
        "entropy_slm": None,
        "entropy_llm": 0.5,
        "logprob": -0.1,
        "p_divergent": None,
        "draft": {"id": 2, "text": text},
        "alternatives": [{"id": 1, "text": text, "logprob": -0.1}],
    }


def chunk(*texts: str, finish: str | None = None) -> bytes:
    navtoken = {"tokens": [token(text) for text in texts]} | (SUMMARY if finish else {})
    choice = {"index": 0, "delta": {"content": "".join(texts)}, "finish_reason": finish, "navtoken": navtoken}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\r\n\r\n"


@contextmanager
def stand_in(
    status: int, parts: list[bytes], headers: dict[str, str] | None = None, pause: float = 0.0005
) -> Iterator[tuple[str, Event]]:
    """A server whose answer is these bytes, sent one part after the other; the event is set when its client hangs up."""
    gone = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = {"/": "index.html"}.get(self.path, self.path.removeprefix("/assets/"))
            if self.path == "/v1/pair":
                self._send("application/json", json.dumps(PAIR).encode())
            else:
                kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[
                    name.rpartition(".")[2]
                ]
                self._send(kind, files("navtoken.serving").joinpath("assets", name).read_bytes())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for key, value in {"content-type": "text/event-stream", **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(part)
                    time.sleep(pause)
            except OSError:
                gone.set()

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", gone
    finally:
        server.shutdown()


def ask(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator(".chips button")).to_have_count(1)
    page.click("#go")


def test_a_stream_may_be_cut_anywhere(page: Page) -> None:
    whole = (
        b": keep-alive\n\n" + chunk("caf", "é ", "数\n") + chunk("end", finish="stop") + b"data: [DONE]\n\n"
    )
    with stand_in(200, [whole[at : at + 1] for at in range(len(whole))]) as (address, _):
        ask(page, address)
        expect(page.locator("#status")).to_contain_text("3 tokens, 100.0 % by the LLM", timeout=SECONDS)
        assert text_of(page) == "café 数\nend"


def test_what_a_token_says_is_text_and_nothing_else(page: Page) -> None:
    evil = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    with stand_in(200, [chunk(evil, finish="stop"), b"data: [DONE]\n\n"]) as (address, _):
        ask(page, address)
        expect(page.locator("#status")).to_contain_text("by the LLM")
        assert text_of(page) == evil
        tokens(page).first.hover()
        expect(page.locator("#card")).to_contain_text("onerror")
        assert page.locator(".answer img, .answer script, #card img, #card script").count() == 0
        assert page.title() == "navtoken"


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (401, {"message": "no"}, {}, "API key"),
        (
            400,
            {"message": "the prompt has 200 tokens", "param": "messages"},
            {},
            "the prompt has 200 tokens (messages)",
        ),
        (429, {"message": "full"}, {"retry-after": "7"}, "in 7 seconds"),
        (503, {"message": "the engine crashed"}, {}, "the engine crashed"),
    ],
)
def test_refusals_are_said_where_the_answer_would_be(
    page: Page, status: int, body: dict[str, Any], headers: dict[str, str], said: str
) -> None:
    told = json.dumps({"error": body}).encode()
    with stand_in(status, [told], {"content-type": "application/json"} | headers) as (address, _):
        ask(page, address)
        expect(error(page)).to_contain_text(said)
        expect(page.locator("#go")).to_be_enabled()


def test_an_error_in_the_middle_and_an_end_without_a_word_are_said(page: Page) -> None:
    broken = b'data: {"error": {"message": "the engine crashed"}}\n\n'
    for parts, said in (([chunk("half"), broken], "the engine crashed"), ([chunk("half")], "ended before")):
        with stand_in(200, parts) as (address, _):
            ask(page, address)
            expect(error(page)).to_contain_text(said)
            assert text_of(page) == "half"


def test_stop_hangs_up(page: Page) -> None:
    with stand_in(200, [chunk(f"{number} ") for number in range(4000)], pause=0.005) as (address, gone):
        ask(page, address)
        expect(tokens(page).nth(3)).to_be_visible()
        page.click("#stop")
        expect(error(page)).to_contain_text("Stopped")
        assert gone.wait(10)
        expect(page.locator("#stop")).to_be_disabled()
