"""Do the ids of given responses mean to a tokenizer what they meant to their writer?

Tokenizers of one family differ in chat templates and unused tokens, and ids within range may still be another vocabulary's. So
what counts is the text: the ids must spell what stands beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from navtoken.generation.loop import response_text

REMEDY = "name a checkpoint that shares the tokenizer of their writer"


class ForeignVocabularyError(ValueError):
    """Responses whose token ids mean something else to the checkpoint, or nothing."""


@dataclass(frozen=True)
class Vocabulary:
    """A checkpoint's tokens."""

    tokenizer: Any
    reference: str
    """The checkpoint, for errors."""
    size: int
    """Ids are below."""

    @classmethod
    def of(cls, tokenizer: Any, reference: str) -> "Vocabulary":
        # Counted once: `get_vocab` builds a dictionary of 150,000 entries each time.
        return cls(tokenizer, reference, 1 + max(tokenizer.get_vocab().values()))

    def check_ids(self, name: str, ids: Sequence[int]) -> None:
        """Raise `ForeignVocabularyError` for an id that the tokenizer does not know; `name` says whose ids they are."""
        if not len(ids):
            return
        low, high = int(np.min(ids)), int(np.max(ids))
        if low < 0 or high >= self.size:
            raise ForeignVocabularyError(
                f"{name} has token id {low if low < 0 else high}, and '{self.reference}' knows 0..{self.size - 1}; {REMEDY}"
            )

    def check(self, name: str, ids: Sequence[int], text: str) -> None:
        """Raise `ForeignVocabularyError` where the response's ids are unknown, or spell another text than it says."""
        self.check_ids(name, ids)
        read = response_text(self.tokenizer, list(ids))
        # What follows a stop string is no part of the text, and others than this package may have trimmed it.
        if not "".join(read.split()).startswith("".join(text.split())):
            raise ForeignVocabularyError(
                f"{name} says {_beginning(text)}, and its token ids read {_beginning(read)} under the tokenizer of "
                f"'{self.reference}'; {REMEDY}"
            )


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
