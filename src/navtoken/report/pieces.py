"""The text of single tokens: what each adds to its neighbours, and how to show what is not printable.

Decoding one token alone loses its leading space (SentencePiece) or its meaning (a byte of a character), so a
token's text is what it adds to the token before it, and bytes that form no character are shown as `\\xE2`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Decode = Callable[[list[int]], str | bytes]
"""Token ids to their text, special tokens included. Bytes are better than str: they show parts of characters."""

_SPECIAL = re.compile(
    "(?P<newline>\r\n|\n|\r)|(?P<tab>\t)"
    "|(?P<escape>[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffd\ud800-\udfff])"
)


@dataclass(frozen=True)
class Segment:
    """A stretch of a token's text that is shown in one way."""

    kind: Literal["plain", "newline", "tab", "escape"]
    shown: str
    """Printable text."""


MOST_KNOWN = 1 << 18
"""Pairs of tokens that are remembered at once: a server would else end with all there are."""


class Pieces:
    """Texts of tokens in context, remembered."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._known: dict[tuple[int | None, int], str] = {}

    def text(self, previous: int | None, token: int) -> str:
        """What `token` adds after `previous`; bytes that are not UTF-8 come as lone surrogates (PEP 383)."""
        key = (previous, token)
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._added(previous, token)
        return self._known[key]

    def shown(self, previous: int | None, token: int) -> str:
        """The token's text on one line, with everything invisible spelled out."""
        segments = visible(self.text(previous, token))
        line = "".join(segment.shown for segment in segments)
        if not line:
            return f"⟨{token}⟩"
        if not line.strip(" "):
            return "␣" * len(line)
        return "␣" + line[1:] if line[0] == " " else line

    def _added(self, previous: int | None, token: int) -> str:
        alone = _as_text(self._decode([token]))
        if previous is None:
            return alone
        before, both = _as_text(self._decode([previous])), _as_text(self._decode([previous, token]))
        return both[len(before) :] if both.startswith(before) and len(both) > len(before) else alone


def visible(text: str) -> list[Segment]:
    """Split `text` where something is not printable: line ends, tabs, control and direction marks, stray bytes."""
    segments, at = [], 0
    for match in _SPECIAL.finditer(text):
        if match.start() > at:
            segments.append(Segment("plain", text[at : match.start()]))
        at = match.end()
        if match.lastgroup == "newline":
            segments.append(Segment("newline", "↵"))
        elif match.lastgroup == "tab":
            segments.append(Segment("tab", "⇥"))
        else:
            segments.append(Segment("escape", _escaped(match.group())))
    if at < len(text):
        segments.append(Segment("plain", text[at:]))
    return segments


def token_text(token: str) -> str:
    """A token's text on one line outside its context: the spaces around it and everything invisible spelled out."""
    shown = "".join(segment.shown for segment in visible(token))
    inner = shown.strip(" ")
    if not inner:
        return "␣" * len(shown) or "⟨⟩"
    before = len(shown) - len(shown.lstrip(" "))
    return "␣" * before + inner + "␣" * (len(shown) - before - len(inner))


def byte_level_decode(tokenizer: Any) -> Decode:
    """A `Decode` that gives the exact bytes of a byte-level BPE tokenizer (Qwen, Llama 3, GPT-2).

    `tokenizer` is one of `transformers`; tokens outside the byte alphabet (special tokens) are taken as text.
    """
    byte_of = {char: byte for byte, char in enumerate(_byte_alphabet())}

    def decode(ids: list[int]) -> bytes:
        tokens = tokenizer.convert_ids_to_tokens(ids)
        return b"".join(
            bytes(byte_of[char] for char in token) if set(token) <= byte_of.keys() else token.encode()
            for token in tokens
            if token is not None
        )

    return decode


def decode_of(tokenizer: Any) -> Decode:
    """Text of token ids, special tokens included: exact bytes where the tokenizer works on bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and "ByteLevel" in repr(backend.decoder):
        return byte_level_decode(tokenizer)
    return lambda ids: str(tokenizer.decode(ids))


def _byte_alphabet() -> list[str]:
    """The printable stand-in of every byte in GPT-2's byte-level BPE."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(code) for code in range(0x100, 0x200))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def _as_text(decoded: str | bytes) -> str:
    return decoded.decode("utf-8", "surrogateescape") if isinstance(decoded, bytes) else decoded


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02X}"
    if code == 0xFFFD:
        return "\\x??"
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}"
