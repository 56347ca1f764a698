"""An LLM that runs elsewhere: responses and continuations through a completions endpoint that takes and returns token ids.

Ids, not text: a response that is decoded and tokenised again comes back as other tokens now and then, and labels would sit on
tokens that the LLM never wrote. vLLM takes a list of ids as `prompt` and returns `token_ids` for `return_token_ids`; the ids
of an end-of-sequence token and of what completes a stop string are among them, also where its text leaves them out. `check` tries
all that once. What the server's own generation configuration would add (a repetition penalty, say) is switched off by name.

Prefixes are shared by the server's prefix cache: continuations of one response are sent after each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self, TypeGuard

from navtoken.engine import Ledger, SamplingParams
from navtoken.engine.options import GREEDY, OptionError
from navtoken.labeling.continuations import Ask, Continued
from navtoken.labeling.labels import REMOTE
from navtoken.labeling.openai_client import (
    BadAnswerError,
    Body,
    Endpoint,
    EndpointError,
    EndpointOptions,
    RequestError,
    first_choice,
)
from navtoken.policies import Writer, derive_seed
from navtoken.policies.rules import LLMPolicy
from navtoken.tasks import Problem, Task
from navtoken.tasks.prompts import PromptOptions, Rendered, render
from navtoken.trace import Key, Trace

PATH = "completions"
PROBE = "1 + 1 ="
PROBE_TOKENS = 12
MOST_STOPS = 4
"""Stop strings that every endpoint takes; where a task ends sentences in more ways, some are found here only."""
HERE_ONLY = ("fork_threshold", "fork_temperature", "stop")
"""Sampling parameters that such an endpoint does not have, or whose text would differ."""


class RemoteRequest(NamedTuple):
    """One response to be had."""

    task: Task
    problem: Problem
    sample: int = 0

    @property
    def key(self) -> Key:
        return LLMPolicy().reference, self.task.name, self.problem.problem_id, self.sample


class Completed(NamedTuple):
    """What the endpoint wrote."""

    token_ids: list[int]
    ended: bool
    """Did the response end there? False where a stop string or the length cut it off."""
    text: str | None
    """As the endpoint decodes it."""


class RemoteLLM:
    """The LLM behind an endpoint, token ids in and out. A context manager, as its endpoint is."""

    def __init__(self, options: EndpointOptions, tokenizer: Any) -> None:
        """`tokenizer` is the pair's; the endpoint's model must have the same."""
        self.endpoint = Endpoint(options)
        self.tokenizer = tokenizer

    @property
    def reference(self) -> str:
        """Which LLM this is, recorded with what it wrote: by name, for the same one may move to another address."""
        return f"{REMOTE}{self.endpoint.options.model}"

    @property
    def _named(self) -> str:
        return f"'{self.endpoint.options.model}' at {self.endpoint.options.url}"

    def check(self) -> None:
        """Try the endpoint once, before the work. Raises `EndpointError` naming what it lacks."""
        prompt = list(self.tokenizer(PROBE)["input_ids"])
        try:
            whole = self._ask(prompt)
            if len(whole.token_ids) > 1 and (stop := self._stop_within(whole.token_ids)):
                self._check_stop(whole, self._ask(prompt, stop), stop)
        except RequestError as error:
            raise EndpointError(f"the LLM's endpoint does not answer: {error}") from error
        ours = self.decode(whole.token_ids)
        if (
            whole.text is not None
            and "\ufffd" not in ours + whole.text
            and ours.strip() != whole.text.strip()
        ):
            raise EndpointError(
                f"{self._named} spells its tokens {whole.token_ids} as '{whole.text}', the pair's tokenizer as '{ours}'; serve a "
                "model with the pair's tokenizer"
            )

    async def complete(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        sampling: SamplingParams = GREEDY,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Completed:
        """What the LLM writes after a prompt. Raises `RequestError` and `EndpointError`."""
        body = {
            "model": self.endpoint.options.model,
            "prompt": list(prompt_ids),
            "max_tokens": max_tokens,
            "return_token_ids": True,
            "seed": seed,
            **sampling_body(sampling),
        }
        if stop:
            body |= {"stop": list(stop), "include_stop_str_in_output": True}
        return await self.endpoint.post(PATH, body, partial(self._read, len(body["prompt"])))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def summary(self) -> dict[str, Any]:
        """What the endpoint was asked, and what that took."""
        return self.endpoint.summary()

    def close(self) -> None:
        self.endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _ask(self, prompt: list[int], *stop: str) -> Completed:
        ((_, answer),) = self.endpoint.run([(None, self.complete(prompt, PROBE_TOKENS, stop=stop))])
        if isinstance(answer, RequestError):
            raise answer
        return answer

    def _stop_within(self, token_ids: list[int]) -> str:
        """A text that the last visible token completes, to be stopped at."""
        pieces = [self.decode([token_id]).strip() for token_id in token_ids]
        return next((piece for piece in reversed(pieces) if piece and "\ufffd" not in piece), "")

    def _check_stop(self, whole: Completed, stopped: Completed, stop: str) -> None:
        """Are the tokens of a stop string returned, and the stop told from the end of a response?"""
        start = whole.token_ids[: len(stopped.token_ids)]
        if stopped.ended or stopped.token_ids != start or stop not in self.decode(stopped.token_ids):
            raise EndpointError(
                f"{self._named} writes {whole.token_ids}, and with the stop string '{stop}' {stopped.token_ids}: it must return all "
                "tokens up to the one that completes the string, name it in stop_reason, and write the same twice; vLLM 0.10.2 and later do"
            )

    def _read(self, num_prompt: int, answer: Body) -> Completed:
        choice = first_choice(answer)
        token_ids, reason = choice.get("token_ids"), choice.get("stop_reason")
        if not _are_ids(token_ids, len(self.tokenizer)):
            raise BadAnswerError(
                f"no token ids of the pair's tokenizer in the answer ({str(token_ids)[:100]}); the endpoint must know "
                "return_token_ids, as vLLM 0.10.2 and later do"
            )
        echoed = choice.get("prompt_token_ids")
        if isinstance(echoed, list) and len(echoed) != num_prompt:
            raise BadAnswerError(
                f"the endpoint read {len(echoed)} prompt tokens where {num_prompt} were sent"
            )
        if choice.get("finish_reason") not in ("stop", "length"):
            raise BadAnswerError(f"the answer ended by {choice.get('finish_reason')!r}")
        ended = choice["finish_reason"] == "stop" and not isinstance(reason, str)
        if ended and isinstance(reason, int) and token_ids[-1:] != [reason]:
            token_ids = [*token_ids, reason]
        return Completed(token_ids, ended, choice.get("text"))


class RemoteContinuer:
    """A `Continuer` over an endpoint: greedy, as the engine's."""

    def __init__(self, llm: RemoteLLM, eos_token_ids: Iterable[int]) -> None:
        """`eos_token_ids`: drafts from which nothing goes on; what else ends a response the endpoint knows."""
        self.llm = llm
        self.eos_token_ids = frozenset(eos_token_ids)

    def continue_all(self, asks: Iterable[Ask]) -> Iterator[Continued]:
        """See `Continuer`. Raises `EndpointError`."""
        jobs = ((ask, self._continued(ask)) for ask in asks)
        for ask, answer in self.llm.endpoint.run(jobs):
            if isinstance(answer, RequestError):
                yield Continued(ask.key, error=str(answer))
            else:
                token_ids, ended = answer
                yield Continued(ask.key, token_ids, ended=ended)

    async def _continued(self, ask: Ask) -> tuple[list[int], bool]:
        """The draft and what follows, and whether the response ends there.

        A stop string may stop within a number, so it takes one request or several.
        """
        token_ids = [ask.draft]
        stop = () if ask.ends is None else ask.ends.endings[:MOST_STOPS]
        ended = ask.draft in self.eos_token_ids
        size = 1 if ended else ask.size(token_ids)
        while size is None:
            known = len(token_ids) - 1
            # Where only the next token tells whether the sentence has ended, it alone is asked for.
            in_doubt = ask.ends and ask.ends.length(ask.prefix_ids, token_ids, ask.length, known, more=False)
            room = 1 if in_doubt else ask.max_tokens - len(token_ids)
            told = await self.llm.complete([*ask.before, *token_ids], room, stop=stop)
            token_ids += told.token_ids
            # Without a token there is no going on: the context is full.
            size = ask.size(token_ids, known, more=bool(told.token_ids) and not told.ended)
            ended = told.ended
        return token_ids[:size], ended and size == len(token_ids)


@dataclass(frozen=True)
class ResponderOptions:
    """How responses are asked for."""

    max_tokens: int
    """Longest response."""
    sampling: SamplingParams = GREEDY
    """How tokens are drawn."""
    seed: int = 0
    """Fixes the noise, as far as the endpoint does."""
    prompts: PromptOptions | None = None
    """How questions become prompts; None as the tokenizer has it."""


class RemoteResponder:
    """Has an endpoint answer problems; traces as the engine's policy `llm` writes them, less what only an engine knows."""

    def __init__(self, llm: RemoteLLM, options: ResponderOptions) -> None:
        """Raises `OptionError` for sampling parameters that an endpoint does not have."""
        sampling_body(options.sampling)
        self.llm = llm
        self.options = options
        self.failed: dict[Key, str] = {}
        """Requests that got no response, and why: none of them is a trace, so the next run asks again."""

    def respond(self, requests: Iterable[RemoteRequest]) -> Iterator[Trace]:
        """Verified traces as they are done; what fails goes to `failed`. Raises `EndpointError`."""
        jobs = ((job, self._completed(*job)) for job in map(self._rendered, requests))
        for (request, prompt), answer in self.llm.endpoint.run(jobs):
            if isinstance(answer, RequestError):
                self.failed[request.key] = str(answer)
            else:
                yield self._trace(request, prompt, answer)

    def _rendered(self, request: RemoteRequest) -> tuple[RemoteRequest, Rendered]:
        return request, render(self.llm.tokenizer, request.task, request.problem, self.options.prompts)

    async def _completed(self, request: RemoteRequest, prompt: Rendered) -> Completed:
        # An endpoint has one number for what is a seed and a sample here.
        seed = derive_seed(self._seed(request), str(request.sample))
        return await self.llm.complete(prompt.ids, self.options.max_tokens, self.options.sampling, seed)

    def _seed(self, request: RemoteRequest) -> int:
        return derive_seed(self.options.seed, request.task.name, request.problem.problem_id)

    def _trace(self, request: RemoteRequest, prompt: Rendered, answer: Completed) -> Trace:
        text = self.llm.decode(answer.token_ids)
        correct = request.task.verify(request.problem, text)
        num_tokens = len(answer.token_ids)
        return Trace(
            task=request.task.name,
            problem_id=request.problem.problem_id,
            sample=request.sample,
            prompt=prompt.text,
            prompt_ids=prompt.ids,
            response_ids=answer.token_ids,
            text=text,
            finish_reason="stop" if answer.ended else "length",
            seed=self._seed(request),
            policy=LLMPolicy().reference,
            writer=[int(Writer.LLM)] * num_tokens,
            correct=correct,
            reward=float(correct),
            sampling={**vars(self.options.sampling), "max_tokens": self.options.max_tokens},
            # How the endpoint computed them is its own affair.
            ledger=Ledger(written=[0, num_tokens]).as_dict(),
        )


def sampling_body(sampling: SamplingParams) -> Body:
    """Sampling parameters as a request names them, all of them: an unnamed one would be the server's to choose.

    Raises `OptionError` for those that an endpoint does not have.
    """
    for name in HERE_ONLY:
        if getattr(sampling, name) not in (None, ()):
            raise OptionError(
                f"{name} is {getattr(sampling, name)}; a remote LLM does not know it, leave it out"
            )
    named = {name: value for name, value in vars(sampling).items() if name not in HERE_ONLY}
    bias = dict(named.pop("logit_bias"))
    # 0 keeps all tokens here, and in some servers none.
    body = named | {"top_k": sampling.top_k or -1}
    return body | {"logit_bias": {str(token): value for token, value in bias.items()}} if bias else body


def _are_ids(token_ids: object, vocab_size: int) -> TypeGuard[list[int]]:
    return isinstance(token_ids, list) and all(
        isinstance(token_id, int) and 0 <= token_id < vocab_size for token_id in token_ids
    )
