"""What a caller hears: each token once it is final, and how a sequence ended.

Tokens that a policy may still roll back are provisional and are held back here.
"""

from dataclasses import dataclass

from navtoken.engine.sequence import Sequence, Written
from navtoken.policies.base import Writer


@dataclass(frozen=True, slots=True)
class Event:
    """One response token that is now final, or the end of a sequence, or both."""

    sequence: Sequence
    token: Written | None
    """The token with its writer, entropies, log-probabilities and alternatives; None where a sequence ends without a
    new one (abort)."""
    position: int
    """Index of the token in the response."""
    text: str = ""
    """What became readable with it, where the request asked for text."""
    finish_reason: str | None = None
    """`stop`, `length` or `abort` on a sequence's last event, else None."""

    @property
    def token_id(self) -> int | None:
        return None if self.token is None else self.token.token_id

    @property
    def writer(self) -> Writer | None:
        return None if self.token is None else self.token.writer


class Outbox:
    """Events of the running step, in the order in which tokens became final."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def stream(self, row: Sequence, num_final: int) -> None:
        """Tell of the response's first `num_final` tokens what was not told yet."""
        while row.num_streamed < num_final:
            self._tell(row, None)

    def finish(self, row: Sequence) -> None:
        """Tell the rest of a finished sequence, with the reason on the last event."""
        self.stream(row, row.num_response - 1)
        if row.num_streamed < row.num_response:
            self._tell(row, row.finish_reason)
        else:
            text = row.text.end(row.stop_string) if row.text else ""
            self.events.append(Event(row, None, row.num_response, text, row.finish_reason))

    def drain(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def _tell(self, row: Sequence, finish_reason: str | None) -> None:
        position = row.num_streamed
        token = row.record.tokens[position]
        text = row.text.push(token.token_id) if row.text else ""
        if row.text and finish_reason is not None:
            text += row.text.end(row.stop_string)
        self.events.append(Event(row, token, position, text, finish_reason))
        row.num_streamed = position + 1
