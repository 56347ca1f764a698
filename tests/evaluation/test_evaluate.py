"""The table is what the traces say, whatever else is in their folder."""

import json
from math import isnan
from pathlib import Path

import pytest

from navtoken.evaluation import EvaluateOptions, evaluate
from navtoken.generation import GenerateOptions, generate
from navtoken.trace import read_traces
from small_runs import few
from tiny_models import tiny_pair

POLICIES = ("slm", "llm", "random:0.4", "margin,share=0.5")


def test_rows_are_policies_by_tasks_and_their_means(tmp_path: Path) -> None:
    options = EvaluateOptions(
        generation=few(task=("arithmetic", "countdown"), policy=POLICIES, num=3), out=tmp_path
    )
    rows = evaluate(options, tiny_pair()).rows
    assert [(row["policy"], row["task"]) for row in rows] == [
        (policy, task) for policy in POLICIES for task in ("arithmetic", "countdown", "mean")
    ]
    by_name = {(row["policy"], row["task"]): row for row in rows}
    traces = list(read_traces(tmp_path))
    for policy, share in (("slm", 0.0), ("llm", 1.0)):
        assert by_name[policy, "mean"]["llm_share"] == share
        assert by_name[policy, "mean"]["llm_passes_per_token"] == pytest.approx(share, abs=0.3)
    for task in ("arithmetic", "countdown"):
        own = [trace for trace in traces if (trace.policy, trace.task) == ("random:0.4", task)]
        row = by_name["random:0.4", task]
        assert row["accuracy"] == sum(bool(trace.correct) for trace in own) / 3
        tokens = sum(len(trace.response_ids) for trace in own)
        assert row["llm_share"] == pytest.approx(sum(sum(trace.writer) for trace in own) / tokens)
        assert by_name["margin,share=0.5", task]["threshold"] is not None
        assert by_name["slm", task]["threshold"] is None


def test_answers_stay_together_problem_by_problem(tmp_path: Path) -> None:
    options = EvaluateOptions(
        generation=few(task=("arithmetic", "countdown"), policy=POLICIES, num=3), out=tmp_path
    )
    table = evaluate(options, tiny_pair())
    right = {trace.key: float(bool(trace.correct)) for trace in read_traces(tmp_path)}
    assert table.keys.keys() == right.keys()
    for key, score in right.items():
        _, task, problem, _ = key
        assert table.paired.scores[table.keys[key]][task][problem] == score
    for row in table.rows:
        task = None if row["task"] == "mean" else row["task"]
        recovered = table.paired.recovered(row["policy"], task).value
        assert row["recovered"] == recovered or isnan(row["recovered"])
    assert table.paired.shares["llm"] == 1.0


def test_other_traces_in_the_folder_do_not_count(tmp_path: Path) -> None:
    generate(
        GenerateOptions(generation=few(num=5, samples=2, policy=("slm", "llm")), out=tmp_path), tiny_pair()
    )
    kept = evaluate(EvaluateOptions(generation=few(num=2, policy=("slm",)), out=tmp_path), tiny_pair())
    fresh = evaluate(EvaluateOptions(generation=few(num=2, policy=("slm",))), tiny_pair())
    (row,), (again,) = kept.rows, fresh.rows
    assert row["num_responses"] == 2
    assert {**row, "tokens_per_second": 0} == {**again, "tokens_per_second": 0}


def test_json_has_no_nan() -> None:
    table = evaluate(EvaluateOptions(generation=few(num=1, policy=("slm",))), tiny_pair())
    data = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert data["rows"][0]["accuracy_se"] is None
    assert data["provenance"]["fingerprints"].keys() == {"slm", "llm", "tokenizer"}
