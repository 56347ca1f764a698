"""Countdown: reach the target from the numbers, each used once. Search with dead ends.

The reference trace tries a first operation, sees what the last number makes of it, and goes on to the next try
where that misses the target.
"""

import functools
import itertools
import operator
import random
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from navtoken.tasks.base import GeneratedTask, Problem, problem_id
from navtoken.tasks.wording import final_answer, last_sentence, pick

MAX_VALUE = 400
INTUITION = 0.4
"""How often a reference trace goes straight to a try that works."""
MAX_EXPRESSION = 200
OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}

_TRY = (("Try {a} {op} {b} = {r}", 5), ("Maybe {a} {op} {b} = {r}", 2), ("What about {a} {op} {b} = {r}", 2))
_LAST = ((": ", 4), (", then ", 2))
_YES = ((", yes.", 4), (", that is it.", 2))
_NO = ((", no.", 5), (", that fails.", 1))
_CLOSERS = (("The answer is {e}.", 4), ("So the answer is {e}.", 2))
_PROMPT = re.compile(r"\s*numbers((?:\s+[0-9]{1,9}){2,8})\s+target\s+([0-9]{1,9})\s*:?\s*", re.IGNORECASE)
_EXPRESSION = r"[-+*/() \d]*\d[-+*/() \d]*"
_EQUATION = re.compile(r"(?<!\d)(\d{1,6}) ([-+*/]) (\d{1,6}) = (-?\d{1,6})(?!\d)(?: too (small|big))?")
_LEFT = re.compile(r"\bleft ((?:\d{1,6} ?){1,6})")
_OPERATOR_SPELLINGS = ((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"), ("×", "*"), ("÷", "/"), ("−", "-"))
_RESULT = re.compile(r"(?<=[\d)]) ?= ?\d{1,6}(?=\}|\.?\s{0,3}$)")
_SUCCESS = re.compile(r"\b(yes|that is it)\b")


@dataclass(frozen=True)
class Term:
    """A value, the expression that makes it, and that expression's last operation."""

    value: int
    text: str
    op: str = ""
    left: int = 0
    right: int = 0

    @classmethod
    def of(cls, left: "Term", op: str, right: "Term") -> "Term":
        text = f"{left.bracketed} {op} {right.bracketed}"
        return cls(
            int(OPERATIONS[op](Fraction(left.value), Fraction(right.value))),
            text,
            op,
            left.value,
            right.value,
        )

    @property
    def bracketed(self) -> str:
        return f"({self.text})" if self.op else self.text


class Countdown(GeneratedTask):
    """`countdown[,level=1..3]`: 3 numbers up to 15, 3 up to 50 (the default), or 4 up to 20; target 10 to 200."""

    instruction = (
        "Use every number exactly once with + - * / to make the target. Work step by step and end with a sentence "
        "such as 'The answer is (3 * 7) + 12.' (or \\boxed{(3 * 7) + 12})."
    )
    LEVELS: ClassVar = {1: (3, 15), 2: (3, 50), 3: (4, 20)}

    def __init__(self, level: int = 2) -> None:
        if level not in self.LEVELS:
            raise ValueError(f"countdown has levels {sorted(self.LEVELS)}, not {level}")
        self.level = level
        self.name = "countdown" if level == 2 else f"countdown,level={level}"

    def draw(self, rng: random.Random) -> Problem:
        num_numbers, largest = self.LEVELS[self.level]
        while True:
            numbers = [rng.randint(2, largest) for _ in range(num_numbers)]
            terms = [Term(number, str(number)) for number in numbers]
            while len(terms) > 1:
                rng.shuffle(terms)
                terms.append(rng.choice(list(combinations(terms.pop(), terms.pop()))))
            if 10 <= terms[0].value <= 200 and terms[0].value not in numbers:
                return self._problem(numbers, terms[0].value)

    def parse(self, prompt: str) -> Problem | None:
        match = _PROMPT.fullmatch(prompt)
        return self._problem([int(number) for number in match[1].split()], int(match[2])) if match else None

    def _problem(self, numbers: list[int], target: int) -> Problem:
        prompt = f"Numbers {' '.join(map(str, numbers))} target {target} :"
        return Problem(
            self.name, problem_id(prompt), prompt, str(target), {"numbers": numbers, "target": target}
        )

    def canonical(self, problem: Problem) -> str:
        return f"{sorted(problem.data['numbers'])} {problem.data['target']}"

    def reference(self, problem: Problem, rng: random.Random) -> str:
        terms = [Term(number, str(number)) for number in problem.data["numbers"]]
        out: list[str] = []
        found = _search(terms, problem.data["target"], rng, out)
        assert found is not None
        return " ".join([*out, pick(rng, _CLOSERS).format(e=found)])

    def extract(self, text: str) -> str | None:
        answer = final_answer(_plain_operators(text), _EXPRESSION)
        return None if answer is None else answer.strip()

    def answer_of(self, problem: Problem, text: str) -> Hashable | None:
        """The expression, equal to all that the laws of arithmetic turn it into: 3 * 7 + 12 and 12 + 7 * 3, not 40 - 7.

        Not its value: that would be the target in every right answer, and a vote would verify.
        """
        answer = self.extract(text)
        if answer is None:
            return None
        try:
            return evaluate(answer, _stand_in)[0]
        except ValueError:
            return answer.replace(" ", "")

    def verify(self, problem: Problem, text: str) -> bool:
        answer = self.extract(text)
        if answer is None:
            return False
        try:
            value, used = evaluate(answer)
        except ValueError:
            return False
        return value == problem.data["target"] and sorted(used) == sorted(problem.data["numbers"])

    def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
        """Same where both sentences make the same try with the same finding, or give the same final answer."""
        steps = (
            self._parse_step(problem, last_sentence(prefix) + a),
            self._parse_step(problem, last_sentence(prefix) + b),
        )
        return None if None in steps else steps[0] == steps[1]

    def _parse_step(self, problem: Problem, sentence: str) -> tuple[object, ...] | None:
        answer = self.extract(sentence)
        if answer is not None:
            return ("answer", answer.replace(" ", ""))
        equations = _EQUATION.findall(sentence)
        if not equations:
            return None
        made, *ends = (
            (op, *((left, right) if op in "-/" else sorted((left, right))), result, size)
            for left, op, right, result, size in equations
        )
        left = _LEFT.search(sentence)
        remaining = tuple(sorted(left[1].split())) if left else ()
        return (made, frozenset(ends), remaining, _SUCCESS.search(sentence) is not None)


def _plain_operators(text: str) -> str:
    """LaTeX and typographic operators as + - * /, and no `= 33` behind an expression: how hub models write."""
    for written, plain in _OPERATOR_SPELLINGS:
        text = text.replace(written, plain)
    return _RESULT.sub("", text)


def combinations(first: Term, second: Term) -> Iterator[Term]:
    """Every value that one operation makes of two terms: positive, whole and at most `MAX_VALUE`."""
    big, small = (first, second) if first.value >= second.value else (second, first)
    yield Term.of(first, "+", second)
    if big.value > small.value:
        yield Term.of(big, "-", small)
    if small.value > 1 and big.value * small.value <= MAX_VALUE:
        yield Term.of(first, "*", second)
    if small.value > 1 and big.value % small.value == 0:
        yield Term.of(big, "/", small)


def _stand_in(number: int) -> Fraction:
    """A large number in place of a small one: expressions in such numbers have one value only where they are the same."""
    return Fraction(random.Random(number).getrandbits(64))


def evaluate(expression: str, meaning: Callable[[int], Fraction] = Fraction) -> tuple[Fraction, list[int]]:
    """The exact value of an expression over + - * / and brackets, and the numbers in it, each worth its `meaning`.

    Raises `ValueError` on anything else, on a division by zero and beyond `MAX_EXPRESSION` characters.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"an expression of {len(expression)} characters; at most {MAX_EXPRESSION} are read")
    return _Parser(re.findall(r"\d+|\S", expression), meaning).parse()


class _Parser:
    """Recursive descent: sum = product (+|- product)*, product = atom (*|/ atom)*, atom = number | (sum)."""

    def __init__(self, tokens: list[str], meaning: Callable[[int], Fraction]) -> None:
        self.tokens = tokens
        self.meaning = meaning
        self.used: list[int] = []

    def parse(self) -> tuple[Fraction, list[int]]:
        value = self.chain("+-", lambda: self.chain("*/", self.atom))
        if self.tokens:
            raise ValueError(f"'{self.tokens[0]}' is out of place")
        return value, self.used

    def chain(self, operators: str, operand: Callable[[], Fraction]) -> Fraction:
        value = operand()
        while self.tokens and self.tokens[0] in operators:
            op, right = self.tokens.pop(0), operand()
            if op == "/" and right == 0:
                raise ValueError("division by zero")
            value = OPERATIONS[op](value, right)
        return value

    def atom(self) -> Fraction:
        token = self.tokens.pop(0) if self.tokens else "the end"
        if token == "(":
            value = self.chain("+-", lambda: self.chain("*/", self.atom))
            if not self.tokens or self.tokens.pop(0) != ")":
                raise ValueError("a bracket is not closed")
            return value
        if not token.isascii() or not token.isdigit():
            raise ValueError(f"'{token}' where a number should stand")
        self.used.append(int(token))
        return self.meaning(int(token))


def _search(terms: list[Term], target: int, rng: random.Random, out: list[str]) -> str | None:
    """Depth-first search that writes each try to `out`; the expression that reaches `target`, or None."""
    for made, rest in _ordered_tries(terms, target, rng):
        opening = pick(rng, _TRY).format(a=made.left, op=made.op, b=made.right, r=made.value)
        if len(rest) == 1:
            found = _last_step(opening, made, rest[0], target, rng, out)
        else:
            out.append(f"{opening}, left {' '.join(str(term.value) for term in (made, *rest))}.")
            found = _search([made, *rest], target, rng, out)
        if found is not None:
            return found
    return None


def _ordered_tries(terms: list[Term], target: int, rng: random.Random) -> Iterator[tuple[Term, list[Term]]]:
    """First operations in the order of an orderly searcher with some intuition.

    With `INTUITION` one that leads to `target` comes first; else a pair is picked, its operations are tried in turn,
    and the pairs after it follow in a circle. Tries that differ only in which of two equal numbers they use count once.
    """
    pairs = list(itertools.combinations(range(len(terms)), 2))
    first = rng.randrange(len(pairs))
    tries = {
        (made.left, made.op, made.right): (
            made,
            [term for index, term in enumerate(terms) if index not in pair],
        )
        for pair in pairs[first:] + pairs[:first]
        for made in combinations(terms[pair[0]], terms[pair[1]])
    }
    if rng.random() < INTUITION:
        good = [key for key, (made, rest) in tries.items() if _reachable([made, *rest], target)]
        if good:
            yield tries.pop(rng.choice(good))
    yield from tries.values()


@functools.lru_cache(maxsize=200_000)
def _reaches(values: tuple[int, ...], target: int) -> bool:
    if len(values) == 1:
        return values[0] == target
    terms = [Term(value, str(value)) for value in values]
    return any(
        _reachable([made, *(term for index, term in enumerate(terms) if index not in pair)], target)
        for pair in itertools.combinations(range(len(terms)), 2)
        for made in combinations(terms[pair[0]], terms[pair[1]])
    )


def _reachable(terms: list[Term], target: int) -> bool:
    return _reaches(tuple(sorted(term.value for term in terms)), target)


def _last_step(
    opening: str, made: Term, last: Term, target: int, rng: random.Random, out: list[str]
) -> str | None:
    """Try the sum, then what the sum's size leaves: the product below the target, difference and quotient above it."""
    ends = {end.op: end for end in combinations(made, last)}
    total = ends["+"]
    following = "" if total.value == target else "*" if total.value < target else "-/"
    tried = [total, *(ends[op] for op in following if op in ends)]
    hit = next((end for end in tried if end.value == target), None)
    shown = tried[: tried.index(hit) + 1] if hit else tried
    size = {True: " too small", False: " too big"}
    equations = [f"{end.left} {end.op} {end.right} = {end.value}" for end in shown]
    equations = [
        text + ("" if end is hit else size[end.value < target])
        for text, end in zip(equations, shown, strict=True)
    ]
    out.append(opening + pick(rng, _LAST) + ", ".join(equations) + pick(rng, _YES if hit else _NO))
    return hit.text if hit else None
