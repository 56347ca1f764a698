"""Everything that one server has: the pair, its policies, the engine's thread, and how a job is followed to its end."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import NamedTuple

import torch

from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, SamplingParams
from navtoken.policies import Policy, Writer
from navtoken.policies.rules import RandomPolicy
from navtoken.serving.answers import TokenUsage
from navtoken.serving.choices import Choice, Piece, Wanted
from navtoken.serving.engine_thread import EngineThread
from navtoken.serving.errors import ApiError, BadRequest, UnknownModel
from navtoken.serving.jobs import Ask, Heard, Job, News, Scored
from navtoken.serving.metrics import Metrics, Pace
from navtoken.serving.model_ids import model_ids
from navtoken.serving.offered import Offered
from navtoken.serving.options import ServerOptions
from navtoken.serving.prompt_scores import PromptScores, ScoredBy
from navtoken.serving.prompts import PromptMaker, room_for
from navtoken.serving.requests import Request
from navtoken.serving.sampling import model_defaults, sampling_of, seed_of
from navtoken.serving.thoughts import ThoughtSplitter, opens_thoughts, thinks
from navtoken.serving.token_texts import TokenTexts
from navtoken.serving.transcript import Transcript
from navtoken.tasks.prompts import Rendered


class Step(NamedTuple):
    """What of a job is heard at once."""

    pieces: list[tuple[Choice, Piece]]
    scores: list[PromptScores]
    """Of its prompts, once."""


@dataclass(eq=False)
class Server:
    """One pair behind one address."""

    pair: ModelPair
    offered: Offered
    options: ServerOptions
    examples: Seq[str] = ()
    """Questions for the page."""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.engine = EngineThread(self._make_engine, self.options.max_queue, self.options.stuck_seconds)
        self.metrics = Metrics(self.engine)
        self.prompts = PromptMaker(self.pair)
        self.texts = TokenTexts(self.pair.tokenizer)
        self.defaults = model_defaults(self.pair.llm)
        self.thinks = thinks(self.pair.tokenizer)
        self.scorers = {model: ScoredBy(self.pair[model], self.pair.vocab_size) for model in Writer}
        self.names: dict[str, str | None] = {self.options.name: None}
        """Models that may be asked, and their policies; None is the server's own."""
        ids = model_ids(self.options.name, self.pair.slm.reference, self.pair.llm.reference)
        self.ids = dict(zip(Writer, ids, strict=True))
        """Each model's own."""
        for name, policy in zip(ids, ("slm", "llm"), strict=True):
            self.names.setdefault(name, policy)

    @cached_property
    def fingerprint(self) -> str:
        """Of what a seed's response follows from, beside the request; not of the weights, which take minutes to read where they are large."""
        parts = [self.pair.slm.reference, self.pair.llm.reference, version("navtoken"), torch.__version__]
        parts += [str(each.model.dtype) for each in (self.pair.slm, self.pair.llm)]
        return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"

    async def close(self) -> None:
        """Finish what runs."""
        await self.engine.close(self.options.shutdown_seconds)
        self.prompts.close()

    def abort(self) -> None:
        """End what runs, without waiting."""
        self.engine.abort()
        self.prompts.close()

    def policy_of(self, request: Request, sampling: SamplingParams) -> Policy:
        """Who writes this request's tokens. Raises `UnknownModel` and `BadRequest`."""
        if request.model not in self.names:
            raise UnknownModel(request.model, self.names)
        named = self.names[request.model]
        if named is not None and request.policy is not None:
            raise BadRequest(
                f"model '{request.model}' is one model alone; ask '{self.options.name}' under a policy",
                "policy",
            )
        return self.offered.policy(request.policy or named, request.threshold, sampling)

    def job(
        self,
        request: Request,
        prompts: Seq[Rendered],
        max_tokens: int | None,
        wanted: Wanted,
        param: str,
        scored: bool = False,
    ) -> Job:
        """What a request asks of the engine. Raises `ApiError`s for what cannot be had."""
        if wanted.num_top > self.options.max_logprobs:
            raise BadRequest(
                f"this server tells at most {self.options.max_logprobs} alternatives (--max-logprobs)",
                "logprobs" if param == "prompt" else "top_logprobs",
            )
        sampling = sampling_of(request, self.defaults, self.pair.vocab_size)
        policy, seed, n = self.policy_of(request, sampling), seed_of(request), request.n or 1
        asks = []
        for index, prompt in enumerate(prompts):
            room = room_for(prompt.ids, max_tokens, policy, self.pair, self.engine.capacity, param)
            if room:
                asks += [
                    Ask(prompt.ids, sampling, room, seed, sample, policy, index, n > 1) for sample in range(n)
                ]
        model = Writer.LLM if Writer.LLM in policy.models else Writer.SLM
        return Job(
            asks,
            [prompt.ids for prompt in prompts] if scored else (),
            self.scorers[model] if scored else None,
            wanted.num_top,
        )

    def choices(self, job: Job, prompts: Seq[Rendered], wanted: Wanted, split: bool) -> list[Choice]:
        """Followers of a job's responses, in their order; `split` tells thoughts from the answer where the model has any."""
        return [
            Choice(
                index, ask, job, wanted, self.texts, self._splitter(prompts[ask.prompt]) if split else None
            )
            for index, ask in enumerate(job.asks)
        ]

    async def follow(self, job: Job, choices: Seq[Choice]) -> AsyncGenerator[Step, None]:
        """Listen to a job that was submitted: yields what is heard, step by step. Raises `ApiError`s."""
        paces = [Pace(self.metrics, job.submitted) for _ in choices]
        transcript = Transcript(job, len(choices)) if self.options.log_prompts else None
        try:
            while job.num_unfinished > 0 or not job.inbox.empty():
                step = Step([], [])
                for news in await _at_hand(job):
                    if isinstance(news, ApiError):
                        raise news
                    if isinstance(news, Scored):
                        step.scores.extend(news.prompts)
                        if not job.asks:
                            self._note_prompts(job.score_prompts)
                    else:
                        step.pieces.append(self._heard(news, choices, paces))
                        if transcript is not None:
                            transcript.add(*step.pieces[-1])
                yield step
        finally:
            if transcript is not None:
                transcript.write(self.texts.tokenizer)

    def usage(self, prompts: Seq[Rendered], choices: Seq[Choice]) -> TokenUsage:
        """Tokens of a request; a prompt with several responses counts once."""
        prompt = sum(len(each.ids) for each in prompts)
        response = sum(choice.num_tokens for choice in choices)
        return TokenUsage(prompt_tokens=prompt, completion_tokens=response, total_tokens=prompt + response)

    def _heard(self, news: Heard, choices: Seq[Choice], paces: Seq[Pace]) -> tuple[Choice, Piece]:
        choice = choices[news.choice]
        if news.event.token is not None:
            paces[news.choice].token()
        piece = choice.hear(news.event)
        if piece.finish_reason is not None:
            self._note_end(choice, piece.finish_reason)
        return choice, piece

    def _note_end(self, choice: Choice, reason: str) -> None:
        metrics, ask, job = self.metrics, choice.ask, choice.job
        metrics.successes.labels(reason).inc()
        metrics.generation_tokens.inc(choice.num_tokens)
        metrics.response_length.observe(choice.num_tokens)
        metrics.whole.observe(time.monotonic() - job.submitted)
        metrics.queued.observe((job.started or job.submitted) - job.submitted)
        if ask.sample == 0:
            self._note_prompts([ask.prompt_ids])
        if choice.row is not None:
            metrics.share.observe(choice.row.llm_share)

    def _note_prompts(self, prompts: Seq[Seq[int]]) -> None:
        for token_ids in prompts:
            self.metrics.prompt_tokens.inc(len(token_ids))
            self.metrics.prompt_length.observe(len(token_ids))

    def _splitter(self, prompt: Rendered) -> ThoughtSplitter | None:
        return ThoughtSplitter(opens_thoughts(prompt.text)) if self.thinks else None

    def _make_engine(self) -> Engine:
        served = self.offered.served
        # Requests bring policies of their own: caches are needed for both models unless there is but one.
        alone = self.pair.slm is self.pair.llm
        return Engine(self.pair, served if alone else RandomPolicy(0.0), self.options.engine_options)


async def _at_hand(job: Job) -> list[News]:
    """All that was heard by now; waits for the first."""
    news = [await job.inbox.get()]
    while True:
        try:
            news.append(job.inbox.get_nowait())
        except asyncio.QueueEmpty:
            return news
