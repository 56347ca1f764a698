"""Verdicts of tasks: what is the same path, what is another, and what nobody can say."""

import random
import re
from dataclasses import replace

import pytest

from navtoken.labeling.verdicts import Question, VerdictError, Verifier, verifier_named
from navtoken.reference import BadReference
from navtoken.tasks import Problem, Task, load_task
from navtoken.tasks.base import GeneratedTask
from navtoken.tasks.finite import FiniteTask

SAME_STEP, OUTCOME = verifier_named("same_step"), verifier_named("outcome")
SUM = Problem("arithmetic", "p", "(2 + 3) * 4 :", "20", {"expression": "(2 + 3) * 4"})
TRIES = Problem("countdown", "p", "Numbers 3 4 5 target 17 :", "17", {"numbers": [3, 4, 5], "target": 17})


def verdict(verifier: Verifier, problem: Problem, llm: str, slm: str, prefix: str = "") -> bool | None:
    task = load_task(problem.task)
    (found,) = verifier.same([Question(task, problem, prefix, llm, slm)])
    return found


def math_set() -> tuple[FiniteTask, Problem]:
    problem = Problem("set", "p", "What is 500 + 500?", "1000")
    return FiniteTask("set", {"test": [problem]}), problem


@pytest.mark.parametrize("name", ["arithmetic", "knights", "countdown"])
def test_a_sentence_of_each_family_is_the_same_step_as_itself_and_not_as_the_next(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, GeneratedTask)
    problem = next(task.problems("train", 1, 0))
    text = task.reference(problem, random.Random(0))
    sentences = re.split(r"(?<=\.)(?= )", text)
    assert len(sentences) >= 2
    first, last = sentences[0], sentences[-1]
    questions = [Question(task, problem, "", first, slm) for slm in (first, last)]
    assert SAME_STEP.same(questions) == [True, False]


def test_wording_and_order_do_not_make_another_path() -> None:
    assert verdict(SAME_STEP, SUM, "First, 2 + 3 = 5.", "3 + 2 = 5.") is True


def test_another_result_is_another_path() -> None:
    assert verdict(SAME_STEP, SUM, "First, 2 + 3 = 5.", "First, 2 + 3 = 6.") is False


def test_positions_within_a_sentence_are_read_with_what_stands_before() -> None:
    prefix = "First, 2 + 3 = 5. Now 5"
    assert verdict(SAME_STEP, SUM, " * 4 = 20.", " times 4 = 20.", prefix) is True
    assert verdict(SAME_STEP, SUM, " * 4 = 20.", " + 4 = 9.", prefix) is False


@pytest.mark.parametrize("text", ["Bananas.", "...", "\n", ""])
def test_a_branch_that_the_task_cannot_read_leaves_the_path_of_one_that_it_can(text: str) -> None:
    assert verdict(SAME_STEP, SUM, "First, 2 + 3 = 5.", text) is False


@pytest.mark.parametrize("branch", ["First, 2 + 3 = 5.", "Apples.", ""])
def test_without_a_step_of_the_llm_there_is_no_verdict(branch: str) -> None:
    assert verdict(SAME_STEP, SUM, "Bananas.", branch) is None


def test_where_the_llm_ends_the_response_whoever_goes_on_takes_another_path() -> None:
    prefix = "First, 2 + 3 = 5. The answer is 20."
    assert verdict(SAME_STEP, SUM, "", " Bananas.", prefix) is False
    assert verdict(SAME_STEP, SUM, "", "", prefix) is True
    # White space alone is no end of the response.
    assert verdict(SAME_STEP, SUM, "\n", " Bananas.", prefix) is None


def test_the_same_words_are_the_same_path_though_the_tokens_differ_and_nobody_can_read_them() -> None:
    assert verdict(SAME_STEP, SUM, " Well now.", "Well  now.") is True


def test_a_task_of_free_text_is_told_to_take_another_verdict() -> None:
    task, _ = math_set()
    with pytest.raises(VerdictError, match="judge:URL"):
        SAME_STEP.check(task)
    OUTCOME.check(task)
    for name in ("arithmetic", "knights", "countdown"):
        SAME_STEP.check(load_task(name))


def test_gym_tasks_have_free_text_too() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(VerdictError, match="cannot judge steps"):
        SAME_STEP.check(load_task("gym:chain_sum"))


def test_the_same_right_answer_however_it_is_written() -> None:
    prefix = "Try 3 * 4 = 12, left 12 5."
    llm, slm = " The answer is (3 * 4) + 5.", " Maybe more. So the answer is 5 + (4 * 3)."
    assert verdict(OUTCOME, TRIES, llm, slm, prefix) is True


def test_right_and_wrong_are_two_outcomes() -> None:
    right, wrong = "The answer is (3 * 4) + 5.", "The answer is (3 + 4) * 5."
    assert verdict(OUTCOME, TRIES, right, wrong) is False
    assert verdict(OUTCOME, TRIES, wrong, right) is False


def test_wrong_answers_are_the_same_where_they_are_equal() -> None:
    wrong, spaced, other = (f"The answer is {e}." for e in ("3 + 4 + 5", "3 +4+ 5", "3 * 4 * 5"))
    assert verdict(OUTCOME, TRIES, wrong, f"Hm. {spaced}") is True
    assert verdict(OUTCOME, TRIES, wrong, other) is False


def test_wrong_answers_that_the_task_finds_equal_are_the_same() -> None:
    task, problem = math_set()
    questions = [
        Question(task, problem, "So ", r"\boxed{1200}", slm) for slm in (r"\boxed{1,200}", r"\boxed{1300}")
    ]
    assert OUTCOME.same(questions) == [True, False]


def test_wrong_assignments_are_compared_as_text() -> None:
    task = load_task("knights")
    problem = next(task.problems("train", 1, 0))
    kinds = {"knight": "knave", "knave": "knight"}
    wrong = ", ".join(f"{name} {kinds[kind]}" for name, kind in problem.answer.items())
    assert task.extract(f"The answer is {wrong}.") is not None
    question = Question(task, problem, "", f"The answer is {wrong}.", f"Hm. The answer is {wrong}.")
    assert OUTCOME.same([question]) == [True]


def test_no_answer() -> None:
    answered, silent = "The answer is 20.", "First, 2 + 3 = 5."
    assert verdict(OUTCOME, SUM, answered, silent) is False
    assert verdict(OUTCOME, SUM, silent, answered) is None
    assert verdict(OUTCOME, SUM, silent, "Bananas.") is None


def test_an_answer_that_begins_before_the_position() -> None:
    assert verdict(OUTCOME, SUM, "20.", "21.", "The answer is ") is False
    assert verdict(OUTCOME, SUM, "20.", "20. That is it.", "The answer is ") is True


def test_outcome_needs_whole_responses_and_steps_do_not() -> None:
    assert (SAME_STEP.to_end, OUTCOME.to_end) == (False, True)


def test_the_summary_counts() -> None:
    verifier = verifier_named("same_step")
    for llm, slm in (("2 + 3 = 5.", "3 + 2 = 5."), ("2 + 3 = 5.", "x"), ("x", "y"), ("x", "z")):
        verdict(verifier, SUM, llm, slm)
    assert verifier.summary() == {"verdict": "same_step", "same": 1, "other": 1, "none": 2, "errors": {}}
    verifier.close()


@pytest.mark.parametrize(
    "reference", ["same_step:x", "outcome,to_end=1", "opinion", "judge", "judge:http://h/v1"]
)
def test_references_that_name_no_verdict(reference: str) -> None:
    with pytest.raises(VerdictError):
        verifier_named(reference)


def test_references_out_of_the_grammar() -> None:
    with pytest.raises(BadReference):
        verifier_named("same step")


def test_a_verifier_is_asked_about_the_tasks_own_problem() -> None:
    """A wrong answer is compared on a copy: the question's problem stays as it is."""
    task: Task = load_task("arithmetic")
    problem = replace(SUM)
    assert OUTCOME.same([Question(task, problem, "", "The answer is 7.", "The answer is 7. ok")]) == [True]
    assert problem == SUM


@pytest.mark.parametrize("name", ["same_step", "outcome"])
def test_a_task_that_fails_on_one_question_costs_that_one(name: str) -> None:
    class Brittle:
        """Cannot read some texts."""

        name = "brittle"

        def extract(self, text: str) -> str | None:
            if "{" in text:
                raise RecursionError("too deep")
            return text[-1]

        def verify(self, problem: Problem, text: str) -> bool:
            return self.extract(text) == "1"

        def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
            return self.extract(a) == self.extract(b)

    verifier = verifier_named(name)
    questions = [Question(Brittle(), SUM, "", "is 1", slm) for slm in ("are 1", "{" * 9, "is 2")]  # type: ignore[arg-type]
    assert verifier.same(questions) == [True, None, False]
    assert verifier.summary()["errors"] == {"RecursionError": 1}
    assert verifier.summary()["none"] == 1


def test_a_branch_that_was_cut_off_before_its_answer_has_no_outcome() -> None:
    task = load_task("arithmetic")
    questions = [
        Question(task, SUM, "", "First. Answer: 20", "First, 2 + 3", ended) for ended in (True, False)
    ]
    assert OUTCOME.same(questions) == [False, None]
