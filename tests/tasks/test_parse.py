"""Prompts read back into problems: what `solve` judges an answer by."""

import pytest

from navtoken.tasks.arithmetic import Arithmetic
from navtoken.tasks.base import GeneratedTask
from navtoken.tasks.countdown import Countdown
from navtoken.tasks.knights import Knights

FAMILIES = (Countdown, Knights, Arithmetic)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_writes_it_reads_back(family: type[GeneratedTask], level: int) -> None:
    task = family(level)
    for problem in task.problems("test", 60, seed=5):
        assert task.parse(problem.prompt) == problem
        assert task.parse(f"  {problem.prompt.removesuffix(':')}\n") == problem
        assert [other.__name__ for other in FAMILIES if other().parse(problem.prompt)] == [family.__name__]


def test_knights_are_solved_for_their_answer() -> None:
    problem = Knights().parse("Ann says Bob is a knave. Bob says Ann and Bob are the same. Who is what :")
    assert problem is not None
    assert problem.answer == {"Ann": "knight", "Bob": "knave"}


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        (Countdown, "Numbers 3 7 12 :"),
        (Countdown, "Numbers 3 x 12 target 33 :"),
        (Countdown, "Numbers 3 7 target 33 : and then some"),
        (Knights, "Ann says Bob is a knight. Bob says Ann is a knight. Who is what :"),
        (Knights, "Ann says Zoe is a knave. Bob says Ann is a knight. Who is what :"),
        (Knights, "Ann says Bob likes cake. Bob says Ann is a knight. Who is what :"),
        (Knights, "Who is what :"),
        (Arithmetic, "Compute 3 + 4 * 5 :"),
        (Arithmetic, "Compute (3 + 4 :"),
        (Arithmetic, "Compute 3 + :"),
        (Arithmetic, "Compute :"),
        (Arithmetic, "Compute 7 :"),
        (Arithmetic, f"Compute {'(' * 190} :"),
        (Arithmetic, "Compute __import__('os') :"),
    ],
)
def test_what_states_no_problem_with_one_answer_is_none(family: type[GeneratedTask], prompt: str) -> None:
    assert family().parse(prompt) is None
