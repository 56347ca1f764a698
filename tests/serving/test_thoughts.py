"""Thoughts and answers: however a text is cut into pieces, the parts are those of the whole."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from navtoken.serving.thoughts import Part, ThoughtSplitter, opens_thoughts, thinks
from tiny_models import tiny_tokenizer

FRAGMENTS = ("<think>", "</think>", "<thi", "nk>", "</", "think>", "<", ">", "a", "b c", " ", "\n", "é")


def parts(pieces: list[str], inside: bool = False) -> Part:
    splitter = ThoughtSplitter(inside)
    told = [*map(splitter.push, pieces), splitter.end()]
    return Part("".join(part.thoughts for part in told), "".join(part.content for part in told))


def by_pattern(text: str, inside: bool) -> Part:
    """The slow and obvious way, on the whole text."""
    opened = re.match(r"\s*<think>", text)
    if not inside and not opened:
        return Part("", text)
    rest = text if inside else text[opened.end() :] if opened else ""
    thoughts, _, content = rest.partition("</think>")
    return Part(thoughts, content)


texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


@given(text=texts, inside=st.booleans(), cuts=st.lists(st.integers(0, 60), max_size=20))
@example(text=" <think>a</think>b", inside=False, cuts=list(range(20)))
@example(text="a</think>b", inside=True, cuts=[2, 5])
@example(text="<think", inside=False, cuts=[3])
@example(text="a</thin", inside=True, cuts=[3])
def test_any_cut_gives_the_parts_of_the_whole(text: str, inside: bool, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(borders)]
    assert parts(pieces, inside) == parts([text], inside) == by_pattern(text, inside)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>so</think>42", ("so", "42")),
        ("\n<think>\nso\n</think>\n\n42", ("\nso\n", "\n\n42")),
        ("42 <think>so</think>", ("", "42 <think>so</think>")),
        ("<think>a<think>b</think>c</think>d", ("a<think>b", "c</think>d")),
        ("<think>never ends", ("never ends", "")),
        ("a</think>b", ("", "a</think>b")),
    ],
)
def test_thoughts_come_first_and_once(text: str, expected: tuple[str, str]) -> None:
    assert parts(list(text)) == Part(*expected)


def test_only_what_may_become_a_tag_is_held_back() -> None:
    splitter = ThoughtSplitter()
    assert splitter.push("<thin") == Part()
    assert splitter.push("g") == Part("", "<thing")
    assert splitter.push("</think>") == Part("", "</think>")
    inside = ThoughtSplitter(inside=True)
    assert inside.push("so </th") == Part("so ", "")
    assert inside.push("an") == Part("</than", "")
    assert inside.push("</think>42") == Part("", "42")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("<|Assistant|><think>\n", True), ("<think>\n\n</think>\n\n", False), ("<|assistant|>", False)],
)
def test_templates_may_open_thoughts(prompt: str, expected: bool) -> None:
    assert opens_thoughts(prompt) == expected


def test_a_tokenizer_thinks_by_its_template() -> None:
    assert not thinks(tiny_tokenizer())
    tokenizer = tiny_tokenizer().__class__(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    tokenizer.chat_template = "{{ messages[0].content.split('</think>')[-1] }}"
    assert thinks(tokenizer)
