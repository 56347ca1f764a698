"""Bodies of answers: OpenAI's fields, and `navtoken` with what the pair did."""

from typing import Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

FinishReason = Literal["stop", "length"]


class NamedToken(BaseModel):
    """A token and its text."""

    id: int
    text: str


class Alternative(NamedToken):
    """A token that was likely where another may have been written."""

    logprob: float
    """Nats, T = 1."""


class TokenDetail(NamedToken):
    """One token of a response. Texts of all tokens together are the response, special tokens and a stop string included."""

    special: bool = False
    """Is it one of the tokenizer's own, such as the end of a sequence? The response's text has none of them."""
    writer: Literal["slm", "llm"]
    entropy: float | None
    """Nats, T = 1: the SLM's where it drafted, else the LLM's."""
    entropy_slm: float | None
    entropy_llm: float | None
    logprob: float | None
    """By its writer, T = 1."""
    p_divergent: float | None
    """The router's word on the draft."""
    draft: NamedToken | None
    """What the SLM had drafted, where the LLM wrote something else."""
    alternatives: list[Alternative]
    """By its writer, likeliest first."""


class Cost(BaseModel):
    """What a response took, as if it had run alone."""

    average_activated_parameters: float
    """Per token (the R2R paper's cost)."""
    flops: float
    bytes: float
    """Of weights and KV cache read."""
    slm_passes: int
    llm_passes: int
    catchup_tokens: int
    """Tokens that the LLM read although the SLM had written them."""
    discarded_drafts: int
    router_calls: int


class Seconds(BaseModel):
    """How long it took."""

    queued: float
    """Until there was a row for it."""
    first_token: float | None
    """Until its first token was final."""
    total: float


class Navigation(BaseModel):
    """How the pair came to a response, or to a part of it (streams: the last chunk has the whole)."""

    policy: str | None = None
    """With its threshold."""
    llm_share: float | None = None
    """Tokens written by the LLM / tokens."""
    slm_tokens: int | None = None
    llm_tokens: int | None = None
    seed: int | None = None
    """Asked again with it, the response is the same."""
    cost: Cost | None = None
    seconds: Seconds | None = None
    tokens: list[TokenDetail] | None = None
    """Where token_details asked for them."""


class TokenUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the response, and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat response's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The response."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None = None
    """What stood between think tags."""
    refusal: None = None


class ChatChoice(BaseModel):
    """One response."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = None
    navtoken: Navigation


class _Answer(BaseModel):
    """What all answers and their chunks begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatAnswer(_Answer):
    """Answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: TokenUsage
    prompt_token_ids: list[int] | None = None


class Delta(BaseModel):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, str]:
        """As OpenAI sends it: what a chunk does not add is not there."""
        return {name: value for name, value in serialize(self).items() if value is not None}


class ChatChunkChoice(BaseModel):
    """What a chunk adds to a response."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = None
    navtoken: Navigation | None = None


class ChatChunk(_Answer):
    """An event of a chat's stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: TokenUsage | None = None
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion's tokens, as lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """Of a prompt's first token nothing is known."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One response; in a stream, what a chunk adds to it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    navtoken: Navigation | None = None


class CompletionAnswer(_Answer):
    """Answer of POST /v1/completions, and an event of its stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field that it concerns."""
    code: str | None


class ErrorAnswer(BaseModel):
    """Body of every status from 400 on."""

    error: ErrorDetail


class Model(BaseModel):
    """A model that may be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int
    """Tokens of prompt and response."""
    policy: str
    """Who writes which token."""


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class HealthAnswer(BaseModel):
    """Answer of GET /health; with status 503 where it is not ok."""

    status: Literal["ok", "dead", "stuck", "closing"]
    error: str | None
    """The kind of error that the engine died of."""
    crashes: int
    running: int
    waiting: int


class VersionAnswer(BaseModel):
    """Answer of GET /version."""

    version: str


class PairModel(BaseModel):
    """A model of the pair."""

    reference: str
    parameters: int


class OfferedPolicy(BaseModel):
    """A policy that the page offers."""

    reference: str
    threshold: float | None
    """Where it begins; null where it has none."""
    signal: str | None
    """What the threshold is held against."""
    low: float | None
    high: float | None
    llm_above: bool | None
    """Does the LLM write where the signal is above the threshold, or where it is below?"""
    description: str


class PairAnswer(BaseModel):
    """Answer of GET /v1/pair."""

    name: str
    slm: PairModel
    llm: PairModel
    context: int
    policy: str
    threshold: float | None
    policies: list[OfferedPolicy]
    max_top_logprobs: int
    max_n: int
    examples: list[str]
    """Questions that the pair was trained for."""
