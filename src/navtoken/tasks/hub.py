"""Named problem sets of the Hugging Face hub, loaded by `datasets`.

One table says where each set lives and what its columns are called. `aime24,path=FOLDER` reads a local copy of the
same shape (a folder, or one .jsonl, .json, .parquet or .csv file); `revision=` pins a version of the hub's.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navtoken.reference import Reference
from navtoken.tasks.base import Problem, Split, problem_id
from navtoken.tasks.choices import CHOICE_INSTRUCTION, ChoiceTask, shuffled_choices, with_choices
from navtoken.tasks.finite import FiniteTask
from navtoken.tasks.loading import TaskError, TaskOptionError, require, typed_options
from navtoken.tasks.math_answers import plain_answer


class HubSetError(TaskError):
    """A hub set that cannot be loaded, or a row of one that lacks what the table says it has."""


@dataclass(frozen=True)
class HubSet:
    """Where a set lives and what its columns are called."""

    path: str
    """Hub id."""
    splits: Mapping[Split, str]
    """Our split -> the hub's name of it."""
    prompt: str = "problem"
    """Column of the question."""
    answer: str = "answer"
    """Column of the right answer: text, a number, or a list that is right as a whole."""
    config: str | None = None
    """Configuration of the hub set."""
    context: str | None = None
    """Column of text that goes before the question where a row has it."""
    answer_after: str | None = None
    """The answer is what follows this mark in its column."""
    wrong: tuple[str, ...] = ()
    """Columns of wrong choices; with them, the answer is a letter."""
    revision: str | None = None
    """Version of the hub set; the newest where None."""
    gated: bool = False
    """Needs terms to be accepted on the hub, and a login."""


HUB_SETS: dict[str, HubSet] = {
    "aime24": HubSet("HuggingFaceH4/aime_2024", {"test": "train"}),
    "aime25": HubSet("math-ai/aime25", {"test": "test"}),
    "amc23": HubSet("math-ai/amc23", {"test": "test"}, prompt="question"),
    "math500": HubSet("HuggingFaceH4/MATH-500", {"test": "test"}),
    "minerva": HubSet("math-ai/minervamath", {"test": "test"}, prompt="question"),
    "olympiad": HubSet(
        "math-ai/olympiadbench", {"test": "test"}, prompt="question", answer="final_answer", context="context"
    ),
    "gpqa-diamond": HubSet(
        "Idavidrein/gpqa",
        {"test": "train"},
        prompt="Question",
        answer="Correct Answer",
        config="gpqa_diamond",
        wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        gated=True,
    ),
    "gsm8k": HubSet(
        "openai/gsm8k",
        {"train": "train", "test": "test"},
        prompt="question",
        config="main",
        answer_after="####",
    ),
    "dapo-math-17k": HubSet(
        "open-r1/DAPO-Math-17k-Processed",
        {"train": "train"},
        prompt="prompt",
        answer="solution",
        config="all",
    ),
}

_FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_hub_task(reference: Reference) -> FiniteTask:
    """Load a set of `HUB_SETS`, whole. Options: `path`, `config`, `revision`.

    Raises `MissingExtraError` without `datasets`, `HubSetError` for a set or row that cannot be read.
    """
    hub_set = HUB_SETS[reference.name]
    if reference.target is not None:
        raise TaskOptionError(
            f"task '{reference.name}' takes no ':{reference.target}'; for a copy: {reference.name},path=..."
        )
    options = typed_options(
        reference.name, reference.options, {"path": None, "config": None, "revision": None}
    )
    name = str(reference)
    splits: dict[Split, list[Problem]] = {
        split: _unique(
            _problem(row, hub_set, name, f"'{theirs}', row {index}") for index, row in enumerate(rows)
        )
        for split, theirs in hub_set.splits.items()
        for rows in [_rows(hub_set, theirs, options, name)]
    }
    return ChoiceTask(name, splits, CHOICE_INSTRUCTION) if hub_set.wrong else FiniteTask(name, splits)


def _rows(hub_set: HubSet, split: str, options: Mapping[str, str], name: str) -> Iterable[Mapping[str, Any]]:
    datasets = require("datasets", "hub", f"task '{name}'")
    try:
        if "path" in options:
            return _local_rows(datasets, Path(options["path"]), options.get("config"), split)
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            hub_set.path,
            options.get("config", hub_set.config),
            split=split,
            revision=options.get("revision", hub_set.revision),
        )
        return rows
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        terms = "; accept its terms on the hub and log in" if hub_set.gated else ""
        where = options.get("path", hub_set.path)
        raise HubSetError(
            f"task '{name}': cannot load split '{split}' of '{where}' ({type(error).__name__}: {error}){terms}; "
            f"for a copy on disk write {name.split(',')[0]},path=FOLDER"
        ) from error


def _local_rows(datasets: Any, path: Path, config: str | None, split: str) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_dir():
        found = datasets.load_dataset(str(path), config)
    elif path.suffix in _FILE_BUILDERS:
        found = datasets.load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path))
    else:
        raise ValueError(f"'{path.suffix}' is none of {', '.join(_FILE_BUILDERS)}")
    if split in found:
        return found[split]
    if len(found) == 1 and split in ("train", "test") and not path.is_dir():
        return next(iter(found.values()))
    raise ValueError(f"no split '{split}', only {', '.join(found)}")


def _problem(row: Mapping[str, Any], hub_set: HubSet, name: str, where: str) -> Problem:
    prompt = _text(row, hub_set.prompt, name, where)
    if hub_set.context and row.get(hub_set.context):
        prompt = f"{_text(row, hub_set.context, name, where)}\n\n{prompt}"
    answer = _text(row, hub_set.answer, name, where)
    if hub_set.answer_after is not None:
        _, mark, answer = answer.rpartition(hub_set.answer_after)
        if not mark or not answer.strip():
            raise HubSetError(
                f"task '{name}', {where}, field '{hub_set.answer}': no answer after '{hub_set.answer_after}'"
            )
    if hub_set.wrong:
        wrong = [_text(row, column, name, where) for column in hub_set.wrong]
        letter, choices = shuffled_choices(prompt, answer, wrong)
        return Problem(name, problem_id(prompt), with_choices(prompt, choices), letter, {"choices": choices})
    return Problem(name, problem_id(prompt), prompt, plain_answer(answer))


def _text(row: Mapping[str, Any], column: str, name: str, where: str) -> str:
    if column not in row:
        raise HubSetError(
            f"task '{name}', {where}, field '{column}': missing; the row has {', '.join(map(str, row))}"
        )
    value = row[column]
    parts = value if isinstance(value, list | tuple) else [value]
    words = [
        plain_answer(str(part)) if len(parts) > 1 else str(part).strip() for part in parts if part is not None
    ]
    text = ", ".join(word for word in words if word)
    if not text:
        raise HubSetError(f"task '{name}', {where}, field '{column}': blank")
    return text


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    """The problems less repetitions; one that comes with different answers is left out, with a warning."""
    kept: dict[str, Problem] = {}
    contradictory: set[str] = set()
    for problem in problems:
        if kept.setdefault(problem.problem_id, problem).answer != problem.answer:
            contradictory.add(problem.problem_id)
    if contradictory:
        warnings.warn(
            f"{len(contradictory)} problems left out: the set gives them different answers", stacklevel=3
        )
    return [problem for key, problem in kept.items() if key not in contradictory]
