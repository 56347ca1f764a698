"""Several ways to say the same thing, and how to read a final answer back: shared by the generated families."""

import random
import re
from collections.abc import Sequence

from navtoken.tasks.math_answers import last_boxed

_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\s?\{([^{}]*)\}")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def pick(rng: random.Random, choices: Sequence[tuple[str, float]]) -> str:
    """Draw a wording by its weight."""
    words, weights = zip(*choices, strict=True)
    return rng.choices(words, weights)[0]


def final_answer(text: str, pattern: str) -> str | None:
    """The last `\\boxed{...}`, else what follows the last 'answer is' or 'Answer:', where it fits `pattern`."""
    boxed = last_boxed(text)
    if boxed is not None:
        match = re.fullmatch(rf"\s*({pattern})\s*", _TEXT.sub(r"\1", boxed))
        return match[1] if match else None
    stated = re.split(r"\banswer(?: is|:)\s*", text, flags=re.IGNORECASE)
    if len(stated) < 2:
        return None
    match = re.match(rf"({pattern})(?=\s*(?:\.(?!\d)|$))", stated[-1])
    return match[1] if match else None


def last_sentence(prefix: str) -> str:
    """What of `prefix` belongs to a sentence that has not ended yet."""
    parts = SENTENCE_END.split(prefix)
    tail = parts[-1]
    return "" if tail.rstrip().endswith((".", "!", "?")) else tail
