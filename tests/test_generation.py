"""The loop from problems to traces: complete, verified, resumable, and the same whatever the batch."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.engine.options import OptionError
from navtoken.engine.text import TextStream
from navtoken.generation import (
    GenerateOptions,
    GenerationOptions,
    Request,
    generate,
    ready_policy,
    respond,
    run,
)
from navtoken.generation.calibration import CACHE, Calibrations
from navtoken.policies import PolicyError, make_policy
from navtoken.tasks import load_task
from navtoken.tasks.prompts import render
from navtoken.trace import Trace, TraceError, read_provenance, read_traces
from small_runs import few
from tiny_models import tiny_pair


def options(folder: Path, **changes: Any) -> GenerateOptions:
    return GenerateOptions(generation=few(**changes), out=folder)


def plain(trace: Trace) -> dict[str, Any]:
    """A trace as values that compare, its wall-clock time left out."""
    whole = dataclasses.asdict(trace)
    whole["ledger"] = {name: value for name, value in trace.ledger.items() if name != "seconds"}
    whole["columns"] = {name: np.nan_to_num(array, nan=-9).tolist() for name, array in trace.columns.items()}
    return whole


def plain_traces(folder: Path) -> dict[Any, dict[str, Any]]:
    traces = list(read_traces(folder))
    assert len({trace.key for trace in traces}) == len(traces)
    return {trace.key: plain(trace) for trace in traces}


def test_every_problem_is_answered_and_judged(tmp_path: Path) -> None:
    (cell,) = generate(options(tmp_path, samples=2, sampling=SamplingParams(temperature=1.0)), tiny_pair())
    task = load_task("arithmetic")
    problems = {problem.problem_id: problem for problem in task.problems("test", 5, 0)}
    traces = list(read_traces(tmp_path))
    assert {trace.key for trace in traces} == set(cell.keys)
    assert len(traces) == 10
    for trace in traces:
        assert trace.correct == task.verify(problems[trace.problem_id], trace.text)
        assert trace.reward == float(bool(trace.correct))
        assert trace.ledger["slm_written"] + trace.ledger["llm_written"] == len(trace.response_ids) <= 6
        assert trace.ledger["llm_written"] == sum(trace.writer)
        assert trace.sampling["temperature"] == 1.0
        assert not np.isnan(trace.columns["entropy_slm"]).any()
        assert "top_ids" not in trace.columns
    assert len({trace.seed for trace in traces}) == 5
    by_sample = {(trace.problem_id, trace.sample): trace.response_ids for trace in traces}
    assert any(by_sample[problem, 0] != by_sample[problem, 1] for problem in problems)


def test_a_right_answer_counts_as_right(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("arithmetic")
    problems = list(task.problems("test", 2, 0))
    right = f"The answer is {problems[0].answer}."
    monkeypatch.setattr("navtoken.generation.loop.response_text", lambda *_: right)
    engine = Engine(tiny_pair(), make_policy("slm"), EngineOptions())
    traces = {t.problem_id: t for t in respond(engine, [Request(task, p, 0) for p in problems], few())}
    assert traces[problems[0].problem_id].correct is True
    assert traces[problems[1].problem_id].correct is (problems[0].answer == problems[1].answer)


def test_alternatives_where_asked_and_nothing_where_nothing_ran(tmp_path: Path) -> None:
    wanted = options(tmp_path, policy=("llm",), engine=EngineOptions(num_alternatives=3))
    generate(wanted, tiny_pair())
    for trace in read_traces(tmp_path):
        assert trace.columns["top_ids"].shape == (len(trace.response_ids), 3)
        assert (trace.columns["top_ids"][:, 0] == trace.response_ids).all()
        assert {"entropy_slm", "draft_ids", "p_divergent"}.isdisjoint(trace.columns)


def test_responses_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    sampled = SamplingParams(temperature=0.8)
    generate(options(tmp_path / "a", sampling=sampled), tiny_pair())
    generate(options(tmp_path / "b", sampling=sampled, engine=EngineOptions(max_rows=1)), tiny_pair())
    a, b = plain_traces(tmp_path / "a"), plain_traces(tmp_path / "b")
    assert {key: trace["response_ids"] for key, trace in a.items()} == {
        key: trace["response_ids"] for key, trace in b.items()
    }


def test_requests_are_taken_as_rows_become_free() -> None:
    task = load_task("arithmetic")
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        for problem in task.problems("test", None, 0):
            taken += 1
            yield Request(task, problem, 0)

    engine = Engine(tiny_pair(), make_policy("slm"), EngineOptions(max_rows=3))
    traces = respond(engine, endless(), few())
    for finished in range(1, 8):
        next(traces)
        assert taken <= finished + 3


@pytest.mark.parametrize("interrupt_after", [1, 4])
def test_an_interrupted_run_goes_on_without_repeating_or_losing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_after: int
) -> None:
    wanted = {"policy": ("random:0.4", "entropy,share=0.3"), "num": 4}
    generate(options(tmp_path / "whole", **wanted), tiny_pair())

    decoded: list[Any] = []

    def interrupted(engine: Engine, requests: Any, how: GenerationOptions) -> Iterator[Trace]:
        for trace in respond(engine, requests, how):
            if len(decoded) == interrupt_after:
                raise KeyboardInterrupt
            decoded.append(trace.key)
            yield trace

    monkeypatch.setattr(run, "respond", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(options(tmp_path / "parts", **wanted), tiny_pair())
    assert set(plain_traces(tmp_path / "parts")) == set(decoded)

    interrupt_after = 10**9
    generate(options(tmp_path / "parts", **wanted), tiny_pair())
    assert len(decoded) == len(set(decoded)) == 8
    assert plain_traces(tmp_path / "parts") == plain_traces(tmp_path / "whole")

    generate(options(tmp_path / "parts", **wanted), tiny_pair())
    assert len(decoded) == 8


def test_a_larger_run_adds_what_is_missing(tmp_path: Path) -> None:
    generate(options(tmp_path, num=2), tiny_pair())
    before = plain_traces(tmp_path)
    generate(options(tmp_path, num=4, policy=("random:0.4", "random,share=0.4", "slm")), tiny_pair())
    after = plain_traces(tmp_path)
    assert len(after) == 8
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"max_tokens": 7}, {"sampling": SamplingParams(temperature=1)}]
)
def test_another_runs_folder_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    generate(options(tmp_path), tiny_pair())
    monkeypatch.setattr(run, "_plan", None)
    with pytest.raises(TraceError, match=f"{next(iter(change))}.*another folder"):
        generate(options(tmp_path, **change), tiny_pair())


def test_a_share_becomes_a_threshold_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = options(tmp_path, policy=("entropy,share=0.3",))
    (cell,) = generate(wanted, tiny_pair())
    reference = cell.policy.reference
    assert make_policy(reference) == cell.policy
    assert {trace.policy for trace in read_traces(tmp_path)} == {reference}
    assert read_provenance(tmp_path)["calibration"] == {"entropy,share=0.3": {"arithmetic": reference}}
    assert (tmp_path / CACHE).exists()
    monkeypatch.setattr("navtoken.generation.calibration.calibrate", None)
    assert generate(wanted, tiny_pair())[0].policy == cell.policy


def test_calibration_sees_training_problems_only(monkeypatch: pytest.MonkeyPatch) -> None:
    task, pair, seen = load_task("arithmetic"), tiny_pair(), []

    def spy(policy: Any, pair: Any, prompts: Any, *_: Any) -> Any:
        seen.extend(prompts)
        return policy.with_threshold(0.5)

    monkeypatch.setattr("navtoken.generation.calibration.calibrate", spy)
    calibrations = Calibrations()
    assert (
        ready_policy("entropy,share=0.3", pair, task, few(), calibrations).reference
        == "entropy:0.5,share=0.3"
    )
    ready_policy("entropy,share=0.3", pair, task, few(), calibrations)
    expected = [render(pair.tokenizer, task, problem).ids for problem in task.problems("train", 3, 0)]
    assert seen == expected


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"policy": ()}, OptionError, "no policy is given"),
        ({"policy": ("slm", "nope")}, PolicyError, "no policy is called 'nope'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_response(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        generate(options(tmp_path, **change), tiny_pair())
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    "change",
    [
        {"num": 0},
        {"samples": 0},
        {"max_tokens": 0},
        {"policy": ("slm", "slm")},
        {"task": ("a", "a")},
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(change))):
        few(**change)


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve – 日本 🙂 end", "🙂"])
def test_streamed_text_never_shows_half_a_character(text: str) -> None:
    stream = TextStream(Bytes())
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert stream.end() == ""


def test_a_character_that_never_becomes_whole_is_told_at_the_end() -> None:
    stream = TextStream(Bytes())
    assert [stream.push(byte) for byte in "a🙂".encode()[:-1]] == ["a", "", "", ""]
    assert stream.end() == "\ufffd"
