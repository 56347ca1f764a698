"""Who runs next: plain bookkeeping of waiting, ready and parked sequences, without models or tensors."""

import heapq
from collections import deque

from navtoken.engine.options import EngineOptions
from navtoken.engine.sequence import Sequence, State


class Scheduler:
    """Gives rows (slots) to sequences, first come first served, and applies the batching rule."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.free_slots = list(range(options.max_rows))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Give free slots, lowest first, to waiting sequences; returns those, still without a state to run in."""
        admitted = []
        while self.waiting and self.free_slots:
            sequence = self.waiting.popleft()
            sequence.slot = heapq.heappop(self.free_slots)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever its state; its slot is free at once."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        heapq.heappush(self.free_slots, sequence.slot)
        sequence.slot = None

    def ready(self) -> list[Sequence]:
        """Rows on which the SLM drafts next."""
        return [row for row in self.running if row.state is State.READY]

    def parked(self) -> list[Sequence]:
        """Rows that wait for the LLM."""
        return [row for row in self.running if row.state is State.PARKED]

    def llm_batch(self) -> list[Sequence]:
        """The parked rows if the batching rule lets the LLM run now, else none."""
        parked = self.parked()
        due = len(parked) >= self.options.llm_min_rows or len(parked) == len(self.running)
        return parked if due else []

    def check(self) -> None:
        """Assert that every slot is either free or one running sequence's, and that states fit."""
        slots = [row.slot for row in self.running]
        assert sorted([*self.free_slots, *slots]) == list(range(self.options.max_rows))  # type: ignore[type-var]
        assert all(row.state in (State.READY, State.PARKED) for row in self.running)
        assert all(row.state is State.WAITING and row.slot is None for row in self.waiting)
        for row in (*self.running, *self.waiting):
            row.check()
