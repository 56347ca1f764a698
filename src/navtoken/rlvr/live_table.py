"""A run in the terminal: the last steps as a table, how far it is, and what it is doing now.

Where there is no terminal (a log file), a plain line a step. It takes the place of the trainer's own bars and printed dictionaries.
Figures come as the trainer logs them, whichever there are; watchers add theirs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

from navtoken.rlvr.watch import Advance

NUM_ROWS = 12
"""Steps that are in sight."""
SPEED_SECONDS = 3600.0
"""Steps of the last so many seconds say how long the rest will take: a step may take minutes."""
NOTHING = "–"

Figures = dict[str, Any]


class Column(NamedTuple):
    """What stands in one column, and how it is written."""

    heading: str
    label: str
    """In a plain line."""
    metric: str
    """Its name in the logs."""
    spec: str
    """Format."""
    scale: float = 1.0
    error: str | None = None
    """Metric of its standard error."""

    def cell(self, figures: Figures) -> str:
        """The figure as text; a dash where there is none."""
        value = _number(figures.get(self.metric))
        if value is None:
            return NOTHING
        error = _number(figures.get(self.error)) if self.error else None
        spread = "" if error is None else f" ±{format(self.scale * error, self.spec)}"
        return f"{format(self.scale * value, self.spec)}{spread}"


COLUMNS = (
    Column("reward", "reward", "reward", ".3f"),
    Column("held out\n(%)", "held out %", "held_out/accuracy", ".1f", 100.0, "held_out/accuracy_se"),
    Column("tokens", "tokens", "completions/mean_length", ".0f"),
    Column("entropy\n(nats)", "entropy", "entropy", ".3f"),
    Column("top from\n(nats)", "top from", "selection/threshold", ".3f"),
    Column("kept\n(%)", "kept %", "selection/fraction", ".1f", 100.0),
    Column("loss", "loss", "loss", ".3g"),
    Column("gradient\nnorm", "gradient norm", "grad_norm", ".3g"),
    Column("s", "s", "step_time", ".1f"),
)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


class LiveTable(TrainerCallback):
    """Shows a run on a console; on the main rank only.

    Give it to the trainer as the last callback, so that it sees what the others add to the logs. As a context manager around training it
    gives the terminal back however training ends.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = perf_counter) -> None:
        self.console = console
        self._clock = clock
        self._rows: dict[int, Figures] = {}
        self._unprinted: set[int] = set()
        self._max_steps = 0
        self._begun: float | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            get_time=clock,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._training = self._progress.add_task("training", total=None, visible=False)
        self._shown = self.table()
        self._live: Live | None = None

    # ---- what the others tell ---------------------------------------------------------------------------------

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a step, besides those that it has already."""
        self._rows.setdefault(step, {}).update(metrics)
        self._unprinted.add(step)
        for old in sorted(self._rows)[:-NUM_ROWS]:
            if old not in self._unprinted:
                del self._rows[old]
        self._show()

    @contextmanager
    def work(self, description: str, total: int) -> Iterator[Advance]:
        """A bar while something takes its time; it goes when it is done."""
        bar = self._progress.add_task(description, total=total)
        self._show()
        try:
            yield lambda num: self._progress.advance(bar, num)
        finally:
            self._progress.remove_task(bar)

    # ---- what the trainer tells -------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._max_steps = state.max_steps
        self._progress.update(
            self._training, total=state.max_steps, completed=state.global_step, visible=True
        )
        self._show()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = self._clock()
        self._print()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.update(self._training, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        measured = {} if self._begun is None else {"step_time": self._clock() - self._begun}
        self.note(state.global_step, measured | dict(logs))
        self._print()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    # ---- the terminal -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the table as it stands, and give the terminal back; what comes later opens it anew."""
        self._print()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __rich__(self) -> Group:
        return Group(self._shown, self._progress) if self._rows else Group(self._progress)

    def table(self) -> Table:
        """A row for each of the last steps."""
        table = Table(box=SIMPLE_HEAD, padding=0)
        for heading in ("step", *(column.heading for column in COLUMNS)):
            table.add_column(heading, justify="right", no_wrap=True)
        for step in sorted(self._rows):
            table.add_row(str(step), *(column.cell(self._rows[step]) for column in COLUMNS))
        return table

    def _show(self) -> None:
        if not self.console.is_terminal:
            return
        # Made here and not where it is drawn: that is another thread, in the midst of changes.
        self._shown = self.table()
        if self._live is None:
            self._live = Live(self, console=self.console, refresh_per_second=4)
            self._live.start()
        self._live.update(self, refresh=True)

    def _print(self) -> None:
        """Write the lines that are due, where no table is shown."""
        for step in sorted(self._unprinted):
            if not self.console.is_terminal:
                self.console.print(self._line(step), markup=False, highlight=False, soft_wrap=True)
        self._unprinted.clear()

    def _line(self, step: int) -> str:
        figures = self._rows[step]
        cells = ((column.label, column.cell(figures)) for column in COLUMNS)
        known = [f"{label} {cell}" for label, cell in cells if cell != NOTHING]
        return " · ".join([f"step {step}/{self._max_steps}", *known])
