"""What a request may expect whatever else is decoded: it is served, whole, heard, and with noise of its own."""

import warnings

import psutil
import pytest
import torch

from fake_engine import FakeEngine
from navtoken.checkpoints import ModelPair
from navtoken.engine import EngineOptions, Prefix, SamplingParams
from navtoken.engine.budget import CPU_PART, GIB, cache_tokens
from navtoken.engine.options import OptionError
from navtoken.policies import Writer, make_policy
from tiny_models import CONTEXT, tiny_pair

UNENDING = SamplingParams(ignore_eos=True)


@pytest.mark.parametrize("name", ["llm", "random:0.3", "speculative:4"])
@pytest.mark.parametrize("min_rows", ["auto", 8])
def test_rows_that_never_wait_starve_nobody(name: str, min_rows: str | int) -> None:
    engine = FakeEngine(make_policy("slm"), EngineOptions(max_rows=8, llm_min_rows=min_rows))  # type: ignore[arg-type]
    routed = engine.add([3, 4], UNENDING, max_tokens=8, policy=make_policy(name))
    for step in range(60):
        if step % 2 == 0:
            engine.add([5, step % 7 + 2], UNENDING, max_tokens=6, seed=step)
        engine.step()
    assert routed.finish_reason == "length"


def test_a_row_waits_so_many_steps_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navtoken.engine.batching.MOST_WAIT", 10)
    engine = FakeEngine(make_policy("random:0"), EngineOptions(max_rows=4, llm_min_rows=4))
    asked = engine.add([3, 4], UNENDING, max_tokens=2, policy=make_policy("llm"))
    engine.add([5, 6], UNENDING, seed=1)
    for _ in range(9):
        engine.step()
    assert asked.num_response == 0
    engine.step()
    assert asked.num_response == 1


def test_events_of_other_requests_wait_for_whoever_asks_next() -> None:
    engine = FakeEngine(make_policy("slm"), EngineOptions())
    first, second, third = (engine.add([3, 4], UNENDING, max_tokens=4, seed=seed) for seed in range(3))
    assert len(list(engine.stream(first))) == 4
    assert [event.position for event in engine.stream(second)] == [0, 1, 2, 3]
    assert engine.has_work
    assert [event.sequence for event in engine.run()] == [third] * 4
    assert not engine.has_work


def test_a_response_is_never_cut_off_by_what_memory_is_free() -> None:
    engine = FakeEngine(make_policy("slm"), EngineOptions(), num_blocks=6, block_size=4)
    with pytest.raises(OptionError, match="may take 32 tokens, the KV caches hold 24; give more cache_gib"):
        engine.add([3, 4], max_tokens=30)
    with pytest.warns(UserWarning, match="end at 24 tokens"):
        row = engine.add([3, 4], UNENDING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.add([3, 4], UNENDING, max_tokens=22)
    list(engine.run())
    assert len(row.token_ids) == 24


def test_a_prefix_belongs_to_one_prompt() -> None:
    engine = FakeEngine(make_policy("slm"), EngineOptions())
    prefix = Prefix(3)
    engine.add([3, 4, 5], prefix=prefix)
    engine.add([3, 4, 5, 6], prefix=prefix)
    for other in ([3, 4, 6], [3, 4]):
        with pytest.raises(OptionError, match="does not begin with the 3 tokens"):
            engine.add(other, prefix=prefix)


def test_forks_share_no_noise_with_each_other_or_with_samples() -> None:
    engine = FakeEngine(make_policy("slm"), EngineOptions())
    hot = SamplingParams(temperature=1.5, ignore_eos=True)
    parent, other = engine.add_samples(2, [3, 4, 5], hot, max_tokens=12)
    forks = [engine.fork(parent, 0, max_tokens=12) for _ in range(3)]
    list(engine.run())
    assert len({tuple(row.response_ids) for row in (parent, other, *forks)}) == 5


def test_caches_take_half_of_what_is_free_and_no_more_than_rows_can_fill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = tiny_pair()
    per_token = pair.slm.card.kv_bytes + pair.llm.card.kv_bytes
    free = 1000 * per_token / CPU_PART
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    assert cache_tokens(pair, EngineOptions(max_rows=64)) == 1000
    assert cache_tokens(pair, EngineOptions(max_rows=2, block_size=8)) == 2 * (CONTEXT + 16)
    wanted = EngineOptions(max_rows=64, cache_gib=500 * per_token / GIB)
    assert cache_tokens(pair, wanted) == 500
    # One model in place of the pair needs one cache, if only one half of the pair runs.
    alone = ModelPair(pair.llm, pair.llm)
    own = EngineOptions(max_rows=64, cache_gib=500 * pair.llm.card.kv_bytes / GIB)
    assert [cache_tokens(alone, own, running) for running in ({Writer.LLM}, set(Writer))] == [500, 250]
    assert torch.device("cpu") == pair.slm.device
