"""The generated families: exact verifiers, disjoint splits, and a judge of steps that is right or says it cannot tell."""

import ast
import importlib
import inspect
import itertools
import random
import re
import time
from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navtoken.tasks import load_task
from navtoken.tasks.base import ExhaustedError

FAMILIES = ["countdown", "knights", "arithmetic"]
LEVELS = [f"{family},level={level}" for family in FAMILIES for level in (1, 2, 3)]
WORDS = r"""
\boxed{ } the answer is Answer: so 3 7 21 + - * / ( ) = . , yes no left with knight knave Ann Bob Cat says lies not
Suppose tells the truth is a contradiction fits try ² ٣ 999999999999 -0 1e9 __import__ ** //
"""

SEEDS = st.integers(0, 2**32 - 1)
PROSE = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(WORDS.split()), max_size=25).map(" ".join))


@lru_cache(maxsize=64)
def first_problems(reference, split="train", num=10, seed=0):
    return list(load_task(reference).problems(split, num, seed))


def sentences(trace):
    return re.split(r"(?<=[.!?])\s+", trace)


@pytest.mark.parametrize("reference", LEVELS)
def test_reference_traces_are_right(reference):
    task = load_task(reference)
    for problem in first_problems(reference):
        for k in range(3):
            trace = task.reference(problem, random.Random(k))
            assert task.verify(problem, trace), trace
            assert task.extract(trace)


@pytest.mark.parametrize("reference", LEVELS)
def test_a_boxed_answer_is_right_too(reference):
    task = load_task(reference)
    for problem in first_problems(reference):
        answer = task.extract(task.reference(problem, random.Random(0)))
        assert task.verify(problem, rf"Hence \boxed{{{answer}}}")
        assert task.verify(problem, f"Answer: {answer}")


@pytest.mark.parametrize("reference", LEVELS)
def test_a_truncated_trace_is_wrong(reference):
    task = load_task(reference)
    for problem in first_problems(reference):
        trace = task.reference(problem, random.Random(0))
        assert not task.verify(problem, " ".join(sentences(trace)[:-1]))
        assert not task.verify(problem, "")
        assert not task.verify(problem, problem.prompt)


@pytest.mark.parametrize("reference", LEVELS)
def test_another_problems_answer_is_wrong(reference):
    task = load_task(reference)
    for problem, other in itertools.pairwise(first_problems(reference)):
        stated = task.extract(task.reference(other, random.Random(0)))
        if other.answer != problem.answer or reference.startswith("countdown"):
            assert not task.verify(problem, f"The answer is {stated}.")


@given(seed=SEEDS, change=st.integers(-50, 50).filter(bool))
@settings(max_examples=40, deadline=None)
def test_a_changed_number_is_wrong(seed, change):
    task = load_task("arithmetic")
    problem = task.draw(random.Random(seed))
    assert not task.verify(problem, f"The answer is {int(problem.answer) + change}.")
    assert not task.verify(
        problem, rf"\boxed{{{problem.answer}}} or \boxed{{{int(problem.answer) + change}}}"
    )
    assert not task.verify(problem, f"The answer is {problem.answer}.5")
    assert not task.verify(problem, f"The answer is {problem.answer} + 0.")
    assert not task.verify(problem, f"The answer is 1{problem.answer}.")


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_countdown_wants_every_number_once_and_the_target(seed):
    task = load_task("countdown")
    problem = task.draw(random.Random(seed))
    numbers, target = problem.data["numbers"], problem.data["target"]
    right = task.extract(task.reference(problem, random.Random(0)))
    assert not task.verify(problem, f"The answer is {target}.")
    assert not task.verify(problem, f"The answer is {right} + 0.")
    assert not task.verify(problem, f"The answer is ({right}) * {numbers[0]} / {numbers[0]}.")
    assert not task.verify(problem, f"The answer is ({right}.")
    assert not task.verify(problem, f"The answer is {right} = {target} + 1.")
    total = " + ".join(map(str, numbers))
    assert task.verify(problem, f"The answer is {total}.") is (sum(numbers) == target)
    assert task.verify(problem, f"The answer is (({right})).")


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_knights_wants_everybody_and_every_kind(seed):
    task = load_task("knights")
    problem = task.draw(random.Random(seed))
    people = list(problem.answer.items())
    for place in range(len(people)):
        turned = [
            (name, ("knave" if kind == "knight" else "knight") if k == place else kind)
            for k, (name, kind) in enumerate(people)
        ]
        assert not task.verify(problem, _assignment(turned))
        assert not task.verify(problem, _assignment(people[:place] + people[place + 1 :]))
        assert not task.verify(problem, _assignment([*people, turned[place]]))
        assert not task.verify(problem, _assignment([turned[place], *people]))
    assert task.verify(problem, _assignment(people))


def _assignment(people):
    return "The answer is " + ", ".join(f"{name} {kind}" for name, kind in people) + "."


def test_knights_problems_have_exactly_one_solution():
    """Checked by a second reading of the prompt, independent of the generator's."""
    for problem in first_problems("knights", num=20):
        said = re.findall(r"(\w+) says ([^.]+)\.", problem.prompt)
        names = [name for name, _ in said]
        found = [
            kinds
            for values in itertools.product((True, False), repeat=len(names))
            if all(
                _holds(claim, kinds) == kinds[name]
                for name, claim in said
                for kinds in [dict(zip(names, values, strict=True))]
            )
            for kinds in [dict(zip(names, values, strict=True))]
        ]
        assert len(found) == 1
        assert {name: "knight" if kind else "knave" for name, kind in found[0].items()} == problem.answer


def _holds(claim, kinds):
    knight = "knight" in claim
    if match := re.fullmatch(r"(\w+) and (\w+) are (the same|different)", claim):
        return (kinds[match[1]] == kinds[match[2]]) == (match[3] == "the same")
    if match := re.fullmatch(r"(\w+) or (\w+) is a kn\w+", claim):
        return knight in (kinds[match[1]], kinds[match[2]])
    if match := re.fullmatch(r"(\w+) and (\w+) are kn\w+", claim):
        return kinds[match[1]] == kinds[match[2]] == knight
    match = re.fullmatch(r"(\w+) is a kn\w+", claim)
    return kinds[match[1]] == knight


def test_arithmetic_answers_are_the_expressions_values():
    for problem in first_problems("arithmetic,level=3", num=30):
        expression = problem.prompt.removeprefix("Compute ").removesuffix(" :")
        assert re.fullmatch(r"[\d+*() -]+", expression)
        assert str(_value(ast.parse(expression, mode="eval").body)) == problem.answer


def _value(node):
    if isinstance(node, ast.Constant):
        return node.value
    left, right = _value(node.left), _value(node.right)
    return {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[type(node.op)]


@pytest.mark.parametrize("reference", LEVELS)
def test_train_and_test_are_disjoint_over_many_seeds(reference):
    task = load_task(reference)
    canonical = {
        split: {task.canonical(problem) for seed in range(8) for problem in task.problems(split, 8, seed)}
        for split in ("train", "test")
    }
    assert all(canonical.values())
    assert not canonical["train"] & canonical["test"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_problem_has_one_split_whatever_the_level(family):
    first, other = load_task(family), load_task(f"{family},level=2")
    for problem in first_problems(family):
        assert first.split_of(problem) == other.split_of(problem) == "train"


def test_countdown_is_split_by_the_numbers_not_by_their_order():
    task = load_task("countdown")
    for problem in first_problems("countdown"):
        turned = type(problem)(
            problem.task, "x", "y", problem.answer, {**problem.data, "numbers": problem.data["numbers"][::-1]}
        )
        assert task.canonical(turned) == task.canonical(problem)


def test_knights_is_split_by_the_statements_not_by_the_names():
    task = load_task("knights")
    for problem in first_problems("knights"):
        names = list(problem.answer)
        others = dict(zip(names, ["Fay", "Gus", "Hal"], strict=False))
        if set(names) & set(others.values()):
            continue
        prompt = re.sub("|".join(names), lambda match, to=others: to[match[0]], problem.prompt)
        answer = {others[name]: kind for name, kind in problem.answer.items()}
        assert task.canonical(type(problem)(problem.task, "x", prompt, answer)) == task.canonical(problem)


@pytest.mark.parametrize("reference", LEVELS)
def test_problems_are_different_and_repeatable(reference):
    problems = first_problems(reference, "test", 12, 11)
    assert problems == list(load_task(reference).problems("test", 12, 11))
    assert (
        len({problem.prompt for problem in problems})
        == len({problem.problem_id for problem in problems})
        == 12
    )


def test_no_problem_comes_twice_where_the_draw_repeats_itself():
    task = load_task("countdown")
    drawn = [task.draw(random.Random(k)) for k in range(50)]
    train = [problem for problem in drawn if task.split_of(problem) == "train"]
    again = itertools.cycle(drawn)
    task.draw = lambda rng: next(again)
    found = task.problems("train", len(train) + 1, seed=0)
    assert [next(found) for _ in train] == train
    with pytest.raises(ExhaustedError, match=f"no more than {len(train)} problems"):
        next(found)


@pytest.mark.parametrize("family", FAMILIES)
@given(text=PROSE)
@settings(max_examples=150, deadline=None)
def test_nothing_raises_on_what_models_write(family, text):
    task = load_task(family)
    problem = first_problems(family)[0]
    for written in (text, f"The answer is {text}.", rf"\boxed{{{text}}}"):
        assert task.verify(problem, written) in (True, False)
        assert task.extract(written) is None or isinstance(task.extract(written), str)
        for a, b in ((written, "So it is."), ("So it is.", written), (written, written)):
            assert task.same_step(problem, "", a, b) in (True, False, None)
            assert task.same_step(problem, written, a, b) in (True, False, None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "hostile",
    ["(" * 100_000, "1" * 100_000, "1 " * 50_000, "9 * " * 50_000 + "9", "answer is " * 20_000, "-" * 50_000]
    + [r"\boxed{" * 20_000, "Ann knight, " * 20_000, "Ann is a " * 20_000, "1 / 0", "9 ** 9 ** 9", "٣ + ²"],
    ids=range(12),
)
@pytest.mark.timeout(60)
def test_long_and_hostile_answers_are_wrong(family, hostile):
    task = load_task(family)
    problem = first_problems(family)[0]
    for text in (hostile, f"The answer is {hostile}", rf"\boxed{{{hostile}}}"):
        assert task.verify(problem, text) is False
        task.same_step(problem, text[:500], text[:500], text[:500])


@pytest.mark.parametrize("family", [*FAMILIES, "wording", "base"])
def test_no_module_names_pythons_evaluators(family):
    """Names, not behaviour: whoever adds one has to look at this test."""
    module = importlib.import_module(f"navtoken.tasks.{family}")
    names = {node.id for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "sympify", "parse_expr", "literal_eval"}


def test_verifiers_never_call_an_evaluator(monkeypatch):
    import builtins

    def forbidden(*_):
        raise AssertionError("model output was evaluated as code")

    problems = {family: first_problems(family)[0] for family in FAMILIES}
    tasks = {family: load_task(family) for family in FAMILIES}
    traces = {family: tasks[family].reference(problems[family], random.Random(0)) for family in FAMILIES}
    with monkeypatch.context() as patch:
        for name in ("eval", "exec"):
            patch.setattr(builtins, name, forbidden)
        verdicts = [tasks[family].verify(problems[family], traces[family]) for family in FAMILIES]
        verdicts += [
            tasks[family].verify(problems[family], r"\boxed{__import__('os')}") for family in FAMILIES
        ]
    assert verdicts == [True] * 3 + [False] * 3


SAME = [
    ("arithmetic", "First, 3 + 4 = 7.", "To begin, 4 plus 3 gives 7."),
    ("arithmetic", "Then 12 - 5 is 7.", "12 minus 5 gives 7."),
    ("arithmetic", "6 * 7 = 42.", "Now 7 times 6 is 42."),
    ("arithmetic", "The answer is 42.", "So the answer is 42."),
    ("countdown", "Try 3 + 7 = 10, left 10 12 5.", "Maybe 7 + 3 = 10, left 10 12 5."),
    (
        "countdown",
        "Try 3 + 7 = 10: 10 + 2 = 12, 10 * 2 = 20, no.",
        "What about 7 + 3 = 10, then 10 * 2 = 20, 10 + 2 = 12, no.",
    ),
    ("countdown", "Try 3 * 7 = 21: 21 + 12 = 33, yes.", "Maybe 7 * 3 = 21, then 12 + 21 = 33, that is it."),
    ("countdown", "The answer is (3 * 7) + 12.", "So the answer is (3*7)+12."),
    ("knights", "Suppose Ann is a knight.", "Let us say Ann is a knight."),
    (
        "knights",
        "Ann falsely says Bob is a knight, so Bob is a knave.",
        "Ann says Bob is a knight, which is false, hence Bob is a knave.",
    ),
    (
        "knights",
        "Ann falsely says Bob is a knave, a contradiction.",
        "Ann says Bob is a knave, which is false, but that cannot be.",
    ),
    ("knights", "So Ann is a knave.", "Therefore Ann is a knave."),
    (
        "knights",
        "Ann says Bob is a knave, which is true, and that fits.",
        "Ann truly says Bob is a knave, fine.",
    ),
    (
        "knights",
        "The answer is Ann knight, Bob knave.",
        "No contradiction, so the answer is Ann knight, Bob knave.",
    ),
]
DIFFERENT = [
    ("arithmetic", "First, 3 + 4 = 7.", "First, 3 + 4 = 8."),
    ("arithmetic", "12 - 5 = 7.", "5 - 12 = 7."),
    ("arithmetic", "3 + 4 = 7.", "3 * 4 = 7."),
    ("arithmetic", "The answer is 7.", "3 + 4 = 7."),
    ("countdown", "Try 3 + 7 = 10, left 10 12 5.", "Try 3 * 7 = 21, left 21 12 5."),
    ("countdown", "Try 3 * 7 = 21: 21 + 12 = 33, yes.", "Try 3 * 7 = 21: 21 + 12 = 33, no."),
    ("countdown", "Try 3 * 7 = 21: 21 + 12 = 33, no.", "Try 3 * 7 = 21: 21 + 12 = 32, no."),
    ("countdown", "Try 3 * 7 = 21: 21 + 12 = 33, no.", "Try 3 * 7 = 21: 21 - 12 = 9, no."),
    ("countdown", "Try 12 - 3 = 9: 9 + 7 = 16, no.", "Try 3 - 12 = 9: 9 + 7 = 16, no."),
    ("knights", "Suppose Ann is a knight.", "Suppose Ann is a knave."),
    ("knights", "Suppose Ann is a knight.", "Suppose Bob is a knight."),
    ("knights", "Suppose Ann is a knight.", "So Ann is a knight."),
    (
        "knights",
        "Ann falsely says Bob is a knave, a contradiction.",
        "Ann falsely says Bob is a knave, fine.",
    ),
    ("knights", "Ann truly says Bob is a knave, fine.", "Cat truly says Bob is a knave, fine."),
    ("knights", "The answer is Ann knight, Bob knave.", "The answer is Ann knight, Bob knight."),
    ("knights", "Ann truly says Bob is a knave, fine.", "Ann falsely says Bob is a knave, fine."),
    ("knights", "Ann truly says Bob is a knave, fine.", "Ann truly says Cat is a knave, fine."),
    ("countdown", "Try 3 + 7 = 10, left 10 12 5.", "Try 3 + 7 = 10, left 10 99 5."),
    (
        "countdown",
        "Try 3 * 7 = 21: 21 + 12 = 33 too small, no.",
        "Try 3 * 7 = 21: 21 + 12 = 33 too big, no.",
    ),
]

UNPARSABLE = [
    ("arithmetic", "3 + 4 = 7.5."),
    ("arithmetic", "3 + 4 = 7 + 1."),
    ("arithmetic", "3 + 4 = 7, 5 + 6 = 11."),
    ("knights", "Ann says Bob is a knave."),
    ("countdown", "Try 3."),
]


@pytest.mark.parametrize(("family", "sentence"), UNPARSABLE)
def test_a_sentence_that_claims_something_else_is_not_judged(family, sentence):
    task, problem = load_task(family), first_problems(family)[0]
    assert task.same_step(problem, "", sentence, sentence) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_long_runs_of_digits_are_judged_fast(family):
    task, problem = load_task(family), first_problems(family)[0]
    hostile = "9" * 200_000
    started = time.process_time()
    assert task.same_step(problem, "", hostile, f"{hostile} + 1 = {hostile}") is None
    assert time.process_time() - started < 2


def test_answers_as_hub_models_write_them():
    task = load_task("countdown")
    problem = replace(first_problems("countdown")[0], data={"numbers": [3, 7, 12], "target": 33})
    for written in (
        r"\boxed{3 \times 7 + 12 = 33}",
        r"\boxed{(3 × 7) + 12}",
        "The answer is 3 * 7 + 12 = 33.",
    ):
        assert task.verify(problem, written), written
    assert not task.verify(problem, r"\boxed{3 \times 7 + 11 = 33}")
    knights = load_task("knights")
    solved = first_problems("knights")[0]
    stated = ", ".join(f"{name} {kind}" for name, kind in solved.answer.items())
    assert knights.verify(solved, rf"\boxed{{\text{{{stated}}}}}")


@pytest.mark.parametrize(("family", "a", "b"), SAME)
def test_paraphrases_take_the_same_step(family, a, b):
    task, problem = load_task(family), first_problems(family)[0]
    assert task.same_step(problem, "", a, b) is True
    assert task.same_step(problem, "Something came before. ", b, a) is True


@pytest.mark.parametrize(("family", "a", "b"), DIFFERENT)
def test_different_steps_are_told_apart(family, a, b):
    task, problem = load_task(family), first_problems(family)[0]
    assert task.same_step(problem, "", a, b) is False
    assert task.same_step(problem, "", b, a) is False


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "garbage", ["", "hm", "So so so.", "Try try = = left.", "is is a a", "\\boxed{", "Ann Bob."]
)
def test_garbage_is_not_judged(family, garbage):
    task, problem = load_task(family), first_problems(family)[0]
    sentence = next(a for name, a, _ in SAME if name == family)
    assert task.same_step(problem, "", garbage, sentence) is None
    assert task.same_step(problem, "", sentence, garbage) is None


@pytest.mark.parametrize(("family", "a", "b"), SAME)
def test_a_step_may_have_begun_in_the_prefix(family, a, b):
    task, problem = load_task(family), first_problems(family)[0]
    head, _, tail = a.rpartition(" ")
    assert task.same_step(problem, f"Before. {head} ", tail, tail) is True


@pytest.mark.parametrize("reference", LEVELS)
def test_every_sentence_of_a_reference_trace_is_judged(reference):
    task = load_task(reference)
    for problem in first_problems(reference, num=4):
        prefix = ""
        for sentence in sentences(task.reference(problem, random.Random(1))):
            assert task.same_step(problem, prefix, sentence, sentence) is True, sentence
            prefix += sentence + " "
