"""What all watchers of a run share: when they look at the weights, and where what they see goes.

A watcher looks at the beginning, every so many steps, and at the end. All that it sees goes to the journal, single figures to the
trainer's logs and the display. A look that is in the journal is not repeated, so a run that was killed and resumed costs no second
evaluation of the same weights.

Under several ranks the main one alone knows the journal and says whether there is something to do; then all take part, because getting
at sharded weights (`sync`) is collective.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from transformers import TrainerCallback

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions
from navtoken.policies.rules import LLMPolicy
from navtoken.rlvr.journal import Journal, Kind

Advance = Callable[[int], object]
"""Hears how many more are done."""


class WatchError(ValueError):
    """A watcher that cannot watch as asked."""


class Display(Protocol):
    """Who shows a run to people."""

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a step, besides those that the trainer logs."""
        ...

    def work(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A bar while something takes its time."""
        ...


class Silent:
    """Shows nothing."""

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    @contextmanager
    def work(self, description: str, total: int) -> Iterator[Advance]:
        yield lambda _: None


SILENT = Silent()


@dataclass(frozen=True, eq=False)
class Trained:
    """The model in training, as those see it who look at it."""

    pair: ModelPair
    """Both halves the same model."""
    sync: Callable[[], object]
    """Afterwards `pair` has the weights as they are now. Called on every rank."""
    engine_options: EngineOptions = field(default_factory=EngineOptions)
    """Of an engine of its own for every look, whose caches are there no longer than that."""
    log: Callable[[dict[str, float]], object] = lambda _: None
    """Takes figures that no step's logs will have: those of the beginning."""
    shared_engine: Engine | None = None
    """One of the same pair to be used instead; `sync` tells it of new weights."""

    def engine(self) -> Engine:
        """One that knows no weights but those of now."""
        return self.shared_engine or Engine(self.pair, LLMPolicy(), self.engine_options)


class Sight(NamedTuple):
    """What a look brought."""

    record: dict[str, Any]
    """For the journal."""
    metrics: dict[str, float]
    """For logs and display; names begin with the kind."""


class Watch(TrainerCallback):
    """Looks at the weights now and then. Subclasses write `look`."""

    kind: ClassVar[Kind]

    def __init__(self, trained: Trained, journal: Journal, every: int, display: Display = SILENT) -> None:
        """`every` counts the trainer's steps; 0 looks at the beginning and at the end only. Raises `WatchError`."""
        if every < 0:
            raise WatchError(
                f"{self.kind} is asked for every {every} steps; give 0 for beginning and end only, or more"
            )
        self.trained = trained
        self.journal = journal
        self.every = every
        self._display = display
        self._last: int | None = None
        self._unlogged: tuple[int, dict[str, float]] | None = None

    def look(self, args: Any, state: Any) -> Sight | None:
        """Look at the weights as they are; called on every rank, and what the main rank returns counts."""
        raise NotImplementedError

    def display(self, state: Any) -> Display:
        """Only the main rank shows anything."""
        return self._display if state.is_world_process_zero else SILENT

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that goes on from another's checkpoint does not begin at step 0.
        first = state.is_world_process_zero and not self.journal.records(self.kind)
        if of_main_rank(first, args.world_size):
            self._look_once(args, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # No step's logs have what was seen at the beginning, and by now all loggers have begun.
        if self._unlogged is not None and self._unlogged[0] == state.global_step:
            (_, metrics), self._unlogged = self._unlogged, None
            self.trained.log(dict(metrics))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last step's look is due here rather than at the end, while the step's logs are still to come.
        step = state.global_step
        if step >= state.max_steps or (self.every and step % self.every == 0):
            self._look_once(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look_once(args, state)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the look's figures to the logs of its step: callbacks that come later see them, and the trainer's history."""
        if self._unlogged is None or logs is None or self._unlogged[0] != state.global_step:
            return
        step, metrics = self._unlogged
        self._unlogged = None
        logs.update(metrics)
        # The trainer copies the logs before callbacks see them.
        if state.log_history and state.log_history[-1].get("step") == step:
            state.log_history[-1].update(metrics)

    def _look_once(self, args: Any, state: Any) -> None:
        step = state.global_step
        if step == self._last:
            return
        self._last = step
        done = state.is_world_process_zero and self.journal.has(self.kind, step)
        if of_main_rank(done, args.world_size):
            return
        self.trained.sync()
        sight = self.look(args, state)
        if sight is None:
            return
        known = {name: value for name, value in sight.metrics.items() if math.isfinite(value)}
        self._unlogged = step, known
        if state.is_world_process_zero:
            self.journal.append(self.kind, step, sight.record)
            self.display(state).note(step, known)


def of_main_rank(value: bool, world_size: int) -> bool:
    """What the main rank says, on every rank; collective."""
    if world_size == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return bool(broadcast_object_list([value])[0])
