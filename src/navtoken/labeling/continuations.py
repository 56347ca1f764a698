"""From the SLM's token on, the LLM writes: to the end of the sentence, or of the response.

Every differing position of a response is continued on its own, behind the LLM's tokens, so continuations of one response have
nearly all of what the LLM must read in common. The engine reads it once, and every continuation forks from its cache where it
belongs; continuations of many responses run in one batch. Reading each prefix again (`share=False`) is kept as the oracle.

What goes wrong with one continuation is told in its place and not raised: one bad position must not end a run of days, and must
not become a label.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol

from navtoken.checkpoint_errors import PromptTooLongError
from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, Event, Ledger, Prefix
from navtoken.engine import Sequence as Row
from navtoken.engine.options import DEFAULTS, OptionError
from navtoken.engine.runner import BadLogitsError
from navtoken.labeling.sentences import SentenceEnds
from navtoken.policies.rules import LLMPolicy

__all__ = ["Ask", "Continued", "Continuer", "EngineContinuer"]


@dataclass(frozen=True)
class Ask:
    """One continuation to be had."""

    key: Hashable
    """Whatever tells the asker which it is; comes back with the answer."""
    prefix_ids: Sequence[int]
    """Prompt and response, or as much of them as any ask needs: one list for all asks of a response, which follow each other."""
    length: int
    """How many of them stand before the draft."""
    draft: int
    """The token from which to go on."""
    max_tokens: int
    """Longest continuation, the draft counted."""
    ends: SentenceEnds | None = None
    """Where sentences end; None goes on to the end of the response."""

    @property
    def to_end(self) -> bool:
        """Does it run to the end of the response?"""
        return self.ends is None

    @property
    def before(self) -> Sequence[int]:
        """The tokens before the draft."""
        return self.prefix_ids[: self.length]

    def size(self, token_ids: Sequence[int], known: int = 0, more: bool = True) -> int | None:
        """How many of `token_ids`, the draft first, are the continuation; None where it goes on.

        `known` and `more` as in `SentenceEnds.length`; ends of sequence are the caller's to know.
        """
        if self.ends is None:
            size = None
        else:
            size = self.ends.length(self.prefix_ids, token_ids, self.length, known, more)
        full = len(token_ids) >= self.max_tokens or not more
        return min(len(token_ids), self.max_tokens) if size is None and full else size


@dataclass(frozen=True)
class Continued:
    """What came of an `Ask`."""

    key: Hashable
    token_ids: Sequence[int] = ()
    """The draft, then what the LLM wrote greedily, an end-of-sequence token included; empty where it failed."""
    error: str | None = None
    """Why there is no continuation."""
    ended: bool = False
    """Does the response end there? False where its sentence does, or where a limit of length cut it off."""


class Continuer(Protocol):
    """An LLM that goes on from given tokens."""

    def continue_all(self, asks: Iterable[Ask]) -> Iterator[Continued]:
        """Answer every ask exactly once, in the order in which they are done; reads `asks` only as fast as it works."""
        ...


class _Flight(NamedTuple):
    """An ask that the engine works on."""

    ask: Ask
    token_ids: list[int]
    """The draft, and what came so far."""


class EngineContinuer:
    """The pair's LLM, greedily, in this process."""

    def __init__(
        self, pair: ModelPair, options: EngineOptions = DEFAULTS, share: bool = True, keep: int = 0
    ) -> None:
        """`share` False reads every prefix from its first token on: the slow, obvious way.

        So many prefixes as `keep` says stay when all is answered, for asks that go on from one of them.
        """
        self.pair = pair
        self.options = options
        self.share = share
        self.keep = keep
        self._kept: list[Prefix] = []
        self._engine = Engine(pair, LLMPolicy(), options)
        self._spent = Ledger()

    @property
    def ledger(self) -> Ledger:
        """What all continuations took."""
        total = Ledger()
        total.add(self._spent)
        total.add(self._engine.ledger)
        return total

    def continue_all(self, asks: Iterable[Ask]) -> Iterator[Continued]:
        """See `Continuer`. Asks of one response that follow each other share what they have in common."""
        queue = self._queue(asks)
        flights: dict[Row, _Flight] = {}
        try:
            while True:
                while len(flights) < self.options.max_rows and (entry := next(queue, None)):
                    yield from self._launch(*entry, flights)
                if not flights:
                    return
                yield from self._advance(flights)
        finally:
            queue.close()
            for row in flights:
                self._engine.abort(row)

    def _queue(self, asks: Iterable[Ask]) -> Generator[tuple[Ask, Prefix | None], None, None]:
        """Asks with the prefix that they share: of each response the longest first, which reads what the others fork from."""
        for _, group in groupby(asks, lambda ask: id(ask.prefix_ids)):
            ordered = sorted(group, key=lambda ask: ask.length, reverse=True)
            if not self.share:
                yield from ((ask, None) for ask in ordered)
                continue
            yield from self._sharing(ordered)

    def _sharing(self, ordered: list[Ask]) -> Iterator[tuple[Ask, Prefix]]:
        """The asks of one response with their prefix, which is kept until all of them have it."""
        engine, prefix = None, None
        try:
            for ask in ordered:
                # After a failure there is a new engine, whose cache is empty.
                if prefix is None or engine is not self._engine:
                    engine = self._engine
                    prefix = engine.hold(self._prefix(list(ask.before)))
                yield ask, prefix
        finally:
            if engine is not None and prefix is not None:
                engine.let_go(prefix)

    def _prefix(self, tokens: list[int]) -> Prefix:
        """A prefix of these tokens: one that is kept and ends within them grows, and has only the rest to compute."""
        for prefix in self._kept:
            if prefix.token_ids == tokens[: prefix.length]:
                prefix.length, prefix.token_ids = len(tokens), tokens
                # The last one used goes last.
                self._kept.remove(prefix)
                self._kept.append(prefix)
                return prefix
        prefix = Prefix(len(tokens), tokens)
        if self.keep:
            self._kept.append(self._engine.hold(prefix))
        if len(self._kept) > self.keep:
            self._engine.let_go(self._kept.pop(0))
        return prefix

    def _launch(self, ask: Ask, prefix: Prefix | None, flights: dict[Row, _Flight]) -> Iterator[Continued]:
        """Hand an ask to the engine; answers at once where there is nothing to write, or no way to."""
        drafted = [ask.draft]
        # The SLM's own ends too: with such a draft a routed response is over.
        over = ask.draft in self.pair.slm.eos_token_ids | self.pair.llm.eos_token_ids
        if over or ask.size(drafted):
            yield Continued(ask.key, drafted, ended=over)
            return
        try:
            row = self._engine.add(
                [*ask.before, ask.draft],
                max_tokens=ask.max_tokens - 1,
                prefix=prefix,
                prefix_len=None if prefix is None else ask.length,
            )
        except (OptionError, PromptTooLongError) as error:
            yield Continued(ask.key, error=str(error))
            return
        flights[row] = _Flight(ask, drafted)

    def _advance(self, flights: dict[Row, _Flight]) -> Iterator[Continued]:
        """One step. Logits that are not numbers lose all that is in flight: a new engine is asked again, one at a time, so that
        only those fail that fail alone."""
        try:
            events = self._engine.step()
        except BadLogitsError as error:
            lost = [flight.ask for flight in flights.values()]
            flights.clear()
            self._renew()
            if len(lost) == 1:
                yield Continued(lost[0].key, error=str(error))
            else:
                yield from self._one_by_one(lost)
            return
        for event in events:
            # Those that were cut off at their sentence's end are told of once more.
            if flight := flights.get(event.sequence):
                yield from self._hear(event, flight, flights)

    def _one_by_one(self, asks: Iterable[Ask]) -> Iterator[Continued]:
        queue = self._queue(asks)
        flights: dict[Row, _Flight] = {}
        try:
            for ask, prefix in queue:
                yield from self._launch(ask, prefix, flights)
                while flights:
                    yield from self._advance(flights)
        finally:
            queue.close()
            for row in flights:
                self._engine.abort(row)

    def _renew(self) -> None:
        """A new engine in place of one that failed."""
        self._spent.add(self._engine.ledger)
        self._engine = Engine(self.pair, LLMPolicy(), self.options)
        self._kept.clear()

    def _hear(self, event: Event, flight: _Flight, flights: dict[Row, _Flight]) -> Iterator[Continued]:
        ids = flight.token_ids
        if event.token is not None:
            ids.append(event.token.token_id)
        # All but the last two were looked at when they came; of the last but one the last may tell.
        size = flight.ask.size(ids, known=max(0, len(ids) - 2), more=event.finish_reason is None)
        if size is None:
            return
        del flights[event.sequence]
        if event.finish_reason is None:
            self._engine.abort(event.sequence)
        yield Continued(flight.ask.key, ids[:size], ended=event.finish_reason == "stop" and size == len(ids))
