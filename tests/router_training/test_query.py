"""Examples for whole-query routing: who was right on which prompt, and what the SLM makes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from navtoken.checkpoints import ModelPair
from navtoken.provenance import provenance
from navtoken.router_training.build import NetworkOptions, num_logits_of_queries
from navtoken.router_training.examples import ExamplesError
from navtoken.router_training.query import gather_queries, look
from navtoken.trace import Trace, TraceWriter
from small_traces import small_trace
from tiny_models import prompts, tiny_pair

PROMPTS = [tuple(ids) for ids in prompts(6)]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return tiny_pair()


def answer(
    number: int, policy: str, correct: bool | None, temperature: float = 0.0, sample: int = 0
) -> Trace:
    trace = small_trace([5, 6], sample, policy=policy, correct=correct, problem_id=f"p{number}")
    return replace(trace, prompt_ids=list(PROMPTS[number]), sampling={"temperature": temperature})


def written(folder: Path, traces: list[Trace]) -> Path:
    with TraceWriter(folder, provenance({"slm": "aa", "llm": "bb"})) as writer:
        for trace in traces:
            writer.write(trace)
    return folder


def test_only_the_llm_was_right(pair: ModelPair, tmp_path: Path) -> None:
    answers = [(False, True), (True, True), (False, False), (True, False)]
    traces = [
        answer(number, policy, correct)
        for number, both in enumerate(answers)
        for policy, correct in zip(("slm", "llm"), both, strict=True)
    ]
    # Nothing can be said where one is missing or was not verified; other policies are no evidence.
    traces += [
        answer(4, "slm", False),
        answer(5, "slm", False),
        answer(5, "llm", None),
        answer(4, "oracle", True),
    ]
    examples = gather_queries([written(tmp_path, traces)], pair, 10)
    assert examples.wanted("divergent").tolist() == [True, False, False, False]
    assert [examples.problems[i].problem_id for i in examples.problem_N] == ["p0", "p1", "p2", "p3"]
    assert [examples.problems[i].prompt_ids for i in examples.problem_N] == PROMPTS[:4]
    assert examples.modes == ("greedy",) and examples.num_left_out == 2


def test_samples_and_temperatures_are_told_apart(pair: ModelPair, tmp_path: Path) -> None:
    traces = [
        answer(0, policy, right, temperature, sample)
        for policy, right in (("slm", False), ("llm", True))
        for temperature, sample in ((0.0, 0), (1.0, 1), (1.0, 2))
    ]
    examples = gather_queries([written(tmp_path, traces)], pair, 10)
    assert len(examples) == 3 and examples.modes == ("greedy", "sampled T=1")


@pytest.mark.parametrize("num_logits", [10, 96])
def test_features_are_those_of_the_prompts_last_token(
    pair: ModelPair, tmp_path: Path, num_logits: int
) -> None:
    traces = [answer(number, policy, True) for number in range(3) for policy in ("slm", "llm")]
    examples = gather_queries([written(tmp_path, traces)], pair, num_logits)
    features = examples.features(np.arange(3))
    assert features.in_id_order == (num_logits == 96)
    for row in range(3):
        with torch.no_grad():
            ids = torch.tensor([PROMPTS[row]])
            out = pair.slm.model(ids, output_hidden_states=True)
        logits = out.logits[0, -1, :96]
        assert torch.allclose(features.hidden_BD[row].double(), out.hidden_states[-1][0, -1], atol=2e-2)
        best = logits.topk(num_logits)
        if num_logits == 10:
            assert features.top_ids_BK[row].tolist() == best.indices.tolist()
            assert torch.allclose(features.top_logits_BK[row].double(), best.values, atol=2e-2)
        else:
            assert torch.allclose(features.top_logits_BK[row].double(), logits, atol=2e-2)
        assert features.token_ids_B[row] == logits.argmax()
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert examples.entropy_N[row] == pytest.approx(float(entropy), abs=1e-4)


def test_logits_that_nobody_reads_are_not_kept(pair: ModelPair, tmp_path: Path) -> None:
    options = NetworkOptions(width=16, depth=1)
    assert num_logits_of_queries(options, pair) == 0
    assert num_logits_of_queries(replace(options, inputs="hidden,entropy"), pair) == min(100, pair.vocab_size)
    assert num_logits_of_queries(replace(options, inputs="logits", num_logits=7), pair) == 7
    traces = [answer(number, policy, True) for number in range(3) for policy in ("slm", "llm")]
    examples = gather_queries([written(tmp_path, traces)], pair, 0)
    assert examples.logits_NK.shape == (3, 0) and examples.features(np.arange(2)).top_ids_BK.shape == (2, 0)
    for kept in (0, 4):
        for seen in look(pair, PROMPTS, kept).values():
            assert len(seen.logits_K) == len(seen.ids_K) == kept
    shape = options.shape(pair, "query", 0)
    assert shape.inputs == ("hidden",) and not shape.reads_logits


def test_the_llm_does_not_run(pair: ModelPair) -> None:
    calls = []
    handle = pair.llm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        seen = look(pair, PROMPTS)
    finally:
        handle.remove()
    assert set(seen) == set(PROMPTS) and not calls


def test_traces_that_say_nothing_are_refused(pair: ModelPair, tmp_path: Path) -> None:
    folder = written(tmp_path / "slm", [answer(0, "slm", True)])
    with pytest.raises(ExamplesError, match="written by both slm and llm"):
        gather_queries([folder], pair, 10)
    other = replace(answer(0, "llm", True), prompt_ids=[9, 9])
    with pytest.raises(ExamplesError, match="p0 of countdown was put in two ways"):
        gather_queries([written(tmp_path / "two", [answer(0, "slm", True), other])], pair, 10)
