"""`jsonl:FILE`: a user's own problems, one JSON object per line with `prompt` and `answer`.

The file is a test split unless told otherwise: `jsonl:FILE,split=train`, or `split=hash`, which divides it as the
generated tasks are divided, by a hash of the prompt.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from navtoken.reference import Reference
from navtoken.tasks.base import Problem, Split, hash_split, problem_id
from navtoken.tasks.finite import FiniteTask
from navtoken.tasks.loading import TaskError, TaskOptionError, typed_options

_SPLITS = ("test", "train", "hash")


class BadLineError(TaskError):
    """A line of a problem file that cannot be used; the message says file, line number and field."""


class JsonlTask(FiniteTask):
    """Problems of one file."""

    def _remedy(self, split: Split) -> str:
        return f"write {self.name.split(',')[0]},split={split} to use the file as that, or split=hash to divide it"


def load_jsonl_task(reference: Reference) -> JsonlTask:
    """Read the file that `jsonl:FILE[,split=test|train|hash]` names. Raises `BadLineError`, `TaskError`."""
    if reference.target is None:
        raise TaskError("task 'jsonl' needs a file: write jsonl:FILE")
    options = {"split": "test", **typed_options("jsonl", reference.options, {"split": "test"})}
    if options["split"] not in _SPLITS:
        raise TaskOptionError(f"task 'jsonl': split={options['split']} is none of {', '.join(_SPLITS)}")
    problems = read_problems(Path(reference.target), str(reference))
    return JsonlTask(str(reference), _divided(problems, options["split"]))


def _divided(problems: list[Problem], how: str) -> dict[Split, list[Problem]]:
    if how == "train":
        return {"train": problems}
    if how == "test":
        return {"test": problems}
    tests = [hash_split(problem.prompt) == "test" for problem in problems]
    return {
        "train": [problem for problem, is_test in zip(problems, tests, strict=True) if not is_test],
        "test": [problem for problem, is_test in zip(problems, tests, strict=True) if is_test],
    }


def read_problems(path: Path, task: str) -> list[Problem]:
    """The problems of a JSON-lines file; blank lines and repeated problems are skipped."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TaskError(f"cannot read '{path}': {error.strerror}; check the path after 'jsonl:'") from error
    problems: dict[str, tuple[int, Problem]] = {}
    for number, line in enumerate(raw.split(b"\n"), start=1):
        for problem in _problem(line, f"{path}, line {number}", task):
            first, known = problems.setdefault(problem.prompt, (number, problem))
            if known.answer != problem.answer:
                raise BadLineError(
                    f"{path}, line {number}, field 'answer': {problem.answer!r}, but line {first} answers the same prompt"
                    f" with {known.answer!r}; keep one of them"
                )
    if not problems:
        raise TaskError(
            f"'{path}' holds no problems; write one JSON object with 'prompt' and 'answer' per line"
        )
    return [problem for _, problem in problems.values()]


def _problem(line: bytes, where: str, task: str) -> Iterator[Problem]:
    try:
        text = line.decode("utf-8-sig").strip()
        row = json.loads(text) if text else None
    except (ValueError, RecursionError) as error:
        raise BadLineError(
            f"{where}: not JSON in UTF-8 ({error}); write one object with 'prompt' and 'answer'"
        ) from error
    if not text:
        return
    if not isinstance(row, dict):
        raise BadLineError(f"{where}: {type(row).__name__} instead of an object with 'prompt' and 'answer'")
    prompt = _text(row, "prompt", where)
    rest = {key: value for key, value in row.items() if key not in ("prompt", "answer")}
    yield Problem(task, problem_id(prompt), prompt, _text(row, "answer", where), rest)


def _text(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise BadLineError(f"{where}, field '{field}': missing; the line has {', '.join(row) or 'no fields'}")
    value = row[field]
    if field == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        value = repr(value)
    if not isinstance(value, str):
        raise BadLineError(f"{where}, field '{field}': {type(value).__name__} instead of text")
    if not value.strip():
        raise BadLineError(f"{where}, field '{field}': blank")
    return value.strip()
