"""What a decision does to a row: commit, park, judge provisional tokens, roll back, end. No tensors but what rows keep."""

from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from navtoken.engine.batching import BatchingRule
from navtoken.engine.events import Outbox
from navtoken.engine.judging import Decision, JudgedToken
from navtoken.engine.ledger import Ledger
from navtoken.engine.scheduler import Scheduler
from navtoken.engine.sequence import Sequence, State, Written
from navtoken.engine.stopping import End, end_of
from navtoken.policies import Action, PolicyError, Writer


@dataclass(frozen=True)
class Outcomes:
    """Carries out decisions on the rows of one engine."""

    scheduler: Scheduler
    rule: BatchingRule
    outbox: Outbox
    ledger: Ledger
    tokenizer: Any
    eos_token_ids: tuple[frozenset[int], frozenset[int]]
    """Of each model."""

    def carry_out(self, row: Sequence, decision: Decision, model: Writer) -> None:
        """Do what the policy said about the token that `model` was run for."""
        action = decision.action
        if model is Writer.SLM:
            row.draft, row.p_divergent = decision.said, decision.p_divergent
            if not isnan(decision.p_divergent):
                self._count(row, "router_calls")
            if action is Action.LLM:
                row.state = State.PARKED
                return
        if action is Action.KEEP and row.draft is None:
            raise PolicyError(f"policy '{row.policy.reference}' keeps a draft that the SLM never made")
        if row.draft and action is not Action.KEEP:
            self._count(row, "discarded_drafts")
        if action is Action.ROLL_BACK:
            self._roll_back(row, row.num_response if decision.position < 0 else decision.position)
            row.feed_last()
            self.resume(row)
        else:
            writer = Writer.SLM if action is Action.KEEP else model
            self._commit(row, _written(row, decision, writer, model))

    def settle(self, row: Sequence, decision: Decision, judged: list[JudgedToken]) -> None:
        """Carry out the LLM's judgement of a row's provisional tokens: keep the first, then its own token.

        A draft behind them, for which the LLM was called, is discarded.
        """
        tokens, num_judged = row.record.tokens, row.num_provisional
        certain = row.num_response - num_judged
        num_kept = decision.position - certain
        for index, told in enumerate(judged[:num_kept], start=certain):
            tokens[index] = tokens[index]._replace(entropy_llm=told.entropy, logprob_llm=told.logprob)
        self._count(row, "verifications", min(1, num_judged))
        self._count(row, "judged_drafts", num_judged)
        self._count(row, "accepted_drafts", num_kept)
        row.policy.settle(row.policy_state, num_kept, num_judged)
        replaced = tokens[decision.position] if num_kept < num_judged else _proposed(row)
        self.drop_draft(row)
        self._roll_back(row, decision.position)
        row.num_provisional = 0
        for num_response in range(certain + 1, row.num_response + 1):
            if end := self._end(row, num_response):
                self._roll_back(row, num_response)
                self.finish(row, end)
                return
        self._commit(row, _replacing(decision, replaced))

    def resume(self, row: Sequence) -> None:
        """Let a row go on: with the model that its policy names, or the LLM where routing does not pay.

        A row that was put back goes on where it was: with the LLM, if a draft or its last token waits for that.
        """
        row.alone = self.rule.llm_writes_all and not row.policy.verifies and len(row.policy.models) == 2
        waits = row.draft is not None or (row.num_provisional and self._end(row, row.num_response))
        drafts_next = not row.alone and row.policy.next_writer(row.policy_state) is Writer.SLM
        row.state = State.READY if drafts_next and not waits else State.PARKED

    def finish(self, row: Sequence, end: End) -> None:
        self.scheduler.release(row)
        row.state, row.finish_reason, row.stop_string = State.FINISHED, end.reason, end.stop_string
        self.drop_draft(row)
        self.outbox.finish(row)

    def drop_draft(self, row: Sequence) -> None:
        if row.draft:
            self._count(row, "discarded_drafts")
        row.clear_draft()

    def drop_provisional(self, row: Sequence) -> None:
        """Take back what the LLM has not judged."""
        if row.num_provisional:
            num_response = row.num_response - row.num_provisional
            row.num_provisional = 0
            row.policy.settle(row.policy_state, 0, 0)
            self.drop_draft(row)
            self._roll_back(row, num_response)
            row.feed_last()

    def eos_of(self, row: Sequence) -> frozenset[int]:
        """Tokens that end a row's response; one that is the LLM's whoever wrote it ends as those of the LLM alone do."""
        if row.policy.lossless:
            return self.eos_token_ids[Writer.LLM]
        return frozenset().union(*(self.eos_token_ids[model] for model in row.policy.models))

    def _commit(self, row: Sequence, written: Written) -> None:
        row.commit(written)
        entropy = written.entropy_slm if written.writer is Writer.SLM else written.entropy_llm
        row.policy.committed(row.policy_state, written.token_id, written.writer, entropy)
        for ledger in (self.ledger, row.ledger):
            ledger.written[written.writer] += 1
        if row.alone:
            self._count(row, "fallback_tokens")
        end = self._end(row, row.num_response)
        if row.policy.verifies and written.writer is Writer.SLM:
            row.num_provisional += 1
            self.resume(row)
        elif end:
            self.finish(row, end)
        else:
            self.outbox.stream(row, row.num_response - (0 if row.policy.verifies else row.policy.lookback))
            self.resume(row)

    def _end(self, row: Sequence, num_response: int) -> End | None:
        return end_of(row, num_response, self.eos_of(row), self.tokenizer)

    def _roll_back(self, row: Sequence, num_response: int) -> None:
        for token in row.record.tokens[num_response:]:
            self._count(row, "rolled_back_tokens")
            for ledger in (self.ledger, row.ledger):
                ledger.written[token.writer] -= 1
        row.roll_back(num_response)

    def _count(self, row: Sequence, name: str, num: int = 1) -> None:
        for ledger in (self.ledger, row.ledger):
            setattr(ledger, name, getattr(ledger, name) + num)


def _written(row: Sequence, decision: Decision, writer: Writer, model: Writer) -> Written:
    draft = row.draft
    said = draft if writer is Writer.SLM and draft else decision.said
    return Written(
        token_id=decision.token_id,
        writer=writer,
        entropy_slm=draft.entropy if draft else nan,
        entropy_llm=decision.said.entropy if model is Writer.LLM else nan,
        logprob_slm=decision.logprob_slm,
        logprob_llm=decision.logprob_llm,
        p_divergent=row.p_divergent,
        draft_id=draft.token_id if draft else -1,
        top_ids=said.top_ids,
        top_logprobs=said.top_logprobs,
    )


def _proposed(row: Sequence) -> Written | None:
    """A row's draft, as the token that it would have become."""
    draft = row.draft
    if draft is None:
        return None
    return Written(draft.token_id, Writer.SLM, entropy_slm=draft.entropy, p_divergent=row.p_divergent)


def _replacing(decision: Decision, replaced: Written | None) -> Written:
    """The LLM's token after judged ones; `replaced` is what the SLM had for its place, if anything."""
    return Written(
        token_id=decision.token_id,
        writer=Writer.LLM,
        entropy_slm=replaced.entropy_slm if replaced else nan,
        entropy_llm=decision.said.entropy,
        logprob_slm=decision.logprob_slm,
        logprob_llm=decision.logprob_llm,
        p_divergent=replaced.p_divergent if replaced else nan,
        draft_id=replaced.token_id if replaced else -1,
        top_ids=decision.said.top_ids,
        top_logprobs=decision.said.top_logprobs,
    )
