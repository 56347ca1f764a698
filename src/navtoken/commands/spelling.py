"""Texts of tokens for people: alone, and where they stand."""

from typing import Any

from navtoken.analysis.frozen import FrozenSet
from navtoken.report.pieces import Pieces, decode_of


class Speller:
    """Texts of tokens; numbers where there is no tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.decode = _by_number if tokenizer is None else decode_of(tokenizer)
        self._pieces = Pieces(self.decode)

    def token(self, token_id: int) -> str:
        """The token alone, spaces included."""
        return self._pieces.text(None, token_id) or f"⟨{token_id}⟩"

    def context(self, before: list[int], token_id: int, after: list[int]) -> tuple[str, str, str]:
        """Text before a token, the token, text after it."""
        ids = [*before, token_id, *after]
        texts = [self._pieces.text(previous, each) for previous, each in zip([None, *ids], ids, strict=False)]
        at = len(before)
        return "".join(texts[:at]), texts[at] or f"⟨{token_id}⟩", "".join(texts[at + 1 :])


class FrozenSpeller(Speller):
    """Knows the responses as well, so that a place in them is one number."""

    def __init__(self, tokenizer: Any, frozen: FrozenSet) -> None:
        super().__init__(tokenizer)
        self._frozen = frozen

    def place(self, position: int) -> tuple[str, str, str]:
        """Text before a position of the frozen set, at it, and after it."""
        return self.context(*self._frozen.around(position))


def _by_number(ids: list[int]) -> str:
    return "".join(f"⟨{token_id}⟩" for token_id in ids)
