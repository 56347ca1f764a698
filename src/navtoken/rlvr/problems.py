"""The problems that a run trains on: rows of a data set as TRL reads it, and the problems that verifiers know by them.

A row's prompt is rendered once, as every stage of navtoken renders it; its token ids travel along, so that nothing is tokenised
a second time in another way.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from navtoken.tasks import Problem, Split, Task, load_task
from navtoken.tasks.prompts import PromptOptions, render

Row = dict[str, Any]
"""`prompt` (text as sent), `prompt_ids`, `task`, `problem_id`, `question` (bare), `answer` (text)."""


class ProblemError(ValueError):
    """Problems that a run cannot be trained on."""


@dataclass(frozen=True, eq=False)
class ProblemSet:
    """Problems of some tasks, and what each is called."""

    tasks: dict[str, Task]
    """By the name that rows carry."""
    problems: dict[tuple[str, str], Problem]
    """By task and problem id, in the order in which they were drawn."""

    @classmethod
    def load(
        cls,
        references: Sequence[str],
        split: Split,
        num: int | None,
        seed: int,
        endless_num: int | None = None,
    ) -> "ProblemSet":
        """`num` problems of each task; None takes all of a finite set, and `endless_num` of one without an end.

        Raises `ProblemError` and what tasks raise.
        """
        if not references:
            raise ProblemError("no task is given; name at least one")
        tasks = {task.name: task for task in map(load_task, references)}
        problems = {
            (task.name, problem.problem_id): problem
            for task in tasks.values()
            for problem in task.problems(split, _num_of(task, num, endless_num), seed)
        }
        if not problems:
            raise ProblemError(f"there are no problems in split '{split}' of {', '.join(tasks)}")
        return cls(tasks, problems)

    def rows(self, tokenizer: Any, options: PromptOptions | None = None) -> Iterator[Row]:
        """Rows of the data set, prompts rendered for this tokenizer."""
        for (name, problem_id), problem in self.problems.items():
            rendered = render(tokenizer, self.tasks[name], problem, options)
            yield {
                "prompt": rendered.text,
                "prompt_ids": rendered.ids,
                "task": name,
                "problem_id": problem_id,
                "question": problem.prompt,
                "answer": problem.answer if isinstance(problem.answer, str) else json.dumps(problem.answer),
            }

    def verify(self, task: str, problem_id: str, text: str) -> bool:
        """Does a response end in a right answer? Raises `ProblemError` for a problem that is not here."""
        problem = self.problems.get((task, problem_id))
        if problem is None:
            raise ProblemError(f"there is no problem '{problem_id}' of task '{task}' in this run")
        return self.tasks[task].verify(problem, text)


def _num_of(task: Task, num: int | None, endless_num: int | None) -> int | None:
    if not task.endless or num is not None:
        return num
    if endless_num is None:
        raise ProblemError(f"task '{task.name}' has no end; say with num how many problems to take")
    return endless_num


def longest_prompt(rows: Iterable[Row]) -> int:
    """Tokens of the longest prompt."""
    return max(len(row["prompt_ids"]) for row in rows)
