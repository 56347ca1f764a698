"""`navtoken generate`: every policy answers every task's problems; responses go to disk as traces.

The folder is the only state: run again, the same options go on where they stopped, and larger ones (`num`, `samples`,
more tasks or policies) add what is missing.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine
from navtoken.engine.options import OptionError
from navtoken.generation.calibration import Calibrations, live_verdict, needs_calibration, ready_policy
from navtoken.generation.loop import Request, respond
from navtoken.generation.options import GenerationOptions, ModelOptions
from navtoken.policies import Policy, make_policy
from navtoken.provenance import provenance
from navtoken.tasks import Task, load_task
from navtoken.trace import Key, TraceWriter

FIXED = ("seed", "split", "sampling", "prompts", "max_tokens", "dtype", "llm_dtype")
"""Arguments that all traces of a folder share; the others may grow or change nothing in a trace."""
ENDLESS_NUM = 100
"""Problems of a task without an end, where none are asked for."""
FLUSH_SECONDS = 60.0
"""A crash loses at most so much work; an interruption loses none."""


@dataclass(frozen=True)
class GenerateOptions:
    """Let policies answer problems and write the responses as traces. Run again, it goes on where it stopped."""

    models: ModelOptions = field(default_factory=ModelOptions)
    """The pair."""
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """Problems, policies and sampling."""
    out: Path = Path("out/traces")
    """Folder of the traces (Parquet)."""


class Cell(NamedTuple):
    """One policy on one task."""

    asked: str
    """The policy as it was asked for."""
    policy: Policy
    """The policy that ran: calibrated."""
    task: Task
    requests: list[Request]

    @property
    def keys(self) -> list[Key]:
        """Which traces of the folder are this cell's."""
        return [request.key(self.policy.reference) for request in self.requests]


def generate(
    options: GenerateOptions, pair: ModelPair | None = None, console: Console | None = None
) -> list[Cell]:
    """Write the traces that the folder lacks. Progress goes to `console`. Raises `TraceError` for another run's folder."""
    wanted = options.generation
    loaded = pair or options.models.load()
    record = run_provenance(options.models, wanted, loaded)
    # Opened once before any work, so that a folder of another run is refused now and not after calibration.
    TraceWriter(options.out, record, fixed=FIXED)
    with _progress(console) as progress:
        cells = _plan(options, loaded, progress)
        for cell in cells:
            if needs_calibration(cell.asked):
                found = record.setdefault("calibration", {}).setdefault(cell.asked, {})
                found[cell.task.name] = cell.policy.reference
        with TraceWriter(options.out, record, fixed=FIXED) as writer:
            for cell in cells:
                _fill(cell, writer, loaded, wanted, progress)
    return cells


def run_provenance(models: ModelOptions, wanted: GenerationOptions, pair: ModelPair) -> dict[str, Any]:
    """Provenance of a run: arguments as flat names, fingerprints of checkpoints and tokenizer."""
    arguments = asdict(models) | asdict(wanted) | {"max_tokens": wanted.limit(pair)}
    return provenance(fingerprints(pair), **arguments)


def fingerprints(pair: ModelPair) -> dict[str, str]:
    """sha256 of both checkpoints and of the tokenizer with its chat template."""
    backend = getattr(pair.tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(pair.tokenizer.get_vocab().items()))
    template = getattr(pair.tokenizer, "chat_template", None) or ""
    digest = hashlib.sha256(f"{text}\0{template}".encode()).hexdigest()
    return {"slm": pair.slm.fingerprint, "llm": pair.llm.fingerprint, "tokenizer": digest}


def _plan(options: GenerateOptions, pair: ModelPair, progress: Progress) -> list[Cell]:
    """Every policy on every task; whatever cannot work is found here, before the first response."""
    wanted = options.generation
    for name in ("task", "policy"):
        if not getattr(wanted, name):
            raise OptionError(f"no {name} is given; name at least one")
    calibrated = Calibrations(options.out)
    tasks = [(task, _requests(task, wanted)) for task in map(load_task, wanted.task)]
    for asked in wanted.policy:
        make_policy(asked)
    cells = []
    for asked in wanted.policy:
        for task, requests in tasks:
            busy = progress.add_task(f"calibrating {asked} · {task.name}", total=None)
            problems = [request.problem for request in requests]
            policy = ready_policy(asked, pair, task, wanted, calibrated, problems)
            progress.remove_task(busy)
            cells.append(Cell(asked, policy, task, requests))
    return cells


def _requests(task: Task, wanted: GenerationOptions) -> list[Request]:
    num = ENDLESS_NUM if wanted.num is None and task.endless else wanted.num
    problems = task.problems(wanted.split, num, wanted.seed)
    return [Request(task, problem, sample) for problem in problems for sample in range(wanted.samples)]


def _fill(
    cell: Cell, writer: TraceWriter, pair: ModelPair, wanted: GenerationOptions, progress: Progress
) -> None:
    """Answer what of a cell is not on disk yet."""
    done = writer.done()
    reference = cell.policy.reference
    missing = [request for request in cell.requests if request.key(reference) not in done]
    bar = progress.add_task(
        f"{cell.asked} · {cell.task.name}",
        total=len(cell.requests),
        completed=len(cell.requests) - len(missing),
    )
    flushed = monotonic()
    try:
        for trace in respond(Engine(pair, cell.policy, wanted.engine), missing, wanted):
            writer.write(trace)
            progress.advance(bar)
            if monotonic() - flushed > FLUSH_SECONDS:
                writer.flush()
                flushed = monotonic()
    finally:
        if verdict := live_verdict(cell.policy):
            verdict.close()
    # The next cell may be the same policy under another name: it must find these.
    writer.flush()
    if progress.disable and progress.console.stderr:
        progress.console.print(f"{cell.asked} · {cell.task.name}: {len(cell.requests)} responses")
    if missing and (verdict := live_verdict(cell.policy)):
        progress.console.print(f"{cell.asked} · {cell.task.name}: {verdict.told()}", markup=False)


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = console is None or not console.is_terminal
    return Progress(*columns, console=console, disable=quiet, transient=True)
