"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from navtoken.serving.answers import (
    AssistantMessage,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    Navigation,
    TokenDetail,
    TokenUsage,
)
from navtoken.serving.choices import Choice, Piece, Wanted, joined
from navtoken.serving.errors import BadRequest
from navtoken.serving.jobs import Job
from navtoken.serving.requests import ChatRequest
from navtoken.serving.server import Server
from navtoken.serving.sse import event
from navtoken.tasks.prompts import Rendered


class Chat:
    """One request and its responses."""

    def __init__(self, server: Server, request: ChatRequest, prompt: Rendered) -> None:
        """Raises `ApiError`s for what cannot be had."""
        _check(request)
        self.server = server
        self.request = request
        self.prompt = prompt
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        details = bool(request.token_details)
        self.wanted = Wanted(
            bool(request.logprobs), request.top_logprobs or 0, details, bool(request.return_token_ids)
        )
        limit = request.max_completion_tokens or request.max_tokens
        self.job: Job = server.job(request, [prompt], limit, self.wanted, "messages")
        self.choices: list[Choice] = server.choices(self.job, [prompt], self.wanted, split=True)

    async def whole(self) -> ChatAnswer:
        """The answer at once."""
        pieces: list[list[Piece]] = [[] for _ in self.choices]
        async with aclosing(self.server.follow(self.job, self.choices)) as steps:
            async for step in steps:
                for choice, piece in step.pieces:
                    pieces[choice.index].append(piece)
        return ChatAnswer(
            id=self.id,
            created=self.created,
            model=self.request.model,
            choices=[self._choice(choice, pieces[choice.index]) for choice in self.choices],
            usage=self._usage(),
            system_fingerprint=self.server.fingerprint,
            prompt_token_ids=self._prompt_ids(),
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as events: a role for each choice, then what each step adds."""
        begun = False
        async with aclosing(self.server.follow(self.job, self.choices)) as steps:
            async for step in steps:
                told = [] if begun else [self._opening(choice) for choice in self.choices]
                begun = True
                told += [self._told(choice, piece) for choice, piece in step.pieces if piece.says_something]
                if told:
                    yield b"".join(told)
        if self.request.includes_usage:
            yield event(self._bare([]).model_copy(update={"usage": self._usage()}))

    def _choice(self, choice: Choice, pieces: list[Piece]) -> ChatChoice:
        content, thoughts = joined(pieces)
        finish_reason = pieces[-1].finish_reason
        assert finish_reason is not None
        return ChatChoice(
            index=choice.index,
            message=AssistantMessage(content=content, reasoning_content=thoughts or None),
            finish_reason=finish_reason,
            logprobs=self._logprobs(pieces),
            token_ids=self._token_ids(pieces),
            navtoken=choice.navigation(self.server.pair, self._details(pieces)),
        )

    def _told(self, choice: Choice, piece: Piece) -> bytes:
        details = self._details([piece])
        navtoken = None if details is None else Navigation(tokens=details)
        if piece.finish_reason is not None:
            navtoken = choice.navigation(self.server.pair, details)
        told = ChatChunkChoice(
            index=choice.index,
            delta=Delta(content=piece.text or None, reasoning_content=piece.thoughts or None),
            finish_reason=piece.finish_reason,
            logprobs=self._logprobs([piece]),
            token_ids=self._token_ids([piece]),
            navtoken=navtoken,
        )
        return event(self._bare([told]))

    def _opening(self, choice: Choice) -> bytes:
        delta = Delta(role="assistant", content="")
        told = self._bare([ChatChunkChoice(index=choice.index, delta=delta)])
        return event(told.model_copy(update={"prompt_token_ids": self._prompt_ids()}))

    def _bare(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.request.model,
            choices=choices,
            system_fingerprint=self.server.fingerprint,
        )

    def _logprobs(self, pieces: list[Piece]) -> ChatLogprobs | None:
        if not self.wanted.logprobs:
            return None
        return ChatLogprobs(content=[piece.logprob for piece in pieces if piece.logprob is not None])

    def _details(self, pieces: list[Piece]) -> list[TokenDetail] | None:
        if not self.wanted.details:
            return None
        return [piece.detail for piece in pieces if piece.detail is not None]

    def _token_ids(self, pieces: list[Piece]) -> list[int] | None:
        if not self.wanted.token_ids:
            return None
        return [piece.token_id for piece in pieces if piece.token_id is not None]

    def _prompt_ids(self) -> list[int] | None:
        return self.prompt.ids if self.wanted.token_ids else None

    def _usage(self) -> TokenUsage:
        return self.server.usage([self.prompt], self.choices)


def _check(request: ChatRequest) -> None:
    if request.top_logprobs and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options needs stream: true", "stream_options")
