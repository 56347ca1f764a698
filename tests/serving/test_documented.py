"""docs/serving.md names what there is: options of the server, fields of requests, paths."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from live_server import LiveServer
from navtoken.serving.options import ServerOptions
from navtoken.serving.requests import UNSUPPORTED, ChatRequest, CompletionRequest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
BASICS = {"port", "engine"}
"""Options that need no words: the port stands in the address, the engine's are its own."""
SUBJECTS = {"model", "messages", "prompt"}


def test_every_option_of_the_server_is_described() -> None:
    named = set(re.findall(r"--([a-z][a-z-]*)", DOCUMENT))
    wanted = {field.name.replace("_", "-") for field in fields(ServerOptions) if field.name not in BASICS}
    assert wanted - named == set()


@pytest.mark.parametrize("body", [ChatRequest, CompletionRequest])
def test_every_field_that_does_something_is_described(body: type[ChatRequest | CompletionRequest]) -> None:
    named = set(re.findall(r"`(\w+)[`:]", DOCUMENT))
    assert set(body.model_fields) - set(UNSUPPORTED) - SUBJECTS - named == set()


def test_every_path_is_described(embedded: LiveServer) -> None:
    paths = embedded.http.get("/openapi.json").json()["paths"]
    asked = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert asked <= set(re.findall(r"`((?:GET|POST) /[\w/{}.]+)`", DOCUMENT))
