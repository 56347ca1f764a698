import pytest
from hypothesis import given
from hypothesis import strategies as st

from navtoken.report import byte_level_decode, pieces
from navtoken.report.pieces import Pieces, visible

ALPHABET = {0x20: "Ġ", 0x0A: "Ċ", 0x41: "A", 0xC3: "Ã", 0xA9: "©", 0x00: "Ā", 0xAD: "Ń"}


class ByteTokenizer:
    """One token per byte in GPT-2's alphabet, and a special token."""

    def convert_ids_to_tokens(self, ids):
        return ["<|im_end|>" if i == 999 else ALPHABET[i] for i in ids]


def test_parts_of_a_character_are_shown_as_bytes():
    pieces = Pieces(byte_level_decode(ByteTokenizer()))
    assert [pieces.shown(0x41, token) for token in (0xC3, 0xA9, 0x20, 0x0A, 0x41, 0x00, 0xAD, 999)] == [
        "\\xC3", "\\xA9", "␣", "↵", "A", "\\x00", "\\xAD", "<|im_end|>",
    ]  # fmt: skip


def test_whole_character_from_two_tokens_is_a_character():
    assert byte_level_decode(ByteTokenizer())([0xC3, 0xA9]).decode() == "é"


def test_replacement_character_of_a_text_decoder_is_shown_as_a_byte():
    assert Pieces(lambda ids: "\ufffd").shown(1, 2) == "\\x??"


def test_leading_space_that_depends_on_the_neighbour_is_kept():
    words = ["Let", "us"]
    pieces = Pieces(lambda ids: " ".join(words[i] for i in ids))
    assert pieces.text(None, 0) == "Let"
    assert pieces.text(0, 1) == " us"
    assert pieces.shown(0, 1) == "␣us"


def test_marks_that_turn_text_around_are_spelled_out():
    assert "".join(segment.shown for segment in visible("a\u202eb\x1b\ufeff")) == "a\\u202Eb\\x1B\\uFEFF"


@given(st.binary())
def test_any_bytes_become_printable_text_and_nothing_is_lost(raw):
    text = raw.decode("utf-8", "surrogateescape")
    segments = visible(text)
    shown = "".join(segment.shown for segment in segments)
    shown.encode("utf-8")
    assert not any(char in shown for char in "\n\r\t\0")
    plain = "".join(segment.shown for segment in segments if segment.kind == "plain")
    assert plain == "".join(c for c in text if len(visible(c)) == 1 and visible(c)[0].kind == "plain")


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_KNOWN", 4)
    known = Pieces(lambda ids: "".join(chr(97 + each) for each in ids))
    for token in range(20):
        assert known.text(None, token) == chr(97 + token)
        assert len(known._known) <= 4
    assert known.text(3, 4) == "e"
