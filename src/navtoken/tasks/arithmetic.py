"""Multi-step evaluation of an expression: the low-entropy control, in which nearly every token is determined.

What is free is the wording and the order of independent steps; what decides is the digits of each result.
"""

import operator
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from navtoken.tasks.base import GeneratedTask, Problem, problem_id
from navtoken.tasks.wording import final_answer, last_sentence, pick

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
WORDS = {"plus": "+", "minus": "-", "times": "*"}
_OPENERS = {"first": (("First, ", 4), ("", 3), ("We start with ", 1), ("To begin, ", 1)),
            "next": (("Then ", 4), ("", 2), ("Next, ", 2), ("Now ", 1)),
            "last": (("Finally, ", 3), ("Then ", 2), ("So ", 1))}  # fmt: skip
_STEPS = (("{a} {op} {b} = {r}.", 6), ("{a} {op} {b} is {r}.", 2), ("{a} {word} {b} gives {r}.", 2))
_CLOSERS = (("The answer is {r}.", 4), ("So the answer is {r}.", 2), ("Therefore the answer is {r}.", 1))
_PROMPT = re.compile(r"\s*compute\s+([-+*() 0-9]{1,200}?)\s*:?\s*", re.IGNORECASE)
# A step's equation ends its sentence: `= 7.5` and `= 7 + 1` are other claims than `= 7`. Bounded, so that no text is slow.
_STEP = re.compile(
    r"(?<!\d)(-?\d{1,6}) (\+|-|\*|plus|minus|times) (-?\d{1,6}) (?:=|is|gives) (-?\d{1,9})\s{0,3}\.?\s{0,3}$"
)
_EQUALS = re.compile(r"=|\bis\b|\bgives\b")


@dataclass(frozen=True)
class Node:
    """A binary operation, or a number where `op` is empty."""

    value: int
    op: str = ""
    left: "Node | None" = None
    right: "Node | None" = None

    def __str__(self) -> str:
        if not self.op:
            return str(self.value)
        return f"{_bracket(self.left)} {self.op} {_bracket(self.right)}"


def _bracket(node: Node | None) -> str:
    return f"({node})" if node and node.op else str(node)


class Arithmetic(GeneratedTask):
    """`arithmetic[,level=1..3]`: expressions of 4, 5 or 7 operations over + - *, every value between 0 and 999."""

    instruction = "Work step by step and end with 'The answer is N.' (or \\boxed{N})."
    NUM_OPERATIONS: ClassVar = {1: 4, 2: 5, 3: 7}

    def __init__(self, level: int = 1) -> None:
        if level not in self.NUM_OPERATIONS:
            raise ValueError(f"arithmetic has levels {sorted(self.NUM_OPERATIONS)}, not {level}")
        self.level = level
        self.name = "arithmetic" if level == 1 else f"arithmetic,level={level}"

    def draw(self, rng: random.Random) -> Problem:
        root = None
        while root is None:
            root = _draw_tree(self.NUM_OPERATIONS[self.level], rng)
        return self._problem(root)

    def parse(self, prompt: str) -> Problem | None:
        match = _PROMPT.fullmatch(prompt)
        if match is None:
            return None
        try:
            root = parse_expression(match[1])
        except (ValueError, LookupError, RecursionError):
            return None
        # The reader is lenient with brackets; an expression that it does not write back was not understood.
        return self._problem(root) if root.op and _bare(str(root)) == _bare(match[1]) else None

    def _problem(self, root: Node) -> Problem:
        expression = str(root)
        return Problem(
            self.name,
            problem_id(expression),
            f"Compute {expression} :",
            str(root.value),
            {"expression": expression},
        )

    def canonical(self, problem: Problem) -> str:
        return problem.data["expression"]

    def reference(self, problem: Problem, rng: random.Random) -> str:
        nodes = list(_evaluation_order(parse_expression(problem.data["expression"]), rng))
        sentences = []
        for index, node in enumerate(nodes):
            place = "first" if index == 0 else "last" if index == len(nodes) - 1 else "next"
            step = pick(rng, _STEPS).format(
                a=_value(node.left), b=_value(node.right), op=node.op, word=_word(node.op), r=node.value
            )
            sentences.append(pick(rng, _OPENERS[place]) + step)
        return " ".join([*sentences, pick(rng, _CLOSERS).format(r=nodes[-1].value)])

    def extract(self, text: str) -> str | None:
        return final_answer(text, r"-?\d+")

    def verify(self, problem: Problem, text: str) -> bool:
        answer = self.extract(text)
        return answer is not None and answer == problem.answer

    def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
        """Same where both sentences state the same equation or the same final answer."""
        steps = parse_step(last_sentence(prefix) + a), parse_step(last_sentence(prefix) + b)
        return None if None in steps else steps[0] == steps[1]


def parse_step(sentence: str) -> tuple[object, ...] | None:
    """The equation of a sentence (operands of + and * in either order) or its final answer."""
    equation = _STEP.search(sentence) if len(_EQUALS.findall(sentence)) == 1 else None
    if equation is None:
        answer = final_answer(sentence, r"-?\d+")
        return None if answer is None else ("answer", answer)
    left, op, right, result = equation.groups()
    op = WORDS.get(op, op)
    operands = (left, right) if op == "-" else tuple(sorted((left, right)))
    return (op, *operands, result)


def parse_expression(text: str) -> Node:
    """Parse what `str(Node)` writes: integers, + - * and brackets, each operation of two bracketed or plain operands."""
    tokens = re.findall(r"\d+|[-+*()]", text)
    node, rest = _parse_operation(tokens)
    if rest:
        raise ValueError(f"'{text}' is no expression: '{''.join(rest)}' is left over")
    return node


def _parse_operation(tokens: list[str]) -> tuple[Node, list[str]]:
    left, rest = _parse_operand(tokens)
    if not rest or rest[0] == ")":
        return left, rest
    op, rest = rest[0], rest[1:]
    right, rest = _parse_operand(rest)
    return Node(OPERATIONS[op](left.value, right.value), op, left, right), rest


def _parse_operand(tokens: list[str]) -> tuple[Node, list[str]]:
    if tokens[0] != "(":
        return Node(int(tokens[0])), tokens[1:]
    node, rest = _parse_operation(tokens[1:])
    return node, rest[1:]


def _draw_tree(num_operations: int, rng: random.Random) -> Node | None:
    """A random tree with every value in 0..999, or None where the draw left that range."""
    if num_operations == 0:
        return Node(rng.choice((rng.randint(2, 9), rng.randint(10, 99))))
    num_left = rng.randint(0, num_operations - 1)
    left, right = _draw_tree(num_left, rng), _draw_tree(num_operations - 1 - num_left, rng)
    if left is None or right is None:
        return None
    op = rng.choice("++--*")
    if op == "*" and min(left.value, right.value) > 9:
        return None
    value = OPERATIONS[op](left.value, right.value)
    return Node(value, op, left, right) if 0 <= value <= 999 else None


def _evaluation_order(root: Node, rng: random.Random) -> Iterator[Node]:
    """Operations in an order in which every operand is known; independent sides come in either order."""
    children = [child for child in (root.left, root.right) if child and child.op]
    if len(children) == 2 and rng.random() < 0.3:
        children.reverse()
    for child in children:
        yield from _evaluation_order(child, rng)
    yield root


def _bare(text: str) -> str:
    return "".join(text.split())


def _value(node: Node | None) -> int:
    assert node is not None
    return node.value


def _word(op: str) -> str:
    return next(word for word, symbol in WORDS.items() if symbol == op)
