"""reasoning-gym sets: different problems, disjoint splits, our own exact comparison."""

import itertools
import sys

import pytest

from navtoken.tasks import TaskError, load_task
from navtoken.tasks.base import ExhaustedError, Task
from navtoken.tasks.gym import SEVERAL_ANSWERS, same_text
from navtoken.tasks.loading import MissingExtraError, TaskOptionError

factory = pytest.importorskip("reasoning_gym.factory")

SETS = ["basic_arithmetic", "chain_sum", "leg_counting", "syllogism", "caesar_cipher", "gcd", "mini_sudoku"]


@pytest.mark.parametrize("name", SETS)
def test_problems_are_different_repeatable_and_verified(name):
    task = load_task(f"gym:{name}")
    assert isinstance(task, Task)
    problems = list(task.problems("test", 8, seed=5))
    assert problems == list(task.problems("test", 8, seed=5))
    assert (
        len({problem.prompt for problem in problems})
        == len({problem.problem_id for problem in problems})
        == 8
    )
    for problem in problems:
        assert task.verify(problem, f"Thus \\boxed{{{problem.answer}}}")
        assert task.verify(problem, f"<answer>\n{problem.answer}\n</answer>")
        assert not task.verify(problem, f"\\boxed{{{problem.answer}0}}")
        assert not task.verify(problem, f"\\boxed{{{problem.answer} {problem.answer}}}")
        assert not task.verify(problem, problem.answer)


def test_splits_are_disjoint_over_many_seeds():
    task = load_task("gym:leg_counting,min_animals=1,max_animals=3,max_instances=3")
    train, test = (
        {problem.prompt for seed in range(5) for problem in task.problems(split, 60, seed)}
        for split in ("train", "test")
    )
    assert train and test and not train & test


def test_overlapping_seeds_give_no_problem_twice():
    questions = [problem.prompt for problem in load_task("gym:gcd").problems("train", 300, seed=0)]
    assert len(set(questions)) == 300


def test_its_scorers_are_never_called(monkeypatch):
    dataset_class = factory.DATASETS["chain_sum"][0]
    monkeypatch.setattr(dataset_class, "score_answer", lambda *_: pytest.fail("its scorer was called"))
    task = load_task("gym:chain_sum")
    (problem,) = task.problems("train", 1, seed=0)
    assert task.verify(problem, f"the answer is {problem.answer}.")


def test_options_are_the_sets_configuration():
    task = load_task("gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1")
    assert task.name == "gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    with pytest.raises(ExhaustedError, match="no more than"):
        list(task.problems("test", 2_000, seed=0))
    for problem in itertools.islice(task.problems("train", None, seed=0), 20):
        assert sum(character.isdigit() for character in problem.prompt) == 2


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("gym", TaskError, "is no set of reasoning-gym; it has: "),
        ("gym:nothing", TaskError, "'gym:nothing' is no set of reasoning-gym; it has: "),
        ("gym:countdown", TaskError, "no single right answer"),
        ("gym:chain_sum,terms=3", TaskOptionError, "no option 'terms'; its options: "),
        ("gym:chain_sum,seed=3", TaskOptionError, "no option 'seed'"),
        ("gym:chain_sum,min_terms=many", TaskOptionError, "min_terms=many is not of type int"),
        ("gym:chain_sum,min_terms=0", TaskOptionError, "refuses these options"),
    ],
)
def test_errors(reference, error, message):
    with pytest.raises(error) as caught:
        load_task(reference)
    assert message in str(caught.value)


def test_without_reasoning_gym(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(MissingExtraError, match=r"pip install navtoken\[gym\]"):
        load_task("gym:chain_sum")


def test_refused_sets_exist_or_existed():
    assert len(SEVERAL_ANSWERS - set(factory.DATASETS)) <= 1


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ("5", " 5 ", True),
        ("0.5", ".50", False),
        ("0.5", "0.50", True),
        ("1/2", "2/4", True),
        ("1/2", "0.5", True),
        ("1/0", "1/0", False),
        ("Yes", r"\text{Yes}", True),
        ("Yes", "yes", False),
        ("1 2\n3 4", "1 2 3 4", True),
        ("12", "1 2", False),
        ("2", "1+1", False),
        ("9" * 5000, "9" * 5000, True),
    ],
)
def test_exact_comparison(expected, given, same):
    assert same_text(expected, given) is same
