"""One response as it is heard: its tokens' texts, log-probabilities and details, and what it cost in the end."""

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan
from time import monotonic
from typing import Literal

from navtoken.checkpoints import ModelPair
from navtoken.engine import Costs, Event, Sequence
from navtoken.policies import Writer
from navtoken.serving.answers import (
    Alternative,
    Cost,
    NamedToken,
    Navigation,
    Seconds,
    TokenDetail,
    TokenLogprob,
    TopLogprob,
)
from navtoken.serving.jobs import Ask, Job
from navtoken.serving.offered import public
from navtoken.serving.thoughts import Part, ThoughtSplitter
from navtoken.serving.token_texts import TokenTexts


@dataclass(frozen=True)
class Wanted:
    """What a request wants to know of each token."""

    logprobs: bool
    num_top: int
    details: bool
    token_ids: bool


@dataclass(frozen=True)
class Piece:
    """What an event adds to a response."""

    text: str
    thoughts: str
    token_id: int | None
    logprob: TokenLogprob | None
    detail: TokenDetail | None
    finish_reason: Literal["stop", "length"] | None

    @property
    def says_something(self) -> bool:
        return bool(self.text or self.thoughts or self.logprob or self.detail or self.finish_reason) or (
            self.token_id is not None
        )


@dataclass(eq=False)
class Choice:
    """Follows one response from its first event to its last."""

    index: int
    ask: Ask
    job: Job
    wanted: Wanted
    texts: TokenTexts
    splitter: ThoughtSplitter | None = None
    """Where thoughts are to be told from the answer."""
    num_tokens: int = 0
    first_token: float | None = None
    row: Sequence | None = None
    """Once it is finished."""
    _previous: int | None = field(init=False)
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )
    """A character of several tokens becomes text with its last one."""

    def __post_init__(self) -> None:
        self._previous = self.ask.prompt_ids[-1]

    def hear(self, event: Event) -> Piece:
        """What the event adds."""
        if event.token is not None:
            self.num_tokens += 1
            self.first_token = self.first_token or monotonic()
        part = self._split(event)
        finished: Literal["stop", "length"] | None = None
        if event.finish_reason is not None:
            self.row = event.sequence
            finished = "length" if event.finish_reason == "length" else "stop"
        logprob, detail = self._told(event)
        if event.token_id is not None:
            self._previous = event.token_id
        token_id = event.token_id if self.wanted.token_ids else None
        return Piece(part.content, part.thoughts, token_id, logprob, detail, finished)

    def navigation(self, pair: ModelPair, tokens: list[TokenDetail] | None) -> Navigation:
        """How the finished response came about."""
        assert self.row is not None
        ledger = self.row.ledger
        costs = Costs(pair.slm.card, pair.llm.card, self.ask.policy.router_parameters)
        slm, llm = ledger.written
        cost = Cost(
            average_activated_parameters=costs.average_activated_parameters(ledger),
            flops=costs.flops(ledger),
            bytes=costs.bytes(ledger),
            slm_passes=ledger.slm.passes,
            llm_passes=ledger.llm.passes,
            catchup_tokens=ledger.llm.catchup_tokens,
            discarded_drafts=ledger.discarded_drafts,
            router_calls=ledger.router_calls,
        )
        return Navigation(
            policy=public(self.ask.policy),
            llm_share=ledger.llm_share,
            slm_tokens=slm,
            llm_tokens=llm,
            seed=self.ask.seed,
            cost=cost,
            seconds=self._seconds(),
            tokens=tokens,
        )

    def _seconds(self) -> Seconds:
        submitted = self.job.submitted
        return Seconds(
            queued=(self.job.started or submitted) - submitted,
            first_token=None if self.first_token is None else self.first_token - submitted,
            total=monotonic() - submitted,
        )

    def _split(self, event: Event) -> Part:
        if self.splitter is None:
            return Part("", event.text)
        part = self.splitter.push(event.text)
        if event.finish_reason is None:
            return part
        rest = self.splitter.end()
        return Part(part.thoughts + rest.thoughts, part.content + rest.content)

    def _told(self, event: Event) -> tuple[TokenLogprob | None, TokenDetail | None]:
        token = event.token
        if token is None or not (self.wanted.logprobs or self.wanted.details):
            return None, None
        top = list(zip(token.top_ids, token.top_logprobs, strict=True))[: self.wanted.num_top]
        by_slm = token.writer is Writer.SLM
        own = _known(token.logprob_slm if by_slm else token.logprob_llm)
        logprob = None
        if self.wanted.logprobs:
            logprob = TokenLogprob(
                **self._named(token.token_id, own if own is not None else LEAST_LOGPROB).model_dump(),
                top_logprobs=[self._named(token_id, value) for token_id, value in top],
            )
        if not self.wanted.details:
            return logprob, None
        entropy_slm, entropy_llm = _known(token.entropy_slm), _known(token.entropy_llm)
        draft = token.draft_id if token.draft_id not in (-1, token.token_id) else None
        detail = TokenDetail(
            id=token.token_id,
            text=self._decoder.decode(
                self.texts.bytes(self._previous, token.token_id), event.finish_reason is not None
            ),
            special=self.texts.is_special(token.token_id),
            writer="slm" if by_slm else "llm",
            entropy=entropy_llm if entropy_slm is None else entropy_slm,
            entropy_slm=entropy_slm,
            entropy_llm=entropy_llm,
            logprob=own,
            p_divergent=_known(token.p_divergent),
            draft=None if draft is None else NamedToken(id=draft, text=self._text(draft)),
            alternatives=[
                Alternative(id=token_id, text=self._text(token_id), logprob=value) for token_id, value in top
            ],
        )
        return logprob, detail

    def _text(self, token_id: int) -> str:
        return self.texts.text(self._previous, token_id)

    def _named(self, token_id: int, logprob: float) -> TopLogprob:
        raw = self.texts.bytes(self._previous, token_id)
        # JSON knows no infinity; a banned token has this, as OpenAI says it.
        value = max(logprob, LEAST_LOGPROB)
        return TopLogprob(token=raw.decode(errors="replace"), logprob=value, bytes=list(raw))


LEAST_LOGPROB = -9999.0


def joined(pieces: Iterable[Piece]) -> tuple[str, str]:
    """Content and thoughts of several pieces."""
    pieces = list(pieces)
    return "".join(piece.text for piece in pieces), "".join(piece.thoughts for piece in pieces)


def _known(value: float) -> float | None:
    return None if isnan(value) else max(value, LEAST_LOGPROB)
