"""Two-model decoding: the SLM drafts, a policy judges every draft, the LLM writes what it is handed.

The core is synchronous and knows no text: `add`, `abort`, `step`, `fork`, `reload_weights`. Serving wraps it in a
thread; everything else calls it. Tokens stay as they were sampled: nothing is decoded and tokenised again.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import torch

from navtoken.checkpoints import ModelPair, check_prompt
from navtoken.engine.events import Event, Outbox
from navtoken.engine.evidence import BatchEvidence, gather_evidence
from navtoken.engine.ledger import Costs, Ledger
from navtoken.engine.options import DEFAULTS, GREEDY, EngineOptions, OptionError, SamplingParams
from navtoken.engine.runner import Extension, ModelRunner, Runner
from navtoken.engine.sampler import draw, noise_keys
from navtoken.engine.scheduler import Scheduler
from navtoken.engine.sequence import Sequence, State
from navtoken.policies import (
    Action,
    Drafts,
    NoiseKeys,
    Policy,
    PolicyError,
    Purpose,
    Verdict,
    Verdicts,
    Writer,
    Writes,
)


class Engine:
    """Decodes many sequences with a pair of models under one policy."""

    def __init__(self, pair: ModelPair, policy: Policy, options: EngineOptions = DEFAULTS) -> None:
        """Raises what `policy.check_ready` raises, e.g. for a share that is not calibrated yet."""
        policy.check_ready()
        self.pair = pair
        self.policy = policy
        self.options = options
        self.ledger = Ledger()
        self.costs = Costs(pair.slm.card, pair.llm.card, policy.router_parameters)
        self.scheduler = Scheduler(options)
        self.runners = self._make_runners()
        self.eos_token_ids = frozenset().union(*(pair[model].eos_token_ids for model in policy.models))
        self.outbox = Outbox()
        self._num_added = 0

    def add(
        self,
        prompt_ids: Seq[int],
        sampling: SamplingParams = GREEDY,
        max_tokens: int | None = None,
        seed: int = 0,
        sample: int = 0,
    ) -> Sequence:
        """Queue a request; `max_tokens` None decodes up to the context.

        Noise is keyed by (seed, sample, position, purpose): give different prompts different seeds (`derive_seed`).
        Raises `PromptTooLongError`, and `OptionError` for a prompt or limit that leaves nothing to do.
        """
        self._check_request(prompt_ids, max_tokens, seed)
        context = min(self.pair[model].card.context for model in self.policy.models)
        max_len = context if max_tokens is None else min(context, len(prompt_ids) + max_tokens)
        sequence = Sequence(
            sequence_id=self._num_added,
            token_ids=list(prompt_ids),
            prompt_len=len(prompt_ids),
            sampling=sampling,
            max_len=max_len,
            seed=seed,
            sample=sample,
            policy_state=self.policy.start(prompt_ids),
        )
        self._num_added += 1
        self.scheduler.add(sequence)
        return sequence

    def fork(
        self,
        sequence: Sequence,
        num_response: int | None = None,
        tokens: Seq[int] = (),
        sample: int | None = None,
        max_tokens: int | None = None,
    ) -> Sequence:
        """Queue a sequence whose prompt is another's prompt, its first `num_response` response tokens and `tokens`.

        What the other still has in its caches is copied, not computed again. Defaults: the whole response, nothing
        added, the next sample number.
        """
        shared = sequence.num_response if num_response is None else num_response
        if not 0 <= shared <= sequence.num_response:
            raise OptionError(
                f"num_response is {shared}; the sequence has {sequence.num_response} response tokens to share"
            )
        end = sequence.prompt_len + shared
        forked = self.add(
            [*sequence.token_ids[:end], *tokens],
            sequence.sampling,
            max_tokens,
            sequence.seed,
            sequence.sample + 1 if sample is None else sample,
        )
        forked.parent = sequence
        return forked

    def abort(self, sequence: Sequence) -> None:
        """End a sequence now; its last event comes with the next step. Finished ones stay as they are."""
        if sequence.state is not State.FINISHED:
            self._finish(sequence, "abort")

    def reload_weights(self) -> None:
        """Forget all cached prefixes and pending drafts: call after the models' weights changed in place."""
        for row in self.scheduler.running:
            row.cached_len = [0, 0]
            self._drop_draft(row)
            self._resume(row)

    @property
    def has_work(self) -> bool:
        """Is there anything left for `step` to do or to tell?"""
        return self.scheduler.has_work or bool(self.outbox.events)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Run each model at most once; returns the tokens that became final and the sequences that ended."""
        for row in self.scheduler.admit():
            self._copy_prefix(row)
            self._resume(row)
        if drafting := self.scheduler.ready():
            self._draft(drafting)
        if writing := self.scheduler.llm_batch():
            self._write(writing)
        return self.outbox.drain()

    def run(self) -> Iterator[Event]:
        """Step until nothing is left."""
        while self.has_work:
            yield from self.step()

    def _make_runners(self) -> tuple[Runner, Runner]:
        size = self.pair.vocab_size
        slm, llm = (ModelRunner(model, self.ledger, self.pair[model], size) for model in Writer)
        return slm, llm

    def _check_request(self, prompt_ids: Seq[int], max_tokens: int | None, seed: int) -> None:
        if not prompt_ids:
            raise OptionError(
                "the prompt has no tokens; give at least one (a beginning-of-sequence token, say)"
            )
        if not -(2**63) <= seed < 2**63:
            raise OptionError(f"seed is {seed}; give one of at most 64 bits")
        if max_tokens is not None and max_tokens < 1:
            raise OptionError(f"max_tokens is {max_tokens}; give at least 1, or None for up to the context")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self.pair.vocab_size:
            raise OptionError(
                f"the prompt has token ids from {min(prompt_ids)} to {max(prompt_ids)}, the pair's tokenizer only 0 to "
                f"{self.pair.vocab_size - 1}; encode it with the pair's tokenizer"
            )
        check_prompt(len(prompt_ids), [self.pair[model] for model in self.policy.models])

    def _copy_prefix(self, row: Sequence) -> None:
        parent, row.parent = row.parent, None
        if parent is None or parent.slot is None:
            return
        assert row.slot is not None
        shared = _common_prefix(parent.token_ids, row.token_ids)
        for model in self.policy.models:
            num_tokens = min(parent.cached_len[model], shared, len(row.token_ids) - 1)
            if num_tokens:
                self.runners[model].copy_slot(parent.slot, row.slot, num_tokens)
            row.cached_len[model] = num_tokens

    def _draft(self, rows: list[Sequence]) -> None:
        (logits_BV, hidden_BD), said, keys = self._ask(Writer.SLM, rows, Purpose.DRAFT)
        states = [row.policy_state for row in rows]
        drafts = Drafts(
            said.token_ids_B, logits_BV, said.logprobs_BV, hidden_BD, said.entropy_B, keys, states
        )
        self._apply(rows, self.policy.judge_drafts(drafts), Writer.SLM)

    def _write(self, rows: list[Sequence]) -> None:
        drafted = [row.draft.token_id if row.draft else -1 for row in rows]
        (_, hidden_BD), said, keys = self._ask(Writer.LLM, rows, Purpose.LLM_WRITE)
        states = [row.policy_state for row in rows]
        drafts_B = torch.tensor(drafted, device=said.token_ids_B.device)
        writes = Writes(said.token_ids_B, said.logprobs_BV, hidden_BD, said.entropy_B, drafts_B, keys, states)
        self._apply(rows, self.policy.judge_writes(writes), Writer.LLM)

    def _ask(
        self, model: Writer, rows: list[Sequence], purpose: Purpose
    ) -> tuple[Extension, BatchEvidence, NoiseKeys]:
        """Extend one model over rows and sample from it; what it said stays with each row until the token is decided."""
        extension = self.runners[model].extend(rows)
        keys = noise_keys(rows)
        token_ids_B = draw(extension.logits_NV, rows, keys, purpose)
        said = gather_evidence(extension.logits_NV, token_ids_B, self.options.num_alternatives)
        for row, evidence in zip(rows, said.per_row(), strict=True):
            row.evidence[model] = evidence
        return extension, said, keys

    def _apply(self, rows: list[Sequence], judged: Verdicts, model: Writer) -> None:
        for index, (row, verdict) in enumerate(zip(rows, judged.verdicts, strict=True)):
            if judged.p_divergent is not None:
                row.p_divergent = judged.p_divergent[index]
            if model is Writer.SLM and self.policy.router_parameters:
                self._count(row, "router_calls")
            self._carry_out(row, verdict, model)

    def _carry_out(self, row: Sequence, verdict: Verdict, model: Writer) -> None:
        """Do what the policy said about the token that `model` was run for."""
        if verdict.action is Action.LLM and model is Writer.SLM:
            row.state = State.PARKED
            return
        if row.draft and verdict.action is not Action.KEEP:
            self._count(row, "discarded_drafts")
        if verdict.action is Action.ROLL_BACK:
            self._roll_back(row, verdict.position)
        elif verdict.action is Action.REPLACE:
            self._commit(row, verdict.token, model)
        elif verdict.action is Action.LLM:
            written = row.evidence[Writer.LLM]
            assert written is not None
            self._commit(row, written.token_id, Writer.LLM)
        elif row.draft is None:
            raise PolicyError(f"policy '{self.policy.reference}' keeps a draft that the SLM never made")
        else:
            self._commit(row, row.draft.token_id, Writer.SLM)

    def _commit(self, row: Sequence, token_id: int, writer: Writer) -> None:
        row.commit(token_id, writer)
        for ledger in (self.ledger, row.ledger):
            ledger.written[writer] += 1
        if token_id in self.eos_token_ids and not row.sampling.ignore_eos:
            self._finish(row, "stop")
        elif len(row.token_ids) >= row.max_len:
            self._finish(row, "length")
        else:
            self.outbox.stream(row, row.num_response - self.policy.lookback)
            self._resume(row)

    def _roll_back(self, row: Sequence, num_response: int) -> None:
        for writer in row.record.writer[num_response:]:
            self._count(row, "rolled_back_tokens")
            for ledger in (self.ledger, row.ledger):
                ledger.written[writer] -= 1
        row.roll_back(num_response)
        self._resume(row)

    def _resume(self, row: Sequence) -> None:
        drafts_next = self.policy.next_writer(row.policy_state) is Writer.SLM
        row.state = State.READY if drafts_next else State.PARKED

    def _finish(self, row: Sequence, reason: str) -> None:
        self.scheduler.release(row)
        row.state, row.finish_reason, row.parent = State.FINISHED, reason, None
        self._drop_draft(row)
        self.outbox.finish(row)

    def _drop_draft(self, row: Sequence) -> None:
        if row.draft:
            self._count(row, "discarded_drafts")
        row.clear_evidence()

    def _count(self, row: Sequence, name: str) -> None:
        for ledger in (self.ledger, row.ledger):
            setattr(ledger, name, getattr(ledger, name) + 1)


def _common_prefix(a: Seq[int], b: Seq[int]) -> int:
    """How many first tokens two rows share."""
    shared = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        shared += 1
    return shared
