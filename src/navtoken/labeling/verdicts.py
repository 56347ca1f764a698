"""Verdicts: does the SLM's branch take the path of the LLM's own text, or another?

The paper asks a 72B model about every pair of sentences. Here that is one verifier of three (`judge`); tasks that can
read their own steps (`same_step`) or check their own answers (`outcome`) need no model, and no opinion.

A verdict of None is no verdict: the position becomes invalid, never a label. What the official code calls divergent for want
of an answer would teach a router to mistrust whatever the verifier cannot read.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from navtoken.reference import Reference, parse_reference
from navtoken.tasks import Problem, Task

NAMES = ("same_step", "outcome", "judge")
"""Verifiers in the grammar of references; `judge` takes an address and options."""


class VerdictError(ValueError):
    """A verifier that does not exist, or that cannot serve the task."""


@dataclass(frozen=True)
class Question:
    """One differing position, as text."""

    task: Task
    problem: Problem
    text: str
    """The response, as far as a question about it needs it: one text for all of them, which are many."""
    llm: str
    """The LLM's own text from the position on."""
    slm: str
    """The branch: the SLM's token at the position, and how the LLM goes on from it."""
    ended: bool = True
    """Does the branch end the response? False where it ends with its sentence, or by a limit of length."""
    at: int | None = None
    """Characters of the text that stand before the position; None: all."""

    @property
    def prefix(self) -> str:
        """The response before the position."""
        return self.text[: self.at]


class Verifier(Protocol):
    """Who says whether two continuations of a prefix take the same path."""

    @property
    def name(self) -> str:
        """The verifier in the grammar of references."""
        ...

    @property
    def identity(self) -> str:
        """The verifier without its address, recorded with the labels, which it decides: the same one may move."""
        ...

    @property
    def to_end(self) -> bool:
        """Must both continuations run to the end of the response? Otherwise they end with their sentence."""
        ...

    def check(self, task: Task) -> None:
        """Raise `VerdictError` naming the remedy if this verifier has nothing to say about the task."""
        ...

    def same(self, questions: Sequence[Question]) -> list[bool | None]:
        """True the same path (neutral), False another (divergent), None no verdict (invalid), for each question.

        Trouble with one question is None. An error that is raised concerns them all (an endpoint that refuses the key or is
        gone): stop, keep what is labelled, mend it, go on.
        """
        ...

    def summary(self) -> dict[str, Any]:
        """What the verdicts took so far, JSON-serialisable: counts, and for an endpoint requests, tokens and price."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def verifier_named(reference: str) -> Verifier:
    """Make a verifier: `same_step`, `outcome`, or `judge:URL,model=NAME[,option=value...]` (see `labeling.judge`).

    Raises `BadReference` or `VerdictError` naming the part that does not fit.
    """
    parsed = parse_reference(reference)
    if parsed.name not in _MAKERS:
        raise VerdictError(f"no verdict is called '{parsed.name}'; there are {', '.join(NAMES)}")
    return _MAKERS[parsed.name](parsed)


class _Counting:
    """Answers question by question, and counts the verdicts."""

    name: str
    to_end: bool

    def __init__(self) -> None:
        self._counts = {"same": 0, "other": 0, "none": 0}
        self._errors = Counter[str]()

    @property
    def identity(self) -> str:
        return self.name

    def check(self, task: Task) -> None:
        """Serves every task."""

    def same(self, questions: Sequence[Question]) -> list[bool | None]:
        return [self._counted(self._told(question)) for question in questions]

    def _told(self, question: Question) -> bool | None:
        """The verdict; none where the task's own code fails, which may be anybody's and reads what models write."""
        try:
            return self._verdict(question)
        except Exception as error:  # noqa: BLE001
            self._errors[type(error).__name__] += 1
            return None

    def _verdict(self, question: Question) -> bool | None:
        raise NotImplementedError

    def _counted(self, verdict: bool | None) -> bool | None:
        self._counts["none" if verdict is None else "same" if verdict else "other"] += 1
        return verdict

    def summary(self) -> dict[str, Any]:
        return {"verdict": self.name, **self._counts, "errors": dict(self._errors)}

    def close(self) -> None:
        """Nothing is held."""


class SameStep(_Counting):
    """The task reads both sentences: do they take the same reasoning step?

    The task says None where it cannot read one of them. Which one matters:

    * The LLM's reads, the branch's does not: another path. The LLM takes a step here and the branch takes none that the task
      knows, so the response does not go where the LLM's goes. These are the branches that went to pieces; calling
      them invalid would hide from a router just the tokens after which nothing sensible follows.
    * The LLM's does not read: there is no path to compare with, so no verdict. But where the LLM ends the response here, a
      branch that goes on takes another path, whatever it says.
    """

    name = "same_step"
    to_end = False

    def check(self, task: Task) -> None:
        if not task.judges_steps:
            raise VerdictError(
                f"task '{task.name}' cannot judge steps: its text is free; take verdict judge:URL,model=NAME, or outcome"
            )

    def _verdict(self, question: Question) -> bool | None:
        if same_text(question.llm, question.slm):
            return True
        verdict = self._judged(question, question.slm)
        if verdict is not None:
            return verdict
        # A sentence takes the same step as itself if the task can read it at all.
        readable = self._judged(question, question.llm) is True
        return False if readable or not question.llm else None

    def _judged(self, question: Question, other: str) -> bool | None:
        return question.task.same_step(question.problem, question.prefix, question.llm, other)


class Outcome(_Counting):
    """Both continuations run to the end of the response: do they reach the same final answer?

    Right answers are the same however they are written; wrong ones are where the task finds them equal. A branch that ends
    without an answer misses the LLM's; one that was cut off before might have reached it, so no verdict. Where the LLM states
    none there is nothing to reach, so no verdict either.
    """

    name = "outcome"
    to_end = True

    def _verdict(self, question: Question) -> bool | None:
        if same_text(question.llm, question.slm):
            return True
        task, problem = question.task, question.problem
        llm, slm = question.prefix + question.llm, question.prefix + question.slm
        ours, theirs = task.extract(llm), task.extract(slm)
        if ours is None:
            return None
        if theirs is None:
            return False if question.ended else None
        right = [task.verify(problem, text) for text in (llm, slm)]
        return all(right) if any(right) else _same_wrong(question, ours, theirs)


def _same_wrong(question: Question, ours: str, theirs: str) -> bool:
    """Are two wrong answers the same?"""
    if "".join(ours.split()) == "".join(theirs.split()):
        return True
    # Where answers are text, the task's own comparison: would the branch be right if the LLM's answer were the problem's?
    asked = replace(question.problem, answer=ours)
    return isinstance(question.problem.answer, str) and question.task.verify(
        asked, question.prefix + question.slm
    )


def same_text(a: str, b: str) -> bool:
    """Do two texts differ in white space at most? Tokens can, and still spell the same sentence."""
    return a.split() == b.split()


def _bare(verifier: type[SameStep] | type[Outcome]) -> Callable[[Reference], Verifier]:
    def make(reference: Reference) -> Verifier:
        if reference.target is not None or reference.options:
            raise VerdictError(f"'{reference}': {reference.name} takes nothing after its name")
        return verifier()

    return make


def _judge(reference: Reference) -> Verifier:
    # Only who asks an endpoint pays for importing an HTTP client.
    from navtoken.labeling.judge import judge_from

    return judge_from(reference)


_MAKERS: dict[str, Callable[[Reference], Verifier]] = {
    "same_step": _bare(SameStep),
    "outcome": _bare(Outcome),
    "judge": _judge,
}
