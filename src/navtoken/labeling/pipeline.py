"""Labels out of the LLM's responses: SLM prefill, continuations at every differing position, verdicts.

Every differing position is judged on its own, with the LLM's own tokens as prefix, as in R2R (arXiv 2505.21600). Departures:

* Labels sit on the ids that the LLM wrote. The official code decodes responses and tokenises them again, so its labels sit on
  tokens that the LLM did not write.
* An error in any stage makes a position invalid, never a label, and says why. There, a continuation that fails is divergent.
* Drafts may be sampled: labels on greedy drafts alone miss what a sampling SLM writes.

Responses go through in windows, so memory does not grow with their number: the SLM reads a window, the LLM continues all of its
differing positions in one batch, and while the next window is on its way the verifier judges this one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from navtoken.hidden_states import windows
from navtoken.labeling.continuations import Ask, Continuer
from navtoken.labeling.labels import Label
from navtoken.labeling.prefill import DraftReader
from navtoken.labeling.sentences import SentenceEnds
from navtoken.labeling.texts import PARTIAL, added_text
from navtoken.labeling.verdicts import Question, Verifier
from navtoken.tasks import Problem, Task
from navtoken.trace import Key, Trace

__all__ = ["Labeler", "LabelingError", "Response", "Tally"]

WINDOW_BATCHES = 2
"""Of so many batches' tokens a window's responses are."""
STREAK = 64
"""So many continuations in a row that fail are no accident: the run stops rather than fill a folder with invalid labels."""
STREAK_RESPONSES = 3
"""Of so many responses at least: one that is odd may fail at hundreds of positions."""


class LabelingError(ValueError):
    """Labelling that cannot go on."""


class Response(NamedTuple):
    """One response of the LLM, and what it answers."""

    trace: Trace
    task: Task
    problem: Problem


@dataclass
class Tally:
    """What came of it so far."""

    responses: int = 0
    labels: Counter[Label] = field(default_factory=Counter)
    """Tokens by label."""
    errors: Counter[str] = field(default_factory=Counter)
    """Invalid tokens by what went wrong, the first line of it."""

    def as_json(self) -> dict[str, Any]:
        counts = {label.name.lower(): self.labels[label] for label in Label}
        return {"responses": self.responses, "labels": counts, "errors": dict(self.errors.most_common())}


@dataclass(eq=False)
class _Open:
    """A response whose labels are not all known."""

    response: Response
    columns: dict[str, np.ndarray]
    """What the SLM made of it."""
    label: np.ndarray
    """(tokens,) int8, -1 where the verdict is to come."""
    ends: dict[int, int] = field(default_factory=dict)
    """Per position to be judged, where the LLM's own text ends that is compared."""
    branches: dict[int, Sequence[int]] = field(default_factory=dict)
    """Per position that was continued, the draft and how the LLM goes on from it."""
    cut_off: set[int] = field(default_factory=set)
    """Positions whose branch did not end the response."""

    @property
    def token_ids(self) -> list[int]:
        return self.response.trace.response_ids

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Prompt and response."""
        return [*self.response.trace.prompt_ids, *self.token_ids]

    def at(self, position: int) -> int:
        """Index in prompt and response of a position of the response."""
        return len(self.response.trace.prompt_ids) + position


class _Place(NamedTuple):
    """A position that is continued."""

    number: int
    """Of its response in the window."""
    position: int


class _Judging(NamedTuple):
    """A window on which the verifier works."""

    window: list[_Open]
    places: list[tuple[_Open, int]]
    """Whose question each is."""
    verdicts: Future[list[bool | None]]


@dataclass
class Labeler:
    """Labels responses; `tally` tells what came of them."""

    reader: DraftReader
    """The SLM."""
    continuer: Continuer
    """The LLM."""
    verifier: Verifier
    tokenizer: Any
    """The pair's."""
    eos_token_ids: frozenset[int] = frozenset()
    """Tokens that end the LLM's responses: one that ends so is whole."""
    sentence_tokens: int = 64
    """Longest text that is compared where sentences are, and the longest branch that a trace keeps."""
    context: int | None = None
    """Longest prompt and response of the LLM; None takes the SLM's."""
    tally: Tally = field(default_factory=Tally)
    _ends: dict[str, SentenceEnds] = field(default_factory=dict)
    _streak: int = 0
    _failing: set[Key] = field(default_factory=set)
    """Responses of the streak."""

    def label(self, responses: Iterable[Response]) -> Iterator[Trace]:
        """Yields each response, labelled, window by window in their order.

        Raises `LabelingError` where continuations fail one after the other, and what the verifier raises.
        """
        judging: _Judging | None = None
        with ThreadPoolExecutor(1, "verdicts") as judge:
            try:
                for window in windows(responses, _size, self.reader.batch_tokens, WINDOW_BATCHES):
                    entries = self._read(window)
                    self._continue(entries)
                    before, judging = judging, self._ask(entries, judge)
                    if before:
                        yield from self._judged(before)
                if judging:
                    yield from self._judged(judging)
            except BaseException:
                # Nobody will read what is being judged, and a verifier may take minutes, and money.
                self.verifier.close()
                raise

    # ---- prefill ----------------------------------------------------------------------------------------------

    def _read(self, window: list[Response]) -> list[_Open]:
        """Have the SLM read responses; finds where its draft is another token than the LLM's."""
        found = self.reader.read([response.trace for response in window])
        return [
            self._opened(response, read.columns) if read.error is None else self._unread(response, read.error)
            for response, read in zip(window, found, strict=True)
        ]

    def _unread(self, response: Response, error: str) -> _Open:
        """A response of which nothing is known: every token is invalid."""
        num_tokens = len(response.trace.response_ids)
        self.tally.errors[_first_line(error)] += num_tokens
        return _Open(response, {}, np.full(num_tokens, Label.INVALID, dtype=np.int8))

    def _opened(self, response: Response, columns: dict[str, np.ndarray]) -> _Open:
        ids = np.asarray(response.trace.response_ids)
        label = np.where(columns["draft_ids"] == ids, Label.IDENTICAL, -1).astype(np.int8)
        entry = _Open(response, columns, label)
        for position in np.flatnonzero(label < 0).tolist():
            end = self._end(entry, position)
            if end is None:
                self._invalidate(
                    entry, position, "the response is cut off before the text to compare with ends"
                )
            else:
                entry.ends[position] = end
        return entry

    def _end(self, entry: _Open, position: int) -> int | None:
        """Where the LLM's own text ends that begins at a position; None where the response is cut off before."""
        ids = entry.token_ids
        whole = entry.response.trace.finish_reason == "stop" or ids[-1] in self.eos_token_ids
        if self.verifier.to_end:
            return len(ids) if whole else None
        rest = ids[position : position + self.sentence_tokens]
        at_end = position + len(rest) == len(ids)
        ends = self._ends_for(entry.response.task)
        if (length := ends.length(entry.prefix_ids, rest, entry.at(position), more=not at_end)) is not None:
            return position + length
        cut_off = at_end and len(rest) < self.sentence_tokens and not whole
        return None if cut_off else position + len(rest)

    # ---- continuations ----------------------------------------------------------------------------------------

    def _continue(self, entries: list[_Open]) -> None:
        """Have the LLM go on from every draft that is to be judged."""
        asks = chain.from_iterable(self._asks(number, entry) for number, entry in enumerate(entries))
        for continued in self.continuer.continue_all(asks):
            key = continued.key
            assert isinstance(key, _Place)
            number, position = key
            if continued.error is None:
                self._streak = 0
                self._failing.clear()
                entries[number].branches[position] = continued.token_ids
                if not continued.ended:
                    entries[number].cut_off.add(position)
            else:
                self._fail(entries[number], position, continued.error)

    def _asks(self, number: int, entry: _Open) -> Iterator[Ask]:
        trace, to_end = entry.response.trace, self.verifier.to_end
        ends = None if to_end else self._ends_for(entry.response.task)
        # A branch may go on as long as the response might have.
        context = self.context or self.reader.slm.card.context
        limit = trace.sampling.get("max_tokens") or context - len(trace.prompt_ids)
        for position in list(entry.ends):
            yield Ask(
                key=_Place(number, position),
                prefix_ids=entry.prefix_ids,
                length=entry.at(position),
                draft=int(entry.columns["draft_ids"][position]),
                max_tokens=max(1, limit - position) if to_end else self.sentence_tokens,
                ends=ends,
            )

    def _fail(self, entry: _Open, position: int, error: str) -> None:
        self._streak += 1
        self._failing.add(entry.response.trace.key)
        if self._streak >= STREAK and len(self._failing) >= STREAK_RESPONSES:
            raise LabelingError(
                f"{self._streak} continuations in a row failed, the last of them with: {error}; what is labelled is kept, mend "
                "this and run the same again"
            )
        self._invalidate(entry, position, error)
        del entry.ends[position]

    def _ends_for(self, task: Task) -> SentenceEnds:
        if task.name not in self._ends:
            self._ends[task.name] = SentenceEnds.of(self.tokenizer, task)
        return self._ends[task.name]

    # ---- verdicts ---------------------------------------------------------------------------------------------

    def _ask(self, entries: list[_Open], judge: ThreadPoolExecutor) -> _Judging:
        places = [(entry, position) for entry in entries for position in entry.ends]
        questions = [question for entry in entries for question in self._questions(entry)]
        return _Judging(entries, places, judge.submit(self.verifier.same, questions))

    def _questions(self, entry: _Open) -> Iterator[Question]:
        _, task, problem = entry.response
        ids, text, done = entry.token_ids, "", 0
        found = []
        for position, end in entry.ends.items():
            text = (text + self._added(ids, done, ids[done:position])).rstrip(PARTIAL)
            done = position
            own = self._added(ids, position, ids[position:end])
            branch = self._added(ids, position, entry.branches[position])
            found.append((len(text), own, branch, position not in entry.cut_off))
        # Each text is the start of the next: all share the last one.
        for at, own, branch, ended in found:
            yield Question(task, problem, text, own, branch, ended, at)

    def _added(self, ids: Sequence[int], position: int, added: Sequence[int]) -> str:
        return added_text(self.tokenizer, ids, added, position)

    def _judged(self, judging: _Judging) -> Iterator[Trace]:
        """Wait for the verdicts on a window; yields its traces."""
        for (entry, position), same in zip(judging.places, judging.verdicts.result(), strict=True):
            if same is None:
                self._invalidate(entry, position, f"no verdict by {self.verifier.name}")
            else:
                entry.label[position] = Label.NEUTRAL if same else Label.DIVERGENT
        for entry in judging.window:
            yield self._done(entry)

    def _invalidate(self, entry: _Open, position: int, error: str) -> None:
        entry.label[position] = Label.INVALID
        self.tally.errors[_first_line(error)] += 1

    def _done(self, entry: _Open) -> Trace:
        trace = entry.response.trace
        self.tally.responses += 1
        self.tally.labels.update(Label(value) for value in entry.label.tolist())
        columns = {**trace.columns, **entry.columns, "label": entry.label}
        if entry.columns:
            columns["continuation_ids"] = self._branches(entry)
        return replace(trace, columns=columns)

    def _branches(self, entry: _Open) -> np.ndarray:
        """(tokens, longest) branches, -1 behind the end of each and where there is none."""
        kept = {position: list(ids[: self.sentence_tokens]) for position, ids in entry.branches.items()}
        table = np.full((len(entry.token_ids), max(map(len, kept.values()), default=0)), -1, dtype=np.int32)
        for position, ids in kept.items():
            table[position, : len(ids)] = ids
        return table


def _size(response: Response) -> int:
    return len(response.trace.prompt_ids) + len(response.trace.response_ids)


def _first_line(error: str) -> str:
    return error.strip().split("\n")[0][:200]
