"""Bodies of requests: what is known but not supported, unknown or no JSON gets 400 and says where; defaults are harmless."""

import json
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel

from live_server import LiveServer, chat_body, completion_body
from navtoken.serving.requests import ChatRequest, CompletionRequest, StreamOptions

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

HARMLESS = {
    "tools": [],
    "functions": [],
    "tool_choice": "none",
    "function_call": "auto",
    "parallel_tool_calls": False,
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "reasoning_effort": None,
    "web_search_options": None,
}
HARMLESS_IN_BOTH = {
    "response_format": {"type": "text"},
    "stop_token_ids": [],
    "bad_words": [],
    "guided_json": None,
    "store": False,
    "service_tier": "auto",
    "user": "someone",
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "logit_bias": {},
    "stop": [],
    "n": 1,
    "stream": False,
    "stream_options": None,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_p": 1,
    "top_k": -1,
    "policy": None,
    "threshold": None,
}
UNSUPPORTED = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "web_search_options": {},
    "store": True,
    "service_tier": "flex",
    "stop_token_ids": [3],
    "bad_words": ["x"],
    "guided_json": {},
    "guided_regex": "a",
    "guided_choice": ["a"],
    "structured_outputs": {"json": {}},
    "prompt_logprobs": 1,
}


def post(live: LiveServer, path: str, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return live.http.post(path, content=content, headers=JSON | headers)


def refused(answer: Any) -> dict[str, Any]:
    """The error object of a 400."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["type"] == "invalid_request_error"
    return error


def test_harmless_defaults_change_nothing(embedded: LiveServer) -> None:
    plain = embedded.chat().json()["choices"][0]["message"]
    answer = embedded.chat(**HARMLESS, **HARMLESS_IN_BOTH, logprobs=False, top_logprobs=0)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"] == plain
    continued = embedded.complete().json()["choices"][0]["text"]
    answer = embedded.complete(**HARMLESS_IN_BOTH, suffix="", best_of=1, echo=False, logprobs=None)
    assert answer.json()["choices"][0]["text"] == continued


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_known_but_not_supported_is_refused_by_name(embedded: LiveServer, field: str) -> None:
    error = refused(embedded.chat(**{field: UNSUPPORTED[field]}))
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert field in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"ignored": None}, "ignored"),
        ({"stream_options": {"include": True}, "stream": True}, "stream_options"),
        ({"prompt": "x"}, "prompt"),
        ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, "messages"),
    ],
)
def test_unknown_fields_are_refused(embedded: LiveServer, fields: dict[str, Any], param: str) -> None:
    error = refused(embedded.chat(**fields))
    assert (error["param"], error["code"]) == (param, "unknown_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "5"),
        ("max_tokens", 5.0),
        ("max_tokens", True),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**30),
        ("max_tokens", 5000),
        ("n", 0),
        ("n", 129),
        ("n", "1"),
        ("temperature", "0"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 1.1),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("repetition_penalty", 0),
        ("seed", 2**63),
        ("seed", 1.5),
        ("seed", "1"),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 17),
        ("stop", 3),
        ("stop", "x" * 129),
        ("stream", "true"),
        ("stream", 1),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("top_logprobs", 3),
        ("logit_bias", {"500": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"٣": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": "5"}),
        ("logit_bias", [1]),
        ("model", None),
        ("model", 3),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "system", "content": "be brief"}, {"role": "user", "content": "x"}]),
        ("messages", [{"role": "user", "content": "x" * 5000}]),
        ("metadata", {"a": 1}),
        ("min_tokens", -1),
        ("threshold", "0.5"),
        ("threshold", 10**400),
        ("policy", ""),
        ("policy", "nonsense"),
        ("policy", "entropy:"),
        ("policy", "entropy:nan"),
        ("policy", "random:2"),
        ("policy", "speculative:0"),
        ("policy", "speculative:" + "9" * 100),
        ("policy", "x" * 201),
        ("policy", "entropy,share=0.2"),
        ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}),
        ("chat_template_kwargs", {"tokenize": True}),
        ("chat_template_kwargs", {"tokenizer": "x"}),
        ("chat_template_kwargs", {"messages": "x"}),
        ("chat_template_kwargs", {"eos_token": "x"}),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("chat_template_kwargs", {"documents": [1]}),
    ],
)
def test_types_are_strict_and_ranges_kept(embedded: LiveServer, field: str, value: Any) -> None:
    assert refused(embedded.chat(**{field: value}))["param"] == field


def booleans(body: type[BaseModel]) -> list[str]:
    """Names of fields that are true or false."""
    hints = get_type_hints(body)
    return [
        name for name, hint in hints.items() if name != "model_config" and bool in (hint, *get_args(hint))
    ]


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, "true", "", []], ids=repr)
def test_no_number_passes_for_true_or_false(embedded: LiveServer, value: Any) -> None:
    of_chat, of_completions = booleans(ChatRequest), booleans(CompletionRequest)
    assert {"store", "stream", "logprobs", "ignore_eos"} <= set(of_chat) and "echo" in of_completions
    for field in of_chat:
        assert refused(embedded.chat(**{field: value}))["param"] == field
    for field in of_completions:
        assert refused(embedded.complete(**{field: value}))["param"] == field
    for field in booleans(StreamOptions):
        error = refused(embedded.chat(stream=True, stream_options={field: value}))
        assert error["param"] == "stream_options" and field in error["message"]


@pytest.mark.parametrize(
    "policy",
    [
        "router:/etc",
        "router:/etc,threshold=0.4",
        "router:../router",
        "query:/etc",
        "query:/etc,threshold=0.5",
        "hindsight,router=/etc",
        "hindsight:0.05,router=/etc",
        "oracle",
        "oracle:/etc",
        "oracle:embedded:llm",
    ],
)
def test_policies_that_read_files_are_refused_unread(embedded: LiveServer, policy: str) -> None:
    error = refused(embedded.chat(policy=policy))
    assert error["param"] == "policy"
    assert "router.json" not in error["message"] and "No such file" not in error["message"]


@pytest.mark.parametrize(
    "policy", ["hindsight:0.05", "query", "router,threshold=0.3", "r-stitch:0.05", "margin:0.2"]
)
def test_policies_without_files_are_served(embedded: LiveServer, policy: str) -> None:
    assert embedded.chat(policy=policy).status_code == 200


BAD_JSON = {
    "nothing": b"",
    "no json": b"hello",
    "cut off": b'{"model": "navtoken", ',
    "no object": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "no utf-8": b'{"model": "\xff\xfe"}',
    "nan": b'{%s, "temperature": NaN}',
    "infinity": b'{%s, "temperature": Infinity}',
    "minus infinity": b'{%s, "threshold": -Infinity}',
    "overflow": b'{%s, "threshold": 1e999}',
    "nan in a bias": b'{%s, "logit_bias": {"1": NaN}}',
    "lone surrogate in a message": b'{"messages": [{"role": "user", "content": "\\ud800"}], "model": "navtoken"}',
    "lone surrogate in a key": b'{%s, "\\udfff": 1}',
    "lone surrogate in a stop": b'{%s, "stop": "\\ud83d"}',
    "huge integer": b'{%s, "seed": ' + b"9" * 10_000 + b"}",
    "huge float": b'{%s, "top_p": ' + b"9" * 4000 + b"}",
    "huge bias": b'{%s, "logit_bias": {"1": ' + b"9" * 4000 + b"}}",
    "nul in a field": b'{%s, "a\\u0000b": 1}',
}
DEPTHS = (50, 200, 500, 900, 940, 960, 980, 1000, 1200, 5000, 100_000)


@pytest.mark.parametrize("name", BAD_JSON)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_no_json_is_a_400(embedded: LiveServer, path: str, name: str) -> None:
    rest = json.dumps(chat_body() if path == CHAT else completion_body())[1:-1].encode()
    refused(post(embedded, path, BAD_JSON[name].replace(b"%s", rest)))


@pytest.mark.parametrize("field", ["metadata", "messages", "logit_bias", "unknown"])
def test_deep_nesting_is_a_400(embedded: LiveServer, field: str) -> None:
    rest = json.dumps(chat_body())[1:-1].encode()
    for depth in DEPTHS:
        for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
            nested = opened * depth + b"1" + closed * depth
            refused(post(embedded, CHAT, b'{%s, "%s": %s}' % (rest, field.encode(), nested)))


def test_a_body_of_another_type_is_a_400(embedded: LiveServer) -> None:
    form = embedded.http.post(CHAT, data={"model": "navtoken"})
    assert form.status_code == 400
    untyped = post(embedded, CHAT, chat_body(), **{"content-type": "text/plain"})
    assert untyped.status_code == 400


def test_a_message_names_where_it_is_wrong(embedded: LiveServer) -> None:
    wrong = [{"role": "user", "content": "x"}, {"role": "user", "content": 3}]
    assert "messages.1.content" in refused(embedded.chat(messages=wrong))["message"]
    assert refused(embedded.http.post(CHAT, json={"model": "navtoken"}))["param"] == "messages"


def test_errors_quote_little_of_what_was_sent(embedded: LiveServer) -> None:
    for fields in ({"x" * 100_000: 1}, {"model": "y" * 100_000}, {"policy": "z" * 150}):
        answer = embedded.chat(**fields)
        assert 400 <= answer.status_code < 500 and len(answer.text) < 2000
