"""Pairs unlike the embedded one: without a router or a chat template, and with a template that opens thoughts."""

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live_server import LiveServer, serving
from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.engine import Engine
from navtoken.policies import make_policy
from navtoken.serving.errors import BadRequest
from navtoken.serving.prompts import PromptMaker
from navtoken.serving.requests import CompletionRequest
from tiny_models import EOS, VOCAB_SIZE, tiny_model, tiny_pair
from tiny_routers import tiny_router

THINKS = (
    "{% for message in messages %}({{ message.role }}){{ message.content }}{% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>{% else %}<think></think>{% endif %}"
)
CLOSED = VOCAB_SIZE
"""Id of the tag that ends thoughts, where the tokenizer has one."""


@pytest.fixture(scope="module")
def plain() -> Iterator[LiveServer]:
    """Neither router nor template."""
    with serving(tiny_pair()) as live:
        yield live


@pytest.fixture(scope="module")
def thinking() -> Iterator[LiveServer]:
    def loaded(seed: int) -> LoadedModel:
        model = tiny_model("qwen3", seed)
        tokenizer: Any = copy.deepcopy(model.tokenizer)
        assert tokenizer.add_tokens(["</think>"]) == 1
        tokenizer.chat_template = THINKS
        return LoadedModel(model.model, tokenizer, model.reference)

    with serving(ModelPair(loaded(1), loaded(2))) as live:
        yield live


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_pair_without_a_router_is_served_by_entropy(plain: LiveServer) -> None:
    assert plain.http.get("/v1/pair").json()["policy"] == "entropy:0.67"
    answer = plain.chat(messages=[user("What?")], max_tokens=20, return_token_ids=True).json()
    prompt = tiny_pair().tokenizer("What?")["input_ids"]
    engine = Engine(tiny_pair(), make_policy("entropy:0.67"))
    row = engine.add(prompt, max_tokens=20)
    list(engine.run())
    assert answer["prompt_token_ids"] == prompt
    assert answer["choices"][0]["token_ids"] == row.response_ids
    assert answer["choices"][0]["navtoken"]["policy"] == "entropy:0.67"
    refused = plain.chat(messages=[user("What?")], policy="router")
    assert refused.status_code == 400 and "no router" in refused.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["router", "query"])
def test_a_router_s_folder_is_told_to_nobody(tmp_path: Path, kind: str) -> None:
    pair = tiny_pair()
    if kind == "router":
        tiny_router(tmp_path / "secret", pair)
    else:
        tiny_router(tmp_path / "secret", pair, kind="query", inputs=("hidden",))
    with serving(pair, policy=f"{kind}:{tmp_path / 'secret'},threshold=0.5") as live:
        assert "secret" in live.server.offered.served.reference
        answers = [live.http.get(path) for path in ("/v1/models", "/v1/models/navtoken", "/v1/pair")]
        answers.append(live.chat(messages=[user("What?")]))
    for answer in answers:
        assert answer.status_code == 200 and f"{kind}," in answer.text
        assert "secret" not in answer.text


def test_ids_beyond_the_pair_s_are_refused_though_the_model_has_rows_for_more() -> None:
    tokenizer: Any = copy.deepcopy(tiny_pair().tokenizer)
    assert tokenizer.add_tokens(["<one more>"]) == 1
    maker = PromptMaker(tiny_pair())
    maker._tokenizer = tokenizer
    request = CompletionRequest(model="navtoken", prompt=[VOCAB_SIZE - 1])
    assert asyncio.run(maker.of_completion(request))[0].ids == [VOCAB_SIZE - 1]
    with pytest.raises(BadRequest, match=f"0 to {VOCAB_SIZE - 1}"):
        asyncio.run(maker.of_completion(CompletionRequest(model="navtoken", prompt=[VOCAB_SIZE])))
    with pytest.raises(BadRequest, match=f"token id {VOCAB_SIZE}"):
        asyncio.run(maker.of_completion(CompletionRequest(model="navtoken", prompt="<one more>")))
    maker.close()


@pytest.mark.parametrize(
    "messages",
    [
        [user("a"), {"role": "assistant", "content": "b"}, user("c")],
        [{"role": "system", "content": "a"}, user("b")],
        [{"role": "assistant", "content": "a"}],
    ],
)
def test_a_conversation_needs_a_template(plain: LiveServer, messages: list[dict[str, str]]) -> None:
    answer = plain.chat(messages=messages)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages")
    assert "no chat template" in error["message"]
    switched = plain.chat(messages=[user("a")], chat_template_kwargs={"enable_thinking": True}).json()
    assert switched["error"]["param"] == "chat_template_kwargs"


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("seed", (0, 2))
def test_thoughts_are_told_from_the_answer(thinking: LiveServer, seed: int, opened: bool) -> None:
    wanted: dict[str, Any] = {
        "max_tokens": 24,
        "temperature": 1.0,
        "seed": seed,
        "logit_bias": {str(CLOSED): 6 + 2 * seed, str(EOS): -100},
        "return_token_ids": True,
    }
    switch = {"chat_template_kwargs": {"enable_thinking": opened}}
    answer = thinking.chat(messages=[user("why")], **wanted, **switch).json()
    text = "(user)why<think>" + ("" if opened else "</think>")
    prompt = thinking.server.pair.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert answer["prompt_token_ids"] == prompt
    raw = thinking.complete(prompt=prompt, **wanted).json()["choices"][0]
    assert raw["token_ids"] == answer["choices"][0]["token_ids"]
    before, closed, after = raw["text"].partition("</think>")
    expected = (before or None, after) if opened else (None, raw["text"])
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == expected
    assert closed or seed == 0, "the test must see a tag"
    body = {"model": "navtoken", "messages": [user("why")], **wanted, **switch}
    deltas = [
        choice["delta"]
        for event in thinking.events("/v1/chat/completions", body)
        for choice in event["choices"]
    ]
    for name, whole in message.items():
        if name in ("reasoning_content", "content"):
            assert "".join(delta.get(name) or "" for delta in deltas) == (whole or "")
