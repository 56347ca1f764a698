"""How good a model in training is on problems that it is not trained on, the same way at every evaluation.

Problems, prompts and noise are the same each time, so the difference of two evaluations is one of weights. The journal keeps each
problem's share of right responses: two runs, or two steps of one, are compared problem by problem (`evaluation.paired`), which is worth
several times as many problems.

Ranks share the problems out among themselves. Noise belongs to a problem and a sample, so the result does not depend on
their number.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

from navtoken.engine import Engine, SamplingParams
from navtoken.evaluation.metrics import average, mean_and_error
from navtoken.generation import GenerationOptions, Request, respond
from navtoken.rlvr.journal import Journal
from navtoken.rlvr.problems import ProblemSet
from navtoken.rlvr.watch import SILENT, Advance, Display, Sight, Trained, Watch
from navtoken.tasks.prompts import PromptOptions
from navtoken.trace import Trace

LOGGED = ("accuracy", "accuracy_se", "mean_length", "cut_share", "entropy")
"""What of a `Score` is among the trainer's logs."""


class HeldOutError(ValueError):
    """An evaluation that makes no sense."""


@dataclass(frozen=True)
class HeldOutOptions:
    """How held-out problems are answered."""

    samples: int = 4
    """Responses per problem."""
    temperature: float = 1.0
    """Softmax temperature; 0 is greedy, of which one sample is all there is."""
    max_tokens: int | None = None
    """Longest response in tokens; None takes the model's own limit."""
    seed: int = 0
    """Fixes the noise, the same at every evaluation."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise HeldOutError(f"samples is {self.samples}; give at least 1")
        if self.temperature == 0.0 and self.samples > 1:
            raise HeldOutError(
                f"temperature is 0 and samples {self.samples}, which would all be alike; give 1 sample, or a temperature above 0"
            )


class Answer(NamedTuple):
    """What counts of one response."""

    task: str
    problem_id: str
    sample: int
    correct: bool
    num_tokens: int
    cut: bool
    """Did it end at the length limit?"""
    entropy: float
    """Nats, summed over its tokens."""

    @classmethod
    def of(cls, trace: Trace) -> "Answer":
        return cls(
            trace.task,
            trace.problem_id,
            trace.sample,
            bool(trace.correct),
            len(trace.response_ids),
            trace.finish_reason == "length",
            float(trace.columns["entropy_llm"].sum(dtype="float64")),
        )


@dataclass(frozen=True)
class Score:
    """Figures of one task, or means over tasks that count alike; named as in the table of `navtoken evaluate`."""

    accuracy: float
    """Share of right responses, mean over problems."""
    accuracy_se: float
    """Its standard error over problems; NaN of a single problem."""
    mean_length: float
    """Tokens of a response."""
    cut_share: float
    """Responses that ended at the length limit."""
    entropy: float
    """Nats, mean over tokens, at T = 1."""
    num_problems: int
    num_responses: int


@dataclass(frozen=True)
class HeldOutResult:
    """One evaluation."""

    mean: Score
    tasks: dict[str, Score]
    correct: dict[str, dict[str, float]]
    """By task and problem, the share of right responses: what `evaluation.paired` compares."""

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> "HeldOutResult":
        """The same whatever the answers' order."""
        by_task: dict[str, list[Answer]] = defaultdict(list)
        for answer in sorted(answers):
            by_task[answer.task].append(answer)
        correct = {task: _correct(own) for task, own in by_task.items()}
        rows = {task: _row(own, correct[task]) for task, own in by_task.items()}
        tasks = {task: Score(**row) for task, row in rows.items()}
        return cls(Score(**average(rows.values())), tasks, correct)

    def metrics(self) -> dict[str, float]:
        """By the names that logs have."""
        mean = {f"held_out/{name}": getattr(self.mean, name) for name in LOGGED}
        several = self.tasks if len(self.tasks) > 1 else {}
        return mean | {f"held_out/{task}/accuracy": score.accuracy for task, score in several.items()}

    def as_record(self) -> dict[str, Any]:
        return asdict(self.mean) | {
            "tasks": {task: asdict(score) for task, score in self.tasks.items()},
            "correct": self.correct,
        }


def _correct(answers: Iterable[Answer]) -> dict[str, float]:
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        verdicts[answer.problem_id].append(answer.correct)
    return {problem: fmean(own) for problem, own in verdicts.items()}


def _row(answers: Sequence[Answer], correct: dict[str, float]) -> dict[str, Any]:
    accuracy, error = mean_and_error(list(correct.values()))
    tokens = sum(answer.num_tokens for answer in answers)
    return {
        "accuracy": accuracy,
        "accuracy_se": error,
        "mean_length": tokens / len(answers),
        "cut_share": fmean(answer.cut for answer in answers),
        "entropy": fsum(answer.entropy for answer in answers) / tokens,
        "num_problems": len(correct),
        "num_responses": len(answers),
    }


class HeldOut:
    """Held-out problems, ready to be answered again and again."""

    def __init__(
        self,
        problems: ProblemSet,
        options: HeldOutOptions | None = None,
        prompts: PromptOptions | None = None,
    ) -> None:
        """Raises `OptionError` for a temperature or a limit that there is not."""
        self.problems = problems
        self.options = options or HeldOutOptions()
        self._generation = GenerationOptions(
            task=tuple(problems.tasks),
            policy=("llm",),
            seed=self.options.seed,
            samples=self.options.samples,
            max_tokens=self.options.max_tokens,
            sampling=SamplingParams(temperature=self.options.temperature),
            prompts=prompts or PromptOptions(),
        )

    def evaluate(self, engine: Engine) -> HeldOutResult:
        """Answer all problems with an engine that knows no older weights than those to be evaluated."""
        return HeldOutResult.of(self.answers(engine, self.requests()))

    def requests(self, part: int = 0, parts: int = 1) -> list[Request]:
        """All samples of every problem, or of each `parts`-th one from `part` on."""
        own = list(self.problems.problems.items())[part::parts]
        return [
            Request(self.problems.tasks[name], problem, sample)
            for (name, _), problem in own
            for sample in range(self.options.samples)
        ]

    def answers(
        self, engine: Engine, requests: Sequence[Request], advance: Advance = lambda _: None
    ) -> list[Answer]:
        """Answers in the order in which they end; `advance` hears of each."""
        found = []
        for trace in respond(engine, requests, self._generation):
            found.append(Answer.of(trace))
            advance(1)
        return found


class HeldOutCallback(Watch):
    """Evaluates at the beginning, every `every` steps and at the end."""

    kind = "held_out"

    def __init__(
        self,
        held_out: HeldOut,
        trained: Trained,
        journal: Journal,
        every: int,
        display: Display = SILENT,
    ) -> None:
        super().__init__(trained, journal, every, display)
        self.held_out = held_out

    def look(self, args: Any, state: Any) -> Sight:
        started = perf_counter()
        requests = self.held_out.requests(args.process_index, args.world_size)
        with self.display(state).work("held-out problems", len(requests)) as advance:
            answers = self.held_out.answers(self.trained.engine(), requests, advance)
            result = HeldOutResult.of(_of_all_ranks(answers, args.world_size))
        seconds = perf_counter() - started
        return Sight(result.as_record() | {"seconds": round(seconds, 2)}, result.metrics())


def _of_all_ranks(answers: list[Answer], world_size: int) -> list[Answer]:
    """Everybody's answers on every rank; collective."""
    if world_size == 1:
        return answers
    from accelerate.utils import gather_object

    gathered: list[Answer] = gather_object(answers)
    return gathered
