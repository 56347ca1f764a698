"""Ids are accepted where they spell what stands beside them, and only there."""

import pytest

from navtoken.analysis.vocabulary import ForeignVocabularyError, Vocabulary
from tiny_models import VOCAB_SIZE, tiny_tokenizer

IDS = [5, 6, 7, 8]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.of(tiny_tokenizer(), "tiny")


def spelled(ids: list[int]) -> str:
    return str(tiny_tokenizer().decode(ids, skip_special_tokens=True))


def test_ids_that_spell_their_text_pass(vocabulary: Vocabulary) -> None:
    vocabulary.check("it", IDS, spelled(IDS))
    # A stop string and what follows it are no part of the text, nor are spaces that somebody trimmed.
    vocabulary.check("it", IDS, spelled(IDS[:2]) + " ")
    vocabulary.check("it", [], "")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (
            [5, VOCAB_SIZE],
            rf"it has token id {VOCAB_SIZE}, and 'tiny' knows 0\.\.{VOCAB_SIZE - 1}; name a checkpoint",
        ),
        ([-1, 5], "it has token id -1"),
        (IDS[1:], "it says .*, and its token ids read .* under the tokenizer of 'tiny'; name a checkpoint"),
    ],
)
def test_other_ids_are_refused(vocabulary: Vocabulary, ids: list[int], words: str) -> None:
    with pytest.raises(ForeignVocabularyError, match=words):
        vocabulary.check("it", ids, spelled(IDS))
