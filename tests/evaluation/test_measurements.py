"""Figures of several problems: means, their intervals, and differences problem by problem."""

import json
from math import isnan, nan
from pathlib import Path

import pytest

from navtoken.evaluation.measurements import METRICS, Measurements, Setting
from navtoken.evaluation.paired import PairingError
from navtoken.evaluation.scaling import Resampling, ScalingError

RESAMPLING = Resampling(300)


def problems(values: list[float], prefix: str = "p") -> dict[str, dict[str, float]]:
    return {f"{prefix}{i}": dict.fromkeys(METRICS, value) for i, value in enumerate(values)}


HARD = [0.0, 1.0, 0.2, 0.9, 0.1, 0.8, 0.0, 1.0, 0.5, 0.5]


def made(**policies: list[float]) -> Measurements:
    values = {Setting(name, "sums", 2): problems(own) for name, own in policies.items()}
    return Measurements(values, dict.fromkeys(policies, 4))


def test_differences_are_taken_problem_by_problem() -> None:
    easier = [value * 0.8 + 0.1 for value in HARD]
    measured = made(slm=HARD, llm=[value + 0.05 for value in HARD], other=easier)
    rows = {row["policy"]: row for row in measured.rows(RESAMPLING)}
    assert rows["llm"]["avg"] == pytest.approx(0.55)
    assert rows["llm"]["avg_high"] - rows["llm"]["avg_low"] > 0.3
    found = {(row["policy"], row["less"]): row for row in measured.differences(RESAMPLING)}
    assert found.keys() == {("llm", "slm"), ("other", "slm"), ("other", "llm")}
    gap = found["llm", "slm"]
    assert [gap[name] for name in ("avg", "avg_low", "avg_high")] == pytest.approx([0.05] * 3)


def test_problems_are_paired_by_name_and_not_by_place() -> None:
    own = problems(HARD)
    turned = dict(reversed(problems([value + 0.05 for value in HARD]).items()))
    measured = Measurements({Setting("a", "sums", 1): own, Setting("b", "sums", 1): turned}, {"a": 1, "b": 1})
    (gap,) = measured.differences(RESAMPLING)
    assert gap["maj_low"] == pytest.approx(0.05) == gap["maj_high"]


def test_other_problems_are_refused() -> None:
    values = {Setting("a", "sums", 1): problems(HARD), Setting("b", "sums", 1): problems(HARD, "q")}
    with pytest.raises(PairingError, match="'b' and 'a' did not answer the same problems of sums.*num, seed"):
        Measurements(values, {"a": 1, "b": 1}).differences(RESAMPLING)


def test_the_mean_takes_tasks_alike() -> None:
    values = {
        Setting("a", "sums", 1): problems([1.0] * 20),
        Setting("a", "words", 1): problems([0.0, 0.5, 0.0, 0.5]),
        Setting("b", "sums", 1): problems([1.0] * 20),
    }
    measured = Measurements(values, {"a": 1, "b": 1})
    rows = {(row["policy"], row["task"]): row for row in measured.rows(RESAMPLING)}
    assert rows.keys() == {("a", "sums"), ("a", "words"), ("a", "mean"), ("b", "sums")}
    mean = rows["a", "mean"]
    assert (mean["avg"], mean["num_problems"]) == (pytest.approx(0.625), 24)
    assert mean["avg_se"] == pytest.approx(rows["a", "words"]["avg_se"] / 2)
    assert [row["task"] for row in measured.differences(RESAMPLING)] == ["sums"]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    measured = made(slm=HARD, llm=HARD)
    values = {
        setting: {**own, "p0": {**own["p0"], "best_logprob": nan}} for setting, own in measured.values.items()
    }
    measured = Measurements(values, measured.num_samples, {"seed": Path("x")})
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps(measured.as_json(), allow_nan=False))
    read = Measurements.read(path)
    for setting, own in measured.values.items():
        for problem, metrics in own.items():
            assert read.values[setting][problem] == pytest.approx(metrics, nan_ok=True)
    assert read.num_samples == measured.num_samples
    row = read.rows(RESAMPLING)[0]
    assert isnan(row["best_logprob"]) and row["avg"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot read"), ("{", "no measurements"), ("{}", "KeyError")]
)
def test_what_is_no_run_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "measurements.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ScalingError, match=words):
        Measurements.read(path)


def test_another_run_stands_under_its_own_name() -> None:
    both = made(llm=HARD).beside(made(llm=[value / 2 for value in HARD]), "small")
    assert both.policies == ["llm", "small: llm"]
    (gap,) = both.differences(RESAMPLING)
    assert (gap["policy"], gap["less"], gap["avg"]) == ("small: llm", "llm", pytest.approx(-0.25))
    assert both.num_samples == {"llm": 4, "small: llm": 4}
    with pytest.raises(ScalingError, match="small: llm"):
        both.beside(made(llm=HARD), "small")
