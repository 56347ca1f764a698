"""Requests out of the OpenAPI document, valid and not, that nobody would think of: no 5xx, and every answer as documented."""

import json
import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.config import SchemathesisConfig

from live_server import LiveServer

MAX_TOKENS = 3
"""Of responses, so that thousands of them take seconds."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def document(embedded: LiveServer) -> Any:
    config = SchemathesisConfig.from_dict({"base-url": embedded.address})
    return schemathesis.openapi.from_dict(embedded.http.get("/openapi.json").json(), config=config)


def test_the_document_has_all_paths_and_no_status_that_is_never_sent(document: Any) -> None:
    paths = document.raw_schema["paths"]
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/health",
        "/metrics",
        "/version",
    } <= set(paths)
    for path in paths.values():
        for operation in path.values():
            assert "422" not in operation["responses"] and "400" in operation["responses"]


def test_every_schema_that_is_referred_to_is_there(embedded: LiveServer) -> None:
    text = embedded.http.get("/openapi.json").text
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert {"ChatChunk", "ChatAnswer", "Navigation"} <= named
    assert named <= set(json.loads(text)["components"]["schemas"])


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/chat/completions", "POST"),
        ("/v1/completions", "POST"),
        ("/v1/models", "GET"),
        ("/v1/pair", "GET"),
        ("/health", "GET"),
        ("/metrics", "GET"),
        ("/version", "GET"),
        ("/v1/engine/restart", "POST"),
    ],
)
def test_every_answer_is_as_documented(document: Any, embedded: LiveServer, path: str, method: str) -> None:
    operation = document[path][method]
    statuses: set[int] = set()
    has_body = path.endswith("completions")

    @given(
        case=operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE)
    )
    @settings(
        max_examples=60 if has_body else 5,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        if has_body and isinstance(case.body, dict):
            _quicken(case.body, embedded)
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    ask()
    embedded.wait_until_idle()
    assert embedded.server.engine.health().num_crashes == 0
    assert statuses and (not has_body or {200, 400} <= statuses), statuses


def _quicken(body: dict[str, Any], live: LiveServer) -> None:
    """Let valid requests ask for something that is there, and for little of it; what is wrong with others stays."""
    if isinstance(body.get("model"), str):
        body["model"] = "navtoken"
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is None or (type(body[name]) is int and body[name] > MAX_TOKENS):
            body[name] = MAX_TOKENS
    if "messages" in body:
        body.pop("max_tokens", None)
    else:
        body.pop("max_completion_tokens", None)
    if type(body.get("n")) is int and body["n"] > 2:
        body["n"] = 2
