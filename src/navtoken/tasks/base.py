"""What a task is: problems, an exact verifier, and a judge of reasoning steps.

A task never evaluates model output as code: answers are parsed by small grammars of their own.
"""

import hashlib
import itertools
import random
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Split = Literal["train", "test"]

TEST_FRACTION = 0.1
"""Share of canonical problems that belong to the test split."""

PATIENCE = 20_000
"""Candidates without a new problem of the wanted split before a task counts as exhausted."""


@dataclass(frozen=True)
class Problem:
    """One problem with a checkable answer."""

    task: str
    """Reference of the task that it came from."""
    problem_id: str
    """Stable within the task: the same problem has the same id whatever the seed."""
    prompt: str
    """The bare question, before any chat template or instruction."""
    answer: Any
    """What the verifier compares with; JSON-serialisable."""
    data: dict[str, Any] = field(default_factory=dict)
    """What the task needs to verify and to judge steps (numbers, statements, ...)."""


@runtime_checkable
class Task(Protocol):
    """A source of problems and their exact verifier."""

    name: str
    endless: bool
    """Are its problems generated, as many as are asked for?"""
    judges_steps: bool
    """Can `same_step` tell steps apart? Where text is free it only knows equal words."""
    instruction: str
    """Appended to the prompt of models that were not trained on the bare question; says the answer's form."""

    def problems(self, split: Split, num: int | None, seed: int) -> Iterator[Problem]:
        """Yield `num` different problems of a split (all of a finite set where `num` is None), in an order fixed by `seed`."""
        ...

    def extract(self, text: str) -> str | None:
        """The final answer as the response states it, or None."""
        ...

    def answer_of(self, problem: Problem, text: str) -> Hashable | None:
        """The final answer, equal to those of other responses that say the same; None where the response gives none.

        What a vote counts. Equal by the task's own rules and whether right or not, so the verifier has no voice in a vote.
        """
        ...

    def verify(self, problem: Problem, text: str) -> bool:
        """Does the response `text` end in a right answer? Exact, no partial credit."""
        ...

    def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
        """Do sentences `a` and `b`, each following `prefix`, take the same reasoning step? None: unparsable."""
        ...


class ExhaustedError(ValueError):
    """A task was asked for more different problems than it has."""


class GeneratedTask:
    """A task whose problems are generated: subclasses draw a candidate and say what is canonical about it.

    Train and test are disjoint by a hash of the canonical problem, so no seed can leak one into the other.
    """

    name: str
    instruction: str
    endless = True
    judges_steps = True

    def __init__(self, level: int = 1) -> None:
        raise NotImplementedError

    def draw(self, rng: random.Random) -> Problem:
        """Draw one valid problem from either split."""
        raise NotImplementedError

    def canonical(self, problem: Problem) -> str:
        """The problem less what does not change its solution (order of numbers, people's names)."""
        raise NotImplementedError

    def reference(self, problem: Problem, rng: random.Random) -> str:
        """A reference trace in natural language that ends in the right answer."""
        raise NotImplementedError

    def parse(self, prompt: str) -> Problem | None:
        """The problem that a prompt of this family states, of any level; None where it states none with one answer."""
        raise NotImplementedError

    def extract(self, text: str) -> str | None:
        """The final answer as the response states it, or None."""
        raise NotImplementedError

    def answer_of(self, problem: Problem, text: str) -> Hashable | None:
        """The final answer, equal to those of other responses that say the same; None where the response gives none."""
        return self.extract(text)

    def verify(self, problem: Problem, text: str) -> bool:
        """Does the response `text` end in a right answer?"""
        raise NotImplementedError

    def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
        """Do two sentences that follow `prefix` take the same reasoning step? None: unparsable."""
        raise NotImplementedError

    def split_of(self, problem: Problem) -> Split:
        return hash_split(f"{self.name.split(',')[0]}|{self.canonical(problem)}")

    def problems(self, split: Split, num: int | None, seed: int) -> Iterator[Problem]:
        """Yield `num` different problems (endlessly where None). Raises `ExhaustedError` when new ones stop coming."""
        rng = random.Random(f"{self.name}|{split}|{seed}")
        candidates = (self.draw(rng) for _ in itertools.count())
        of_split = (problem if self.split_of(problem) == split else None for problem in candidates)
        return distinct(of_split, num, f"task '{self.name}' in '{split}'")


def distinct(
    candidates: Iterable[Problem | None], num: int | None, what: str, patience: int = PATIENCE
) -> Iterator[Problem]:
    """The first `num` different problems of an endless stream, in which None stands for one that does not count.

    Raises `ExhaustedError` after `patience` candidates without a new one.
    """
    seen: set[str] = set()
    misses = 0
    candidates = iter(candidates)
    while num is None or len(seen) < num:
        problem = next(candidates)
        if problem is None or problem.problem_id in seen:
            misses += 1
            if misses > patience:
                raise ExhaustedError(f"{what} has no more than {len(seen)} problems; ask for fewer")
            continue
        misses = 0
        seen.add(problem.problem_id)
        yield problem


def hash_split(canonical: str) -> Split:
    """The split that a problem belongs to, whatever the file or seed that it came from."""
    digest = hashlib.sha256(canonical.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_FRACTION * 2**64 else "train"


def problem_id(text: str) -> str:
    """A short stable id of a problem's defining text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
