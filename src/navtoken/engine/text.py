"""Token ids to text, one at a time: what a stream shows.

A token's text depends on its neighbours (a leading space, parts of a character), so what a token adds is the difference
of two decodings of a short window, and a character that is not whole yet is held back. So is what may become a stop
string, which is not part of a response's text.
"""

from collections.abc import Sequence
from typing import Any

_PARTIAL = "\ufffd"


class TextStream:
    """Turns a growing list of ids into pieces of text, special tokens left out."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._window: list[int] = []
        self._told = 0
        self._held = ""
        self._known = 0

    def push(self, token_id: int) -> str:
        """What becomes readable with this token; empty while a character is not whole, or a stop string may come."""
        self._window.append(token_id)
        self._known = len(self._held)
        self._held += self._read(hold=True)
        sure = min((self._first_unsure(stop) for stop in self._stop), default=len(self._held))
        ready, self._held = self._held[:sure], self._held[sure:]
        self._known = max(0, self._known - sure)
        return ready

    def end(self, stop_string: str | None = None) -> str:
        """What was held back, up to the stop string that ended the response."""
        rest, self._held = self._held + self._read(hold=False), ""
        return rest if stop_string is None else rest[: self._new(stop_string, rest)]

    def _new(self, stop: str, held: str) -> int:
        """Where a stop string is that the last token completed, or -1; one that was whole before did not count."""
        return held.find(stop, max(0, self._known - len(stop) + 1))

    def _first_unsure(self, stop: str) -> int:
        """From where on the held text is, or may become, this stop string and what follows it."""
        held = self._held
        if (found := self._new(stop, held)) >= 0:
            return found
        sizes = range(min(len(stop) - 1, len(held)), 0, -1)
        return len(held) - next((size for size in sizes if held.endswith(stop[:size])), 0)

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
