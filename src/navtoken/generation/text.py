"""Token ids to text, one at a time: what a stream shows.

A token's text depends on its neighbours (a leading space, parts of a character), so what a token adds is the difference
of two decodings of a short window, and a character that is not whole yet is held back.
"""

from typing import Any

_PARTIAL = "\ufffd"


class TextStream:
    """Turns a growing list of ids into pieces of text, special tokens left out."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._told = 0

    def push(self, token_id: int) -> str:
        """What becomes readable with this token; empty while a character is not whole."""
        self._window.append(token_id)
        return self._read(hold=True)

    def end(self) -> str:
        """What was held back."""
        return self._read(hold=False)

    def _read(self, hold: bool) -> str:
        before, now = self._decode(self._window[: self._told]), self._decode(self._window)
        if hold and now.endswith(_PARTIAL):
            return ""
        # One told token stays as context for the next.
        keep = max(0, len(self._window) - 1)
        self._window, self._told = self._window[keep:], len(self._window) - keep
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
