"""A word tokenizer, traces made by hand, and a parser that checks nesting while it reads a page."""

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from navtoken.trace import Trace

VOCABULARY = ["7", " +", " 5", " =", " 12", " 13", "\n", " ", "</script><b>", "\t", "wait", ""]


class Parsed(HTMLParser):
    """Elements of a page in order, each as (tag, attributes, text), with the nesting checked."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {[self.elements[i][0] for i in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def find(self, tag: str, class_: str = "") -> list[tuple[dict[str, Any], str]]:
        """(attributes, text inside) of each `tag` that has the class."""
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and (not class_ or class_ in (attributes.get("class") or "").split())
        ]

    def data(self) -> dict[str, Any]:
        """The viewer's JSON."""
        found = [
            text for attributes, text in self.find("script") if attributes.get("type") == "application/json"
        ]
        assert len(found) == 1
        return json.loads(found[0])


@pytest.fixture
def parse() -> Callable[[str], Parsed]:
    return Parsed


@pytest.fixture
def decode() -> Callable[[list[int]], str]:
    return lambda ids: "".join(VOCABULARY[i] for i in ids)


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    """A trace of `7 + 5 = 12` in which the LLM writes the answer; keywords replace fields."""

    def make(**changes: Any) -> Trace:
        ids = changes.pop("response_ids", [0, 1, 2, 3, 4])
        n = len(ids)
        drafts = [*ids[:-1], 5]
        columns = {
            "entropy_slm": np.array([0.0, 0.02, 0.5, 0.001, 1.25][:n], np.float32),
            "entropy_llm": np.array([math.nan] * (n - 1) + [0.125], np.float32),
            "draft_ids": np.array(drafts, np.int32),
            "top_ids": np.array([[i, (i + 1) % 8, 9] for i in ids], np.int32),
            "top_logprobs": np.log(np.array([[0.75, 0.2, 0.05]] * n, np.float32)),
        }
        fields: dict[str, Any] = {
            "task": "sums", "problem_id": "p1", "sample": 0, "prompt": "7 + 5?", "prompt_ids": [0],
            "response_ids": ids, "text": "", "finish_reason": "stop", "seed": 1, "policy": "entropy:0.67",
            "writer": [0] * (n - 1) + [1], "correct": True, "columns": columns,
        }  # fmt: skip
        return Trace(**(fields | changes))

    return make
