"""What every judge behind a chat endpoint needs: the body of a request, the text of an answer, and options out of a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from navtoken.labeling.openai_client import (
    BadAnswerError,
    Body,
    EndpointOptionError,
    EndpointOptions,
    first_choice,
)
from navtoken.reference import Reference

CHAT = "chat/completions"
_OPENED, _CLOSED = "<think>", "</think>"


def chat_body(
    model: str, messages: Sequence[Mapping[str, str]], max_tokens: int, reasoning_tokens: int = 0
) -> Body:
    """A request for the likeliest answer; `reasoning_tokens` above 0 is for models that refuse a limit and a temperature."""
    body: Body = {"model": model, "messages": list(messages)}
    if reasoning_tokens:
        return body | {"max_completion_tokens": reasoning_tokens}
    return body | {"temperature": 0, "max_tokens": max_tokens}


def chat_text(answer: Body) -> str:
    """The text of a chat answer. Raises `BadAnswerError`."""
    message = first_choice(answer).get("message")
    if not isinstance(message, dict):
        raise BadAnswerError(f"the answer has no message: {str(answer)[:300]}")
    content = message.get("content")
    # Null where a judge spent all its tokens on thoughts that are kept elsewhere.
    return content if isinstance(content, str) else ""


def without_thoughts(reply: str) -> str:
    """What a reply says after its thoughts; nothing where it was cut off while it was thinking."""
    said = reply.rpartition(_CLOSED)[2]
    return "" if _OPENED in said else said


def judge_options(
    reference: Reference, own: type, error: type[ValueError]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a judge's reference, typed: those of its own dataclass, and those of `EndpointOptions`.

    Raises `error` for an option that neither has, and `EndpointOptionError` for a value of the wrong type.
    """
    known = {option.name: option.type for kind in (own, EndpointOptions) for option in fields(kind)}
    del known["endpoint"], known["url"]
    given: dict[str, Any] = {}
    for key, text in reference.options.items():
        if key not in known:
            raise error(f"'{reference}': judge has no option '{key}'; it knows {', '.join(sorted(known))}")
        given[key] = _typed(key, text, known[key])
    mine = {option.name for option in fields(own)}
    return (
        {key: given[key] for key in given if key in mine},
        {key: given[key] for key in given if key not in mine},
    )


def _typed(key: str, text: str, kind: Any) -> Any:
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        raise EndpointOptionError(f"{key}={text} is no {'whole ' if kind is int else ''}number") from None
