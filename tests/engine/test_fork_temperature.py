"""Forking tokens at one temperature and the others at another, under every policy; `test_graphs` has captured passes."""

from dataclasses import replace
from functools import partial
from math import inf, nan
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chi_square import p_value
from fake_engine import VOCAB, FakeEngine, Reference
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.engine.dice import Dials, Steps, dial_values
from navtoken.engine.fork_temperature import fork_temperatures
from navtoken.engine.options import OptionError
from navtoken.engine.sampler import Draw, Places
from navtoken.engine.sequence import Sequence
from navtoken.generation import GenerateOptions, generate
from navtoken.policies import Purpose, Writer, make_policy
from navtoken.trace import TraceError, read_traces
from small_runs import few
from tiny_models import prompts, tiny_pair

THRESHOLD = 2.13
"""Nats that about half of the fake models' tokens exceed."""
RULES = {
    "hot forks": SamplingParams(1.0, fork_threshold=THRESHOLD, fork_temperature=1.8, ignore_eos=True),
    "greedy forks": SamplingParams(1.3, fork_threshold=THRESHOLD, fork_temperature=0.0, ignore_eos=True),
    "greedy others": SamplingParams(0.0, fork_threshold=THRESHOLD, fork_temperature=1.5, ignore_eos=True),
}
POLICIES = ("slm", "llm", "random:0.5", "speculative:3", "r-stitch:0.85", "hindsight:0.05,random=0.3")


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_only_entropies_above_the_threshold_fork() -> None:
    entropy_M = doubles(0.0, 0.5, 0.500001, 3.0, nan, 3.0)
    threshold_M = doubles(0.5, 0.5, 0.5, 0.5, 0.5, inf)
    heard = fork_temperatures(entropy_M, threshold_M, doubles(2.0).expand(6), doubles(0.3).expand(6))
    assert heard.tolist() == [0.3, 0.3, 2.0, 2.0, 0.3, 0.3]


def test_dials_of_rows_with_and_without_a_rule() -> None:
    params = [RULES["hot forks"], SamplingParams(0.7), RULES["greedy others"], SamplingParams()]
    dials = Dials(torch.tensor(dial_values(params, 9), dtype=torch.float64), Steps.of(params, 9))
    assert (dials.steps.hot, dials.steps.cold, dials.steps.forks) == (True, True, True)
    assert dials.at(doubles(3, 3, 3, 3)).temperature_M.tolist() == [1.8, 0.7, 1.5, 0.0]
    assert dials.at(doubles(1, 1, 1, 1)).temperature_M.tolist() == [1.0, 0.7, 0.0, 0.0]
    plain = Dials(dials.values_6M[:, 1:2], Steps.of(params[1:2], 9))
    assert not plain.steps.forks and plain.at(None) is plain


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("policy", POLICIES)
def test_responses_are_those_of_the_obvious_decoder(policy: str, name: str) -> None:
    """Token by token, whatever the batch; rows with and without a rule decode together."""
    engine = FakeEngine(make_policy(policy), EngineOptions(max_rows=4))
    asked = [RULES[name], replace(RULES[name], fork_threshold=None, fork_temperature=None)]
    rows = [engine.add([1, 2 + seed], asked[seed % 2], 25, seed=seed) for seed in range(10)]
    list(engine.run())
    for row in rows:
        reference = Reference(row)
        assert (row.response_ids, row.record.writer) == (reference.response_ids, reference.writers)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_rule_changes_what_is_written(policy: str) -> None:
    def responses(sampling: SamplingParams) -> list[list[int]]:
        engine = FakeEngine(make_policy(policy), EngineOptions())
        rows = [engine.add([1, 2, 3], sampling, 25, seed=seed) for seed in range(5)]
        list(engine.run())
        return [row.response_ids for row in rows]

    plain = SamplingParams(1.0, ignore_eos=True)
    ruled = partial(replace, plain, fork_threshold=THRESHOLD)
    assert responses(ruled(fork_temperature=1.0)) == responses(plain)
    different = [responses(ruled(fork_temperature=hot)) for hot in (0.0, 2.5)]
    assert responses(plain) not in different and different[0] != different[1]
    everything = ruled(fork_threshold=1e-9, fork_temperature=1.6)
    assert responses(everything) == responses(replace(plain, temperature=1.6))


@pytest.mark.parametrize("name", RULES)
def test_greedy_tokens_are_argmaxes(name: str) -> None:
    """On a model: which side a token is on is told by the entropy that its trace records."""
    pair, ruled = tiny_pair(), replace(RULES[name], fork_threshold=1.5)
    engine = Engine(pair, make_policy("slm"), EngineOptions(num_alternatives=1))
    rows = [engine.add(prompt, ruled, 40, seed=seed) for seed, prompt in enumerate(prompts(6))]
    list(engine.run())
    entropies = torch.tensor([each for row in rows for each in row.record.entropy_slm])
    tokens = torch.tensor([each for row in rows for each in row.response_ids])
    best = torch.tensor([top[0] for row in rows for top in row.record.top_ids])
    assert 20 < (entropies > 1.5).sum() < len(entropies) - 20
    for side, temperature in (
        (entropies > 1.5, ruled.fork_temperature),
        (entropies <= 1.5, ruled.temperature),
    ):
        assert bool((tokens[side] == best[side]).all()) == (temperature == 0)


@pytest.mark.parametrize("policy", ["slm", "speculative:2"])
def test_distributions_of_forking_tokens_and_others(policy: str) -> None:
    """The first two tokens; under speculative decoding those of the LLM with the rule, whatever was drafted."""
    prompt, sampling = [1, 2, 3], replace(RULES["greedy others"], fork_temperature=1.3)
    model = Writer.LLM if policy.startswith("spec") else Writer.SLM
    engine = FakeEngine(make_policy(policy), EngineOptions(max_rows=1000))
    rows = engine.add_samples(5000, prompt, sampling, max_tokens=2)
    list(engine.run())
    reference = Reference(rows[0])
    first = torch.from_numpy(reference.probs(model, prompt))
    second = torch.stack(
        [torch.from_numpy(reference.probs(model, [*prompt, token])) for token in range(VOCAB)]
    )
    greedy = int((second.max(-1).values == 1).sum())
    assert 0 < greedy < VOCAB and first.max() < 1
    counts = torch.zeros(VOCAB, VOCAB).double()
    pairs = torch.tensor([row.response_ids for row in rows])
    counts.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(5000).double(), accumulate=True)
    assert p_value(counts, first[:, None] * second) > 1e-3


def test_a_hook_hears_the_temperature_that_the_rule_gives() -> None:
    heard: list[tuple[float, float]] = []

    def hook(entropy_M: Tensor, temperature_M: Tensor) -> Tensor:
        heard.extend(zip(entropy_M.tolist(), temperature_M.tolist(), strict=True))
        return torch.zeros_like(temperature_M)

    engine = FakeEngine(make_policy("random:0.5"), EngineOptions(), temperature_hook=hook)
    row = engine.add([1, 2], RULES["hot forks"], 25)
    list(engine.run())
    assert {temperature for _, temperature in heard} == {1.0, 1.8}
    assert all((temperature == 1.8) == (entropy > THRESHOLD) for entropy, temperature in heard)
    greedy = FakeEngine(make_policy("random:0.5"), EngineOptions())
    twin = greedy.add([1, 2], SamplingParams(ignore_eos=True), 25)
    list(greedy.run())
    assert row.response_ids == twin.response_ids


@pytest.mark.parametrize("policy", POLICIES)
def test_penalties_and_biases_do_not_decide_what_forks(policy: str) -> None:
    """The entropy is that of the model's own distribution, as the obvious decoder has it."""
    sampling = replace(RULES["greedy forks"], frequency_penalty=1.5, logit_bias=((5, 2.0),))
    engine = FakeEngine(make_policy(policy), EngineOptions())
    rows = [engine.add([1, 2], sampling, 25, seed=seed) for seed in range(8)]
    list(engine.run())
    for row in rows:
        assert row.response_ids == Reference(row).response_ids


def test_a_draw_without_entropies_is_refused_where_a_rule_needs_them() -> None:
    row = Sequence(0, [1, 2], 2, RULES["hot forks"], 9, 0, 0, make_policy("slm"))
    logits_MV = torch.zeros(1, VOCAB)
    with pytest.raises(AssertionError, match="entropies"):
        Draw(logits_MV, Places.next_of([row]))
    assert Draw(logits_MV, Places.next_of([row]), entropy_M=doubles(0.0)).tokens(Purpose.DRAFT).shape == (1,)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"fork_threshold": 0.5}, "give both, or neither"),
        ({"fork_temperature": 1.0}, "give both, or neither"),
        ({"fork_threshold": 0.0, "fork_temperature": 1.0}, "fork_threshold is 0.0; give a number of nats above 0"),
        ({"fork_threshold": -1.0, "fork_temperature": 1.0}, "fork_threshold is -1.0"),
        ({"fork_threshold": nan, "fork_temperature": 1.0}, "fork_threshold is nan"),
        ({"fork_threshold": 0.5, "fork_temperature": -1.0}, "fork_temperature is -1.0"),
    ],
)  # fmt: skip
def test_half_a_rule_is_refused(wrong: dict, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        SamplingParams(**wrong)


def test_traces_record_the_rule_and_their_folder_keeps_to_it(tmp_path: Path) -> None:
    rule = {"fork_threshold": 1.5, "fork_temperature": 0.0}
    sampling = SamplingParams(1.0, **rule)
    options = GenerateOptions(generation=few(num=2, sampling=sampling), out=tmp_path)
    generate(options, tiny_pair())
    for trace in read_traces(tmp_path):
        assert trace.sampling.items() >= rule.items()
    for other in (SamplingParams(1.0), replace(sampling, fork_temperature=0.1)):
        with pytest.raises(TraceError, match="use another folder"):
            generate(replace(options, generation=few(num=2, sampling=other)), tiny_pair())
