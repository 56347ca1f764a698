"""Bodies of requests: OpenAI's fields, vLLM's where OpenAI has none, and the pair's own.

Unknown fields are refused, as OpenAI does. A field that is known but not supported is here with the values that change nothing;
any other is refused by name.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

MAX_N = 128
MAX_STOP = 16
MAX_STOP_CHARACTERS = 128
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 300
MAX_PROMPTS = 256
MAX_MESSAGES = 4096
MAX_PARTS = 256
MAX_FIELDS = 200

UNSUPPORTED = {
    "tools": "tool calls",
    "tool_choice": "tool calls",
    "functions": "function calls",
    "function_call": "function calls",
    "parallel_tool_calls": "tool calls",
    "response_format": "structured output",
    "best_of": "choosing the best of several responses",
    "suffix": "insertion",
    "modalities": "audio",
    "audio": "audio",
    "prediction": "predicted outputs",
    "store": "storing responses",
    "service_tier": "tiers",
    "reasoning_effort": "reasoning effort (chat_template_kwargs may have a switch for it)",
    "verbosity": "verbosity",
    "web_search_options": "web search",
    "stop_token_ids": "stop tokens (give strings as stop)",
    "tool_calls": "tool calls",
    "bad_words": "bad words",
    "guided_json": "structured output",
    "guided_regex": "structured output",
    "guided_choice": "structured output",
    "guided_grammar": "structured output",
    "structured_outputs": "structured output",
    "prompt_logprobs": "prompt_logprobs (completions have echo with logprobs)",
}
"""Fields of which only the default is taken, and what they would ask for."""


def _is_off(value: bool) -> bool:
    if value:
        raise ValueError("only false is supported")
    return value


# Not `Literal[False]`, which takes 0 for false.
Off = Annotated[bool, AfterValidator(_is_off), WithJsonSchema({"type": "boolean", "const": False})]
Nothing = Annotated[list[Any], Field(max_length=0)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0)]
# The first bad element is enough: errors of a million take minutes to collect, while nobody else is served.
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Body(BaseModel):
    # Strict, or "5" would pass for 5 and true for 1, which OpenAI refuses.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """How a stream ends."""

    include_usage: bool = False
    """Send a last chunk with the usage."""
    include_obfuscation: Off = False
    """Only false is supported."""


class TextFormat(_Body):
    """The only format of a response."""

    type: Literal["text"] = "text"


class Request(_Body):
    """What chat and completions have in common."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        # A body of another content type comes as bytes, and is refused as no object.
        if not isinstance(values, dict):
            return values
        if len(values) > MAX_FIELDS:
            raise ValueError(f"the request has {len(values)} fields, at most {MAX_FIELDS} are read")
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text has half of a surrogate pair, which is no character") from None
        except RecursionError:
            # Parsed with a shallower stack than this.
            raise ValueError("the body is nested too deeply") from None
        return values

    model: str
    """One of GET /v1/models: the pair under the server's policy, or one of its models alone."""
    stream: bool | None = None
    """Send tokens as they become final, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    """Responses to each prompt; the prompt is computed once."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the most probable token. The default is the LLM's own (its generation config), else 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Keep the smallest set of most probable tokens whose probability reaches this."""
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    """Keep so many most probable tokens; 0 and -1 keep all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Drop tokens less probable than this times the most probable one."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Subtracted from a token's logit for each time it is in the response."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Subtracted from the logit of each token that is in the response."""
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    """Divides positive and multiplies negative logits of tokens in prompt or response."""
    logit_bias: dict[str, Bias] | None = Field(default=None, max_length=MAX_BIASES)
    """Added to logits, by token id."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP)] | None = None
    """Strings that end the response where they appear; they are not part of it."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    """Fixes all noise: the same request gets the same response, whatever else is decoded. Where left out one is drawn, and told."""
    min_tokens: int | None = Field(default=None, ge=0)
    """Tokens before which nothing ends the response."""
    ignore_eos: bool | None = None
    """Go on after an end-of-sequence token."""
    return_token_ids: bool | None = None
    """Tell the token ids of prompt and response."""
    policy: str | None = Field(default=None, min_length=1, max_length=200)
    """Who writes which token: slm, llm, router, entropy:0.67, speculative:4, ... The default is the server's."""
    threshold: float | None = None
    """Another threshold for the policy, where it has one."""
    token_details: bool | None = None
    """Tell every token's writer, entropies, draft and alternatives."""
    user: str | None = None
    """Ignored."""
    safety_identifier: str | None = None
    """Ignored."""
    prompt_cache_key: str | None = None
    """Ignored."""
    metadata: dict[str, str] | None = None
    """Ignored."""
    store: Off | None = None
    """Only false is supported."""
    service_tier: Literal["auto", "default"] | None = None
    """There is one tier."""
    stop_token_ids: Nothing | None = None
    """Only an empty list is supported."""
    bad_words: Nothing | None = None
    """Only an empty list is supported."""
    guided_json: None = None
    """Not supported."""
    guided_regex: None = None
    """Not supported."""
    guided_choice: None = None
    """Not supported."""
    guided_grammar: None = None
    """Not supported."""
    structured_outputs: None = None
    """Not supported."""
    prompt_logprobs: None = None
    """Not supported."""
    response_format: TextFormat | None = None
    """Only text is supported."""

    @property
    def num_rows(self) -> int:
        """Responses that it asks for, as far as can be told before its prompts are made."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    """Only text is supported."""
    text: str


class Message(_Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: str | None = None
    """Ignored."""
    reasoning_content: str | None = None
    """Ignored: templates leave earlier thoughts out."""
    refusal: None = None
    tool_calls: Nothing | None = None
    """Only an empty list is supported."""

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation; it goes through the model's chat template."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest response in tokens; None decodes up to the context."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The same under its newer name, which counts where both are given."""
    logprobs: bool | None = None
    """Tell log-probabilities at T = 1, of the model that wrote each token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """So many likeliest tokens with each; needs logprobs."""
    chat_template_kwargs: dict[str, bool | int | float | str] | None = Field(default=None, max_length=16)
    """Switches that the chat template knows, such as enable_thinking."""
    tools: Nothing | None = None
    """Only an empty list is supported."""
    tool_choice: Literal["none", "auto"] | None = None
    """There are no tools."""
    functions: Nothing | None = None
    """Only an empty list is supported."""
    function_call: Literal["none", "auto"] | None = None
    """There are no functions."""
    parallel_tool_calls: bool | None = None
    """There are no tools."""
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    """Only text is supported."""
    audio: None = None
    """Not supported."""
    prediction: None = None
    """Not supported."""
    reasoning_effort: None = None
    """Not supported."""
    verbosity: None = None
    """Not supported."""
    web_search_options: None = None
    """Not supported."""


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    """Text or token ids, or several of either."""
    max_tokens: int | None = Field(default=16, ge=0)
    """Longest response in tokens; null decodes up to the context, 0 makes sense with echo."""
    echo: bool | None = None
    """Begin the text with the prompt; with logprobs, tell those of its tokens too."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Tell log-probabilities at T = 1, and so many likeliest tokens with each."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add what begins a sequence to a text prompt; the default is true."""
    suffix: Annotated[str, Field(max_length=0)] | None = None
    """Only an empty text is supported."""
    best_of: int | None = Field(default=None, ge=1, le=1)
    """Only 1 is supported."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def num_rows(self) -> int:
        """Responses that it asks for."""
        # With max_tokens 0 prompts are scored at most.
        return len(self.prompts) * (1 if self.max_tokens == 0 else self.n or 1)
