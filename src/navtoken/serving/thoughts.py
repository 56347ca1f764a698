"""Tells thoughts from the answer in a text that comes in pieces: what stands between think tags is `reasoning_content`."""

from typing import Any, NamedTuple

OPENED, CLOSED = "<think>", "</think>"


class Part(NamedTuple):
    """A piece of a response."""

    thoughts: str = ""
    content: str = ""


def thinks(tokenizer: Any) -> bool:
    """Does a model with this tokenizer write think tags?"""
    template = getattr(tokenizer, "chat_template", None) or ""
    return CLOSED in tokenizer.get_vocab() or CLOSED in str(template)


def opens_thoughts(prompt: str) -> bool:
    """Does the prompt end inside thoughts (DeepSeek's template opens them)?"""
    return prompt.rstrip().endswith(OPENED)


class ThoughtSplitter:
    """Follows one response. What may become a tag is held back."""

    def __init__(self, inside: bool = False) -> None:
        self._inside = inside
        self._over = False
        self._held = ""

    def push(self, text: str) -> Part:
        """What is sure with this piece."""
        self._held += text
        thoughts, content = "", ""
        while True:
            if self._over or (not self._inside and content + self._held.lstrip() and not self._may_open()):
                # Thoughts come first; a tag further on belongs to the answer.
                self._over = True
                content += self._held
                self._held = ""
                return Part(thoughts, content)
            tag = CLOSED if self._inside else OPENED
            before, found, after = self._held.partition(tag)
            if not found:
                sure = len(self._held) - _overlap(self._held, tag) if self._inside else 0
                thoughts += self._held[:sure]
                self._held = self._held[sure:]
                return Part(thoughts, content)
            if self._inside:
                thoughts += before
                self._over = True
            self._inside = not self._inside
            self._held = after

    def end(self) -> Part:
        """What was held back."""
        held, self._held = self._held, ""
        return Part(held, "") if self._inside else Part("", held)

    def _may_open(self) -> bool:
        start = self._held.lstrip()
        return start.startswith(OPENED) or OPENED.startswith(start)


def _overlap(text: str, tag: str) -> int:
    """Characters at the end of a text with which a tag may begin."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
