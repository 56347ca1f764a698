"""Where a sentence ends, told by tokens as they are, and only once it is known."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from navtoken.checkpoints import resolve_folder
from navtoken.labeling.sentences import SentenceEnds


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve_folder("embedded:llm"))


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


@pytest.mark.parametrize(
    ("before", "text", "sentence"),
    [
        ("", "So it fails. Try 3", "So it fails."),
        ("", " left 7 12. Try", " left 7 12."),
        ("", "It is 3.14 or so. Next", "It is 3.14 or so."),
        ("It is 3", ".14 or so. Next", ".14 or so."),
        ("It is so", ". Next.", "."),
        ("", "Really? Yes.", "Really?"),
        ("", "No! Yes.", "No!"),
        ("", "first\nsecond.", "first\n"),
        ("in the middle", "\nsecond.", "\n"),
        ("It ends.", "\n\nsecond. third", "\n\nsecond."),
        ("one line\n", "\nsecond. third", "\nsecond."),
    ],
)
def test_a_sentence_ends_where_it_is_read_to_end(
    tokenizer: Any, before: str, text: str, sentence: str
) -> None:
    tokens = ids(tokenizer, text)
    length = SentenceEnds(tokenizer).length(ids(tokenizer, before), tokens)
    assert length is not None
    assert tokenizer.decode(tokens[:length]) == sentence


def test_each_token_is_told_of_as_early_as_may_be(tokenizer: Any) -> None:
    ends = SentenceEnds(tokenizer)
    tokens = ids(tokenizer, "It is 3.14 or 12. Next")
    said = [ends.length([], tokens[: size + 1], known=max(0, size - 1)) for size in range(len(tokens))]
    end = ends.length([], tokens)
    # The point after 12 is an end only once no digit follows it.
    assert said[:end] == [None] * end
    assert said[end] == end
    assert tokenizer.decode(tokens[:end]) == "It is 3.14 or 12."


def test_nothing_more_to_come_settles_a_doubt_and_invents_no_end(tokenizer: Any) -> None:
    ends = SentenceEnds(tokenizer)
    point, bare = ids(tokenizer, "left 7."), ids(tokenizer, "left 7")
    assert ends.length([], point) is None
    assert ends.length([], point, more=False) == len(point)
    assert ends.length([], bare, more=False) is None


def test_only_what_stands_before_counts(tokenizer: Any) -> None:
    ends = SentenceEnds(tokenizer)
    before = ids(tokenizer, "It ends. It is 3")
    tokens = ids(tokenizer, "\n")
    # Within a sentence a line's end ends it; before its first word it does not.
    assert ends.length(before, tokens) == 1
    assert ends.length(before, tokens, at=len(ids(tokenizer, "It ends."))) is None


def test_a_task_may_have_ends_of_its_own(tokenizer: Any) -> None:
    class Verse:
        sentence_ends = (";",)

    tokens = ids(tokenizer, "a 1. b; c")
    length = SentenceEnds.of(tokenizer, Verse()).length([], tokens)
    assert tokenizer.decode(tokens[:length]) == "a 1. b;"
    assert SentenceEnds.of(tokenizer, object()).endings == (".", "!", "?", "\n")
