"""POST /v1/completions: prompts as text or token ids, and `echo`, on which evaluation harnesses score texts."""

import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from navtoken.serving.answers import (
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    Navigation,
    TokenLogprob,
    TokenUsage,
)
from navtoken.serving.choices import LEAST_LOGPROB, Choice, Piece, Wanted, joined
from navtoken.serving.errors import BadRequest
from navtoken.serving.jobs import Job
from navtoken.serving.prompt_scores import PromptScores
from navtoken.serving.requests import CompletionRequest
from navtoken.serving.server import Server
from navtoken.serving.sse import event
from navtoken.tasks.prompts import Rendered


@dataclass
class Columns:
    """Log-probabilities as OpenAI's completions have them, with where in the text they go on."""

    tokens: list[str] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    end: int = 0

    def add(self, text: str, logprob: float | None, top: Iterable[tuple[str, float]] | None) -> None:
        """One token more. Of tokens that look alike the likeliest counts."""
        self.tokens.append(text)
        self.logprobs.append(logprob)
        self.offsets.append(self.end)
        self.end += len(text)
        if top is None or logprob is None:
            self.top.append(None)
            return
        found: dict[str, float] = {}
        for other, value in (*top, (text, logprob)):
            found[other] = max(value, found.get(other, LEAST_LOGPROB))
        self.top.append(found)

    def taken(self) -> CompletionLogprobs:
        """What was added since the last time."""
        told = CompletionLogprobs(
            tokens=self.tokens,
            token_logprobs=self.logprobs,
            top_logprobs=self.top,
            text_offset=self.offsets,
        )
        self.tokens, self.logprobs, self.top, self.offsets = [], [], [], []
        return told


class Completion:
    """One request and its responses."""

    def __init__(self, server: Server, request: CompletionRequest, prompts: list[Rendered]) -> None:
        """Raises `ApiError`s for what cannot be had."""
        _check(request)
        self.server = server
        self.request = request
        self.prompts = prompts
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.wanted = Wanted(
            request.logprobs is not None,
            request.logprobs or 0,
            bool(request.token_details),
            bool(request.return_token_ids),
        )
        scored = bool(request.echo) and self.wanted.logprobs
        self.job: Job = server.job(request, prompts, request.max_tokens, self.wanted, "prompt", scored)
        self.choices: list[Choice] = server.choices(self.job, prompts, self.wanted, split=False)
        self.n = request.n or 1
        self.scores: list[PromptScores] = []
        self.columns = [Columns() for _ in range(len(prompts) * self.n)]

    async def whole(self) -> CompletionAnswer:
        """The answer at once."""
        pieces: list[list[Piece]] = [[] for _ in self.columns]
        async with aclosing(self.server.follow(self.job, self.choices)) as steps:
            async for step in steps:
                self.scores += step.scores
                for choice, piece in step.pieces:
                    pieces[choice.index].append(piece)
        told = []
        for index, own in enumerate(pieces):
            start = self._start(index)
            self._add(index, own)
            told.append(self._choice(index, own, start))
        return self._answer(told, self._usage())

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as events. What is echoed comes first."""
        held: list[tuple[Choice, Piece]] = []
        begun = False
        async with aclosing(self.server.follow(self.job, self.choices)) as steps:
            async for step in steps:
                self.scores += step.scores
                held += step.pieces
                # Tokens may come before the prompt's scores, and are told after them.
                if self.job.score_prompts and not self.scores:
                    continue
                told = b"" if begun else self._echoes()
                begun = True
                told += self._events(held)
                held.clear()
                if told:
                    yield told
        if not begun:
            yield self._echoes()
        if self.request.includes_usage:
            yield event(self._answer([], self._usage()))

    def _echoes(self) -> bytes:
        if not self.request.echo:
            return b""
        told = [self._choice(index, [], self._start(index)) for index in range(len(self.columns))]
        return b"".join(event(self._answer([choice])) for choice in told)

    def _events(self, heard: list[tuple[Choice, Piece]]) -> bytes:
        told = []
        for choice, piece in heard:
            if piece.says_something:
                self._add(choice.index, [piece])
                told.append(event(self._answer([self._choice(choice.index, [piece], "")])))
        return b"".join(told)

    def _start(self, index: int) -> str:
        """The echoed prompt, its tokens put into the columns."""
        prompt = self.prompts[index // self.n]
        if not self.request.echo:
            return ""
        if self.scores:
            self._add_prompt(self.columns[index], prompt.ids, self.scores[index // self.n])
        return prompt.text

    def _add_prompt(self, columns: Columns, token_ids: list[int], scores: PromptScores) -> None:
        texts, previous = self.server.texts, None
        for token_id, logprob, top in zip(token_ids, scores.logprobs, scores.top, strict=True):
            named = [(texts.text(previous, each), max(value, LEAST_LOGPROB)) for each, value in top]
            told = None if logprob is None else max(logprob, LEAST_LOGPROB)
            columns.add(texts.text(previous, token_id), told, named)
            previous = token_id

    def _add(self, index: int, pieces: Iterable[Piece]) -> None:
        columns = self.columns[index]
        for piece in pieces:
            if (told := piece.logprob) is not None:
                columns.add(told.token, told.logprob, _named(told))

    def _choice(self, index: int, pieces: list[Piece], start: str) -> CompletionChoice:
        choice = self.choices[index] if self.choices else None
        finish_reason = pieces[-1].finish_reason if pieces else None
        if choice is None:
            # Nothing was to be decoded: the length asked for is reached.
            finish_reason = "length"
        details = (
            [piece.detail for piece in pieces if piece.detail is not None] if self.wanted.details else None
        )
        navtoken = None
        if choice is not None and finish_reason is not None:
            navtoken = choice.navigation(self.server.pair, details)
        elif details:
            navtoken = Navigation(tokens=details)
        ids = [piece.token_id for piece in pieces if piece.token_id is not None]
        return CompletionChoice(
            index=index,
            text=start + joined(pieces)[0],
            finish_reason=finish_reason,
            logprobs=self.columns[index].taken() if self.wanted.logprobs else None,
            token_ids=ids if self.wanted.token_ids else None,
            prompt_token_ids=self.prompts[index // self.n].ids if self.wanted.token_ids else None,
            navtoken=navtoken,
        )

    def _answer(self, choices: list[CompletionChoice], usage: TokenUsage | None = None) -> CompletionAnswer:
        return CompletionAnswer(
            id=self.id,
            created=self.created,
            model=self.request.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self.server.fingerprint,
        )

    def _usage(self) -> TokenUsage:
        return self.server.usage(self.prompts, self.choices)


def _named(told: TokenLogprob) -> list[tuple[str, float]]:
    return [(other.token, other.logprob) for other in told.top_logprobs]


def _check(request: CompletionRequest) -> None:
    if request.max_tokens == 0 and not request.echo:
        raise BadRequest("max_tokens is 0; that makes sense with echo only", "max_tokens")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options needs stream: true", "stream_options")
