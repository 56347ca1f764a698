"""Multiple choice: choices in an order of their own, letters as answers.

The order follows from a hash of the question, so it is the same in every run and on every machine, and no letter is
favoured over a set.
"""

import random
import re
from collections.abc import Hashable, Sequence
from string import ascii_uppercase

from navtoken.tasks.base import Problem
from navtoken.tasks.finite import FiniteTask

CHOICE_INSTRUCTION = r"Please reason step by step, and put the letter of the right choice within \boxed{}."

_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol|bf|rm)\b|[\s{}()\[\]$*.:]")
_LETTER = re.compile(r"\W*(?:\\(?:text|textbf|mathrm|mathbf|boldsymbol)\s*\{\W*)?\(?([A-Z])")


class ChoiceTask(FiniteTask):
    """Problems whose answer is the letter of a choice."""

    def answer_of(self, problem: Problem, text: str) -> Hashable | None:
        given = self.extract(text)
        return None if given is None else choice_letter(given, len(problem.data["choices"]))

    def verify(self, problem: Problem, text: str) -> bool:
        return self.answer_of(problem, text) == problem.answer


def shuffled_choices(question: str, right: str, wrong: Sequence[str]) -> tuple[str, list[str]]:
    """The right choice's letter and all choices, in the order that the question's hash gives."""
    order = list(range(len(wrong) + 1))
    random.Random(question).shuffle(order)
    choices = [right, *wrong]
    return ascii_uppercase[order.index(0)], [choices[index] for index in order]


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its lettered choices below."""
    lines = [f"{letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    return question + "\n\n" + "\n".join(lines)


def choice_letter(answer: str, num_choices: int) -> str | None:
    r"""The letter that an answer such as `B`, `(B)`, `\text{B}` or `B) because...` gives; None where it gives none."""
    letters = ascii_uppercase[:num_choices]
    bare = _STYLE.sub("", answer)
    if len(bare) == 1:
        return bare.upper() if bare.upper() in letters else None
    match = _LETTER.match(answer)
    rest = answer[match.end() :] if match else ""
    if match is None or match[1] not in letters or not re.match(r"\s*\}*\s*[).:,\]]", rest):
        return None
    return match[1]
