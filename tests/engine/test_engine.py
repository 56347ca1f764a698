"""The engine's door: events, endings, errors, and calibration."""

import copy

import pytest
import torch

from navtoken.checkpoints import ModelPair, PromptTooLongError
from navtoken.engine import CalibrationOptions, Engine, EngineOptions, SamplingParams, calibrate
from navtoken.engine.options import OptionError
from navtoken.engine.runner import BadLogitsError
from navtoken.policies import PolicyError, ThresholdPolicy, UncalibratedError, Writer, make_policy
from tiny_models import CONTEXT, EOS, VOCAB_SIZE, prompts, tiny_model, tiny_pair


def test_events_tell_every_token_once_and_in_order() -> None:
    engine = Engine(tiny_pair("llama"), make_policy("random:0.3"), EngineOptions(max_rows=3))
    rows = [engine.add(prompt, max_tokens=15, seed=index) for index, prompt in enumerate(prompts(5))]
    events = list(engine.run())
    for row in rows:
        mine = [event for event in events if event.sequence is row]
        assert [event.token_id for event in mine] == row.response_ids
        assert [event.position for event in mine] == list(range(row.num_response))
        assert [event.writer for event in mine] == row.record.writer
        assert [event.finish_reason for event in mine] == [None] * (len(mine) - 1) + [row.finish_reason]


def test_finish_reasons() -> None:
    pair = tiny_pair("granite")
    engine = Engine(pair, make_policy("slm"))
    rows = [engine.add(prompt) for prompt in prompts(8)]
    unending = engine.add(prompts(1)[0], SamplingParams(ignore_eos=True))
    aborted = engine.add(prompts(1)[0], SamplingParams(ignore_eos=True))
    engine.step()
    engine.abort(aborted)
    last = [event for event in engine.step() if event.sequence is aborted]
    assert [(event.token_id, event.position, event.finish_reason) for event in last] == [(None, 1, "abort")]
    list(engine.run())
    assert {"stop"} <= {row.finish_reason for row in rows} <= {"stop", "length"}
    for row in rows:
        assert (row.response_ids[-1] == EOS) == (row.finish_reason == "stop")
        assert EOS not in row.response_ids[:-1]
    assert unending.finish_reason == "length"
    assert len(unending.token_ids) == CONTEXT
    engine.abort(unending)
    assert unending.finish_reason == "length"


def test_end_of_sequence_lists_of_the_generation_config_are_honoured() -> None:
    loaded = tiny_model("qwen2", seed=1)
    plain = Engine(ModelPair(loaded, loaded), make_policy("slm"))
    row = plain.add(prompts(1)[0], max_tokens=10)
    list(plain.run())
    loaded.model.generation_config.eos_token_id = [EOS, row.response_ids[3]]
    ended = Engine(ModelPair(loaded, loaded), make_policy("slm"))
    stopped = ended.add(prompts(1)[0], max_tokens=10)
    list(ended.run())
    assert stopped.finish_reason == "stop"
    assert stopped.response_ids == row.response_ids[: row.response_ids.index(row.response_ids[3]) + 1]


def test_padded_rows_of_the_head_are_never_written() -> None:
    loaded = tiny_model("llama", seed=4)
    with torch.no_grad():
        loaded.model.lm_head.weight[VOCAB_SIZE:] *= 100
    engine = Engine(ModelPair(loaded, loaded), make_policy("random:0.5"))
    row = engine.add(prompts(1)[0], SamplingParams(temperature=2.0, ignore_eos=True), max_tokens=30)
    list(engine.run())
    assert max(row.response_ids) < VOCAB_SIZE
    assert max(row.record.entropy_slm) <= torch.log(torch.tensor(float(VOCAB_SIZE)))


def test_sampling_parameters_are_honoured_for_both_models() -> None:
    pair = tiny_pair("qwen3")

    def response(sampling: SamplingParams) -> list[int]:
        engine = Engine(pair, make_policy("random:0.5"))
        row = engine.add(prompts(1)[0], sampling, max_tokens=40)
        list(engine.run())
        assert 10 < sum(row.record.writer) < 30
        return row.response_ids

    greedy = response(SamplingParams(ignore_eos=True))
    assert len(set(greedy)) < 40
    assert len(set(response(SamplingParams(presence_penalty=1e4, ignore_eos=True)))) == 40
    assert response(SamplingParams(temperature=3.0, top_k=1, ignore_eos=True)) == greedy
    assert response(SamplingParams(temperature=3.0, top_p=1e-6, ignore_eos=True)) == greedy
    assert response(SamplingParams(temperature=3.0, min_p=1.0, ignore_eos=True)) == greedy
    assert response(SamplingParams(temperature=3.0, ignore_eos=True)) != greedy


def test_a_prompt_without_room_for_a_response_is_refused() -> None:
    engine = Engine(tiny_pair(), make_policy("slm"))
    engine.add([5] * (CONTEXT - 1))
    with pytest.raises(PromptTooLongError, match=f"{CONTEXT} tokens.*shorten the prompt"):
        engine.add([5] * CONTEXT)


@pytest.mark.parametrize(
    ("prompt_ids", "max_tokens", "named"),
    [([], None, "no tokens"), ([5], 0, "max_tokens is 0"), ([VOCAB_SIZE], None, f"to {VOCAB_SIZE}")],
)
def test_requests_with_nothing_to_do_are_refused(
    prompt_ids: list[int], max_tokens: int | None, named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        Engine(tiny_pair(), make_policy("slm")).add(prompt_ids, max_tokens=max_tokens)


def test_a_fork_shares_no_more_than_there_is() -> None:
    engine = Engine(tiny_pair(), make_policy("slm"))
    row = engine.add([5, 6], max_tokens=9)
    engine.step()
    with pytest.raises(OptionError, match="num_response is 2.*1 response"):
        engine.fork(row, 2)


def test_tokens_that_the_llm_has_still_to_judge_cannot_be_forked() -> None:
    engine = Engine(tiny_pair(), make_policy("speculative:4"))
    row = engine.add([5, 6], SamplingParams(ignore_eos=True), max_tokens=30)
    while row.num_provisional < 2:
        engine.step()
    certain = row.num_response - row.num_provisional
    with pytest.raises(OptionError, match=f"the sequence has {certain} response tokens"):
        engine.fork(row, certain + 1)
    assert engine.fork(row).prompt_len == row.prompt_len + certain


def test_a_refused_fork_leaves_no_block_in_use() -> None:
    engine = Engine(tiny_pair(), make_policy("slm"))
    row = engine.add(prompts(1)[0], max_tokens=9)
    engine.step()
    for wrong in ({"tokens": [VOCAB_SIZE]}, {"max_tokens": 0}, {"tokens": [5] * CONTEXT}):
        with pytest.raises(ValueError):
            engine.fork(row, **wrong)  # type: ignore[arg-type]
    engine.abort(row)
    assert all(pool.num_used == 0 for pool in engine.memory.pools)


def with_room_for(num_tokens: int, block_size: int = 4) -> Engine:
    pair = tiny_pair("qwen3")
    cache_gib = num_tokens * (pair.slm.card.kv_bytes + pair.llm.card.kv_bytes) / 2**30
    return Engine(pair, make_policy("random:0.4"), EngineOptions(cache_gib=cache_gib, block_size=block_size))


def test_a_response_is_cut_off_where_the_caches_are_full() -> None:
    engine, unending = with_room_for(40), SamplingParams(ignore_eos=True)
    with pytest.warns(UserWarning, match="responses end at 40 tokens"):
        rows = [engine.add(prompt, unending, seed=index) for index, prompt in enumerate(prompts(4))]
    list(engine.run())
    assert [len(row.token_ids) for row in rows] == [40] * 4
    assert {row.finish_reason for row in rows} == {"length"}
    with pytest.raises(OptionError, match="the KV caches hold 40; give more cache_gib"):
        engine.add([5] * 41)


def test_a_budget_without_room_for_two_blocks_is_refused() -> None:
    with pytest.raises(OptionError, match="less than 2 blocks of 64; give more cache_gib"):
        with_room_for(100, block_size=64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_rows": 0},
        {"llm_min_rows": 0},
        {"prefill_chunk": 0},
        {"cache_gib": 0.0},
        {"block_size": 0},
        {"num_alternatives": -1},
    ],
)
def test_engine_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        EngineOptions(**wrong)


@pytest.mark.parametrize("name", ["llm", "random:1", "speculative:3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_name_the_model_and_the_remedy(name: str, temperature: float) -> None:
    pair = tiny_pair("qwen3")
    broken = copy.deepcopy(pair.llm)
    broken.model.model.norm.weight[0] = torch.nan
    engine = Engine(ModelPair(pair.slm, broken), make_policy(name))
    engine.add([3, 4, 5], SamplingParams(temperature))
    with pytest.raises(BadLogitsError, match=r"LLM 'tiny:qwen3-2' gave NaN.*--dtype float32"):
        for _ in range(4):
            engine.step()


def test_a_share_that_is_not_calibrated_is_refused() -> None:
    with pytest.raises(UncalibratedError, match=r"entropy,share=0.13.*calibrate"):
        Engine(tiny_pair(), make_policy("entropy,share=0.13"))


@pytest.mark.parametrize("name", ["entropy", "margin", "llm-prob"])
def test_calibration_meets_the_share_on_routed_runs(name: str) -> None:
    pair = tiny_pair("qwen3")
    sampling = SamplingParams(ignore_eos=True)
    options = CalibrationOptions(max_tokens=30, max_iterations=5, tolerance=0.01)
    policy = calibrate(make_policy(f"{name},share=0.2"), pair, prompts(24), sampling, options)
    engine = Engine(pair, policy)
    for prompt in prompts(24):
        engine.add(prompt, sampling, max_tokens=30)
    list(engine.run())
    assert abs(engine.ledger.llm_share - 0.2) < 0.03
    assert make_policy(policy.reference).reference == policy.reference


def test_calibration_follows_what_routing_does_to_the_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SLM's own responses have signals up to 1, routed ones up to 1.5: the first threshold is far off."""

    def run(policy: ThresholdPolicy, *_: object) -> tuple[float, torch.Tensor]:
        assert policy.threshold is not None
        signals = torch.linspace(0, 1 if policy.threshold == torch.inf else 1.5, 1000)
        return float((signals > policy.threshold).double().mean()), signals

    monkeypatch.setattr("navtoken.engine.calibration._routed_run", run)
    policy = calibrate(make_policy("entropy,share=0.2"), tiny_pair(), prompts(1))
    assert isinstance(policy, ThresholdPolicy)
    assert policy.threshold == pytest.approx(1.2, abs=0.01)


def test_calibration_leaves_other_policies_alone_and_needs_prompts() -> None:
    for name in ("slm", "random,share=0.13", "entropy:0.5"):
        policy = make_policy(name)
        assert calibrate(policy, tiny_pair(), []) is policy
    with pytest.raises(PolicyError, match="no prompts"):
        calibrate(make_policy("entropy,share=0.1"), tiny_pair(), [])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("entropy:1.5", lambda record: [h > 1.5 for h in record.entropy_slm]),
        ("llm-prob:0.2", None),
    ],
)
def test_thresholds_decide_who_writes(name: str, wanted: object) -> None:
    pair = tiny_pair("qwen2")
    engine = Engine(pair, make_policy(name), EngineOptions(num_alternatives=VOCAB_SIZE))
    row = engine.add(prompts(1)[0], SamplingParams(ignore_eos=True), max_tokens=60)
    list(engine.run())
    writers = row.record.writer
    assert 0 < sum(writers) < 60
    if callable(wanted):
        assert writers == [int(yes) for yes in wanted(row.record)]
        return
    assert engine.ledger.llm.passes == 60
    for index, writer in enumerate(writers):
        kept_prob = torch.tensor(row.record.logprob_llm[index]).exp()
        assert writer == Writer.LLM or (
            kept_prob >= 0.2 and row.response_ids[index] == row.record.draft_ids[index]
        )
