"""Tasks that are a list of problems: files and hub sets.

An evaluation set has a test split only. Asking it for a training split is an error and not its test problems again:
a threshold picked on the problems that are then reported would flatter every rule.
"""

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence

from navtoken.tasks.base import ExhaustedError, Problem, Split
from navtoken.tasks.loading import TaskError
from navtoken.tasks.math_answers import MathAnswer, extract_answer, same_answer

BOXED_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


class MissingSplitError(TaskError):
    """The task has no problems in the split that was asked for."""


class FiniteTask:
    """Problems known in full, with answers compared as mathematics."""

    endless = False
    judges_steps = False

    def __init__(
        self, name: str, splits: Mapping[Split, Sequence[Problem]], instruction: str = BOXED_INSTRUCTION
    ) -> None:
        self.name = name
        self.instruction = instruction
        self.splits = splits

    def problems(self, split: Split, num: int | None, seed: int) -> Iterator[Problem]:
        """`num` problems of a split (all where None), in an order fixed by `seed`.

        Raises `MissingSplitError`, and `ExhaustedError` where the split has fewer than `num`, before the first one.
        """
        found = self.splits.get(split, ())
        if not found:
            has = " and ".join(f"'{name}'" for name, problems in self.splits.items() if problems)
            raise MissingSplitError(
                f"task '{self.name}' has no '{split}' split, only {has}; {self._remedy(split)}"
            )
        if num is not None and num > len(found):
            raise ExhaustedError(
                f"task '{self.name}' has {len(found)} problems in '{split}', fewer than {num}; ask for fewer, or for all by leaving num out"
            )
        order = list(found)
        random.Random(f"{self.name}|{split}|{seed}").shuffle(order)
        return iter(order[:num])

    def _remedy(self, split: Split) -> str:
        return f"take the '{split}' problems from another task"

    def extract(self, text: str) -> str | None:
        return extract_answer(text)

    def answer_of(self, problem: Problem, text: str) -> Hashable | None:
        given = self.extract(text)
        return None if given is None else MathAnswer(given)

    def verify(self, problem: Problem, text: str) -> bool:
        given = self.extract(text)
        return given is not None and same_answer(str(problem.answer), given)

    def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
        """True where the sentences are the same words; None otherwise: free mathematics has no exact judge."""
        return same_words(a, b)


def same_words(a: str, b: str) -> bool | None:
    """True where two sentences differ in white space at most; None where they differ or one is blank."""
    words = a.split()
    return True if words and words == b.split() else None
