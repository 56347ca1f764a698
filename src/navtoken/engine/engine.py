"""Two-model decoding: the SLM drafts, a policy judges every draft, the LLM writes what it is handed.

The core is synchronous: `add`, `abort`, `step`, `fork`, `reload_weights`. Serving wraps it in a thread; everything else
calls it. Tokens stay as they were sampled: nothing is decoded and tokenised again.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import count
from time import perf_counter

import torch
from torch import Tensor

from navtoken.checkpoints import ModelPair, check_prompt
from navtoken.engine.batching import BatchingRule
from navtoken.engine.budget import make_caches
from navtoken.engine.events import Event, Outbox
from navtoken.engine.judging import (
    Decision,
    Sampling,
    judge_drafts,
    judge_of,
    judge_provisional,
    judge_writes,
)
from navtoken.engine.kernel_choice import make_runners
from navtoken.engine.ledger import Costs, Ledger
from navtoken.engine.memory import Memory, Prefix
from navtoken.engine.options import DEFAULTS, GREEDY, EngineOptions, OptionError, SamplingParams
from navtoken.engine.outcomes import Outcomes
from navtoken.engine.runner import Extension, Runner
from navtoken.engine.sampler import TemperatureHook
from navtoken.engine.scheduler import Scheduler
from navtoken.engine.sequence import Sequence, State
from navtoken.engine.stopping import End
from navtoken.engine.text import TextStream
from navtoken.policies import Action, PairView, Policy, Writer

FIRST_FORK = 1 << 32
"""Sample numbers from here on are forks', so that they share no noise with samples of the same seed."""


class Engine:
    """Decodes many sequences with a pair of models under one policy, or one for each."""

    def __init__(
        self,
        pair: ModelPair,
        policy: Policy,
        options: EngineOptions = DEFAULTS,
        temperature_hook: TemperatureHook | None = None,
    ) -> None:
        """`temperature_hook` sets every token's temperature from its entropy.

        Raises what `policy.check_ready` raises, e.g. for a share that is not calibrated yet.
        """
        self.pair = pair
        self.policy = self._ready(policy)
        self.options = options
        self.ledger = Ledger()
        self.costs = Costs(pair.slm.card, pair.llm.card, policy.router_parameters)
        self._sampling = Sampling((), options.num_alternatives, temperature_hook)
        self.memory, self.runners = self._make_runners()
        self.scheduler = Scheduler(options, self.memory)
        self.rule = BatchingRule(options, ranks_must_agree=pair.shards > 1)
        self.outbox = Outbox()
        eos = (pair.slm.eos_token_ids, pair.llm.eos_token_ids)
        self.outcomes = Outcomes(self.scheduler, self.rule, self.outbox, self.ledger, pair.tokenizer, eos)
        self._inboxes: dict[Sequence, deque[Event]] = {}
        self._undelivered: list[Event] = []
        self._num_added = 0
        self._fork_numbers = count(FIRST_FORK)

    def add(
        self,
        prompt_ids: Seq[int],
        sampling: SamplingParams = GREEDY,
        max_tokens: int | None = None,
        seed: int = 0,
        sample: int = 0,
        policy: Policy | None = None,
        text: bool = False,
        prefix: Prefix | None = None,
        prefix_len: int | None = None,
    ) -> Sequence:
        """Queue a request; `max_tokens` None decodes up to the context, `policy` None takes the engine's.

        With `text`, events carry what becomes readable. Requests with one `prefix` share its computation and its
        memory; `prefix_len` is how many of its tokens this one begins with, None all: so requests fork off anywhere in
        a given text, and cost least where the one that has most of it is added first. Noise is keyed by (seed, sample, position, purpose): give different prompts different seeds
        (`derive_seed`). Raises `PromptTooLongError`, and `OptionError` for a prompt or limit that leaves nothing to do
        or that the KV caches cannot hold.
        """
        self._check_request(prompt_ids, sampling, max_tokens, seed)
        policy = self.policy if policy is None else self._ready(policy)
        # Of several routers the largest counts for all of them: an upper bound, as for bytes.
        if policy.router_parameters > self.costs.router_parameters:
            self.costs = replace(self.costs, router_parameters=policy.router_parameters)
        context = min(self.pair[model].card.context for model in policy.models)
        max_len = context if max_tokens is None else min(context, len(prompt_ids) + max_tokens)
        check_prompt(len(prompt_ids), [self.pair[model] for model in policy.models])
        self._check_capacity(len(prompt_ids), max_tokens, max_len)
        sequence = Sequence(
            sequence_id=self._num_added,
            token_ids=list(prompt_ids),
            prompt_len=len(prompt_ids),
            sampling=sampling,
            max_len=min(max_len, self.memory.capacity),
            seed=seed,
            sample=sample,
            policy=policy,
            policy_state=policy.start(prompt_ids),
            text=TextStream(self.pair.tokenizer, sampling.stop) if text else None,
        )
        self._num_added += 1
        if prefix is not None:
            self.memory.join(sequence, prefix, prefix_len)
        self.scheduler.add(sequence)
        return sequence

    def hold(self, prefix: Prefix) -> Prefix:
        """Keep what requests compute of a prefix, between requests too, until `let_go`; returns the prefix."""
        self.memory.hold(prefix)
        return prefix

    def let_go(self, prefix: Prefix) -> None:
        """Free a prefix that was held, once no request uses it."""
        self.memory.let_go(prefix)

    def add_samples(
        self,
        num: int,
        prompt_ids: Seq[int],
        sampling: SamplingParams = GREEDY,
        max_tokens: int | None = None,
        seed: int = 0,
        policy: Policy | None = None,
        text: bool = False,
    ) -> list[Sequence]:
        """Queue `num` samples of one prompt, which is computed and kept once: numbers 0 to `num` - 1 of the seed."""
        prefix = Prefix(len(prompt_ids))
        return [
            self.add(prompt_ids, sampling, max_tokens, seed, sample, policy, text, prefix)
            for sample in range(num)
        ]

    def fork(
        self,
        sequence: Sequence,
        num_response: int | None = None,
        tokens: Seq[int] = (),
        sample: int | None = None,
        max_tokens: int | None = None,
    ) -> Sequence:
        """Queue a sequence whose prompt is another's prompt, its first `num_response` response tokens and `tokens`.

        What the other has in its caches now is shared, not computed again, whatever becomes of the other. Defaults: the
        whole response but for what the LLM has still to judge, nothing added, a sample number of its own.
        """
        certain = sequence.num_response - sequence.num_provisional
        shared = certain if num_response is None else num_response
        if not 0 <= shared <= certain:
            raise OptionError(
                f"num_response is {shared}; the sequence has {certain} response tokens to share"
            )
        end = sequence.prompt_len + shared
        forked = self.add(
            [*sequence.token_ids[:end], *tokens],
            sequence.sampling,
            max_tokens,
            sequence.seed,
            next(self._fork_numbers) if sample is None else sample,
            sequence.policy,
            sequence.text is not None,
        )
        # Not before `add`: a request that it refuses must leave no block in use.
        self.memory.join(forked, self.memory.snapshot(sequence, end))
        return forked

    def abort(self, sequence: Sequence) -> None:
        """End a sequence now; its last event comes with the next step. Finished ones stay as they are."""
        if sequence.state is not State.FINISHED:
            self.outcomes.drop_provisional(sequence)
            self.outcomes.finish(sequence, End("abort"))

    def reload_weights(self) -> None:
        """Forget all cached keys and values and pending drafts: call after the models' weights changed in place."""
        self.memory.forget_prefixes()
        for row in [*self.scheduler.running, *self.scheduler.waiting]:
            self.outcomes.drop_provisional(row)
            self.outcomes.drop_draft(row)
            self.memory.release(row)
            if row.is_running:
                self.outcomes.resume(row)

    @property
    def has_work(self) -> bool:
        """Is there anything left for `step` to do or to tell?"""
        return self.scheduler.has_work or bool(self.outbox.events) or bool(self._undelivered)

    def step(self) -> list[Event]:
        """Run each model at most once; returns the tokens that became final and the sequences that ended.

        Events of streamed requests go to their streams.
        """
        self._advance()
        events, self._undelivered = self._undelivered, []
        return events

    @torch.inference_mode()
    def _advance(self) -> None:
        for row in self.scheduler.admit():
            self.outcomes.resume(row)
        if ready := self.scheduler.ready():
            self._draft(ready)
        parked = self.scheduler.parked()
        num_routed = sum(Writer.LLM in row.policy.models for row in self.scheduler.running)
        if self.rule.due(len(parked), num_routed):
            self._write(parked)
        self.rule.plan(num_routed)
        self._deliver(self.outbox.drain())

    def run(self) -> Iterator[Event]:
        """Step until nothing is left."""
        while self.has_work:
            yield from self.step()

    def stream(self, sequence: Sequence) -> Iterator[Event]:
        """One request's events from now on, stepping all requests as needed; several streams may take turns."""
        # Not in the generator: that starts with the first `next`, when another stream may have stepped already.
        inbox = self._inboxes.setdefault(sequence, deque())
        waiting, self._undelivered = self._undelivered, []
        self._deliver(waiting)
        return self._follow(sequence, inbox)

    def _follow(self, sequence: Sequence, inbox: deque[Event]) -> Iterator[Event]:
        try:
            while inbox or self.outbox.events or sequence.state is not State.FINISHED:
                if not inbox:
                    self._advance()
                    continue
                event = inbox.popleft()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._inboxes.pop(sequence, None)

    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of KV cache in use, SLM and LLM: blocks that rows or prefixes hold."""
        slm, llm = (
            pool.num_used * pool.block_size * self.pair[model].card.kv_bytes
            for model, pool in zip(Writer, self.memory.pools, strict=True)
        )
        return slm, llm

    def _make_runners(self) -> tuple[Memory, tuple[Runner, Runner]]:
        pools, caches = make_caches(self.pair, self.options, self.policy.models)
        return Memory(pools), make_runners(self.pair, self.ledger, caches, self._sampling, self.options)

    def _ready(self, policy: Policy) -> Policy:
        policy.check_ready()
        slm = self.pair.slm
        view = PairView(
            cost_ratio=slm.card.weight_bytes / self.pair.llm.card.weight_bytes,
            vocab_size=self.pair.vocab_size,
            slm_reference=slm.reference,
            slm_fingerprint=lambda: slm.fingerprint,
            slm_embedding=lambda: slm.model.get_input_embeddings(),
        )
        return policy.joined(view)

    def _check_request(
        self, prompt_ids: Seq[int], sampling: SamplingParams, max_tokens: int | None, seed: int
    ) -> None:
        if not prompt_ids:
            raise OptionError(
                "the prompt has no tokens; give at least one (a beginning-of-sequence token, say)"
            )
        if not -(2**63) <= seed < 2**63:
            raise OptionError(f"seed is {seed}; give one of at most 64 bits")
        if max_tokens is not None and max_tokens < 1:
            raise OptionError(f"max_tokens is {max_tokens}; give at least 1, or None for up to the context")
        named = [*prompt_ids, *(token for token, _ in sampling.logit_bias)]
        if not 0 <= min(named) <= max(named) < self.pair.vocab_size:
            raise OptionError(
                f"the prompt or logit_bias has token ids from {min(named)} to {max(named)}, the pair's tokenizer only 0 "
                f"to {self.pair.vocab_size - 1}; encode with the pair's tokenizer"
            )

    def _check_capacity(self, prompt_len: int, max_tokens: int | None, max_len: int) -> None:
        """A response is never cut off by what memory happens to be free: it is refused, or a person is told."""
        capacity = self.memory.capacity
        if prompt_len >= capacity or (max_tokens is not None and max_len > capacity):
            raise OptionError(
                f"prompt and response may take {max_len} tokens, the KV caches hold {capacity}; give more cache_gib, "
                "or fewer max_tokens"
            )
        if max_len > capacity:
            warnings.warn(
                f"responses end at {capacity} tokens, which the KV caches hold, not at the context of {max_len}; give "
                "more cache_gib, or max_tokens",
                stacklevel=3,
            )

    def _deliver(self, events: list[Event]) -> None:
        """Events of streamed requests go to their streams; the others wait for the next step."""
        for event in events:
            self._inboxes.get(event.sequence, self._undelivered).append(event)

    def _draft(self, ready: list[Sequence]) -> None:
        """The SLM proposes the next token of each row, and its policy decides."""
        started, fed = perf_counter(), self.ledger.slm.tokens
        parts = self._extend(Writer.SLM, ready)
        for policy, rows, extension in parts:
            decisions, logprobs_BV = judge_drafts(extension, rows, policy, self._sampling_of(rows))
            self._check_finite(decisions, Writer.SLM)
            _keep_logprobs(rows, decisions, logprobs_BV)
            for row, decision in zip(rows, decisions, strict=True):
                self.outcomes.carry_out(row, decision, Writer.SLM)
        self.rule.observe_drafts([row for _, rows, _ in parts for row in rows])
        self._observe(Writer.SLM, fed, started)

    def _write(self, parked: list[Sequence]) -> None:
        """The LLM writes the next token of each row, or judges what the SLM wrote, and its policy decides."""
        started, fed = perf_counter(), self.ledger.llm.tokens
        for policy, rows, extension in self._extend(Writer.LLM, parked):
            sampling = self._sampling_of(rows)
            if policy.verifies:
                decisions, judged = judge_provisional(extension, rows, policy, sampling)
                self._check_finite(decisions, Writer.LLM)
                for row, decision, tokens in zip(rows, decisions, judged, strict=True):
                    self.outcomes.settle(row, decision, tokens)
                continue
            decisions = judge_writes(extension, rows, policy, sampling)
            self._check_finite(decisions, Writer.LLM)
            for row, decision in zip(rows, decisions, strict=True):
                self.outcomes.carry_out(row, decision, Writer.LLM)
        self._observe(Writer.LLM, fed, started)

    def _extend(self, model: Writer, asked: list[Sequence]) -> list[tuple[Policy, list[Sequence], Extension]]:
        """Feed a model; returns the rows about which it has something to say now, by policy, and what it says."""
        dealt, copies = self.scheduler.secure(self.scheduler.deal(asked, model), model)
        if not dealt:
            return []
        extension = self.runners[model].extend(dealt, copies)
        for row, _ in dealt:
            self.memory.donate(row, model)
        return _by_policy([row for row, end in dealt if end == len(row.token_ids)], extension, model)

    def _sampling_of(self, rows: list[Sequence]) -> Sampling:
        """How to draw; only rows with `min_tokens` need to know the end tokens."""
        if any(row.sampling.min_tokens for row in rows):
            return replace(self._sampling, eos_token_ids=tuple(self.outcomes.eos_of(rows[0])))
        return self._sampling

    def _check_finite(self, decisions: list[Decision], model: Writer) -> None:
        num_bad = sum(decision.said.entropy != decision.said.entropy for decision in decisions)
        if num_bad:
            raise self.runners[model].refuse(num_bad, len(decisions))

    def _observe(self, model: Writer, fed_before: int, started: float) -> None:
        fed = self.ledger.models[model].tokens - fed_before
        if fed:
            self.rule.observe_pass(model, fed, perf_counter() - started)


def _by_policy(
    rows: list[Sequence], extension: Extension, model: Writer
) -> list[tuple[Policy, list[Sequence], Extension]]:
    """Rows that share a policy, with what was said about them."""
    policies = [judge_of(row) for row in rows]
    distinct = list(dict.fromkeys(policies))
    if len(distinct) == 1:
        return [(distinct[0], rows, extension)]
    places: dict[Policy, list[int]] = {policy: [] for policy in distinct}
    end = 0
    for row, policy in zip(rows, policies, strict=True):
        num_logits = 1 + (row.num_provisional if model is Writer.LLM else 0)
        places[policy] += range(end, end + num_logits)
        end += num_logits
    return [
        (
            policy,
            [row for row, judge in zip(rows, policies, strict=True) if judge == policy],
            Extension(extension.logits_MV[asked], extension.hidden_MD[asked]),
        )
        for policy, asked in places.items()
    ]


def _keep_logprobs(rows: list[Sequence], decisions: list[Decision], logprobs_BV: Tensor) -> None:
    """Keep what the SLM said where the LLM has the word."""
    asked = [index for index, decision in enumerate(decisions) if decision.action is Action.LLM]
    if asked:
        for index, logprobs_V in zip(asked, logprobs_BV[asked].unbind(), strict=True):
            rows[index].draft_logprobs_V = logprobs_V
