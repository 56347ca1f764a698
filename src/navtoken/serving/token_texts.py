"""Texts of single tokens, for log-probabilities and details: what each adds to the one before it, and its exact bytes."""

import copy
from typing import Any

from navtoken.report.pieces import Pieces, decode_of


class TokenTexts:
    """Knows tokens by id. Not for several threads: a fast tokenizer must not be used by two at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self._pieces = Pieces(decode_of(self.tokenizer))
        added = self.tokenizer.added_tokens_decoder
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)

    def text(self, previous: int | None, token_id: int) -> str:
        """What a token adds after another; parts of a character come as U+FFFD."""
        return self.bytes(previous, token_id).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Is it left out of texts?"""
        return token_id in self._special

    def bytes(self, previous: int | None, token_id: int) -> bytes:
        """Its bytes: those of several tokens together are the text."""
        return self._pieces.text(previous, token_id).encode(errors="surrogateescape")
