"""Which responses a page shows, and that no other is built for it."""

from pathlib import Path

import numpy as np
import pytest

from navtoken import trace as trace_module
from navtoken.analysis.frozen import Chosen, FrozenSet
from navtoken.commands.frozen_responses import shown_traces, spread_over_tasks, traces_named
from navtoken.trace import Key, Trace
from small_traces import small_trace, written


def key(task: str, number: int) -> Key:
    return "llm", task, f"p{number}", 0


def test_tasks_come_in_turn_until_there_are_enough() -> None:
    keys = [*(key("a", i) for i in range(5)), key("b", 0), *(key("c", i) for i in range(2))]
    assert spread_over_tasks(keys, 4) == [key("a", 0), key("a", 1), key("b", 0), key("c", 0)]
    assert spread_over_tasks(keys, 2) == [key("a", 0), key("b", 0)]
    assert spread_over_tasks(keys, 99) == keys
    assert spread_over_tasks(keys, 0) == []


@pytest.fixture
def traces() -> list[Trace]:
    """Two tasks, three problems each, two samples of each problem."""
    return [
        small_trace(
            [task, problem, sample],
            sample,
            task=f"t{task}",
            problem_id=f"p{problem}",
            entropy_llm=[0.1, 0.2, 0.3],
        )
        for task in range(2)
        for problem in range(3)
        for sample in range(2)
    ]


def test_only_what_is_shown_is_built(
    traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, traces, shard_rows=2)
    built = []
    real = trace_module._trace
    monkeypatch.setattr(trace_module, "_trace", lambda *args: built.append(1) or real(*args))
    wanted = [traces[9].key, traces[2].key]
    assert [trace.key for trace in traces_named(tmp_path, wanted)] == wanted
    assert len(built) == 2
    assert not list(traces_named(tmp_path, []))


def test_shown_responses_are_of_every_task_and_no_problem_twice(traces: list[Trace], tmp_path: Path) -> None:
    frozen = FrozenSet.read(Chosen(written(tmp_path, traces)))
    place_N = np.arange(frozen.num_tokens)
    shown = list(shown_traces(frozen, 3, {"place": place_N}, keep=lambda name: name != "entropy_llm"))
    assert [(trace.task, trace.problem_id, trace.sample) for trace in shown] == [
        ("t0", "p0", 0),
        ("t0", "p1", 0),
        ("t1", "p0", 0),
    ]
    for trace in shown:
        place = 3 * [other.key for other in traces].index(trace.key)
        assert trace.columns["place"].tolist() == [place, place + 1, place + 2]
        assert trace.columns.keys() == {"place"}
