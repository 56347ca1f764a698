"""The decoding experiment: its points, its threshold, what is compared with what, and going on after an interruption."""

from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navtoken.analysis import perturbation
from navtoken.analysis.perturbation import (
    BASE,
    PAPER,
    Outcome,
    PerturbError,
    PerturbOptions,
    Point,
    Study,
    deciding_entropy,
    perturb,
    points,
    traces_of,
)
from navtoken.engine import Engine, EngineOptions, SamplingParams
from navtoken.generation import run as generation_run
from navtoken.policies import Writer, make_policy
from navtoken.trace import Trace, TraceError
from small_runs import few
from tiny_models import tiny_pair

TEMPERATURES = (0.0, 1.0, 2.0)


def options(folder: Path, **changes: Any) -> PerturbOptions:
    """Four problems with two samples; `generation` changes those options."""
    own = {"num": 4, "samples": 2, "max_tokens": 10} | changes.pop("generation", {})
    return PerturbOptions(generation=few(**own), out=folder, **({"temperatures": TEMPERATURES} | changes))


def study_of(asked: PerturbOptions) -> Study:
    (study,) = perturb(asked, tiny_pair()).studies
    return study


def responses(study: Study) -> dict[Point, list[tuple]]:
    return {
        point: sorted(
            (trace.problem_id, trace.sample, tuple(trace.response_ids)) for trace in traces_of(each)
        )
        for point, each in study.outcomes.items()
    }


def test_both_sweeps_share_one_point() -> None:
    found = points(PAPER)
    assert len(found) == len(set(found)) == 15
    assert found[0] == BASE
    assert {point.fork for point in found if point.other == 1} == set(PAPER)
    assert {point.other for point in found if point.fork == 1} == set(PAPER)
    assert [point.swept for point in (BASE, Point(2, 1), Point(1, 0))] == ["both", "forking", "others"]
    assert points([2.0]) == [BASE, Point(2, 1), Point(1, 2)]


def test_a_points_sampling_keeps_what_else_was_asked() -> None:
    plain = SamplingParams(top_p=0.9)
    assert BASE.sampling(plain, 0.5) == SamplingParams(1.0, top_p=0.9)
    hot = SamplingParams(1.0, top_p=0.9, fork_threshold=0.5, fork_temperature=3.0)
    assert Point(3.0, 1.0).sampling(plain, 0.5) == hot


@pytest.mark.parametrize("policy", ["slm", "llm", "random:0.4", "speculative:2"])
def test_every_point_decodes_by_its_rule_and_is_counted(policy: str, tmp_path: Path) -> None:
    study = study_of(options(tmp_path, generation={"policy": (policy,)}))
    assert study.outcomes.keys() == set(points(TEMPERATURES))
    rule = make_policy(policy)
    pilot = [trace for trace in traces_of(study.outcomes[BASE]) if trace.sample == 0]
    pool = np.concatenate([deciding_entropy(trace, rule) for trace in pilot])
    assert study.threshold == pytest.approx(np.quantile(pool.astype(np.float64), 0.8), rel=1e-6)
    for point, outcome in study.outcomes.items():
        traces = list(traces_of(outcome))
        assert len(traces) == 8 == outcome.metrics["num_responses"]
        forks = np.concatenate([deciding_entropy(trace, rule) > study.threshold for trace in traces])
        assert outcome.fork_share == forks.mean()
        assert 0 < outcome.fork_share < 1
        for trace in traces:
            fork, other = trace.sampling["fork_temperature"], trace.sampling["temperature"]
            assert (fork or other if fork is None else fork, other) == point
    assert len({tuple(each) for each in responses(study).values()}) == len(study.outcomes)


def test_at_temperature_0_a_token_is_the_most_probable_one(tmp_path: Path) -> None:
    engine = EngineOptions(max_rows=3, num_alternatives=1)
    study = study_of(
        options(
            tmp_path, percentile=50.0, generation={"policy": ("llm",), "engine": engine, "max_tokens": 30}
        )
    )
    for point, cold_is_fork in ((Point(0, 1), True), (Point(1, 0), False)):
        greedy: dict[bool, list[bool]] = {True: [], False: []}
        for trace in traces_of(study.outcomes[point]):
            forks = trace.columns["entropy_llm"] > study.threshold
            best = trace.columns["top_ids"][:, 0] == np.asarray(trace.response_ids)
            for side in (True, False):
                greedy[side] += best[forks == side].tolist()
        assert min(map(len, greedy.values())) > 20
        assert all(greedy[cold_is_fork]) and not all(greedy[not cold_is_fork])


def test_the_entropy_that_decides_is_that_of_who_draws() -> None:
    trace = Trace(
        "t", "p", 0, "", [1], [5, 6, 7], "", "stop", 0, "random:0.5", [0, 1, 0],
        columns={"entropy_slm": np.array([1.0, 2.0, 3.0]), "entropy_llm": np.array([nan, 5.0, 6.0])},
    )  # fmt: skip
    assert deciding_entropy(trace, make_policy("random:0.5")).tolist() == [1, 5, 3]
    assert deciding_entropy(trace, make_policy("speculative:2")).tolist()[1:] == [5, 6]
    alone = replace(trace, writer=[1, 1, 1], columns={"entropy_llm": np.array([4.0, 5.0, 6.0])})
    assert deciding_entropy(alone, make_policy("llm")).tolist() == [4, 5, 6]


class Interrupting(Engine):
    """Stops the run in its fortieth step, wherever that is."""

    steps = 0

    def step(self) -> Any:
        Interrupting.steps += 1
        if Interrupting.steps == 40:
            raise KeyboardInterrupt
        return super().step()


def test_an_interrupted_experiment_goes_on_within_its_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = study_of(options(tmp_path / "whole"))
    asked = options(tmp_path / "parts")
    with monkeypatch.context() as patched:
        patched.setattr(generation_run, "Engine", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            study_of(asked)
    begun = list((tmp_path / "parts").rglob("*.parquet"))
    assert begun and len(list((tmp_path / "parts").rglob("forking-*"))) < len(points(TEMPERATURES))
    parts = study_of(asked)
    assert responses(parts) == responses(whole)
    assert parts.threshold == whole.threshold
    assert all(path.exists() for path in begun)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = study_of(options(tmp_path))
    files = sorted(tmp_path.rglob("*.parquet"))

    def idle(engine: Engine, requests: list, _: Any) -> Iterator[Trace]:
        assert not requests
        return iter(())

    with monkeypatch.context() as patched:
        patched.setattr(generation_run, "respond", idle)
        again = study_of(options(tmp_path))
    assert again.rows() == before.rows()
    assert sorted(tmp_path.rglob("*.parquet")) == files


def test_a_larger_experiment_keeps_the_threshold_and_adds_to_each_point(tmp_path: Path) -> None:
    small = study_of(options(tmp_path, generation={"num": 2}))
    large = study_of(options(tmp_path, generation={"num": 5}, temperatures=(0.0, 1.0, 2.0, 3.0)))
    assert large.threshold == small.threshold
    assert large.outcomes.keys() > small.outcomes.keys()
    for point, mine in responses(small).items():
        assert set(mine) < set(responses(large)[point])
    with pytest.raises(TraceError, match="use another folder"):
        study_of(options(tmp_path, percentile=60.0))


def test_another_threshold_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_of(options(tmp_path, generation={"num": 2}, threshold=1.25))

    def never(*_: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(generation_run, "respond", never)
    with pytest.raises(TraceError, match="'fork_threshold': 1.25.*now it is.*'fork_threshold': 0.5"):
        # More problems, so that (1, 1) would be decoded first.
        study_of(options(tmp_path, generation={"num": 3}, threshold=0.5))


def test_a_point_has_one_folder_however_its_temperatures_are_written() -> None:
    assert Point(2, 1).folder == Point(2.0, 1.0).folder == "forking-2.0-others-1.0"
    assert Point(2, 1).folder != Point(1, 2).folder


def test_no_two_references_share_a_folder() -> None:
    references = ["llm", "entropy:0.5", "entropy-0.5", "entropy;0.5", "gym:a", "gym:a/b", "gym:a-b"]
    names = {perturbation._slug(each) for each in references}
    assert len(names) == len(references)
    assert perturbation._slug("llm") == "llm"
    assert not any(set(name) & set(":/;") for name in names)


def test_a_threshold_in_nats_needs_no_pilot(tmp_path: Path) -> None:
    study = study_of(options(tmp_path, threshold=1.25))
    assert study.threshold == 1.25
    assert not list(tmp_path.rglob(perturbation.PILOT))
    hot = next(traces_of(study.outcomes[Point(2, 1)]))
    assert hot.sampling["fork_threshold"] == 1.25


def test_a_policy_by_share_is_calibrated_once(tmp_path: Path) -> None:
    study = study_of(options(tmp_path, generation={"policy": ("margin,share=0.5",), "num": 2}))
    references = {trace.policy for each in study.outcomes.values() for trace in traces_of(each)}
    assert len(references) == 1 and "margin:" in references.pop()


def test_several_policies_and_tasks_are_studies_of_their_own(tmp_path: Path) -> None:
    asked = options(
        tmp_path,
        temperatures=(2.0,),
        generation={"policy": ("slm", "llm"), "task": ("arithmetic", "countdown"), "num": 2},
    )
    studies = perturb(asked, tiny_pair()).studies
    assert [(study.policy, study.task) for study in studies] == [
        ("slm", "arithmetic"), ("slm", "countdown"), ("llm", "arithmetic"), ("llm", "countdown"),
    ]  # fmt: skip
    assert len({study.threshold for study in studies}) == 4


def test_one_model_decodes_alone(tmp_path: Path) -> None:
    asked = options(tmp_path, model="embedded:slm", generation={"policy": ("llm",), "num": 2})
    pair = asked.load()
    assert pair.slm is pair.llm
    result = perturb(asked, pair)
    assert result.provenance["arguments"]["llm"] == result.provenance["arguments"]["slm"] == "embedded:slm"
    traces = list(traces_of(result.studies[0].outcomes[BASE]))
    assert all(set(trace.writer) == {Writer.LLM} for trace in traces)


def made(accuracies: dict[Point, list[float]]) -> Study:
    """A study of these accuracies per problem."""
    outcomes: dict[Point, Any] = {
        point: Outcome(point, {}, 0.2, {str(i): each for i, each in enumerate(own)}, None, Path())  # type: ignore[arg-type]
        for point, own in accuracies.items()
    }
    return Study("llm", "countdown", 0.5, outcomes)


def test_changes_are_paired_by_problem() -> None:
    study = made({BASE: [0.0, 0.5, 1.0, 0.5], Point(2, 1): [0.25, 0.5, 1.0, 0.75]})
    change, error = study.gap(Point(2, 1))
    assert change == pytest.approx(0.125)
    assert error == pytest.approx(np.std([0.25, 0, 0, 0.25], ddof=1) / 2)
    assert study.gap(BASE) == (0.0, 0.0)


def test_curves_are_ordered_by_the_swept_temperature() -> None:
    study = made({point: [0.5, 1.0] for point in points((3.0, 0.0, 1.0))})
    assert [each.point.fork for each in study.curve("forking")] == [0, 1, 3]
    assert [each.point.other for each in study.curve("others")] == [0, 1, 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperatures": (-1.0,)}, "temperatures has -1.0"),
        ({"temperatures": (nan,)}, "temperatures has nan"),
        ({"temperatures": (2.0, 2.0)}, "temperatures has 2 twice"),
        ({"temperatures": ()}, "no temperatures"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"percentile": 100.0}, "percentile is 100.0"),
        ({"pilot_num": 0}, "pilot_num is 0"),
        ({"model": "embedded:llm"}, "no policy but llm, not random:0.4"),
        ({"generation": {"sampling": SamplingParams(0.7)}}, "temperature is 0.7, but the sweeps set it"),
        (
            {"generation": {"sampling": SamplingParams(fork_threshold=0.5, fork_temperature=0.0)}},
            "fork_threshold is 0.5",
        ),
        ({"generation": {"task": ()}}, "no task"),
    ],
)
def test_what_contradicts_the_sweeps_is_refused(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(PerturbError, match=words):
        perturb(options(tmp_path, **changes), tiny_pair())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"), [({"policy": ("nope",)}, "nope"), ({"task": ("nope",)}, "nope")]
)
def test_an_unknown_name_is_refused_before_the_first_response(
    changes: dict, words: str, tmp_path: Path
) -> None:
    known = {"policy": ("slm", *changes.get("policy", ())), "task": ("arithmetic", *changes.get("task", ()))}
    with pytest.raises(ValueError, match=words):
        perturb(options(tmp_path, generation=known), tiny_pair())
    assert not list(tmp_path.iterdir())


def test_a_pilot_of_certain_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbation, "deciding_entropy", lambda trace, _: np.zeros(len(trace.response_ids)))
    with pytest.raises(PerturbError, match="80th percentile .* 0 nats.*higher percentile"):
        study_of(options(tmp_path))
