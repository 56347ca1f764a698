"""Which answers a vote takes for the same: by each task's own rules, and whether right or not."""

import random
from pathlib import Path

import pytest

from navtoken.tasks import load_task
from navtoken.tasks.base import Problem
from navtoken.tasks.choices import ChoiceTask
from navtoken.tasks.gym import GymTask
from navtoken.tasks.math_answers import MathAnswer

FAMILIES = ["countdown", "knights", "arithmetic"]


@pytest.mark.parametrize("name", FAMILIES)
def test_right_references_agree_where_there_is_one_right_answer(name: str) -> None:
    task = load_task(name)
    for problem in task.problems("test", 5, 0):
        texts = [task.reference(problem, random.Random(seed)) for seed in range(4)]  # type: ignore[attr-defined]
        answers = {task.answer_of(problem, text) for text in texts}
        assert None not in answers
        if name != "countdown":
            assert len(answers) == 1
        assert task.answer_of(problem, "I do not know.") is None


def countdown(expression: str) -> object:
    problem = Problem("countdown", "p", "", "33", {"numbers": [3, 7, 12], "target": 33})
    return load_task("countdown").answer_of(problem, f"The answer is {expression}.")


def test_countdown_takes_expressions_by_the_laws_of_arithmetic_and_not_by_value() -> None:
    same = ["(3 * 7) + 12", "12 + 7 * 3", "(12 + (3 * 7))", r"3 \times 7 + 12"]
    assert len({countdown(each) for each in same}) == 1
    others = ["40 - 7", "3 * 11", "3 * 7 + 11", "12 * 3 + 7", "3 * (7 + 12)", "3 + 7 * 12"]
    assert len({countdown(each) for each in [same[0], *others]}) == 1 + len(others)
    # Alike wherever they cannot be read, and worth nothing.
    assert countdown("(3 +") == countdown("( 3 +") is not None
    assert countdown("3 / (7 - 7)") == "3/(7-7)"


def test_knights_may_be_named_in_any_order() -> None:
    task = load_task("knights")
    problem = next(task.problems("test", 1, 0))
    stated = {
        task.answer_of(problem, f"The answer is {who}.")
        for who in ("Ann knight, Bob knave", "Bob knave, Ann knight")
    }
    assert len(stated) == 1
    assert task.answer_of(problem, "The answer is Ann knave, Bob knave.") not in stated


def test_mathematics_is_equal_by_value(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"prompt": "a half", "answer": "0.5"}\n')
    task = load_task(f"jsonl:{file}")
    problem = next(task.problems("test", None, 0))
    found = [
        task.answer_of(problem, rf"\boxed{{{text}}}")
        for text in (r"\frac{1}{2}", "0.5", "1,000", "1000", "3")
    ]
    assert len(set(found)) == 3
    assert found[2] == found[3] == MathAnswer("1000") != found[4]
    assert task.answer_of(problem, "no idea") is None


def test_choices_are_letters_and_gym_sets_compare_as_they_verify() -> None:
    choices = ChoiceTask("gpqa", {})
    problem = Problem("gpqa", "p", "", "B", {"choices": ["x", "y", "z"]})
    letters = [
        choices.answer_of(problem, rf"\boxed{{{text}}}") for text in (r"\text{B}", "(B)", "b", "C", "D")
    ]
    assert letters == ["B", "B", "B", "C", None]
    assert choices.verify(problem, r"\boxed{(B)}") and not choices.verify(problem, r"\boxed{D}")
    gym = GymTask("gym:x", "x", {})
    asked = Problem("gym:x", "p", "", "2")
    same = {gym.answer_of(asked, rf"\boxed{{{text}}}") for text in ("2", "2.0", "4/2", r"\text{2}")}
    assert len(same) == 1
    assert gym.answer_of(asked, r"\boxed{two  words}") == "two words"
    assert gym.answer_of(asked, r"\boxed{1/0}") == "1/0"
