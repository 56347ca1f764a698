"""Hindsight in the engine: the two ends of its dial, what it takes back and what it keeps, and its costs."""

from collections.abc import Callable
from math import isnan, log
from pathlib import Path

import pytest
import torch

from fake_engine import CONTEXT, FakeEngine, FakePair, Reference, plain_probs, text_of
from navtoken.checkpoints import ModelPair
from navtoken.engine import Engine, EngineOptions, Event, SamplingParams, Sequence, State
from navtoken.policies import Policy, Writer, make_policy
from tiny_models import VOCAB_SIZE, near_pair, prompts, tiny_pair
from tiny_routers import tiny_router

GREEDY = SamplingParams(ignore_eos=True)
HOT = SamplingParams(temperature=0.9, top_p=0.95, ignore_eos=True)
PENALISED = SamplingParams(temperature=0.8, repetition_penalty=1.2, frequency_penalty=0.3, min_tokens=6)
SAMPLINGS = {"greedy": GREEDY, "hot": HOT, "penalised": PENALISED}

PLAIN_COLUMNS = ("writer", "entropy_slm", "logprob_slm", "p_divergent", "draft_ids", "top_ids")
"""What plain routing knows of every token; of the LLM hindsight knows more."""


def decode(
    pair: ModelPair, policy: str, sampling: SamplingParams, num: int = 6, tokens: int = 30
) -> list[Sequence]:
    engine = Engine(pair, make_policy(policy), EngineOptions(max_rows=4, num_alternatives=2))
    rows = [engine.add(prompt, sampling, tokens, seed=seed) for seed, prompt in enumerate(prompts(num))]
    list(engine.run())
    return rows


def texts(rows: list[Sequence]) -> list[list[int]]:
    return [row.response_ids for row in rows]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", ["random:0.3", "entropy:2", "margin:0.2"])
def test_without_doubt_it_is_plain_routing(rule: str, sampling: str) -> None:
    """Token for token and in all that is recorded, though every token was judged."""
    pair, (name, value) = near_pair("qwen3", 0.2), rule.split(":")
    plain = decode(pair, rule, SAMPLINGS[sampling])
    rows = decode(pair, f"hindsight:0,{name}={value}", SAMPLINGS[sampling])
    assert texts(rows) == texts(plain)
    for row, twin in zip(rows, plain, strict=True):
        assert 0 < row.llm_share < 1
        for column in PLAIN_COLUMNS:
            assert torch.tensor(getattr(row.record, column)).allclose(
                torch.tensor(getattr(twin.record, column)), equal_nan=True
            ), column
        assert row.ledger.rolled_back_tokens == 0
        assert row.ledger.accepted_drafts == row.ledger.judged_drafts == row.ledger.written[Writer.SLM]
        assert row.ledger.discarded_drafts == twin.ledger.discarded_drafts


def test_a_router_calls_the_llm(tmp_path: Path) -> None:
    """And its word on every draft is recorded and counted, those of tokens that were taken back too."""
    pair = tiny_pair()
    tiny_router(tmp_path, pair)
    plain = decode(pair, f"router:{tmp_path},threshold=0.6", HOT)
    policy = make_policy(f"hindsight:0,router={tmp_path},threshold=0.6")
    assert make_policy(policy.reference) == policy
    assert policy.reference.startswith(f"hindsight:0,router={tmp_path},threshold=0.6,weights=")
    rows = decode(pair, policy.reference, HOT)
    assert texts(rows) == texts(plain)
    for row, twin in zip(rows, plain, strict=True):
        assert row.record.p_divergent == pytest.approx(twin.record.p_divergent, abs=1e-5)
    doubting = decode(pair, policy.reference.replace("hindsight:0", "hindsight:0.1"), HOT)
    for row in (*rows, *doubting):
        assert row.ledger.router_calls == row.ledger.slm.head_tokens
        assert not any(isnan(each) for each in row.record.p_divergent)
    assert sum(row.ledger.rolled_back_tokens for row in doubting) > 10
    with pytest.raises(ValueError, match="trained for SLM"):
        Engine(tiny_pair("llama"), policy)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("base", ["every=1", "every=4", "random=0.3", "entropy=2,every=5"])
def test_in_doubt_of_everything_it_is_the_llm_alone(base: str, sampling: str) -> None:
    pair = near_pair("qwen3", 0.2)
    alone = decode(pair, "llm", SAMPLINGS[sampling])
    rows = decode(pair, f"hindsight:1.5,{base}", SAMPLINGS[sampling])
    assert texts(rows) == texts(alone)
    assert all(set(row.record.writer) == {Writer.LLM} for row in rows)
    assert all(row.ledger.accepted_drafts == 0 < row.ledger.rolled_back_tokens for row in rows)


@torch.no_grad()
def logprobs_of(pair: ModelPair, model: Writer, row: Sequence) -> torch.Tensor:
    """By a prefill of the whole response, (response tokens, V)."""
    logits = pair[model].model(torch.tensor([row.token_ids]), use_cache=False).logits[0, :, :VOCAB_SIZE]
    return logits.log_softmax(-1)[row.prompt_len - 1 : -1]


@pytest.mark.parametrize("sampling", ["greedy", "hot"])
def test_what_stays_is_probable_to_the_llm_and_what_goes_is_not(sampling: str) -> None:
    pair, eps = near_pair("llama", 0.1), 0.2
    rows = decode(pair, f"hindsight:{eps},every=4", SAMPLINGS[sampling], num=8)
    num_replaced = 0
    for row in rows:
        logprobs = logprobs_of(pair, Writer.LLM, row)
        of_tokens = logprobs.gather(1, torch.tensor(row.response_ids)[:, None])[:, 0]
        told = torch.tensor(row.record.logprob_llm, dtype=torch.float64)
        torch.testing.assert_close(told, of_tokens, atol=1e-9, rtol=0)
        for at, token in enumerate(row.record.tokens):
            if token.writer is Writer.SLM:
                assert of_tokens[at] >= log(eps)
            elif token.draft_id >= 0:
                assert logprobs[at, token.draft_id] < log(eps)
                assert not isnan(token.entropy_slm)
                num_replaced += 1
    assert num_replaced > 10
    assert sum(row.ledger.written[Writer.SLM] for row in rows) > 30


def test_what_is_recorded_of_the_slm_is_what_it_says_there() -> None:
    """Where the LLM wrote in place of a token that was taken back, nothing is known of the SLM but its entropy."""
    pair = near_pair("llama", 0.1)
    rows = decode(pair, "hindsight:0.2,random=0.3", HOT, num=8)
    num_unknown = 0
    for row in rows:
        logprobs = logprobs_of(pair, Writer.SLM, row)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        for at, token in enumerate(row.record.tokens):
            assert token.entropy_slm == pytest.approx(float(entropies[at]), abs=1e-9)
            if isnan(token.logprob_slm):
                assert token.writer is Writer.LLM
                num_unknown += 1
            else:
                assert token.logprob_slm == pytest.approx(float(logprobs[at, token.token_id]), abs=1e-9)
    assert 5 < num_unknown < sum(row.ledger.written[Writer.LLM] for row in rows) - 5


def test_every_token_of_a_finished_response_was_seen_by_the_llm() -> None:
    """However it ended."""
    ends = set()
    for seed in range(30):
        engine = FakeEngine(make_policy("hindsight:0.04,random=0.1"), EngineOptions())
        row = engine.add([1, 2, seed % 11 + 1], SamplingParams(1.0, stop=("ab",)), 7, seed=seed)
        list(engine.run())
        assert not any(isnan(token.entropy_llm) or isnan(token.logprob_llm) for token in row.record.tokens)
        ends.add((row.finish_reason, row.stop_string, row.record.tokens[-1].writer))
        for at, token in enumerate(row.record.tokens):
            seen = plain_probs(Writer.LLM, row.token_ids[: row.prompt_len + at])
            assert token.logprob_llm == pytest.approx(log(seen[token.token_id]))
            assert token.writer is Writer.LLM or seen[token.token_id] >= 0.04
    slms = {end[:2] for end in ends if end[2] is Writer.SLM}
    assert slms >= {("stop", None), ("stop", "ab"), ("length", None)}


def keep_the_llm_waiting(engine: FakeEngine) -> None:
    """A neighbour that never asks for it, so that rows can be seen while they wait."""
    engine.add([4, 5], GREEDY, 35, policy=make_policy("random:0"))


def test_an_end_that_the_llm_doubts_is_taken_back() -> None:
    """The SLM would end here; the LLM hardly."""
    found = 0
    for seed in range(40):
        engine = FakeEngine(make_policy("hindsight:0.05,every=8"), EngineOptions(max_rows=2, llm_min_rows=2))
        keep_the_llm_waiting(engine)
        row = engine.add([3, 4], SamplingParams(1.0), 12, seed=seed)
        ended = False
        while engine.has_work:
            engine.step()
            ended = ended or (row.state is State.PARKED and row.token_ids[-1] == 0)
        found += ended and row.finish_reason == "length"
        assert row.response_ids == Reference(row).response_ids
    assert found > 2


def test_provisional_tokens_are_not_told() -> None:
    engine = FakeEngine(make_policy("hindsight:0.08,random=0.15"), EngineOptions())
    row = engine.add([1, 2], GREEDY, max_tokens=25, text=True)
    told: list[Event] = []
    held = 0
    while engine.has_work:
        told += engine.step()
        engine.check()
        assert row.num_streamed == row.num_response - row.num_provisional == len(told)
        held = max(held, row.num_provisional)
    assert held > 3
    assert [event.token_id for event in told] == row.response_ids
    assert "".join(event.text for event in told) == text_of(row.response_ids)
    assert row.ledger.rolled_back_tokens > 0


def test_no_more_tokens_are_provisional_than_asked() -> None:
    engine = FakeEngine(make_policy("hindsight:0,entropy=100,every=3"), EngineOptions())
    row = engine.add([1, 2], GREEDY, max_tokens=16)
    while engine.has_work:
        engine.step()
        assert row.num_provisional <= 3
    assert row.record.writer == [0, 0, 0, 1] * 4


def test_responses_end_at_the_end_tokens_of_both_models() -> None:
    """They are not the LLM's own, as those of speculative decoding are."""
    pair = FakePair(slm_eos=(5,), llm_eos=(0,))
    ended = {}
    for policy in ("hindsight:0.01,every=3", "speculative:3"):
        engine = FakeEngine(make_policy(policy), EngineOptions(max_rows=40), pair=pair)
        rows = [engine.add([1, 2], SamplingParams(1.0), seed=seed) for seed in range(40)]
        list(engine.run())
        ended[policy] = {row.response_ids[-1] for row in rows if row.finish_reason == "stop"}
    assert list(ended.values()) == [{0, 5}, {0}]


def drafts_of(row: Sequence) -> int:
    """Tokens that the SLM has made: one at each place where its LM head was computed."""
    return row.ledger.slm.head_tokens


@pytest.mark.parametrize(
    "policy", ["hindsight:0.08,every=4", "hindsight:0.08,random=0.3", "hindsight:0,entropy=2.1"]
)
def test_every_draft_is_kept_discarded_or_taken_back(policy: str) -> None:
    engine = FakeEngine(make_policy(policy), EngineOptions(max_rows=6))
    rows = [engine.add([1, 2, seed % 9 + 1], HOT, 30, seed=seed) for seed in range(20)]
    list(engine.run())
    for row in rows:
        ledger = row.ledger
        assert drafts_of(row) == ledger.written[0] + ledger.rolled_back_tokens + ledger.discarded_drafts
        assert ledger.accepted_drafts == ledger.written[0]
        assert ledger.rolled_back_tokens == ledger.judged_drafts - ledger.accepted_drafts
        assert ledger.written == [row.record.writer.count(0), row.record.writer.count(1)]
        assert ledger.llm_passes_per_token == ledger.llm.row_passes / row.num_response
        made_in_vain = ledger.rolled_back_tokens + ledger.discarded_drafts
        assert ledger.discarded_per_token == made_in_vain / row.num_response
        # A pass writes a token, or ends the response.
        assert ledger.written[1] <= ledger.llm.row_passes <= ledger.written[1] + 1
        assert ledger.acceptance == ledger.accepted_drafts / ledger.judged_drafts
    assert sum(row.ledger.discarded_drafts > 0 for row in rows) == (0 if "every" in policy else 20)


def test_a_doubting_llm_runs_more_often_and_writes_more() -> None:
    pair = near_pair("llama", 0.3)
    rows = {eps: decode(pair, f"hindsight:{eps},every=8", GREEDY, num=3) for eps in (0, 0.05, 2)}
    shares = [sum(row.ledger.written[1] for row in each) for each in rows.values()]
    passes = [sum(row.ledger.llm.row_passes for row in each) for each in rows.values()]
    assert shares == sorted(set(shares))
    assert passes == sorted(set(passes))


MIXED = (
    "hindsight:0.1,every=3",
    "hindsight:0.1,entropy=2",
    "hindsight:0,random=0.3",
    "r-stitch:0.5",
    "speculative:3",
    "random:0.3",
    "llm",
    "slm",
)


def test_policies_do_not_mix() -> None:
    pair = near_pair("qwen3", 0.2)
    together = Engine(pair, make_policy("slm"), EngineOptions(max_rows=5, llm_min_rows=2))
    rows = [
        together.add(prompt, HOT, 25, seed=seed, policy=make_policy(MIXED[seed % len(MIXED)]))
        for seed, prompt in enumerate(prompts(8))
    ]
    list(together.run())
    for seed, (row, prompt) in enumerate(zip(rows, prompts(8), strict=True)):
        alone = Engine(pair, make_policy(MIXED[seed % len(MIXED)]))
        twin = alone.add(prompt, HOT, 25, seed=seed)
        list(alone.run())
        assert (row.response_ids, row.record.writer) == (twin.response_ids, twin.record.writer)


def drafting(row: Sequence) -> bool:
    """With provisional tokens, and a draft for which the LLM was called."""
    return row.num_provisional >= 2 and row.draft is not None


def at_its_end(row: Sequence) -> bool:
    return row.num_provisional >= 1 and row.state is State.PARKED and row.draft is None


@pytest.mark.parametrize("reached", [drafting, at_its_end])
@pytest.mark.parametrize("what", ["abort", "put back", "new weights", "fork"])
def test_whatever_happens_to_a_row_with_provisional_tokens(
    what: str, reached: Callable[[Sequence], bool]
) -> None:
    """Tokens that nobody judged are not in the response, and drafts that nobody used are counted."""
    num = 0
    for seed in range(20):
        engine = FakeEngine(
            make_policy("hindsight:0.06,random=0.2"), EngineOptions(max_rows=2, llm_min_rows=2)
        )
        keep_the_llm_waiting(engine)
        row = engine.add([1, 2, 3], HOT, 4 if reached is at_its_end else 12, seed=seed)
        while row.state is not State.FINISHED and not reached(row):
            engine.step()
        if row.state is State.FINISHED:
            continue
        num += 1
        others = act(engine, row, what)
        engine.check()
        list(engine.run())
        engine.check()
        for each in (row, *others):
            assert each.response_ids == Reference(each).response_ids[: each.num_response]
        assert (row.finish_reason == "abort") == (what == "abort")
        ledger = row.ledger
        assert (
            ledger.slm.head_tokens == ledger.written[0] + ledger.rolled_back_tokens + ledger.discarded_drafts
        )
    assert num >= 3


def act(engine: FakeEngine, row: Sequence, what: str) -> list[Sequence]:
    if what == "abort":
        engine.abort(row)
        assert row.num_provisional == 0 and row.draft is None
    elif what == "put back":
        engine.scheduler.put_back(row)
    elif what == "new weights":
        engine.reload_weights()
        assert row.num_provisional == 0 and row.draft is None
        assert row.policy_state.num_tokens == 0
    else:
        certain = row.num_response - row.num_provisional
        forked = engine.fork(row, max_tokens=6)
        assert forked.prompt_len == row.prompt_len + certain
        return [forked]
    return []


def test_forks_go_on_as_the_whole_would() -> None:
    pair = near_pair("llama")
    engine = Engine(pair, make_policy("hindsight:0.1,every=4"), EngineOptions(max_rows=8, block_size=8))
    parent = engine.add(prompts(1, shortest=20)[0], GREEDY, max_tokens=30, seed=7)
    cuts: list[Sequence] = []
    while engine.has_work:
        engine.step()
        if parent.num_provisional == 0 and 0 < parent.num_response < 20 and len(cuts) < 3:
            cuts.append(engine.fork(parent, sample=0, max_tokens=30 - parent.num_response))
    assert len(cuts) == 3
    assert all(cut.token_ids == parent.token_ids for cut in cuts)


def test_a_prompt_as_long_as_the_context_allows() -> None:
    engine = FakeEngine(make_policy("hindsight:0.5,every=8"), EngineOptions(prefill_chunk=3))
    row = engine.add([1 + index % 9 for index in range(CONTEXT - 3)], GREEDY)
    list(engine.run())
    assert (row.num_response, row.finish_reason) == (3, "length")
    assert row.response_ids == Reference(row).response_ids


def test_a_pair_of_random_models_agrees_with_the_slow_reference() -> None:
    """Hindsight written out over full forward passes."""
    pair, eps, every = tiny_pair("qwen2"), 0.05, 3
    for row in decode(pair, f"hindsight:{eps},every={every}", GREEDY, num=4):
        ids, writers = row.token_ids[: row.prompt_len], []
        while len(writers) < row.num_response:
            drafted = list(ids)
            for _ in range(min(every, row.num_response - len(writers))):
                drafted.append(int(next_logits(pair, Writer.SLM, drafted).argmax()))
            for draft in drafted[len(ids) :]:
                if next_logits(pair, Writer.LLM, ids).softmax(-1)[draft] < eps:
                    break
                ids, writers = [*ids, draft], [*writers, 0]
            if len(writers) < row.num_response:
                ids, writers = [*ids, int(next_logits(pair, Writer.LLM, ids).argmax())], [*writers, 1]
        assert (row.token_ids, row.record.writer) == (ids, writers)


@torch.no_grad()
def next_logits(pair: ModelPair, model: Writer, ids: list[int]) -> torch.Tensor:
    return pair[model].model(torch.tensor([ids]), use_cache=False).logits[0, -1, :VOCAB_SIZE]


def test_a_batch_of_one_kind_is_judged_as_one_policy() -> None:
    """Two policies made of one reference are one."""
    first, second = (make_policy("hindsight:0.1,entropy=2") for _ in range(2))
    assert first == second and hash(first) == hash(second)
    policies: set[Policy] = {
        first,
        make_policy("hindsight:0.1,entropy=3"),
        make_policy("hindsight:0.2,entropy=2"),
    }
    assert len(policies) == 3
