"""`gym:NAME[,option=value...]`: procedural problems of reasoning-gym, compared exactly.

Three things are ours. Its scorers are never called: some evaluate what the model wrote, most give partial credit. Its
seeds overlap (item i of seed s is item i-1 of seed s+1), so problems are told apart by their question. And train and
test are disjoint by a hash of the question. A set whose question has several right answers is refused, because
comparing with the one that it gives would count right answers as wrong.
"""

import random
import re
from collections.abc import Hashable, Iterator
from dataclasses import MISSING, fields
from fractions import Fraction
from typing import Any

from navtoken.reference import Reference
from navtoken.tasks.base import Problem, Split, distinct, hash_split, problem_id
from navtoken.tasks.finite import BOXED_INSTRUCTION, same_words
from navtoken.tasks.loading import TaskError, TaskOptionError, require, typed_options
from navtoken.tasks.math_answers import last_boxed, stated_answer

CHUNK = 100
"""Problems drawn from one seed of reasoning-gym."""

PATIENCE = 2_000
"""Candidates without a new problem of the wanted split before a set counts as exhausted; drawing one can be slow."""

SEVERAL_ANSWERS = frozenset(
    {
        "binary_alternation",
        "boxnet",
        "composite",
        "countdown",
        "cryptarithm",
        "graph_color",
        "group_anagrams",
        "intermediate_integration",
        "jugs",
        "kakurasu",
        "knight_swap",
        "n_queens",
        "palindrome_generation",
        "polynomial_equations",
        "polynomial_multiplication",
        "propositional_logic",
        "puzzle24",
        "quantum_lock",
        "rubiks_cube",
        "rush_hour",
        "shortest_path",
        "simple_integration",
        "sokoban",
        "tower_of_hanoi",
        "word_ladder",
    }
)
"""Sets with several right answers to a question, one that can be written in several ways, or none given."""

_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_WRAPPED = re.compile(r"\\text\{([^{}]*)\}")
_NUMBER = re.compile(r"[+-]?\d{1,300}(?:\.\d{1,300})?(?:/\d{1,300})?")


class GymTask:
    """One reasoning-gym set as a task."""

    instruction = BOXED_INSTRUCTION
    endless = True
    judges_steps = False

    def __init__(self, name: str, set_name: str, config: dict[str, Any]) -> None:
        self.name = name
        self._set_name = set_name
        self._config = config

    def problems(self, split: Split, num: int | None, seed: int) -> Iterator[Problem]:
        """`num` different problems (endlessly where None). Raises `ExhaustedError` when new ones stop coming."""
        candidates = self._candidates(random.Random(f"{self.name}|{split}|{seed}"))
        of_split = (
            problem if hash_split(_canonical(problem.prompt)) == split else None for problem in candidates
        )
        return distinct(of_split, num, f"task '{self.name}' in '{split}'", PATIENCE)

    def _candidates(self, rng: random.Random) -> Iterator[Problem]:
        factory = require("reasoning_gym.factory", "gym", f"task '{self.name}'")
        while True:
            chunk = factory.create_dataset(
                self._set_name, seed=rng.randrange(2**31), size=CHUNK, **self._config
            )
            for index in range(CHUNK):
                entry = chunk[index]
                question = str(entry["question"]).strip()
                yield Problem(self.name, problem_id(_canonical(question)), question, str(entry["answer"]))

    def extract(self, text: str) -> str | None:
        """The last boxed answer, else the last within <answer> tags, else what follows the last 'answer is'."""
        boxed = last_boxed(text)
        if boxed is not None:
            return boxed
        tagged = _TAGGED.findall(text)
        return (tagged[-1].strip() or None) if tagged else stated_answer(text)

    def answer_of(self, problem: Problem, text: str) -> Hashable | None:
        """By the rules of `same_text`."""
        given = self.extract(text)
        if given is None:
            return None
        value = _value(_bare(given)) if _NUMBER.fullmatch(_bare(given)) else None
        return _bare(given) if value is None else value

    def verify(self, problem: Problem, text: str) -> bool:
        given = self.extract(text)
        return given is not None and same_text(str(problem.answer), given)

    def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
        """True where the sentences are the same words; None otherwise."""
        return same_words(a, b)


def same_text(expected: str, given: str) -> bool:
    r"""Equal up to white space, `\text{}` and `$` around it; numbers by their exact value."""
    expected, given = _bare(expected), _bare(given)
    if _NUMBER.fullmatch(expected) and _NUMBER.fullmatch(given):
        return _value(expected) == _value(given) is not None
    return expected == given


def _bare(text: str) -> str:
    return " ".join(_WRAPPED.sub(r"\1", text).strip().strip("$").split())


def _value(number: str) -> Fraction | None:
    numerator, _, denominator = number.partition("/")
    below = Fraction(denominator or 1)
    return Fraction(numerator) / below if below else None


def _canonical(question: str) -> str:
    return " ".join(question.split())


def load_gym_task(reference: Reference) -> GymTask:
    """Load `gym:NAME[,option=value...]`; options are fields of the set's configuration.

    Raises `MissingExtraError` without reasoning-gym, `TaskError` for an unknown set or one with several right answers,
    `TaskOptionError` for an unknown option or a value that the set refuses.
    """
    factory = require("reasoning_gym.factory", "gym", "task 'gym'")
    name = reference.target
    if name is None or name not in factory.DATASETS:
        raise TaskError(
            f"task 'gym:{name or ''}' is no set of reasoning-gym; it has: {', '.join(sorted(factory.DATASETS))}"
        )
    if name in SEVERAL_ANSWERS:
        raise TaskError(f"task 'gym:{name}' has no single right answer to compare with; choose another set")
    config = typed_options(str(reference), reference.options, _defaults(factory.DATASETS[name][1]))
    try:
        factory.create_dataset(name, seed=0, size=1, **config)
    except (AssertionError, ValueError, TypeError) as error:
        raise TaskOptionError(f"task '{reference}': reasoning-gym refuses these options: {error}") from error
    return GymTask(str(reference), name, config)


def _defaults(config_class: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(config_class):
        if field.name in ("seed", "size"):
            continue
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return found
