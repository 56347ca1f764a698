"""Texts of single tokens, for log-probabilities and details: what each adds to the one before it, and its exact bytes."""

import copy
from typing import Any

from navtoken.report.pieces import Decode, Pieces, byte_level_decode


class TokenTexts:
    """Knows tokens by id. Not for several threads: a fast tokenizer must not be used by two at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self._pieces = Pieces(_decode(self.tokenizer))

    def text(self, previous: int | None, token_id: int) -> str:
        """What a token adds after another; parts of a character come as U+FFFD."""
        return self.bytes(previous, token_id).decode(errors="replace")

    def bytes(self, previous: int | None, token_id: int) -> bytes:
        """Its bytes: those of several tokens together are the text."""
        return self._pieces.text(previous, token_id).encode(errors="surrogateescape")


def _decode(tokenizer: Any) -> Decode:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and "ByteLevel" in str(backend.decoder):
        return byte_level_decode(tokenizer)

    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return decode
