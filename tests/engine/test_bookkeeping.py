"""The scheduler, the cache books and the sequence, on a fake model: no weights, any interleaving."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import CONTEXT, VOCAB, FakeEngine, FakeRunner, reference_response
from navtoken.engine import EngineOptions, SamplingParams, State
from navtoken.policies import (
    KEEP,
    TO_LLM,
    Action,
    BasePolicy,
    Drafts,
    Verdict,
    Verdicts,
    Writer,
    Writes,
    make_policy,
)

request = st.fixed_dictionaries(
    {
        "prompt_ids": st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=8),
        "max_tokens": st.one_of(st.none(), st.integers(1, 20)),
        "seed": st.integers(0, 2**40),
        "sample": st.integers(0, 3),
        "sampling": st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 1.0]),
            top_p=st.sampled_from([0.7, 1.0]),
            frequency_penalty=st.sampled_from([0.0, 0.5]),
        ),
    }
)
options = st.builds(EngineOptions, max_rows=st.integers(1, 5), llm_min_rows=st.integers(1, 6))
probability = st.sampled_from([0.0, 0.15, 0.5, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(request, min_size=1, max_size=9), options, probability)
def test_a_response_depends_on_nothing_but_its_request(
    requests: list[dict], options: Any, share: float
) -> None:
    engine = FakeEngine(make_policy(f"random:{share}"), options)
    rows = [engine.add(**each) for each in requests]
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
    for row in rows:
        assert (row.response_ids, row.record.writer) == reference_response(row, share)


@settings(max_examples=60, deadline=None)
@given(st.lists(request, min_size=2, max_size=8), options, probability, st.data())
def test_aborts_forks_and_new_weights_at_any_time(
    requests: list[dict], options: Any, share: float, data: Any
) -> None:
    engine = FakeEngine(make_policy(f"random:{share}"), options)
    rows = [engine.add(**each) for each in requests]
    told: dict[int, list[int]] = {}
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                told.setdefault(event.sequence.sequence_id, []).append(event.token_id)
        engine.scheduler.check()
        row = data.draw(st.sampled_from(rows))
        action = data.draw(st.sampled_from(["nothing", "nothing", "abort", "fork", "reload"]))
        if action == "abort":
            engine.abort(row)
        elif action == "reload":
            engine.reload_weights()
        elif action == "fork" and len(rows) < 14 and len(row.token_ids) < CONTEXT - 2:
            added = data.draw(st.lists(st.integers(1, VOCAB - 1), max_size=2))
            rows.append(engine.fork(row, data.draw(st.integers(0, row.num_response)), added, max_tokens=6))
        engine.scheduler.check()
    for row in rows:
        response, writers = reference_response(row, share)
        assert row.state is State.FINISHED
        assert row.response_ids == (
            response if row.finish_reason != "abort" else response[: row.num_response]
        )
        assert row.record.writer == writers[: row.num_response]
        assert told.get(row.sequence_id, []) == row.response_ids


@settings(max_examples=30, deadline=None)
@given(st.lists(request, min_size=1, max_size=6), options, probability)
def test_the_ledger_counts_what_the_models_were_fed(requests: list[dict], options: Any, share: float) -> None:
    engine = FakeEngine(make_policy(f"random:{share}"), options)
    rows = [engine.add(**each) for each in requests]
    list(engine.run())
    for model in Writer:
        runner, count = engine.runners[model], engine.ledger.models[model]
        assert isinstance(runner, FakeRunner)
        assert count.tokens == runner.num_tokens == sum(row.ledger.models[model].tokens for row in rows)
        assert count.passes == runner.num_passes
        assert engine.ledger.written[model] == sum(row.record.writer.count(model) for row in rows)
    assert engine.ledger.discarded_drafts == engine.ledger.written[Writer.LLM]


def test_a_finished_row_leaves_at_once_and_a_waiting_one_takes_its_place() -> None:
    engine = FakeEngine(make_policy("slm"), EngineOptions(max_rows=2))
    short, long, waiting = (
        engine.add([1, index + 1], SamplingParams(ignore_eos=True), max_tokens=limit)
        for index, limit in enumerate((1, 9, 9))
    )
    engine.step()
    assert (short.state, long.state, waiting.state) == (State.FINISHED, State.READY, State.WAITING)
    engine.step()
    assert waiting.slot == 0
    assert waiting.num_response == 1


def test_the_llm_waits_for_as_many_rows_as_the_batching_rule_asks() -> None:
    engine = FakeEngine(make_policy("random:0.3"), EngineOptions(max_rows=8, llm_min_rows=3))
    for seed in range(8):
        engine.add([1, 2], SamplingParams(ignore_eos=True), max_tokens=20, seed=seed)
    sizes = []
    runner = engine.runners[Writer.LLM]
    forward = runner.forward
    runner.forward = lambda feeds, num: (
        sizes.append((len(feeds), len(engine.scheduler.running))),
        forward(feeds, num),
    )[1]  # type: ignore[method-assign]
    while engine.has_work:
        engine.step()
    assert sizes and all(parked >= 3 or parked == running for parked, running in sizes)


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
        return {"prompt": len(prompt_ids), "back": False}

    def next_writer(self, state: dict) -> Writer:
        return Writer.LLM if state["back"] is True else Writer.SLM

    def judge_drafts(self, drafts: Drafts) -> Verdicts:
        verdicts = []
        for state, position in zip(drafts.states, drafts.keys.position_B, strict=True):
            if position - state["prompt"] == 5 and state["back"] is False:
                state["back"] = True
                verdicts.append(Verdict(Action.ROLL_BACK, position=2))
            else:
                verdicts.append(KEEP)
        return Verdicts(verdicts)

    def judge_writes(self, writes: Writes) -> Verdicts:
        for state in writes.states:
            state["back"] = "done"
        return Verdicts([TO_LLM] * len(writes.states))


def test_roll_back_drops_tokens_from_sequence_caches_and_stream() -> None:
    engine = FakeEngine(Hindsight(), EngineOptions(max_rows=2))
    rows = [
        engine.add([1, 2, index + 3], SamplingParams(ignore_eos=True), max_tokens=9) for index in range(3)
    ]
    told: dict[int, list[int]] = {row.sequence_id: [] for row in rows}
    for event in engine.run():
        assert event.token_id is not None
        told[event.sequence.sequence_id].append(event.token_id)
        engine.scheduler.check()
    plain = FakeEngine(make_policy("slm"), EngineOptions())
    for row in rows:
        twin = plain.add(row.token_ids[:3], SamplingParams(ignore_eos=True), max_tokens=2)
        list(plain.run())
        assert row.response_ids[:2] == twin.response_ids
        assert row.record.writer == [0, 0, 1, 0, 0, 0, 0, 0, 0]
        assert told[row.sequence_id] == row.response_ids
        assert row.ledger.rolled_back_tokens == 3
        after = plain.add(row.token_ids[:6], SamplingParams(ignore_eos=True), max_tokens=6)
        list(plain.run())
        assert row.response_ids[3:] == after.response_ids


def test_replace_commits_the_policys_token() -> None:
    @dataclass(frozen=True)
    class Sevens(BasePolicy):
        reference: str = "sevens-test"

        def judge_drafts(self, drafts: Drafts) -> Verdicts:
            return Verdicts([Verdict(Action.REPLACE, token=7)] * len(drafts.states), p_divergent=[0.25])

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
            return Verdicts([KEEP] * len(drafts.states))

        def judge_writes(self, writes: Writes) -> Verdicts:
            return Verdicts([KEEP] * len(writes.states))

    engine = FakeEngine(Confused(), EngineOptions())
    engine.add([1], max_tokens=4)
    with pytest.raises(ValueError, match="never made"):
        engine.step()
