"""The page in a real browser: against a real server, and against one that sends what a real one seldom does."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from live_server import LiveServer
from serving.page_server import DONE, Body, Reply, chunk, page_server, refusal, replaced, token

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
    """A page of which nothing may go wrong unseen, breaches of its content security policy included."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(SECONDS)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    opened.on("request", lambda sent: None if "//127.0.0.1:" in sent.url else faults.append(sent.url))
    yield opened
    opened.close()
    # Chromium notes every status from 400 on.
    assert not [fault for fault in faults if not fault.startswith(("Failed to load resource", "data:"))]


def tokens(page: Page, side: int = 0) -> Locator:
    return page.locator(f'.answer[data-side="{side}"] .text > .t')


def error(page: Page, side: int = 0) -> Locator:
    return page.locator(f'.answer[data-side="{side}"] .error')


def figure(page: Page, name: str, side: int = 0) -> str:
    row = page.locator(f'.answer[data-side="{side}"] .figures div').filter(has_text=name)
    return row.locator("dd").inner_text()


def text_of(page: Page, side: int = 0) -> str:
    return "".join(tokens(page, side).all_text_contents())


def threshold(page: Page) -> Locator:
    return page.locator('.policy[data-side="0"] input[type=number]')


def choose(page: Page, policy: str, side: int = 0) -> None:
    page.locator(f'.policy[data-side="{side}"] select').select_option(label=policy)


def ask(page: Page, address: str | None = None) -> None:
    if address is not None:
        page.goto(address)
        expect(page.locator(".chips button").first).to_be_visible()
    page.click("#go")


def told(page: Page, words: str) -> None:
    expect(page.locator("#status")).to_contain_text(words, timeout=SECONDS)


def few_tokens(page: Page, most: int) -> None:
    page.locator("summary").click()
    page.fill("#max_tokens", str(most))


# ---- a real server ------------------------------------------------------------------------------------------------


def test_two_policies_answer_side_by_side_and_show_who_wrote_what(page: Page, embedded: LiveServer) -> None:
    page.goto(embedded.address)
    page.locator(".chips button").first.click()
    question = page.locator("#question").input_value()
    few_tokens(page, 24)
    page.check("#compare")
    page.keyboard.press("Control+Enter")
    told(page, "100.0 % by the LLM")
    messages = [{"role": "user", "content": question}]
    for side, policy in enumerate(("router", "llm")):
        asked = {"messages": messages, "policy": policy, "token_details": True, "max_tokens": 24}
        choice = embedded.chat(**asked).json()["choices"][0]
        details = choice["navtoken"]["tokens"]
        drawn = ["∎" if one["special"] else one["text"] for one in details]
        assert drawn == tokens(page, side).all_text_contents()
        by_llm = page.locator(f'.answer[data-side="{side}"] .text > .t.llm').count()
        assert by_llm == sum(one["writer"] == "llm" for one in details) == choice["navtoken"]["llm_tokens"]
        shaded = page.locator(f'.answer[data-side="{side}"] .text > .t:is(.u1, .u2, .u3)').count()
        assert shaded == sum(one["entropy"] >= 0.25 for one in details)
        assert figure(page, "LLM passes", side) == str(choice["navtoken"]["cost"]["llm_passes"])
        assert figure(page, "policy", side) == choice["navtoken"]["policy"]


def test_the_threshold_moves_and_another_answer_comes(page: Page, embedded: LiveServer) -> None:
    page.goto(embedded.address)
    expect(page.locator(".chips button")).to_have_count(3)
    few_tokens(page, 8)
    for value, share in (("0", "100.0 %"), ("1", "0.0 %")):
        threshold(page).fill(value)
        threshold(page).press("Tab")
        page.click("#go")
        told(page, f"{share} by the LLM")


# ---- a server that sends what it is told to -----------------------------------------------------------------------

NUMBERS = [token("Try 3"), replaced(" +", " -"), token(" 7"), token(" = 10.\n"), replaced("no", "so")]
LONG = [*NUMBERS, token(" w" + "o" * 300 + "rd"), token("\n\n\n"), token("<|end|>", "llm", 1.6)]


def answering(*tokens: Body, **summary: Any) -> Any:
    """The same answer to every question."""
    return lambda body: Reply([chunk(*tokens, finish="stop", **summary), DONE])


def test_tokens_are_reached_by_keyboard_and_tell_their_alternatives(page: Page) -> None:
    card = page.locator("#card")

    def here() -> str:
        return str(page.evaluate("document.activeElement.dataset.index"))

    with page_server(answering(*NUMBERS, *[token(f" {n}") for n in range(99)])) as server:
        ask(page, server.address)
        told(page, "104 tokens, 1.9 % by the LLM")
        assert page.evaluate("document.activeElement.id") == "go"
        tokens(page).nth(3).hover()
        expect(card).to_contain_text("written by the SLM")
        page.mouse.move(0, 0)
        expect(card).to_be_hidden()
        page.locator("#compare").focus()
        page.keyboard.press("Tab")
        expect(card).to_contain_text("Try 3")
        for key, index in (("ArrowRight", "1"), ("l", "4"), ("L", "1"), ("End", "103"), ("Home", "0")):
            page.keyboard.press(key)
            assert here() == index
        page.keyboard.press("ArrowDown")
        assert here() == "4"
        assert page.locator('.text > .t[tabindex="0"]').count() == 1
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "card"
        for words in (
            "written by the LLM",
            "the SLM's draft",
            "0.900 nats",
            "0.400 nats",
            "0.7100",
            "81.9 %",
        ):
            expect(card).to_contain_text(words)
        expect(card.locator("tr")).to_have_count(5)
        expect(card.locator("tr.written")).to_contain_text("no ● written")
        expect(card.locator("tr").nth(1)).to_contain_text("so ○ draft")
        widths = [bar.bounding_box()["width"] for bar in card.locator(".chance i").all()]  # type: ignore[index]
        assert widths[0] > widths[1] > widths[2]
        page.keyboard.press("Escape")
        expect(card).to_be_hidden()
        assert here() == "4"


def test_what_is_set_is_what_is_asked(page: Page) -> None:
    used = "router,threshold=0.31,weights=8b1110f8"
    with page_server(answering(*NUMBERS, policy=used)) as server:
        ask(page, server.address)
        told(page, "5 tokens, 40.0 % by the LLM")
        plain = server.bodies[-1]
        assert not {"policy", "threshold", "seed", "max_tokens"} & set(plain)
        assert (
            plain["model"] == "navtoken" and plain["stream"] and plain["logprobs"] and plain["token_details"]
        )
        assert (plain["temperature"], plain["top_p"], plain["top_logprobs"]) == (0, 1, 5)
        assert threshold(page).input_value() == "0.31", "the server says which threshold it took"

        page.locator("summary").click()
        for field, value in {"temperature": "0.6", "top_p": "0.95", "seed": "7", "max_tokens": "99"}.items():
            page.fill(f"#{field}", value)
        page.fill("#system", "Be brief.")
        page.fill("#question", "Why?")
        slider = page.locator('.policy[data-side="0"] input[type=range]')
        slider.press("Home")
        page.keyboard.press("Meta+Enter")
        told(page, "5 tokens")
        expect(page.locator("#go")).to_be_enabled()
        asked = server.bodies[-1]
        assert [asked[name] for name in ("temperature", "top_p", "seed", "max_tokens")] == [0.6, 0.95, 7, 99]
        assert [(one["role"], one["content"]) for one in asked["messages"]] == [
            ("system", "Be brief."), ("user", "Why?")
        ]  # fmt: skip
        assert (asked["policy"], asked["threshold"]) == ("router", 0)

        for name, place in (("margin:0.1", True), ("llm", False)):
            choose(page, name)
            assert slider.is_visible() is place
            page.click("#go")
            expect(page.locator("#go")).to_be_enabled()
            assert server.bodies[-1]["policy"] == name and "threshold" not in server.bodies[-1]


def test_both_policies_stream_at_once(page: Page) -> None:
    both = Barrier(2, timeout=20)

    def answer(body: Body) -> Reply:
        name = body.get("policy", "served")

        def parts() -> Iterator[bytes]:
            yield chunk(token(name))
            both.wait()
            yield chunk(token("."), finish="stop")
            yield DONE

        return Reply(parts())

    with page_server(answer) as server:
        page.goto(server.address)
        page.check("#compare")
        choose(page, "entropy:0.67", side=1)
        ask(page)
        told(page, "router: 1 token, 0.0 % by the LLM · entropy:0.67: 1 token")
        assert [text_of(page, side) for side in (0, 1)] == ["served.", "entropy:0.67."]


def test_the_page_asks_for_the_key_and_keeps_it_for_the_session_only(page: Page) -> None:
    with page_server(answering(*NUMBERS), key="secret") as server:
        page.goto(server.address)
        told(page, "API key")
        expect(page.locator("#key")).to_be_focused()
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        expect(page.locator(".chips button")).to_have_count(2)
        expect(page.locator(".wrong")).to_have_count(0)
        page.click("#go")
        told(page, "by the LLM")
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    with page_server(answering(*LONG)) as server:
        page.goto(server.address)
        page.locator("summary").click()
        page.check("#compare")
        ask(page)
        told(page, "8 tokens")
        tokens(page).nth(5).hover()
        expect(page.locator("#card")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        tops = [tokens(page).nth(index).bounding_box()["y"] for index in (2, 4)]  # type: ignore[index]
        assert tops[1] > tops[0], "a token's newline breaks the line"


def test_a_stream_may_be_cut_anywhere(page: Page) -> None:
    begin, end = chunk(token("caf"), token("é "), token("数\n")), chunk(token("end"), finish="stop")
    split = end.replace(b"data: {", b"data: {\r\ndata:", 1)
    whole = b": keep-alive\n\n" + begin + b": keep-alive\r\n\r\n" + split + DONE
    places = [at for at in range(1, len(whole)) if whole[at - 1] > 127 or whole[at - 1] in b"\r{:"]
    cut = [whole[at:to] for at, to in itertools.pairwise([0, *places, len(whole)])]
    with page_server(lambda body: Reply(cut, pause=0.005)) as server:
        ask(page, server.address)
        told(page, "1 token, 0.0 % by the LLM")
        assert text_of(page) == "café 数\nend"


def test_many_tokens_are_drawn_in_few_steps_and_only_the_end_is_announced(page: Page) -> None:
    watch = """() => {
        window.seen = {drawn: 0, said: []};
        const text = document.querySelector(".text"), status = document.querySelector("#status");
        new MutationObserver((records) => (seen.drawn += records.length)).observe(text, {childList: true});
        new MutationObserver(() => seen.said.push(status.textContent)).observe(status, {childList: true});
    }"""
    batches = [chunk(*[token(f" {n}") for n in range(200)]) for _ in range(15)]
    with page_server(lambda body: Reply([*batches, chunk(token("."), finish="stop"), DONE])) as server:
        page.goto(server.address)
        expect(page.locator(".chips button")).to_have_count(2)
        page.evaluate(watch)
        ask(page)
        told(page, "by the LLM")
        expect(tokens(page)).to_have_count(3001)
        assert page.evaluate("seen.drawn") < 50
        assert page.evaluate("seen.said") == ["Answering…", "1 token, 0.0 % by the LLM"]


def test_what_a_token_says_is_text_and_nothing_else(page: Page) -> None:
    evil = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    with page_server(answering(replaced(evil, evil), policy=evil)) as server:
        ask(page, server.address)
        told(page, "by the LLM")
        assert text_of(page) == figure(page, "policy") == evil
        tokens(page).first.hover()
        expect(page.locator("#card")).to_contain_text("onerror")
        assert page.locator(".answer img, .answer script, #card img, #card script").count() == 0
        assert page.title() == "navtoken"


@pytest.mark.parametrize(
    ("reply", "said", "field"),
    [
        (refusal(401, "no"), "API key", "#key"),
        (
            refusal(400, "200 tokens are too many", "messages"),
            "200 tokens are too many",
            "#question",
        ),
        (refusal(400, "at most 2", "temperature"), "at most 2", "#temperature"),
        (refusal(400, "no such policy", "policy"), "no such policy", '.policy[data-side="0"] select'),
        (refusal(400, "not known here", "stream"), "not known here (stream)", None),
        (refusal(429, "full", retry_after="7"), "in 7 seconds", None),
        (refusal(503, "the engine crashed"), "the engine crashed", None),
        (Reply([b"<h1>Bad gateway</h1>"], 502), "502", None),
    ],
    ids=["key", "question", "temperature", "policy", "elsewhere", "full", "crashed", "proxy"],
)
def test_refusals_are_said_where_they_belong(page: Page, reply: Reply, said: str, field: str | None) -> None:
    with page_server(lambda body: reply) as server:
        ask(page, server.address)
        expect(error(page)).to_contain_text(said)
        expect(page.locator("#go")).to_be_enabled()
        told(page, "no answer")
        assert page.locator('[aria-invalid="true"]').count() == (field is not None)
        if field is not None:
            expect(page.locator(field)).to_be_focused()
            named = page.locator(field).get_attribute("aria-describedby")
            expect(page.locator(f"#{named}")).to_contain_text(said)


def test_what_cannot_be_asked_is_not_asked(page: Page) -> None:
    with page_server(answering(*NUMBERS)) as server:
        page.goto(server.address)
        expect(page.locator(".chips button")).to_have_count(2)
        page.evaluate("document.querySelector('#temperature').value = 9")
        page.fill("#question", " ")
        page.click("#go")
        expect(page.locator("#question")).to_be_focused()
        expect(page.locator(".wrong")).to_have_count(2)
        page.fill("#question", "Why?")
        page.fill("#temperature", "1")
        page.click("#go")
        told(page, "by the LLM")
        assert len(server.bodies) == 1 and page.locator(".wrong").count() == 0


def test_an_error_in_the_middle_and_an_end_without_a_word_are_said(page: Page) -> None:
    broken = b'data: {"error": {"message": "the engine crashed"}}\n\n'
    ends = {
        broken: "the engine crashed",
        b"": "ended before",
        b"data: oops\n\n": "no answer",
        DONE: "summary",
    }
    rest = iter(ends)
    with page_server(lambda body: Reply([chunk(token("half", "llm")), next(rest)])) as server:
        page.goto(server.address)
        for said in ends.values():
            ask(page)
            expect(error(page)).to_contain_text(said)
            told(page, "broken off after 1 token")
            assert text_of(page) == "half"
            assert figure(page, "LLM share so far") == "100.0 %"


def test_stop_hangs_up_and_a_server_that_went_away_is_missed(page: Page) -> None:
    endless = (chunk(token(f"{number} ")) for number in itertools.count())
    with page_server(lambda body: Reply(endless, pause=0.005)) as server:
        ask(page, server.address)
        expect(tokens(page).nth(3)).to_be_visible()
        expect(page.locator("#stop")).to_be_focused()
        page.keyboard.press("Enter")
        expect(error(page)).to_contain_text("Stopped")
        told(page, "stopped after")
        assert server.gone.wait(10)
        expect(page.locator("#stop")).to_be_disabled()
        expect(page.locator("#go")).to_be_focused()
    page.click("#go")
    expect(error(page)).to_contain_text("went away")
