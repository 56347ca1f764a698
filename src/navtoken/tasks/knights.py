"""Knights and knaves: suppose, derive, run into a contradiction, turn back. Reasoning outside mathematics.

Every person is a knight, whose statements are true, or a knave, whose statements are false; each makes one
statement. The reference trace supposes a person's kind, follows what that person's statement forces, and
turns the supposition round at a contradiction.
"""

import itertools
import random
import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from navtoken.tasks.base import GeneratedTask, Problem, problem_id
from navtoken.tasks.wording import final_answer, last_sentence, pick

NAMES = ("Ann", "Bob", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal")
KINDS = {True: "knight", False: "knave"}

Kinds = dict[str, bool]
"""Name -> is a knight."""


@dataclass(frozen=True)
class Statement:
    """What a person says: about one person (`knight`, `knave`), or about two (`same`, `different`, `or`, `both`)."""

    form: str
    about: tuple[str, ...]
    kind: bool = True

    def __str__(self) -> str:
        if self.form == "is":
            return f"{self.about[0]} is a {KINDS[self.kind]}"
        first, second = self.about
        if self.form in ("same", "different"):
            return f"{first} and {second} are {'the same' if self.form == 'same' else 'different'}"
        if self.form == "or":
            return f"{first} or {second} is a {KINDS[self.kind]}"
        return f"{first} and {second} are {KINDS[self.kind]}s"

    def holds(self, kinds: Kinds) -> bool:
        values = [kinds[name] for name in self.about]
        match self.form:
            case "is":
                return values[0] == self.kind
            case "same":
                return values[0] == values[1]
            case "different":
                return values[0] != values[1]
            case "or":
                return self.kind in values
            case _:
                return values == [self.kind, self.kind]


_FORMS = (("is", 5.0), ("same", 2.0), ("different", 2.0), ("or", 1.5), ("both", 1.0))
_SUPPOSE = (("Suppose {x} is a {k}.", 5), ("Assume {x} is a {k}.", 3), ("Let us say {x} is a {k}.", 1))
_CLAIMS = {
    True: (("{x} says {s}, which is true", 3), ("{x} truly says {s}", 2)),
    False: (("{x} says {s}, which is false", 3), ("{x} falsely says {s}", 2)),
}
_DERIVE = (("{claim}, so {y} is a {k}.", 5), ("{claim}, hence {y} is a {k}.", 2))
_CONSISTENT = (("{claim}, and that fits.", 3), ("{claim}, fine.", 2))
_CONTRADICTION = (("{claim}, a contradiction.", 3), ("{claim}, but that cannot be.", 1))
_TURN = (("So {x} is a {k}.", 4), ("Hence {x} is a {k}.", 2), ("Therefore {x} is a {k}.", 1))
_CLOSERS = (
    ("The answer is {a}.", 4),
    ("So the answer is {a}.", 2),
    ("No contradiction, so the answer is {a}.", 2),
)
MAX_PEOPLE = 8
_PROMPT = re.compile(r"\s*((?:[A-Z][a-z]+ says [A-Za-z ]+\.\s+)+?)Who is what\s*:?\s*")
_SAYS = re.compile(r"([A-Z][a-z]+) says (.+)\.")
_STATEMENTS = {
    "is": re.compile(r"([A-Z][a-z]+) is a (knight|knave)"),
    "same": re.compile(r"([A-Z][a-z]+) and ([A-Z][a-z]+) are the same"),
    "different": re.compile(r"([A-Z][a-z]+) and ([A-Z][a-z]+) are different"),
    "or": re.compile(r"([A-Z][a-z]+) or ([A-Z][a-z]+) is a (knight|knave)"),
    "both": re.compile(r"([A-Z][a-z]+) and ([A-Z][a-z]+) are (knight|knave)s"),
}
_ASSIGNMENT = r"[A-Z][a-z]+ kn(?:ight|ave)(?:,? [A-Z][a-z]+ kn(?:ight|ave))*"
_PERSON = re.compile(r"\b([A-Z][a-z]+) (knight|knave)\b")
_SUPPOSED = re.compile(r"\b(?:suppose|assume|say) ([A-Z][a-z]+) is a (knight|knave)\b", re.IGNORECASE)
_CONCLUDED = re.compile(r"\b(?:so|hence|therefore) ([A-Z][a-z]+) is a (knight|knave)\b", re.IGNORECASE)
_FOUND = re.compile(
    r"\b([A-Z][a-z]+) (?:(truly|falsely) )?says ([^,]{1,60})(?:, which is (true|false))?,.{0,20}\b"
    r"(fits|fine|contradiction|cannot be)\b"
)


class Knights(GeneratedTask):
    """`knights[,level=1..3]`: 3, 4 or 5 people with exactly one solution."""

    instruction = (
        "Each person is a knight (always tells the truth) or a knave (always lies). Work step by step and end with "
        "a sentence such as 'The answer is Ann knight, Bob knave, Cat knight.' that names everybody in order."
    )
    NUM_PEOPLE: ClassVar = {1: 3, 2: 4, 3: 5}

    def __init__(self, level: int = 1) -> None:
        if level not in self.NUM_PEOPLE:
            raise ValueError(f"knights has levels {sorted(self.NUM_PEOPLE)}, not {level}")
        self.level = level
        self.name = "knights" if level == 1 else f"knights,level={level}"

    def draw(self, rng: random.Random) -> Problem:
        while True:
            people = rng.sample(NAMES, self.NUM_PEOPLE[self.level])
            said = {name: _draw_statement(name, people, rng) for name in people}
            found = solutions(said)
            if len(found) == 1:
                return self._problem(said, found[0])

    def parse(self, prompt: str) -> Problem | None:
        match = _PROMPT.fullmatch(prompt)
        said = dict(map(_parse_statement, re.split(r"(?<=\.)\s+", match[1].strip()))) if match else {}
        understood = {name: statement for name, statement in said.items() if statement is not None}
        named = {name for statement in understood.values() for name in statement.about}
        if not 2 <= len(said) <= MAX_PEOPLE or len(understood) < len(said) or not named <= said.keys():
            return None
        found = solutions(understood)
        return self._problem(understood, found[0]) if len(found) == 1 else None

    def _problem(self, said: dict[str, Statement], kinds: Kinds) -> Problem:
        prompt = " ".join(f"{name} says {statement}." for name, statement in said.items()) + " Who is what :"
        answer = {name: KINDS[kind] for name, kind in kinds.items()}
        data = {"statements": {name: [s.form, list(s.about), s.kind] for name, s in said.items()}}
        return Problem(self.name, problem_id(prompt), prompt, answer, data)

    def canonical(self, problem: Problem) -> str:
        places = {name: str(place) for place, name in enumerate(problem.answer)}
        return re.sub("|".join(places), lambda match: places[match[0]], problem.prompt)

    def reference(self, problem: Problem, rng: random.Random) -> str:
        return " ".join(_Deduction(statements_of(problem), rng).sentences())

    def extract(self, text: str) -> str | None:
        return final_answer(text, _ASSIGNMENT)

    def answer_of(self, problem: Problem, text: str) -> Hashable | None:
        """Who is what, in whatever order people are named."""
        stated = self.extract(text)
        return None if stated is None else tuple(sorted(_PERSON.findall(stated)))

    def verify(self, problem: Problem, text: str) -> bool:
        stated = self.extract(text)
        if stated is None:
            return False
        people = _PERSON.findall(stated)
        return len(people) == len(problem.answer) and dict(people) == problem.answer

    def same_step(self, problem: Problem, prefix: str, a: str, b: str) -> bool | None:
        """Same where both sentences suppose, derive, find consistent or find contradictory the same thing."""
        steps = parse_step(last_sentence(prefix) + a), parse_step(last_sentence(prefix) + b)
        return None if None in steps else steps[0] == steps[1]


def parse_step(sentence: str) -> tuple[object, ...] | None:
    """What a sentence does: suppose, conclude, meet a contradiction, find a fit, or answer."""
    answer = final_answer(sentence, _ASSIGNMENT)
    if answer is not None:
        return ("answer", *_PERSON.findall(answer))
    for kind, pattern in (("suppose", _SUPPOSED), ("conclude", _CONCLUDED)):
        if match := pattern.search(sentence):
            return (kind, match[1], match[2].lower())
    found = _FOUND.search(sentence)
    if found is None:
        return None
    holds = (found[2] or found[4]) in ("truly", "true")
    return (found[1], found[3], holds, found[5] in ("fits", "fine"))


def statements_of(problem: Problem) -> dict[str, Statement]:
    return {
        name: Statement(form, tuple(about), kind)
        for name, (form, about, kind) in problem.data["statements"].items()
    }


def solutions(said: dict[str, Statement]) -> list[Kinds]:
    """Every assignment in which exactly the knights' statements hold."""
    return [
        kinds
        for values in itertools.product((True, False), repeat=len(said))
        if all(
            said[name].holds(kinds := dict(zip(said, values, strict=True))) == kinds[name] for name in said
        )
    ]


def _parse_statement(sentence: str) -> tuple[str, Statement | None]:
    """Speaker and statement of a sentence of a prompt; None where it says something else."""
    match = _SAYS.fullmatch(sentence)
    for form, pattern in _STATEMENTS.items():
        if match and (said := pattern.fullmatch(match[2])):
            names = tuple(word for word in said.groups() if word not in KINDS.values())
            return match[1], Statement(form, names, said.groups()[-1] != KINDS[False])
    return sentence, None


def _draw_statement(speaker: str, people: list[str], rng: random.Random) -> Statement:
    form = pick(rng, _FORMS)
    if form == "is":
        return Statement(
            form, (rng.choice([name for name in people if name != speaker]),), rng.random() < 0.5
        )
    about = tuple(sorted(rng.sample(people, 2), key=people.index))
    if speaker in about and form in ("or", "both"):
        about = tuple(name for name in people if name != speaker)[:2]
    kind = rng.random() < 0.5 if form in ("or", "both") else True
    return Statement(form, about, kind)


class _Deduction:
    """Writes the trace: a depth-first search over suppositions in which every forced kind is derived first."""

    def __init__(self, said: dict[str, Statement], rng: random.Random) -> None:
        self.said = said
        self.rng = rng

    def sentences(self) -> list[str]:
        out, kinds = self.explore({}, set())
        assert kinds is not None
        answer = ", ".join(f"{name} {KINDS[kinds[name]]}" for name in self.said)
        return [*out, pick(self.rng, _CLOSERS).format(a=answer)]

    def explore(self, kinds: Kinds, used: set[str]) -> tuple[list[str], Kinds | None]:
        """Follow what `kinds` forces, then suppose: the sentences, and the solution or None at a contradiction."""
        out, kinds, used, consistent = self.follow(dict(kinds), set(used))
        if not consistent:
            return out, None
        if len(kinds) == len(self.said) and len(used) == len(self.said):
            return out, kinds
        person = self.next_person(kinds)
        guess = self.rng.random() < 0.6
        out.append(self.say(_SUPPOSE, x=person, k=KINDS[guess]))
        below, found = self.explore({**kinds, person: guess}, used)
        out += below
        if found is not None:
            return out, found
        out.append(self.say(_TURN, x=person, k=KINDS[not guess]))
        below, found = self.explore({**kinds, person: not guess}, used)
        return out + below, found

    def follow(self, kinds: Kinds, used: set[str]) -> tuple[list[str], Kinds, set[str], bool]:
        """Use every statement whose speaker's kind is known and which settles something."""
        out: list[str] = []
        while True:
            ready = [
                (name, *self.forced(name, kinds)) for name in self.said if name in kinds and name not in used
            ]
            ready = [(name, status, target) for name, status, target in ready if status != "open"]
            if not ready:
                return out, kinds, used, True
            name, status, target = ready[0] if self.rng.random() < 0.8 else self.rng.choice(ready)
            if status not in KINDS.values() or all(
                person in kinds or person == target for person in self.said[name].about
            ):
                used.add(name)
            claim = self.say(_CLAIMS[kinds[name]], x=name, s=str(self.said[name]))
            if status == "contradiction":
                out.append(self.say(_CONTRADICTION, claim=claim))
                return out, kinds, used, False
            if status == "fits":
                out.append(self.say(_CONSISTENT, claim=claim))
            else:
                kinds[target] = status == "knight"
                out.append(self.say(_DERIVE, claim=claim, y=target, k=status))

    def forced(self, name: str, kinds: Kinds) -> tuple[str, str]:
        """What `name`'s statement settles given `kinds`: a contradiction, a fit, one person's kind, or nothing yet."""
        statement = self.said[name]
        unknown = [person for person in statement.about if person not in kinds]
        fitting = [
            values
            for values in itertools.product((True, False), repeat=len(unknown))
            if statement.holds({**kinds, **dict(zip(unknown, values, strict=True))}) == kinds[name]
        ]
        if not fitting:
            return "contradiction", ""
        if not unknown:
            return "fits", ""
        for place, person in enumerate(unknown):
            if len({values[place] for values in fitting}) == 1:
                return KINDS[fitting[0][place]], person
        return "open", ""

    def next_person(self, kinds: Kinds) -> str:
        unknown = [name for name in self.said if name not in kinds]
        return unknown[0] if self.rng.random() < 0.6 else self.rng.choice(unknown)

    def say(self, wordings: tuple[tuple[str, float], ...], **words: str) -> str:
        return pick(self.rng, wordings).format(**words)
