"""R-Stitch in the engine: who has control, and its two ends."""

from math import isnan, log

import pytest

from fake_engine import VOCAB, FakeEngine
from navtoken.engine import CalibrationOptions, Engine, EngineOptions, SamplingParams, Sequence, calibrate
from navtoken.policies import Writer, make_policy
from tiny_models import near_pair, prompts, tiny_pair

GREEDY = SamplingParams(ignore_eos=True)
HOT = SamplingParams(temperature=0.9, ignore_eos=True)


def decode(policy: str, sampling: SamplingParams) -> list[Sequence]:
    engine = Engine(near_pair("llama", 0.2), make_policy(policy), EngineOptions(max_rows=3))
    rows = [engine.add(prompt, sampling, 25, seed=seed) for seed, prompt in enumerate(prompts(6))]
    list(engine.run())
    return rows


@pytest.mark.parametrize("sampling", [GREEDY, HOT])
@pytest.mark.parametrize(("policy", "alone"), [("r-stitch:1", "slm"), ("r-stitch:0", "llm")])
def test_its_ends_are_the_models_alone(policy: str, alone: str, sampling: SamplingParams) -> None:
    """No entropy is above the largest; each is above 0."""
    rows, twins = decode(policy, sampling), decode(alone, sampling)
    assert [row.response_ids for row in rows] == [row.response_ids for row in twins]
    assert [row.record.writer for row in rows] == [row.record.writer for row in twins]


def test_every_token_is_written_by_who_has_control() -> None:
    threshold, most = 0.85, 0.85 * log(VOCAB)
    engine = FakeEngine(make_policy(f"r-stitch:{threshold}"), EngineOptions(max_rows=3))
    rows = [engine.add([1, 2, seed % 9 + 1], HOT, 25, seed=seed) for seed in range(12)]
    list(engine.run())
    runs = taken_over = 0
    for row in rows:
        kept_control = False
        for token in row.record.tokens:
            drafted = not isnan(token.entropy_slm)
            assert drafted != kept_control, "the SLM drafts unless the LLM has control"
            if drafted:
                assert (token.writer is Writer.LLM) == (token.entropy_slm > most)
                taken_over += token.writer is Writer.LLM
            kept_control = token.writer is Writer.LLM and token.entropy_llm > most
            runs += kept_control
        assert row.ledger.discarded_drafts <= row.ledger.written[Writer.LLM]
        assert row.ledger.rolled_back_tokens == 0
    assert taken_over > 10 and runs > 10
    assert sum(row.ledger.discarded_drafts for row in rows) == taken_over


@pytest.mark.parametrize("sampling", [GREEDY, HOT])
def test_a_share_is_of_tokens(sampling: SamplingParams) -> None:
    """Half of the tokens, most of which the LLM writes because it has kept control."""
    pair, texts = tiny_pair("llama"), prompts(40)
    options = CalibrationOptions(max_tokens=30, max_iterations=8)
    policy = calibrate(make_policy("r-stitch,share=0.5"), pair, texts, sampling, options)
    engine = Engine(pair, policy)
    for seed, prompt in enumerate(texts):
        engine.add(prompt, sampling, 30, seed=seed)
    list(engine.run())
    assert engine.ledger.llm_share == pytest.approx(0.5, abs=0.03)
    assert engine.ledger.discarded_drafts < 0.8 * engine.ledger.written[Writer.LLM]
