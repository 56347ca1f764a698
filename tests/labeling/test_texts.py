"""What tokens add behind others, as decoding everything would tell it."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from navtoken.checkpoints import resolve_folder
from navtoken.labeling.texts import CONTEXT, added_text, text_of


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve_folder("embedded:llm"))


def test_pieces_add_up_to_the_text(tokenizer: Any) -> None:
    text = "Try 3 + 4 = 7, left 7 12.\n" * 4
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 3 * CONTEXT
    for at in range(0, len(ids), 3):
        for end in (at, at + 1, len(ids)):
            assert text_of(tokenizer, ids[:at]) + added_text(tokenizer, ids, ids[at:end], at) == text_of(
                tokenizer, ids[:end]
            )


def test_a_character_of_several_tokens_belongs_to_who_completes_it(tokenizer: Any) -> None:
    ids = tokenizer("a字b")["input_ids"]
    assert len(ids) > 3
    before, rest = ids[:2], ids[2:]
    assert text_of(tokenizer, before) == "a\ufffd"
    assert added_text(tokenizer, before, rest) == "字b"
