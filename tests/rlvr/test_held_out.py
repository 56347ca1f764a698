"""Evaluations are the same problems with the same noise, are told in full, and are made when they are due and once."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navtoken.engine import Engine, EngineOptions
from navtoken.engine.options import OptionError
from navtoken.evaluation.paired import Paired
from navtoken.generation import loop
from navtoken.policies import make_policy
from navtoken.rlvr import watch
from navtoken.rlvr.held_out import (
    Answer,
    HeldOut,
    HeldOutCallback,
    HeldOutError,
    HeldOutOptions,
    HeldOutResult,
)
from navtoken.rlvr.journal import Journal
from navtoken.rlvr.watch import Trained, WatchError
from watched_runs import ALONE, Training, few_problems, run_steps, state_at

SHORT = HeldOutOptions(samples=2, max_tokens=8)


def callback(folder: Path, training: Training, every: int = 2, **changes: Any) -> HeldOutCallback:
    held_out = changes.pop("held_out", None) or HeldOut(few_problems(), SHORT)
    return HeldOutCallback(held_out, training.trained, Journal(folder), every, **changes)


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in Journal(folder).records("held_out")]


# ---- figures --------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    result = HeldOutResult.of(
        [
            Answer("a", "p", 0, True, 4, False, 2.0),
            Answer("a", "p", 1, False, 8, True, 1.0),
            Answer("a", "q", 0, True, 3, False, 0.0),
            Answer("a", "q", 1, True, 5, False, 0.0),
            Answer("b", "p", 0, False, 10, True, 5.0),
            Answer("b", "r", 0, True, 10, True, 5.0),
        ]
    )
    a, b = result.tasks["a"], result.tasks["b"]
    assert result.correct == {"a": {"p": 0.5, "q": 1.0}, "b": {"p": 0.0, "r": 1.0}}
    assert (a.accuracy, a.accuracy_se) == (0.75, stdev([0.5, 1.0]) / math.sqrt(2))
    assert (a.mean_length, a.cut_share, a.entropy) == (5.0, 0.25, 3.0 / 20)
    assert (a.num_problems, a.num_responses, b.num_problems, b.num_responses) == (2, 4, 2, 2)
    mean = result.mean
    assert (mean.accuracy, mean.mean_length, mean.cut_share) == (0.625, 7.5, 0.625)
    assert mean.entropy == pytest.approx((0.15 + 0.5) / 2)
    assert mean.accuracy_se == pytest.approx(math.hypot(a.accuracy_se, b.accuracy_se) / 2)
    assert (mean.num_problems, mean.num_responses) == (4, 6)
    assert result.metrics()["held_out/accuracy"] == 0.625
    assert result.metrics()["held_out/a/accuracy"] == 0.75


def test_one_task_is_not_told_twice() -> None:
    names = HeldOutResult.of([Answer("a", "p", 0, True, 4, False, 2.0)]).metrics()
    assert set(names) == {
        f"held_out/{name}" for name in ("accuracy", "accuracy_se", "mean_length", "cut_share", "entropy")
    }


answers = st.builds(
    Answer,
    st.sampled_from("ab"),
    st.sampled_from("pqr"),
    st.integers(0, 3),
    st.booleans(),
    st.integers(1, 9),
    st.booleans(),
    st.floats(0, 9),
)


@given(st.lists(answers, min_size=1, max_size=20, unique_by=lambda each: each[:3]), st.randoms())
def test_the_order_of_answers_does_not_matter(found: list[Answer], rng: random.Random) -> None:
    def told(answers: list[Answer]) -> str:
        return repr(HeldOutResult.of(answers))

    shuffled = list(found)
    rng.shuffle(shuffled)
    assert told(shuffled) == told(found)
    result = HeldOutResult.of(found)
    for task, score in result.tasks.items():
        problems = {each.problem_id for each in found if each.task == task}
        shares = [
            fmean(each.correct for each in found if each[:2] == (task, problem)) for problem in problems
        ]
        assert score.accuracy == pytest.approx(fmean(shares))


# ---- evaluations ----------------------------------------------------------------------------------------------


def test_an_evaluation_is_what_its_responses_say(monkeypatch: pytest.MonkeyPatch) -> None:
    training, real, traces = Training(), loop._trace, []

    def kept(*args: Any) -> Any:
        traces.append(real(*args))
        return traces[-1]

    monkeypatch.setattr(loop, "_trace", kept)
    held_out = HeldOut(few_problems(3), HeldOutOptions(samples=2, temperature=0.7, max_tokens=5))
    result = held_out.evaluate(training.trained.engine())
    lengths = [len(trace.response_ids) for trace in traces]
    assert len(traces) == 6
    assert {trace.sampling["temperature"] for trace in traces} == {0.7}
    assert result.mean.mean_length == fmean(lengths)
    assert max(lengths) == 5
    assert result.mean.cut_share == fmean(trace.finish_reason == "length" for trace in traces)
    whole = np.concatenate([trace.columns["entropy_llm"] for trace in traces])
    assert result.mean.entropy == pytest.approx(whole.mean(), rel=1e-6)
    assert list(result.correct["arithmetic"]) == sorted({trace.problem_id for trace in traces})


def test_right_answers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = few_problems(3)
    first = next(iter(problems.problems.values()))
    monkeypatch.setattr(loop, "response_text", lambda *_: f"The answer is {first.answer}.")
    result = HeldOut(problems, SHORT).evaluate(Training().trained.engine())
    right = {
        name: float(str(each.answer) == str(first.answer)) for (_, name), each in problems.problems.items()
    }
    assert result.correct == {"arithmetic": right}
    assert result.mean.accuracy == fmean(right.values()) > 0


def test_noise_is_the_same_at_every_evaluation_and_weights_are_not() -> None:
    training = Training()
    held_out = HeldOut(few_problems(), HeldOutOptions(samples=2, max_tokens=12))
    first = held_out.answers(training.trained.engine(), held_out.requests())
    again = held_out.answers(training.trained.engine(), held_out.requests())
    assert first == again
    other = HeldOut(few_problems(), HeldOutOptions(samples=2, max_tokens=12, seed=1))
    assert other.answers(training.trained.engine(), other.requests()) != first
    training.train()
    assert held_out.answers(training.trained.engine(), held_out.requests()) != first


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_ranks_together_answer_what_one_does(parts: int) -> None:
    training = Training()
    held_out = HeldOut(few_problems(4), SHORT)
    shared = []
    for part in range(parts):
        shared += held_out.answers(training.trained.engine(), held_out.requests(part, parts))
    assert HeldOutResult.of(shared) == held_out.evaluate(training.trained.engine())


def test_greedy_is_greedy() -> None:
    def entropies(seed: int) -> list[float]:
        held_out = HeldOut(few_problems(), HeldOutOptions(1, 0.0, max_tokens=8, seed=seed))
        return sorted(a.entropy for a in held_out.answers(Training().trained.engine(), held_out.requests()))

    assert entropies(0) == entropies(1)


def test_the_model_in_training_sees_nothing_of_it() -> None:
    """Else a run that is watched would not be the run that is not."""
    training = Training()
    state, numbers = torch.random.get_rng_state(), random.getstate()
    noise = np.random.get_state()[1].tolist()
    before = {name: weight.clone() for name, weight in training.model.model.state_dict().items()}
    HeldOut(few_problems(), SHORT).evaluate(training.trained.engine())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert random.getstate() == numbers
    assert np.random.get_state()[1].tolist() == noise
    assert all(
        torch.equal(before[name], weight) for name, weight in training.model.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"samples": 0}, HeldOutError, "samples is 0; give at least 1"),
        ({"temperature": 0.0, "samples": 3}, HeldOutError, "temperature is 0 and samples 3"),
        ({"temperature": -1.0}, OptionError, "temperature is -1.0"),
        ({"max_tokens": 0}, OptionError, "max_tokens is 0"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    changes: Mapping[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        HeldOut(few_problems(1), HeldOutOptions(**changes))


# ---- when -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "last", "expected"),
    [(2, 5, [0, 2, 4, 5]), (5, 5, [0, 5]), (0, 3, [0, 3]), (1, 2, [0, 1, 2])],
)
def test_when_it_looks(tmp_path: Path, every: int, last: int, expected: list[int]) -> None:
    training = Training()
    run_steps([callback(tmp_path, training, every)], 0, last, max_steps=last)
    assert steps(tmp_path) == expected
    assert training.syncs == len(expected)


def test_a_run_that_is_stopped_early_is_looked_at_in_the_end(tmp_path: Path) -> None:
    run_steps([callback(tmp_path, Training(), every=4)], 0, 6, max_steps=100)
    assert steps(tmp_path) == [0, 4, 6]


def test_fewer_than_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WatchError, match="held_out is asked for every -1 steps; give 0"):
        callback(tmp_path, Training(), every=-1)


def test_what_is_in_the_journal_is_not_done_again(tmp_path: Path) -> None:
    run_steps([callback(tmp_path, Training())], 0, 4, ends=False)
    training = Training()
    run_steps([callback(tmp_path, training)], 4, 6, max_steps=6)
    assert steps(tmp_path) == [0, 2, 4, 6]
    assert training.syncs == 1
    # A run that was finished is finished.
    training = Training()
    run_steps([callback(tmp_path, training)], 6, 6, max_steps=6)
    assert steps(tmp_path) == [0, 2, 4, 6]
    assert training.syncs == 0
    # Before its first checkpoint a run begins again at step 0.
    Journal(tmp_path).rewind(0)
    run_steps([callback(tmp_path, training)], 0, 1, ends=False)
    assert steps(tmp_path) == [0]


def test_a_run_that_begins_at_anothers_checkpoint_is_looked_at_first(tmp_path: Path) -> None:
    run_steps([callback(tmp_path, Training(), every=5)], 7, 8, ends=False)
    assert steps(tmp_path) == [7]


# ---- what it tells --------------------------------------------------------------------------------------------


class Shown:
    """A display that remembers."""

    def __init__(self) -> None:
        self.notes: list[tuple[int, dict[str, Any]]] = []
        self.done = 0

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.notes.append((step, dict(metrics)))

    def work(self, description: str, total: int) -> Any:
        shown = self

        class Bar:
            def __enter__(self) -> Any:
                shown.total = total
                return lambda num: setattr(shown, "done", shown.done + num)

            def __exit__(self, *_: object) -> None:
                pass

        return Bar()


def test_what_journal_logs_and_display_get(tmp_path: Path) -> None:
    training, shown = Training(), Shown()
    held_out = HeldOut(few_problems(3, "arithmetic", "countdown"), HeldOutOptions(samples=2, max_tokens=4))
    watcher = callback(tmp_path, training, every=2, held_out=held_out, display=shown)
    logged = run_steps([watcher], 0, 3, max_steps=9, ends=False)
    expected = held_out.evaluate(training.trained.engine())
    first, second = Journal(tmp_path).records("held_out")
    assert second["accuracy"] == expected.mean.accuracy
    assert second["entropy"] == expected.mean.entropy
    assert second["correct"] == expected.correct
    assert second["tasks"]["countdown"]["num_problems"] == 3
    assert second["num_responses"] == 12
    assert second["seconds"] > 0
    # Logs of the step itself have it, those of others do not.
    found = [{name for name in logs if name.startswith("held_out/")} for logs in logged]
    assert found == [set(), set(expected.metrics()), set()]
    assert logged[1]["held_out/entropy"] == expected.mean.entropy
    assert [step for step, _ in shown.notes] == [0, 2]
    assert shown.notes[1][1] == expected.metrics()
    assert (shown.done, shown.total) == (24, 12)
    # Two evaluations are compared problem by problem.
    gap = Paired({"then": first["correct"], "now": second["correct"]}).gap("now", "then")
    assert gap.value == second["accuracy"] - first["accuracy"]


def test_the_trainers_history_has_it_too(tmp_path: Path) -> None:
    watcher = callback(tmp_path, Training(), every=1, held_out=HeldOut(few_problems(1), SHORT))
    state = state_at(1)
    state.log_history.append({"step": 1, "loss": 1})
    watcher.on_step_end(ALONE, state, None)
    watcher.on_log(ALONE, state, None, logs={"loss": 1})
    assert "held_out/accuracy" in state.log_history[0]
    # One problem has no standard error: no number, which some loggers choke on.
    assert all(math.isfinite(value) for value in state.log_history[0].values())
    assert Journal(tmp_path).records()[0]["accuracy_se"] is None


# ---- ranks ----------------------------------------------------------------------------------------------------


def test_the_main_rank_decides_and_all_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank's folder has no journal, and it must not evaluate alone what the main rank passes over."""
    import accelerate.utils

    said: list[bool] = []
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", lambda _: [said.pop(0)])
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda own: own + own[:0])
    args = SimpleNamespace(world_size=2, process_index=1)
    training = Training()
    watcher = callback(tmp_path, training, every=1)
    # First look: yes, and it is not done; step 1: done; step 2: not done.
    said += [True, False, True, False]
    logged = run_steps([watcher], 0, 2, max_steps=9, args=args, main=False, ends=False)
    assert said == []
    assert training.syncs == 2
    assert ["held_out/accuracy" in logs for logs in logged] == [False, True]
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_shared_engine_is_used_and_a_new_one_is_not() -> None:
    training = Training()
    own = Engine(training.trained.pair, make_policy("llm"), EngineOptions(max_rows=2))
    trained = Trained(training.trained.pair, own.reload_weights, shared_engine=own)
    assert trained.engine() is own
    assert training.trained.engine() is not training.trained.engine()
    held_out = HeldOut(few_problems(), SHORT)
    before = held_out.evaluate(trained.engine())
    assert before == held_out.evaluate(training.trained.engine())
    training.train()
    trained.sync()
    assert held_out.evaluate(trained.engine()) == held_out.evaluate(training.trained.engine()) != before


def test_silence_is_no_error() -> None:
    with watch.SILENT.work("x", 3) as advance:
        advance(1)
    watch.SILENT.note(1, {})
