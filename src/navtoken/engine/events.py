"""What a caller hears: each token once it is final, and how a sequence ended.

Tokens that a policy may still roll back are provisional and are held back here.
"""

from dataclasses import dataclass

from navtoken.engine.sequence import Sequence
from navtoken.policies.base import Writer


@dataclass(frozen=True, slots=True)
class Event:
    """One response token that is now final, or the end of a sequence, or both."""

    sequence: Sequence
    token_id: int | None
    """None where a sequence ends without a new token (abort)."""
    position: int
    """Index of the token in the response; its columns are `sequence.record.*[position]`."""
    writer: Writer | None
    finish_reason: str | None = None
    """`stop`, `length` or `abort` on a sequence's last event, else None."""


class Outbox:
    """Events of the running step, in the order in which tokens became final."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def stream(self, row: Sequence, num_final: int) -> None:
        """Tell of the response's first `num_final` tokens what was not told yet."""
        for position in range(row.num_streamed, num_final):
            self._tell(row, position, None)

    def finish(self, row: Sequence) -> None:
        """Tell the rest of a finished sequence, with the reason on the last event."""
        self.stream(row, row.num_response - 1)
        if row.num_streamed < row.num_response:
            self._tell(row, row.num_response - 1, row.finish_reason)
        else:
            self.events.append(Event(row, None, row.num_response, None, row.finish_reason))

    def drain(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def _tell(self, row: Sequence, position: int, finish_reason: str | None) -> None:
        token_id, writer = row.token_ids[row.prompt_len + position], Writer(row.record.writer[position])
        self.events.append(Event(row, token_id, position, writer, finish_reason))
        row.num_streamed = position + 1
