"""Token ids as the text that a verifier reads: what tokens add behind others, without decoding all that stands before."""

from collections.abc import Sequence
from typing import Any

CONTEXT = 16
"""Tokens before that are decoded along: some decoders drop the space with which a text begins, and a character may span tokens."""
PARTIAL = "\ufffd"
"""Stands for a character that is not whole yet."""


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The tokens' text, without special ones."""
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def added_text(tokenizer: Any, before: Sequence[int], token_ids: Sequence[int], at: int | None = None) -> str:
    """The text that tokens add behind the first `at` of `before` (None: all), with a character that they complete."""
    at = len(before) if at is None else at
    context = list(before[max(0, at - CONTEXT) : at])
    known = text_of(tokenizer, context).rstrip(PARTIAL)
    return text_of(tokenizer, [*context, *token_ids])[len(known) :]
