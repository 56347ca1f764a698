"""What callers need: text, stop strings, streams, policies per request, aborts at any time, temperature hooks, the fallback."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import exp, isnan, log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chi_square import p_value
from fake_engine import (
    CARD,
    CONTEXT,
    EOS,
    PIECES,
    VOCAB,
    FakeEngine,
    FakePair,
    FakeTokenizer,
    Reference,
    text_of,
)
from fake_requests import policy, request
from navtoken.checkpoints import load_pair
from navtoken.engine import Engine, EngineOptions, Event, SamplingParams, Sequence, State
from navtoken.engine.batching import BatchingRule
from navtoken.engine.options import OptionError
from navtoken.engine.text import TextStream
from navtoken.policies import Writer, make_policy
from tiny_models import VOCAB_SIZE, near_pair, prompts, tiny_pair

UNENDING = SamplingParams(ignore_eos=True)


def fake(name: str = "random:0.4", pair: FakePair | None = None, **options: Any) -> FakeEngine:
    return FakeEngine(make_policy(name), EngineOptions(**options), pair=pair)


def expected_text(row: Sequence) -> str:
    """The response's text, up to the stop string that ended it."""
    text = text_of(row.response_ids)
    if row.stop_string is None:
        return text
    known = len(text_of(row.response_ids[:-1]).rstrip("\ufffd"))
    return text[: text.find(row.stop_string, max(0, known - len(row.stop_string) + 1))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(request, policy), min_size=1, max_size=5))
def test_events_tell_the_text_of_each_response(requests: list[tuple[dict, str]]) -> None:
    engine = fake(max_rows=3)
    rows = [engine.add(**each, policy=make_policy(name), text=True) for each, name in requests]
    told = {row.sequence_id: "" for row in rows}
    for event in engine.run():
        told[event.sequence.sequence_id] += event.text
    for row in rows:
        assert told[row.sequence_id] == expected_text(row)
        assert row.stop_string is None or row.finish_reason == "stop"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, VOCAB - 1), max_size=30),
    st.lists(st.text("ab c\u00e9", min_size=1, max_size=5), max_size=3),
)
def test_a_text_stream_is_the_decoded_text_and_never_shows_the_start_of_a_stop_string(
    ids: list[int], stop: list[str]
) -> None:
    stream, shown = TextStream(FakeTokenizer(), stop), ""
    for index, token_id in enumerate(ids):
        shown += stream.push(token_id)
        whole = text_of(ids[: index + 1])
        assert whole.startswith(shown)
        known = len(text_of(ids[:index]).rstrip("\ufffd"))
        new = [at for each in stop if (at := whole.find(each, max(0, known - len(each) + 1))) >= 0]
        assert len(shown) <= min(new, default=len(whole)), "part of a stop string is shown"
        for each in stop:
            for size in range(1, len(each)):
                if whole.endswith(each[:size]):
                    assert len(shown) <= len(whole) - size, "what may become a stop string is shown"
    assert shown + stream.end() == text_of(ids)


def test_text_of_a_real_tokenizer_streams_as_it_decodes() -> None:
    tokenizer = load_pair().tokenizer
    text = "Let x = 3 \u00d7 4;\n\n so \u2014 na\u00efve \U0001f600! 123"
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token_id) for token_id in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces) + stream.end() == whole
    assert pieces.count("") < len(pieces) / 2, "it streams"


def test_events_carry_the_token_with_all_that_is_known_of_it() -> None:
    engine = Engine(near_pair("qwen3"), make_policy("random:0.5"), EngineOptions(num_alternatives=2))
    row = engine.add(prompts(1)[0], UNENDING, max_tokens=12, text=True)
    events = list(engine.run())
    assert [event.token for event in events] == row.record.tokens
    for event in events:
        token = event.token
        assert token is not None
        assert (event.token_id, event.writer) == (token.token_id, token.writer)
        assert len(token.top_ids) == len(token.top_logprobs) == 2
        known = token.logprob_llm if token.writer is Writer.LLM else token.logprob_slm
        assert known == pytest.approx(token.top_logprobs[0])
        assert token.draft_id >= 0
    decoded = engine.pair.tokenizer.decode(row.response_ids, skip_special_tokens=True)
    assert "".join(event.text for event in events) == decoded


@pytest.mark.parametrize("name", ["slm", "random:0.5", "speculative:1", "speculative:4"])
@pytest.mark.parametrize("stop", [("abc",), ("bab", "cc"), ("\u00e9",), ("a", " ")])
def test_stop_strings_end_a_response_across_token_borders(name: str, stop: tuple[str, ...]) -> None:
    engine = fake(name, max_rows=4)
    sampling = SamplingParams(temperature=1.0, stop=stop, ignore_eos=True)
    rows = [engine.add([1, 2], sampling, 30, seed=seed) for seed in range(12)]
    list(engine.run())
    stopped = [row for row in rows if row.finish_reason == "stop"]
    assert stopped
    for row in rows:
        whole, before = text_of(row.response_ids), text_of(row.response_ids[:-1])
        found = [each for each in stop if each in whole]
        assert not any(each in before for each in stop)
        assert (row.stop_string in found) if row in stopped else (not found and row.stop_string is None)
    across = [row for row in stopped if row.stop_string not in text_of(row.response_ids[-1:])]
    assert across or max(map(len, stop)) == 1


def test_stop_strings_count_from_min_tokens_on() -> None:
    sampling = SamplingParams(temperature=1.0, stop=("a", "b"), min_tokens=9, ignore_eos=True)
    engine = fake("slm")
    rows = [engine.add([1, 2], sampling, 30, seed=seed) for seed in range(8)]
    list(engine.run())
    assert all(row.num_response >= 9 for row in rows)
    assert any("a" in text_of(row.response_ids[:-1]) for row in rows)
    assert {row.finish_reason for row in rows} == {"stop"}


def test_the_first_stop_string_is_named() -> None:
    loud = SamplingParams(stop=("bc", "abc", "c"), logit_bias=((9, 100.0),))
    engine = fake("slm")
    row = engine.add([1], loud, text=True)
    events = list(engine.run())
    assert PIECES[9] == b"abc"
    assert (row.stop_string, [event.text for event in events]) == ("abc", [""])


def test_a_bias_moves_a_token_and_a_forbidden_one_never_comes() -> None:
    engine = fake(max_rows=9)
    pushed = engine.add([1], replace(UNENDING, logit_bias=((5, 50.0),)), 12)
    barred = [
        engine.add([1], replace(UNENDING, temperature=1.5, logit_bias=((5, -1e9), (6, -1e9))), 30, seed=seed)
        for seed in range(6)
    ]
    list(engine.run())
    assert pushed.response_ids == [5] * 12
    assert not {5, 6} & {token for row in barred for token in row.response_ids}
    with pytest.raises(OptionError, match=f"logit_bias has token ids from 1 to {VOCAB}"):
        engine.add([1], SamplingParams(logit_bias=((VOCAB, 1.0),)))


@pytest.mark.parametrize("name", ["llm", "random:0.5", "speculative:3"])
def test_no_end_comes_before_min_tokens_and_none_ends_where_ends_are_ignored(name: str) -> None:
    wishes = SamplingParams(temperature=1.0, logit_bias=((EOS, 4.0),))
    engine = fake(name, max_rows=9)
    plain, late, never = (
        [engine.add([1, 2], sampling, 20, seed=seed) for seed in range(6)]
        for sampling in (wishes, replace(wishes, min_tokens=7), replace(wishes, ignore_eos=True))
    )
    list(engine.run())
    assert min(row.num_response for row in plain) < 7
    assert all(EOS not in row.response_ids[:7] and row.num_response > 7 for row in late)
    assert any(row.finish_reason == "stop" for row in late)
    assert all(row.num_response == 20 and row.finish_reason == "length" for row in never)
    assert any(EOS in row.response_ids[:-1] for row in never)


def test_each_model_has_its_own_end_tokens() -> None:
    """Routed responses end with either model's; a single model's, and speculation's, with those of the one that decides."""
    pair = FakePair(slm_eos=(3,), llm_eos=(4,))
    engine = fake(max_rows=60, pair=pair)
    ends = {}
    for name in ("slm", "llm", "random:0.5", "speculative:3"):
        rows = [
            engine.add([1, 2], SamplingParams(1.0), 30, seed=seed, policy=make_policy(name))
            for seed in range(12)
        ]
        list(engine.run())
        ends[name] = {row.response_ids[-1] for row in rows if row.finish_reason == "stop"}
    assert ends == {"slm": {3}, "llm": {4}, "random:0.5": {3, 4}, "speculative:3": {4}}


def test_requests_bring_their_own_policies_and_thresholds() -> None:
    pair = tiny_pair("qwen3")
    names = ["entropy:0.5", "entropy:2", "llm", "slm", "margin:0.1", "llm-prob:0.3", "speculative:3", None]
    together = Engine(pair, make_policy("random:0.3"), EngineOptions(max_rows=5))
    rows = [
        together.add(prompt, UNENDING, 25, policy=name and make_policy(name))
        for name, prompt in zip(names, prompts(8), strict=True)
    ]
    list(together.run())
    for name, prompt, row in zip(names, prompts(8), rows, strict=True):
        alone = Engine(pair, make_policy(name or "random:0.3"))
        twin = alone.add(prompt, UNENDING, 25)
        list(alone.run())
        assert (row.response_ids, row.record.writer) == (twin.response_ids, twin.record.writer)
    assert 0 < rows[1].llm_share < rows[0].llm_share < 1


def test_a_request_with_a_policy_that_is_not_ready_is_refused() -> None:
    with pytest.raises(ValueError, match="no threshold yet"):
        fake().add([1], policy=make_policy("entropy,share=0.2"))


ABORTS: dict[str, tuple[str, Callable[[Sequence], bool]]] = {
    "waiting": ("slm", lambda row: row.state is State.WAITING),
    "in the middle of its prompt": ("slm", lambda row: 0 < row.cached_len[0] < row.prompt_len),
    "parked": ("random:0.5", lambda row: row.state is State.PARKED and row.draft is not None),
    "with provisional tokens": ("speculative:5", lambda row: row.num_provisional == 2),
    "in the middle of its prompt and provisional": (
        "speculative:2",
        lambda row: row.num_provisional == 2 and 0 < row.cached_len[1] < row.prompt_len,
    ),
    "ready": ("random:0.5", lambda row: row.state is State.READY and row.num_response == 3),
}


@pytest.mark.parametrize("when", ABORTS)
def test_a_request_can_be_aborted_at_any_time(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.engine.scheduler.SHORT", 2)
    name, reached = ABORTS[when]
    engine = fake(name, max_rows=2, prefill_chunk=3, llm_min_rows=2)
    # A neighbour that keeps the LLM waiting, so that rows stay parked for more than a step.
    others = [engine.add([4, 5], UNENDING, 30, seed=seed, policy=make_policy("slm")) for seed in range(2)]
    if when != "waiting":
        engine.abort(others.pop())
    row = engine.add(list(range(1, 12)), UNENDING, 20, text=True)
    told: list[Event] = []
    for _ in range(60):
        if reached(row):
            break
        told += [event for event in engine.step() if event.sequence is row]
    assert reached(row)
    engine.abort(row)
    engine.check()
    assert (row.state, row.finish_reason, row.tables) == (State.FINISHED, "abort", ([], []))
    told += [event for event in engine.run() if event.sequence is row]
    assert [event.finish_reason for event in told][-1:] == ["abort"]
    assert [event.token_id for event in told if event.token_id is not None] == row.response_ids
    assert "".join(event.text for event in told) == text_of(row.response_ids)
    assert row.response_ids == Reference(row).response_ids[: row.num_response]
    assert row.num_provisional == 0 and row.draft is None
    assert all(other.finish_reason == "length" for other in others)
    engine.check()


def test_new_weights_reach_rows_that_were_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft or a provisional token of the old weights must not survive in a row that waits."""
    for name in ("random:0.5", "speculative:6"):
        engine = FakeEngine(make_policy(name), EngineOptions(max_rows=2, llm_min_rows=2))
        rows = [engine.add([1, 2, seed], UNENDING, 20, seed=seed) for seed in (3, 4)]
        while not any(row.draft or row.num_provisional for row in rows):
            engine.step()
        for row in rows:
            engine.scheduler.put_back(row)
        engine.reload_weights()
        assert all(row.draft is None and row.num_provisional == 0 for row in rows)
        engine.check()
        list(engine.run())
        assert [row.response_ids for row in rows] == [Reference(row).response_ids for row in rows]


def test_reloading_keeps_a_policys_state() -> None:
    engine = fake("speculative:auto")
    row = engine.add([1, 2], UNENDING, 30)
    while row.num_response < 15 or not row.num_provisional:
        engine.step()
    state = row.policy_state
    assert len(state.probs) == row.num_provisional
    learnt = state.kept / state.judged
    engine.reload_weights()
    assert row.policy_state is state
    assert state.kept / state.judged == pytest.approx(learnt)
    assert not state.probs


def test_streams_of_two_requests_take_turns() -> None:
    engine = fake(max_rows=4)
    rows = [engine.add([1, 2, seed], UNENDING, 9, seed=seed, text=True) for seed in range(1, 4)]
    streams = [engine.stream(row) for row in rows[:2]]
    heard: list[list[Event]] = [[], []]
    # The second stream is asked for the first time when the first has stepped the engine already.
    for turn in (0, 0, 0, 1, 0, 1, 1):
        heard[turn].append(next(streams[turn]))
    for index, stream in enumerate(streams):
        heard[index] += list(stream)
        assert [event.token_id for event in heard[index]] == rows[index].response_ids
        assert heard[index][-1].finish_reason == "length"
        assert "".join(event.text for event in heard[index]) == text_of(rows[index].response_ids)
    list(engine.run())
    assert rows[2].finish_reason == "length"
    assert not engine._inboxes


def test_a_stream_ends_with_its_request_not_with_the_others() -> None:
    engine = fake(max_rows=4)
    short, long = (engine.add([1, 2], UNENDING, limit) for limit in (3, 30))
    assert [event.position for event in engine.stream(short)] == [0, 1, 2]
    assert 3 <= long.num_response < 10
    assert list(engine.stream(short)) == [], "it has been told"
    stream = engine.stream(long)
    assert next(stream).sequence is long
    stream.close()
    engine.abort(long)
    assert [event.finish_reason for event in engine.run()] == ["abort"]
    assert not engine._inboxes


def test_a_stream_of_an_aborted_request_tells_so() -> None:
    engine = fake("speculative:3")
    row, other = engine.add([1, 2], UNENDING, 30), engine.add([1, 3], UNENDING, 30)
    stream = engine.stream(row)
    first = next(stream)
    engine.abort(row)
    rest = list(stream)
    assert [event.token_id for event in (first, *rest) if event.token] == row.response_ids
    assert rest[-1].finish_reason == "abort"
    assert other.state is not State.FINISHED


def test_cache_bytes_are_those_of_blocks_in_use() -> None:
    engine = fake("slm", max_rows=3)
    engine.add([1] * 6, UNENDING, 9)
    engine.step()
    assert engine.cache_bytes() == (2 * engine.block_size * CARD.kv_bytes, 0)
    list(engine.run())
    assert engine.cache_bytes() == (0, 0)


# Temperature hooks


def hooked(hook: Any, name: str, sampling: SamplingParams, seed: int = 0) -> list[int]:
    engine = FakeEngine(make_policy(name), EngineOptions(), temperature_hook=hook)
    row = engine.add([1, 2], sampling, 25, seed=seed)
    list(engine.run())
    return row.response_ids


def always(temperature: float, entropy_M: Tensor, temperature_M: Tensor) -> Tensor:
    return torch.full_like(temperature_M, temperature)


@pytest.mark.parametrize("name", ["slm", "llm", "random:0.5", "speculative:3"])
def test_a_constant_hook_is_the_same_temperature_asked_for(name: str) -> None:
    for temperature in (0.0, 0.7, 1.6):
        asked = replace(UNENDING, temperature=temperature, top_p=0.9)
        expected = hooked(None, name, asked)
        for own in (0.0, 1.0):
            constant = replace(asked, temperature=own)
            assert hooked(partial(always, temperature), name, constant) == expected
        assert hooked(lambda entropy, t: t, name, asked) == expected


def test_a_hook_hears_the_entropy_of_the_model_that_draws() -> None:
    heard: list[tuple[list[float], list[float]]] = []

    def hook(entropy_M: Tensor, temperature_M: Tensor) -> Tensor:
        heard.append((entropy_M.tolist(), temperature_M.tolist()))
        assert entropy_M.dtype == temperature_M.dtype == torch.float64
        return temperature_M

    engine = FakeEngine(make_policy("random:0.5"), EngineOptions(llm_min_rows=1), temperature_hook=hook)
    row = engine.add([1, 2], replace(UNENDING, temperature=0.8), 12)
    list(engine.run())
    told = [entropy for entropies, _ in heard for entropy in entropies]
    record = row.record
    assert told == [
        each
        for slm, llm in zip(record.entropy_slm, record.entropy_llm, strict=True)
        for each in (slm, llm)
        if not isnan(each)
    ]
    assert {temperature for _, given in heard for temperature in given} == {0.8}


@pytest.mark.parametrize("name", ["slm", "speculative:2"])
def test_a_hook_draws_forking_tokens_hotter_than_others(name: str) -> None:
    """Greedy below an entropy, the given temperature above: distributions of the first two tokens."""
    prompt, bound, hot = [1, 2, 3], 2.13, 1.3
    model = Writer.LLM if name.startswith("spec") else Writer.SLM
    engine = FakeEngine(
        make_policy(name),
        EngineOptions(max_rows=1000),
        temperature_hook=lambda entropy, t: torch.where(entropy > bound, hot, 0.0).double(),
    )
    rows = engine.add_samples(5000, prompt, UNENDING, max_tokens=2)
    list(engine.run())
    reference = Reference(fake().add(prompt, replace(UNENDING, temperature=1.0), max_tokens=2))

    def expected(token_ids: list[int]) -> Tensor:
        plain = torch.from_numpy(reference.probs(model, token_ids))
        if torch.special.entr(plain).sum() <= bound:
            return torch.eye(VOCAB, dtype=torch.float64)[plain.argmax()]
        return (plain.log() / hot).softmax(-1)

    first = expected(prompt)
    second = torch.stack([expected([*prompt, token]) for token in range(VOCAB)])
    greedy = int((second.max(-1).values == 1).sum())
    assert 0 < greedy < VOCAB and first.max() < 1
    pairs = torch.tensor([row.response_ids for row in rows])
    counts = torch.zeros(VOCAB, VOCAB).double()
    counts.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(5000).double(), accumulate=True)
    assert p_value(counts, first[:, None] * second) > 1e-3


# The fallback to the LLM


class Clock:
    """Step times that make routing pay for one row and not for eight: the SLM's grow with its tokens, the LLM's do not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("navtoken.engine.batching.ASK_EVERY", 3)
        plain = BatchingRule.observe_pass

        def observe(rule: Any, model: Writer, num_tokens: int, seconds: float) -> None:
            plain(rule, model, num_tokens, 0.15 * num_tokens if model is Writer.SLM else 1.0)

        monkeypatch.setattr(BatchingRule, "observe_pass", observe)


def busy_then_calm(name: str, **options: Any) -> tuple[FakeEngine, list[Sequence]]:
    engine = fake(name, max_rows=8, **options)
    rows = [engine.add([1, 2, seed], UNENDING, 12, seed=seed) for seed in range(3, 10)]
    rows.append(engine.add([1, 2], UNENDING, CONTEXT, seed=99))
    list(engine.run())
    return engine, rows


def test_where_routing_does_not_pay_the_llm_writes_until_load_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    engine, rows = busy_then_calm("random:0.3", when_unprofitable="llm")
    assert engine.ledger.fallback_tokens == sum(row.ledger.fallback_tokens for row in rows) > 20
    long = rows[-1]
    alone = [token.draft_id < 0 for token in long.record.tokens]
    assert long.ledger.fallback_tokens == sum(alone)
    assert all(
        token.writer is Writer.LLM for token, by_llm in zip(long.record.tokens, alone, strict=True) if by_llm
    )
    assert not alone[0] and any(alone[2:12]), "routing is given up under load"
    assert not any(alone[-8:]), "and taken up again when load falls"
    assert not engine.rule.llm_writes_all
    assert 0 < sum(long.record.writer[-15:]) < 15
    engine.check()


def test_unasked_responses_do_not_depend_on_load(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    engine, rows = busy_then_calm("random:0.3")
    assert engine.ledger.fallback_tokens == 0
    assert [row.response_ids for row in rows] == [Reference(row).response_ids for row in rows]


@pytest.mark.parametrize("name", ["slm", "llm", "speculative:3"])
def test_policies_without_a_choice_have_no_fallback(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    engine, rows = busy_then_calm(name, when_unprofitable="llm")
    engine.rule.llm_writes_all = True
    row = engine.add([1, 2], UNENDING, 9)
    list(engine.run())
    assert engine.ledger.fallback_tokens == 0
    assert [each.response_ids for each in (*rows, row)] == [
        Reference(each).response_ids for each in (*rows, row)
    ]


def test_what_the_llm_writes_in_the_fallback_is_what_it_would_write_there() -> None:
    engine = fake("random:0", when_unprofitable="llm")
    engine.rule.llm_writes_all = True
    row = engine.add([1, 2], replace(UNENDING, temperature=1.0), 15, seed=4)
    twin = engine.add([1, 2], replace(UNENDING, temperature=1.0), 15, seed=4, policy=make_policy("llm"))
    list(engine.run())
    assert row.response_ids == twin.response_ids
    assert (row.ledger.fallback_tokens, twin.ledger.fallback_tokens) == (15, 0)
    assert engine.ledger.slm.passes == 0


def test_the_planned_batching_rule_changes_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    engine, rows = busy_then_calm("random:0.3", llm_min_rows="auto")
    assert engine.rule._auto_min_rows is not None, "the planner was asked"
    fixed, twins = busy_then_calm("random:0.3", llm_min_rows=1)
    assert [row.response_ids for row in rows] == [row.response_ids for row in twins]
    assert engine.ledger.llm.passes < fixed.ledger.llm.passes or engine.rule._auto_min_rows == 1


def test_entropies_and_logprobs_of_events_are_consistent() -> None:
    """A certain token has log-probability 0 and entropy 0; a uniform one log V."""
    engine = Engine(tiny_pair("llama"), make_policy("slm"), EngineOptions(num_alternatives=VOCAB_SIZE))
    row = engine.add(prompts(1)[0], UNENDING, 5)
    for event in engine.stream(row):
        token = event.token
        assert token is not None
        probs = [exp(each) for each in token.top_logprobs]
        assert sum(probs) == pytest.approx(1, abs=1e-6)
        assert token.entropy_slm == pytest.approx(-sum(p * log(p) for p in probs if p > 0), abs=1e-6)
