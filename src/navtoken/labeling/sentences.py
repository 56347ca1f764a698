"""Where a sentence ends, said of tokens: a continuation stops there, and so does the LLM's own text that it is compared with.

The rule is the task's (`sentence_ends`) or else the usual marks and a line's end. A token ends a sentence by what it spells:
nothing is tokenised again. A point between digits ends nothing ("3.14"), which only the token after it tells; and a line's end
before the first word is no sentence.

Known limits: abbreviations with a point end a sentence, and so does the number of an item ("1. ").
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

__all__ = ["ENDINGS", "SentenceEnds"]

ENDINGS = (".", "!", "?", "\n")
"""What ends a sentence where the task does not say."""
_CLOSING = "\"'”’)]}*_"
"""What may follow the mark within its token."""


class _Token(NamedTuple):
    """What of a token's text matters."""

    has_words: bool
    """Is there more than white space?"""
    ends: bool
    """Does its text end in a mark?"""
    is_point: bool
    """Is that mark a point?"""
    digit_before: bool | None
    """Does a digit stand before the point? None: the point stands first, the token before it knows."""
    last_is_digit: bool
    breaks_line: bool
    """Does it hold a line's end that ends a sentence?"""
    words_first: bool
    """Are there words before that line's end?"""
    first_is_digit: bool
    """Does it begin with a digit, without a space?"""
    is_special: bool


class SentenceEnds:
    """Sentence ends under one tokenizer and one rule; what it has seen of a token it keeps."""

    def __init__(self, tokenizer: Any, endings: Sequence[str] = ENDINGS) -> None:
        """`endings` are texts that end a sentence; a line's end does so anywhere in a token, the others at its end."""
        self._tokenizer = tokenizer
        self.endings = tuple(endings)
        self._seen: dict[int, _Token] = {}

    @classmethod
    def of(cls, tokenizer: Any, task: Any) -> "SentenceEnds":
        """By the task's own rule, where it carries `sentence_ends`."""
        return cls(tokenizer, getattr(task, "sentence_ends", None) or ENDINGS)

    def length(
        self,
        before: Sequence[int],
        token_ids: Sequence[int],
        at: int | None = None,
        known: int = 0,
        more: bool = True,
    ) -> int | None:
        """How many of `token_ids`, which follow the first `at` tokens of `before` (None: all), belong to the first one's sentence.

        None: it has not ended yet, or only the next token tells. With `more` False there is none, so an end that was in doubt is
        one; still None where there is no end at all. The first `known` tokens are known not to end it.
        """
        at = len(before) if at is None else at
        spoken = any(self._token(token_id).has_words for token_id in token_ids[:known])
        has_words = spoken or not self._begins(before, at)
        for index in range(known, len(token_ids)):
            token = self._token(token_ids[index])
            if token.breaks_line and (has_words or token.words_first):
                return index + 1
            has_words = has_words or token.has_words
            if not token.ends or not has_words:
                continue
            previous = token_ids[index - 1] if index else before[at - 1] if at else None
            if token.is_point and self._digit_before(token, previous):
                if index + 1 == len(token_ids):
                    return None if more else index + 1
                if self._token(token_ids[index + 1]).first_is_digit:
                    continue
            return index + 1
        return None

    def _digit_before(self, point: _Token, previous_id: int | None) -> bool:
        if point.digit_before is not None:
            return point.digit_before
        return previous_id is not None and self._token(previous_id).last_is_digit

    def _begins(self, before: Sequence[int], at: int) -> bool:
        """Does a sentence begin after these tokens?"""
        for index in range(at - 1, -1, -1):
            token = self._token(before[index])
            if token.is_special or token.breaks_line or token.ends:
                return True
            if token.has_words:
                return False
        return True

    def _token(self, token_id: int) -> _Token:
        if token_id not in self._seen:
            self._seen[token_id] = self._read(token_id)
        return self._seen[token_id]

    def _read(self, token_id: int) -> _Token:
        text: str = self._tokenizer.decode(
            [token_id], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        # The piece, not the text: some decoders drop the space with which a text of one token begins.
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        first_line, breaks, _ = text.partition("\n")
        closed = text.rstrip().rstrip(_CLOSING)
        marks = tuple(mark for mark in self.endings if mark != "\n")
        ends = closed.endswith(marks) if marks else False
        stem = closed.removesuffix(".")
        return _Token(
            has_words=bool(text.strip()),
            ends=ends,
            # With anything after the point no digit can follow at once.
            is_point=ends and text.endswith("."),
            digit_before=stem[-1].isdigit() if stem else None,
            last_is_digit=text[-1:].isdigit(),
            breaks_line=bool(breaks) and "\n" in self.endings,
            words_first=bool(first_line.strip()),
            first_is_digit=piece[:1].isdigit(),
            is_special=token_id in self._special,
        )

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids)
