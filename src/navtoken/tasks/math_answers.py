"""Final answers in mathematics: where a response states one, and whether two are the same.

Comparison is math-verify's, on the extracted answer alone and through its LaTeX grammar alone. Its parser of plain
expressions is left out because it goes through Python's evaluator. What math-verify is given came out of a model:
`9^{9^{9}}` would keep it busy for ever, in big-integer code that no signal interrupts, so it runs in a process of its
own (`math_worker`) with a memory limit and a deadline. Answers that are plain integers never get there.
"""

import re
import string
from dataclasses import dataclass
from functools import lru_cache

from navtoken.tasks.math_worker import MathWorker

MAX_ANSWER_CHARS = 1_000
"""A longer answer is only compared as text."""

MAX_DEPTH = 30
"""Deeper nesting of braces is only compared as text."""

_STATED = re.compile(r"\banswer(?:\s{1,3}is\b\s{0,3}:?|\s{0,3}(?:\*\*)?\s{0,3}:(?:\*\*)?)", re.IGNORECASE)
_STATEMENT_WINDOW = 4_000
_HUGE = re.compile(
    r"\d{300}|\^\s*\{*\s*[+-]?\d{5}|\d\s*\}*\s*\^\s*\{*\s*\d+\s*\}*\s*\^|\d{4}\s*\)*\s*!|!\s*\)*\s*!"
)
_INTEGER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)")
_WRAPPERS = (("**", "**"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("`", "`"))

_worker = MathWorker()


def extract_answer(text: str) -> str | None:
    r"""The answer that a response ends in: its last balanced `\boxed{...}`, else what follows its last 'answer is'."""
    boxed = last_boxed(text)
    return boxed if boxed is not None else stated_answer(text)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces balance; None without one, or where it is blank."""
    end = len(text)
    while (start := text.rfind(r"\boxed", 0, end)) >= 0:
        content = _balanced(text, start + len(r"\boxed"), end)
        if content is not None:
            return content.strip() or None
        # A box that holds one which never closes never closes either: each part of the text is read once.
        end = start
    return None


def _balanced(text: str, position: int, end: int) -> str | None:
    while position < end and text[position].isspace():
        position += 1
    if position >= end or text[position] != "{":
        return None
    depth = 0
    index = position
    while index < end:
        character = text[index]
        if character == "\\":
            index += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[position + 1 : index]
        index += 1
    return None


def stated_answer(text: str) -> str | None:
    """What follows the last 'answer is' or 'answer:', to the end of its sentence; only a response's end is searched."""
    tail = text[-_STATEMENT_WINDOW:]
    matches = list(_STATED.finditer(tail))
    if not matches:
        return None
    rest = tail[matches[-1].end() :].strip()
    for opening, closing in _WRAPPERS:
        if rest.startswith(opening) and (end := rest.find(closing, len(opening))) > 0:
            return rest[len(opening) : end].strip() or None
    sentence = re.split(r"\n|[.!?](?:\s|$)", rest, maxsplit=1)[0]
    return sentence.strip() or None


def same_answer(expected: str, given: str) -> bool:
    """Are two answers the same mathematical object? False where `given` cannot be parsed in time; never raises."""
    expected, given = plain_answer(expected), plain_answer(given)
    if expected == given:
        return bool(expected)
    if _INTEGER.fullmatch(expected) and _INTEGER.fullmatch(given):
        return _digits(expected) == _digits(given)
    if _too_hard(expected) or _too_hard(given):
        return False
    return _compared(expected, given)


@dataclass(frozen=True, eq=False)
class MathAnswer:
    """An answer to be counted with others: equal to each that is the same mathematical object."""

    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MathAnswer) and same_answer(self.text, other.text)

    def __hash__(self) -> int:
        # Nothing cheap is alike in \frac{1}{2} and 0.5, so every lookup compares.
        return 0


@lru_cache(maxsize=4096)
def _compared(expected: str, given: str) -> bool:
    return _worker.same(expected, given)


def plain_answer(text: str) -> str:
    """The answer without mathematics delimiters, final full stop and superfluous white space."""
    text = text.strip().rstrip(string.whitespace + ".")
    for opening, closing in _WRAPPERS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)]
            if opening not in inside and closing not in inside:
                text = inside
    return " ".join(text.split())


def _digits(integer: str) -> tuple[bool, str]:
    magnitude = integer.lstrip("+-").replace(",", "").lstrip("0")
    return (integer.startswith("-") and bool(magnitude), magnitude)


def _too_hard(text: str) -> bool:
    if len(text) > MAX_ANSWER_CHARS or not text.isprintable() or _HUGE.search(text):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
