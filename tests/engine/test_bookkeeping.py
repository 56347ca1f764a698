"""The scheduler, the cache books and the sequence, on a fake model: no weights, any interleaving."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import BLOCK_SIZE, CONTEXT, VOCAB, FakeEngine, FakeRunner, Reference
from fake_requests import policy, request
from navtoken.engine import EngineOptions, SamplingParams, Sequence, State
from navtoken.policies import (
    Action,
    BasePolicy,
    Drafts,
    Verdicts,
    Writer,
    Writes,
    make_policy,
    route,
)

TIGHT = CONTEXT // BLOCK_SIZE + 1
"""Blocks that hold one row as long as the context, and little more."""

options = st.builds(
    EngineOptions,
    max_rows=st.integers(1, 5),
    llm_min_rows=st.one_of(st.just("auto"), st.integers(1, 6)),
    prefill_chunk=st.sampled_from([1, 3, 5, 2048]),
)
num_blocks = st.sampled_from([None, TIGHT, 2 * TIGHT])


@pytest.fixture(autouse=True)
def all_rows_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake context is short: even few tokens are fed in parts."""
    monkeypatch.setattr("navtoken.engine.scheduler.SHORT", 2)


def assert_as_alone(row: Sequence) -> None:
    """The row is what the reference decodes; of an aborted one, the part that there is."""
    reference = Reference(row)
    if row.finish_reason == "abort":
        assert row.response_ids == reference.response_ids[: row.num_response]
        assert row.record.writer == reference.writers[: row.num_response]
    else:
        assert row.response_ids == reference.response_ids
        assert row.record.writer == reference.writers
        assert row.finish_reason == reference.finish_reason
    assert row.state is State.FINISHED


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(request, policy), min_size=1, max_size=9), options, num_blocks)
def test_a_response_depends_on_nothing_but_its_request(
    requests: list[tuple[dict, str]], options: Any, num_blocks: int | None
) -> None:
    engine = FakeEngine(make_policy("slm"), options, num_blocks)
    rows = [engine.add(**each, policy=make_policy(name)) for each, name in requests]
    while engine.has_work:
        engine.step()
        engine.check()
    for row in rows:
        assert_as_alone(row)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(request, policy), min_size=2, max_size=8), options, num_blocks, st.data())
def test_aborts_forks_samples_and_new_weights_at_any_time(
    requests: list[tuple[dict, str]], options: Any, num_blocks: int | None, data: Any
) -> None:
    engine = FakeEngine(make_policy("slm"), options, num_blocks)
    rows = [engine.add(**each, policy=make_policy(name)) for each, name in requests]
    told: dict[int, list[int]] = {}
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                told.setdefault(event.sequence.sequence_id, []).append(event.token_id)
        engine.check()
        row = data.draw(st.sampled_from(rows))
        action = data.draw(st.sampled_from(["nothing", "nothing", "abort", "fork", "samples", "reload"]))
        certain = row.num_response - row.num_provisional
        if action == "abort":
            engine.abort(row)
        elif action == "reload" and all(each.policy.verifies is False for each in rows):
            engine.reload_weights()
        elif action == "fork" and len(rows) < 14 and row.prompt_len + certain < CONTEXT - 2:
            added = data.draw(st.lists(st.integers(1, VOCAB - 1), max_size=2))
            rows.append(engine.fork(row, data.draw(st.integers(0, certain)), added, max_tokens=6))
        elif action == "samples" and len(rows) < 14:
            rows += engine.add_samples(3, row.token_ids[: row.prompt_len], row.sampling, 6, policy=row.policy)
        engine.check()
    for row in rows:
        assert_as_alone(row)
        assert told.get(row.sequence_id, []) == row.response_ids


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(request, policy), min_size=1, max_size=6), options, num_blocks)
def test_the_ledger_counts_what_the_models_were_fed(
    requests: list[tuple[dict, str]], options: Any, num_blocks: int | None
) -> None:
    engine = FakeEngine(make_policy("slm"), options, num_blocks)
    rows = [engine.add(**each, policy=make_policy(name)) for each, name in requests]
    list(engine.run())
    for model in Writer:
        runner, count = engine.runners[model], engine.ledger.models[model]
        assert isinstance(runner, FakeRunner)
        assert count.tokens == runner.num_tokens == sum(row.ledger.models[model].tokens for row in rows)
        assert count.passes == runner.num_passes
        assert count.row_passes == sum(size for size, _ in runner.sizes)
        assert engine.ledger.written[model] == sum(row.record.writer.count(model) for row in rows)
    assert engine.ledger.llm.decode_tokens <= engine.ledger.llm.head_tokens
    routed = [row for row in rows if row.policy.reference.startswith("random")]
    for row in routed:
        assert row.ledger.discarded_drafts == row.ledger.written[Writer.LLM]
    for row in rows:
        if row.policy.verifies:
            judged = row.ledger.judged_drafts
            assert row.ledger.rolled_back_tokens >= judged - row.ledger.accepted_drafts


def test_a_finished_row_leaves_at_once_and_a_waiting_one_takes_its_place() -> None:
    engine = FakeEngine(make_policy("slm"), EngineOptions(max_rows=2))
    short, long, waiting = (
        engine.add([1, index + 1], SamplingParams(ignore_eos=True), max_tokens=limit)
        for index, limit in enumerate((1, 9, 9))
    )
    engine.step()
    assert (short.state, long.state, waiting.state) == (State.FINISHED, State.READY, State.WAITING)
    assert short.tables == ([], [])
    engine.step()
    assert waiting.is_running
    assert waiting.num_response == 1


def test_the_llm_waits_for_as_many_rows_as_the_batching_rule_asks() -> None:
    engine = FakeEngine(make_policy("random:0.3"), EngineOptions(max_rows=8, llm_min_rows=3))
    for seed in range(8):
        engine.add([1, 2], SamplingParams(ignore_eos=True), max_tokens=20, seed=seed)
    sizes = []
    runner = engine.runners[Writer.LLM]
    forward = runner.forward
    runner.forward = lambda feeds, copies: (  # type: ignore[method-assign]
        sizes.append((len(feeds), len(engine.scheduler.running))),
        forward(feeds, copies),
    )[1]
    while engine.has_work:
        engine.step()
    assert sizes and all(parked >= 3 or parked == running for parked, running in sizes)
    assert any(parked < running for parked, running in sizes)


def test_policy_llm_never_runs_the_slm_nor_slm_the_llm() -> None:
    for name, idle in (("llm", Writer.SLM), ("slm", Writer.LLM)):
        engine = FakeEngine(make_policy(name), EngineOptions())
        row = engine.add([3, 4], SamplingParams(ignore_eos=True), max_tokens=7)
        list(engine.run())
        assert engine.ledger.models[idle].passes == 0
        assert row.record.writer == [1 - idle] * 7


@dataclass(frozen=True)
class Hindsight(BasePolicy):
    """Once, when 5 tokens are there, takes back 3 of them and lets the LLM write one."""

    reference: str = "hindsight-test"
    lookback = 3

    def start(self, prompt_ids: Any) -> dict:
        return {"drafts": 0, "back": False}

    def next_writer(self, state: dict) -> Writer:
        return Writer.LLM if state["back"] is True else Writer.SLM

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        actions_B = torch.zeros_like(drafts.token_ids_B)
        for index, state in enumerate(drafts.states):
            state["drafts"] += 1
            if state["drafts"] == 6:
                state["back"] = True
                actions_B[index] = Action.ROLL_BACK
        return Verdicts(actions_B, positions_B=torch.full_like(actions_B, 2))

    def judge_writes(self, writes: Writes) -> Verdicts:
        for state in writes.states:
            state["back"] = "done"
        return super().judge_writes(writes)


def test_roll_back_drops_tokens_from_sequence_caches_and_stream() -> None:
    engine = FakeEngine(Hindsight(), EngineOptions(max_rows=2))
    rows = [
        engine.add([1, 2, index + 3], SamplingParams(ignore_eos=True), max_tokens=9) for index in range(3)
    ]
    told: dict[int, list[int]] = {row.sequence_id: [] for row in rows}
    for event in engine.run():
        assert event.token_id is not None
        told[event.sequence.sequence_id].append(event.token_id)
        engine.check()
    plain = FakeEngine(make_policy("slm"), EngineOptions())
    for row in rows:
        twin = plain.add(row.token_ids[:3], SamplingParams(ignore_eos=True), max_tokens=2)
        list(plain.run())
        assert row.response_ids[:2] == twin.response_ids
        assert row.record.writer == [0, 0, 1, 0, 0, 0, 0, 0, 0]
        assert told[row.sequence_id] == row.response_ids
        assert row.ledger.rolled_back_tokens == 3
        assert row.ledger.written == [8, 1]
        after = plain.add(row.token_ids[:6], SamplingParams(ignore_eos=True), max_tokens=6)
        list(plain.run())
        assert row.response_ids[3:] == after.response_ids


def test_the_model_that_took_tokens_back_goes_on_itself() -> None:
    """Its last token is fed once more: without it, it could not say what comes next."""

    @dataclass(frozen=True)
    class Again(Hindsight):
        def next_writer(self, state: dict) -> Writer:
            return Writer.SLM

    engine = FakeEngine(Again(), EngineOptions())
    row = engine.add([1, 2], SamplingParams(ignore_eos=True), max_tokens=9)
    twin = engine.add([1, 2], SamplingParams(ignore_eos=True), max_tokens=9, policy=make_policy("slm"))
    list(engine.run())
    assert row.ledger.rolled_back_tokens == 3
    assert row.response_ids == twin.response_ids
    assert row.ledger.slm.tokens == twin.ledger.slm.tokens + 3 + 1


def test_tokens_that_may_be_taken_back_are_not_told_yet() -> None:
    engine = FakeEngine(Hindsight(), EngineOptions(max_rows=2))
    row = engine.add([1, 2, 3], SamplingParams(ignore_eos=True), max_tokens=9)
    while row.num_response < 5:
        engine.step()
        assert row.num_streamed == max(0, row.num_response - 3)


def test_rolling_back_to_position_minus_one_drops_the_draft_only() -> None:
    @dataclass(frozen=True)
    class Hesitant(BasePolicy):
        """Rejects every draft once, and lets the LLM write that token."""

        reference: str = "hesitant-test"

        def start(self, prompt_ids: Any) -> dict:
            return {"llm": False}

        def next_writer(self, state: dict) -> Writer:
            return Writer(state["llm"])

        def judge_drafts(self, drafts: Drafts) -> Verdicts:
            for state in drafts.states:
                state["llm"] = True
            return Verdicts(
                torch.full_like(drafts.token_ids_B, int(Action.ROLL_BACK)),
                positions_B=-drafts.token_ids_B.pow(0),
            )

        def judge_writes(self, writes: Writes) -> Verdicts:
            for state in writes.states:
                state["llm"] = False
            return super().judge_writes(writes)

    engine = FakeEngine(Hesitant(), EngineOptions())
    row = engine.add([1, 2], SamplingParams(ignore_eos=True), max_tokens=5)
    list(engine.run())
    assert row.record.writer == [1] * 5
    assert row.ledger.discarded_drafts == 5
    assert row.ledger.rolled_back_tokens == 0


def test_replace_commits_the_policys_token() -> None:
    @dataclass(frozen=True)
    class Sevens(BasePolicy):
        reference: str = "sevens-test"

        def judge_drafts(self, drafts: Drafts) -> Verdicts:
            ids_B = drafts.token_ids_B
            return Verdicts(
                torch.full_like(ids_B, int(Action.REPLACE)),
                tokens_B=torch.full_like(ids_B, 7),
                p_divergent_B=torch.full(ids_B.shape, 0.25),
            )

    engine = FakeEngine(Sevens(), EngineOptions())
    row = engine.add([1], max_tokens=4)
    list(engine.run())
    assert row.response_ids == [7, 7, 7, 7]
    assert row.record.p_divergent == [0.25] * 4
    assert row.ledger.discarded_drafts == 4


def test_rolling_back_further_than_lookback_is_refused() -> None:
    @dataclass(frozen=True)
    class Greedy(Hindsight):
        lookback = 1

    engine = FakeEngine(Greedy(), EngineOptions())
    engine.add([1, 2], SamplingParams(ignore_eos=True), max_tokens=9)
    with pytest.raises(ValueError, match="lookback"):
        list(engine.run())


def test_keeping_a_draft_that_was_never_made_is_refused() -> None:
    @dataclass(frozen=True)
    class Confused(BasePolicy):
        reference: str = "confused-test"

        def next_writer(self, state: Any) -> Writer:
            return Writer.LLM

        def judge_drafts(self, drafts: Drafts) -> Verdicts:
            return route(drafts.token_ids_B < 0)

        def judge_writes(self, writes: Writes) -> Verdicts:
            return route(writes.token_ids_B < 0)

    engine = FakeEngine(Confused(), EngineOptions())
    engine.add([1], max_tokens=4)
    with pytest.raises(ValueError, match="never made"):
        engine.step()
