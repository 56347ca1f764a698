"""Who runs next: plain bookkeeping of waiting, ready and parked sequences, without models or tensors."""

from collections import deque

from navtoken.engine.blocks import OutOfBlocks
from navtoken.engine.memory import Memory
from navtoken.engine.options import EngineOptions
from navtoken.engine.sequence import Sequence, State
from navtoken.policies.base import Writer

SHORT = 64
"""Rows that lack no more tokens than this are always fed whole."""


class Scheduler:
    """Admits sequences first come, first served, deals out a pass's tokens, and puts rows back when memory runs out."""

    def __init__(self, options: EngineOptions, memory: Memory) -> None:
        self.options = options
        self.memory = memory
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_put_back = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Start waiting sequences while there are rows for them; returns those, still without a state to run in."""
        admitted: list[Sequence] = []
        num_claimed = 0
        while self.waiting and len(self.running) < self.options.max_rows:
            num_claimed += self._num_lacking(self.waiting[0])
            if self.running and any(pool.num_free < num_claimed for pool in self.memory.pools):
                break
            sequence = self.waiting.popleft()
            sequence.is_running = True
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever its state; its row and its blocks are free at once."""
        (self.running if sequence.is_running else self.waiting).remove(sequence)
        sequence.is_running = False
        self.memory.leave(sequence)

    def ready(self) -> list[Sequence]:
        """Rows on which the SLM drafts next."""
        return [row for row in self.running if row.state is State.READY]

    def parked(self) -> list[Sequence]:
        """Rows that wait for the LLM."""
        return [row for row in self.running if row.state is State.PARKED]

    def deal(self, rows: list[Sequence], model: Writer) -> list[tuple[Sequence, int]]:
        """Which rows a pass feeds, and up to which token: (row, end).

        Rows that lack much share `prefill_chunk` tokens in order of age, so that a long prompt goes in between other rows'
        steps; of rows that lack the same prefix, one goes first.
        """
        left = self.options.prefill_chunk
        leading, dealt = set(), []
        for row in sorted(rows, key=lambda row: row.sequence_id):
            self.memory.take(row, model)
            if self.memory.lacks_prefix(row, model):
                if id(row.prefix) in leading:
                    continue
                leading.add(id(row.prefix))
            start, end = row.cached_len[model], self._end(row, model, left)
            if end - start > SHORT or end < len(row.token_ids):
                left -= end - start
            if end > start:
                dealt.append((row, end))
        return dealt

    def _end(self, row: Sequence, model: Writer, left: int) -> int:
        """How far a pass feeds a row, if `left` tokens are there for rows that lack much.

        Tokens at which logits are asked for go together, in the last part.
        """
        start, end = row.cached_len[model], len(row.token_ids)
        num_asked = 1 + (row.num_provisional if model is Writer.LLM else 0)
        if end - start <= max(SHORT, num_asked) or end - start <= left:
            return end
        return min(start + left, end - num_asked)

    def secure(
        self, dealt: list[tuple[Sequence, int]], model: Writer
    ) -> tuple[list[tuple[Sequence, int]], list[tuple[int, int]]]:
        """Give every row its blocks, oldest first; the youngest go back to waiting where there are too few.

        Returns the rows that have theirs, and the blocks to copy before the pass.
        """
        secured, copies = [], []
        for row, end in dealt:
            while row.is_running:
                try:
                    copies += self.memory.make_room(row, model, end)
                    secured.append((row, end))
                    break
                except OutOfBlocks:
                    self._free_some()
        return secured, copies

    def put_back(self, row: Sequence) -> None:
        """Let a running row wait again, at the front: its tokens stay, its caches are computed anew."""
        self.running.remove(row)
        self.memory.release(row)
        row.is_running = False
        row.state = State.WAITING
        self.num_put_back += 1
        self.waiting.appendleft(row)

    def _free_some(self) -> None:
        youngest = max(self.running, key=lambda row: row.sequence_id)
        if len(self.running) > 1:
            self.put_back(youngest)
        elif not self.memory.forget_prefixes():
            raise AssertionError("a row alone always fits: `add` cuts it off at what the cache holds")

    def _num_lacking(self, row: Sequence) -> int:
        """Blocks that a row needs for what it must feed first, and one to go on."""
        lacking = []
        for model in row.policy.models:
            had = min(row.prefix.cached_len[model], row.prefix_len) if row.prefix else 0
            lacking.append(self.memory.pools[model].blocks_for(len(row.token_ids) - had))
        return 1 + max(lacking)
