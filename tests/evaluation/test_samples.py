"""Responses out of traces: whole or cut off, and what each costs beside the prompt that samples share."""

from pathlib import Path

import pytest

from navtoken.engine import Costs, Engine, Ledger, SamplingParams
from navtoken.evaluation.measurements import measure_cells
from navtoken.evaluation.samples import drawn_responses, prompt_cost, response_of
from navtoken.generation import GenerateOptions, GenerationOptions, generate
from navtoken.generation.loop import Request, respond
from navtoken.policies import make_policy
from navtoken.tasks import Problem, load_task
from navtoken.trace import Trace, read_traces
from small_runs import few
from tiny_models import tiny_pair

HOT = SamplingParams(temperature=1.0)
POLICIES = ("slm", "llm", "random:0.4")


def hot(**changes: object) -> GenerationOptions:
    return few(**({"sampling": HOT, "samples": 3, "num": 2, "max_tokens": 12} | changes))


def drawn(policy: str, options: GenerationOptions, shared: bool) -> dict[tuple[str, int], Trace]:
    """Three samples of each problem, with the prompt shared among them or not."""
    task = load_task("arithmetic")
    requests = [Request(task, p, s) for p in task.problems("test", 2, 0) for s in range(3)]
    engine = Engine(tiny_pair(), make_policy(policy), options.engine)
    found = respond(engine, requests, hot(samples=3 if shared else 1, max_tokens=options.max_tokens))
    return {(trace.problem_id, trace.sample): trace for trace in found}


def costs_of(policy: str) -> Costs:
    return Costs(tiny_pair().slm.card, tiny_pair().llm.card, make_policy(policy).router_parameters)


def priced(trace: Trace, policy: str, budget: int | None = None) -> tuple[float, float, int]:
    task = load_task("arithmetic")
    problem = Problem("arithmetic", trace.problem_id, "", "7")
    found = response_of(trace, task, problem, costs_of(policy), tiny_pair().tokenizer, budget)
    return found.flops, found.bytes, found.tokens


@pytest.mark.parametrize("policy", POLICIES)
def test_a_response_costs_the_same_whoever_computed_its_prompt(policy: str) -> None:
    shared, alone = (drawn(policy, hot(), shared) for shared in (True, False))
    assert sum(
        t.ledger["slm_prefill_tokens"] + t.ledger["llm_prefill_tokens"] for t in shared.values()
    ) < sum(t.ledger["slm_prefill_tokens"] + t.ledger["llm_prefill_tokens"] for t in alone.values())
    for key, trace in shared.items():
        assert trace.response_ids == alone[key].response_ids
        flops, moved, tokens = priced(alone[key], policy)
        assert priced(trace, policy) == (flops, pytest.approx(moved, rel=0.02), tokens)


@pytest.mark.parametrize("policy", ["slm", "llm"])
def test_samples_and_their_prompt_cost_what_the_engine_computed(policy: str) -> None:
    costs = costs_of(policy)
    traces = [trace for (_, _), trace in drawn(policy, hot(), shared=True).items()]
    for problem in {trace.problem_id for trace in traces}:
        own = [trace for trace in traces if trace.problem_id == problem]
        whole = Ledger()
        for trace in own:
            whole.add(Ledger.from_dict(trace.ledger))
        prompt = prompt_cost(own[0], costs)
        measured = sum(priced(trace, policy)[0] for trace in own) + prompt.flops[policy == "llm"]
        # Two samples feed the prompt's last token once more.
        model = tiny_pair().llm.card if policy == "llm" else tiny_pair().slm.card
        again = 2 * model.flops(1, len(own[0].prompt_ids), 0)
        assert costs.flops(whole) == pytest.approx(measured + again, rel=1e-12)


@pytest.mark.parametrize("policy", ["slm", "llm"])
@pytest.mark.parametrize("budget", [1, 5, 11])
def test_a_cut_response_costs_what_a_shorter_limit_would_have(policy: str, budget: int) -> None:
    whole, short = (drawn(policy, hot(max_tokens=limit), shared=False) for limit in (12, budget))
    assert any(len(trace.response_ids) > budget for trace in whole.values())
    for key, trace in whole.items():
        assert trace.response_ids[:budget] == short[key].response_ids
        assert priced(trace, policy, budget) == pytest.approx(priced(short[key], policy), rel=1e-9)


def test_a_cut_response_is_verified_as_it_stood() -> None:
    task, pair = load_task("arithmetic"), tiny_pair()
    problem = Problem("arithmetic", "p", "", "12")
    trace = next(iter(drawn("slm", hot(), shared=False).values()))
    trace.response_ids = pair.tokenizer("answer:123").input_ids
    trace.text, trace.writer, trace.correct = "answer:123", [0] * len(trace.response_ids), False

    def at(budget: int | None) -> tuple[bool, object]:
        found = response_of(trace, task, problem, costs_of("slm"), pair.tokenizer, budget)
        return found.correct, found.answer

    end = len(trace.response_ids)
    assert at(None) == at(end) == at(1000) == (False, "123")
    assert at(end - 1) == (True, "12")
    assert at(3) == (False, None)


def test_what_else_is_in_the_folder_does_not_count(tmp_path: Path) -> None:
    options = GenerateOptions(generation=hot(policy=("slm", "random:0.4"), num=3, max_tokens=6), out=tmp_path)
    generate(options, tiny_pair())
    fewer = GenerateOptions(generation=hot(policy=("random:0.4",), samples=2, max_tokens=6), out=tmp_path)
    cells = generate(fewer, tiny_pair())
    (found,) = drawn_responses(tmp_path, cells, tiny_pair(), [4, None])
    assert list(found) == [request.problem.problem_id for request in cells[0].requests if not request.sample]
    for each in found.values():
        assert each.responses.keys() == {4, None}
        assert [len(responses) for responses in each.responses.values()] == [2, 2]
        assert all(response.tokens <= 4 for response in each.responses[4])


def test_measured_accuracy_is_that_of_the_traces(tmp_path: Path) -> None:
    cells = generate(GenerateOptions(generation=hot(policy=("slm",)), out=tmp_path), tiny_pair())
    measured = measure_cells(tmp_path, cells, tiny_pair(), [1, 3], [None], seed=0)
    right = {trace.key: bool(trace.correct) for trace in read_traces(tmp_path)}
    for setting, problems in measured.values.items():
        assert (setting.policy, setting.task, setting.budget) == ("slm", "arithmetic", None)
        for problem, metrics in problems.items():
            own = [correct for key, correct in right.items() if key[2] == problem]
            assert metrics["avg"] == sum(own) / 3
            assert metrics["best_logprob"] == metrics["best_logprob"]
    assert measured.num_samples == {"slm": 3}
