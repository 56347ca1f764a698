"""Compiled models say what they say uncompiled, and a machine or model that cannot be compiled for is told at once."""

import copy
from collections.abc import Iterator

import pytest
import torch

from navtoken.checkpoints import LoadedModel, ModelPair
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.engine.compiled import CompiledDecoder, _check_compiler
from navtoken.engine.options import OptionError
from navtoken.packed_linear import pack_linears
from navtoken.policies import make_policy
from tiny_models import prompts, tiny_model, tiny_pair

COMPILED = EngineOptions(torch_compile=True, llm_min_rows=1)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """What one test compiled must not spare another one the work."""
    torch._dynamo.reset()
    _check_compiler.cache_clear()
    yield
    torch._dynamo.reset()
    _check_compiler.cache_clear()


def decode(pair: ModelPair, options: EngineOptions, policy: str = "random:0.3") -> list[list[int]]:
    engine = Engine(pair, make_policy(policy), options)
    sampling = SamplingParams(1.0, ignore_eos=True)
    rows = [engine.add(ids, sampling, 12, seed=seed) for seed, ids in enumerate(prompts(3))]
    list(engine.run())
    return [row.response_ids for row in rows]


@pytest.mark.slow
def test_a_compiled_model_writes_the_same_tokens() -> None:
    """Prompts and single tokens, with a window and a soft-cap that the operation must be told."""
    pair = tiny_pair("gemma2")
    assert decode(pair, COMPILED, "slm") == decode(pair, EngineOptions(), "slm")


@pytest.mark.slow
def test_compiled_pairs_write_the_same_tokens() -> None:
    assert decode(tiny_pair(), COMPILED) == decode(tiny_pair(), EngineOptions(llm_min_rows=1))


@pytest.mark.slow
def test_packed_weights_stay_packed() -> None:
    plain = ModelPair(*(tiny_model("qwen3", seed, torch.bfloat16) for seed in (1, 2)))
    packed = copy.deepcopy(plain)
    num_packed = pack_linears(packed.slm.model) + pack_linears(packed.llm.model)
    if not num_packed:
        pytest.skip("this processor packs no bfloat16 weights")
    calls = count_products(packed.llm)
    compiled = decode(packed, COMPILED)
    assert sum(calls), "the compiled model multiplied by something else"
    assert [len(response) for response in compiled] == [12] * 3
    assert agreement(compiled, decode(packed, EngineOptions(llm_min_rows=1))) > 0.5


@pytest.mark.slow
def test_weights_changed_in_place_count() -> None:
    pair = ModelPair(tiny_model("qwen3", 1), tiny_model("qwen3", 2))
    engine = Engine(pair, make_policy("llm"), COMPILED)
    before = respond(engine)
    with torch.no_grad():
        for weight in pair.llm.model.model.parameters():
            if weight.dim() > 1:
                weight.copy_(weight.flip(0))
    engine.reload_weights()
    after = respond(engine)
    assert before != after
    assert after == respond(Engine(pair, make_policy("llm")))


@pytest.mark.slow
def test_lengths_of_rows_are_not_compiled_in() -> None:
    """One graph for single tokens and one for more, whatever rows and lengths there are."""
    torch._dynamo.utils.counters.clear()
    pair = ModelPair(tiny_model("qwen3", 1), tiny_model("qwen3", 2))
    engine = Engine(pair, make_policy("llm"), COMPILED)
    for num in (1, 3, 5):
        for ids in prompts(num, seed=num, longest=60):
            engine.add(ids, max_tokens=7)
        list(engine.run())
    trifle = 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - trifle == 2


def test_a_missing_compiler_is_told_when_the_engine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("no g++ found\nand a long story")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(OptionError, match="no g\\+\\+ found.*Install them"):
        Engine(tiny_pair(), make_policy("llm"), COMPILED)


def test_a_model_in_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("qwen3", 1)
    monkeypatch.setattr(loaded.model, "hf_device_map", {"": "cpu"}, raising=False)
    with pytest.raises(OptionError, match="lie whole on the CPU"):
        CompiledDecoder(loaded)


def respond(engine: Engine) -> list[int]:
    row = engine.add(prompts(1)[0], max_tokens=12)
    list(engine.run())
    return row.response_ids


def count_products(loaded: LoadedModel) -> list[int]:
    """Grows by a number each time that a packed layer multiplies."""
    calls: list[int] = []
    for module in loaded.model.modules():
        if type(module).__name__ == "PackedLinear":
            multiply = module._multiply
            module._multiply = lambda x, multiply=multiply: calls.append(len(x)) or multiply(x)
    return calls


def agreement(some: list[list[int]], others: list[list[int]]) -> float:
    pairs = [pair for each in zip(some, others, strict=True) for pair in zip(*each, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
