"""Differences between policies against brute force on the same problems."""

from itertools import product
from math import isnan, sqrt
from statistics import NormalDist, fmean, pvariance

import numpy as np
import pytest

from navtoken.evaluation import Estimate, Paired
from navtoken.evaluation.paired import PairingError, errors_of

EASY = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 0.5}


def paired(**scores: dict[str, float]) -> Paired:
    """One task."""
    shares = {"slm": 0.0, "llm": 1.0, "low": 0.1, "high": 0.3}
    return Paired({name: {"sums": own} for name, own in scores.items()}, shares)


def test_what_both_find_hard_is_no_noise_of_their_difference() -> None:
    other = {problem: score - 0.5 for problem, score in EASY.items()}
    gap = paired(a=EASY, b=other).gap("a", "b")
    assert gap == (pytest.approx(0.5), pytest.approx(0.0))
    assert gap.clear


def test_error_against_every_bootstrap_sample() -> None:
    a, b = [1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 0.5]
    found = paired(a=dict(enumerate(a)), b=dict(enumerate(b))).gap("a", "b")  # type: ignore[arg-type]
    means = [fmean(a[i] - b[i] for i in sample) for sample in product(range(4), repeat=4)]
    assert found.value == pytest.approx(fmean(means))
    # The bootstrap's variance divides by n where the estimator divides by n - 1.
    assert found.error == pytest.approx(sqrt(pvariance(means) * 4 / 3))


def test_tasks_count_the_same_whatever_their_size() -> None:
    one = {"sums": {"a": 1.0, "b": 1.0}, "puzzles": {str(i): 0.0 for i in range(10)}}
    two = {"sums": {"a": 0.0, "b": 0.5}, "puzzles": {str(i): 0.0 for i in range(10)}}
    both = Paired({"one": one, "two": two})
    assert both.gap("one", "two").value == pytest.approx(0.75 / 2)
    assert both.gap("one", "two").error == pytest.approx(0.25 / 2)
    assert both.gap("one", "two", "sums").value == pytest.approx(0.75)


def test_other_problems_are_refused() -> None:
    with pytest.raises(PairingError, match="same problems of sums"):
        paired(a=EASY, b={"a": 1.0}).gap("a", "b")


def test_recovered_part_and_its_error_against_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    slm, llm = rng.random(400) < 0.3, rng.random(400) < 0.9
    policy = np.where(rng.random(400) < 0.7, llm, slm)

    def scores(right: np.ndarray) -> dict[str, float]:
        return {str(index): float(each) for index, each in enumerate(right)}

    found = paired(slm=scores(slm), llm=scores(llm), low=scores(policy)).recovered("low")
    draws = rng.integers(400, size=(4000, 400))
    parts = (policy[draws].mean(1) - slm[draws].mean(1)) / (llm[draws].mean(1) - slm[draws].mean(1))
    assert found.value == pytest.approx((policy.mean() - slm.mean()) / (llm.mean() - slm.mean()))
    assert found.error == pytest.approx(parts.std(), rel=0.1)


def test_ends_recover_nothing_and_everything() -> None:
    both = paired(slm={"a": 0.0, "b": 0.5, "c": 0.0}, llm={"a": 1.0, "b": 0.9, "c": 0.6})
    assert both.recovered("slm") == (0.0, 0.0)
    assert both.recovered("llm") == (1.0, 0.0)


@pytest.mark.parametrize("names", [("slm",), ("llm", "slm")])
def test_nothing_to_recover_is_no_number(names: tuple[str, ...]) -> None:
    # The LLM is missing, or no better than the SLM.
    found = paired(**{name: EASY for name in names}).recovered("slm")
    assert isnan(found.value) and isnan(found.error)


def test_part_of_a_gap_that_is_not_clear_is_no_number() -> None:
    # One problem in ten: ten times the gap would be "recovered".
    slm, llm = {str(i): 0.0 for i in range(10)}, {str(i): float(i == 0) for i in range(10)}
    both = paired(slm=slm, llm=llm, low=dict.fromkeys(slm, 1.0))
    assert both.gap("llm", "slm").value > 0 and not both.gap("llm", "slm").clear
    assert isnan(both.recovered("low").value)


def test_the_best_of_several_must_stand_out_further() -> None:
    normal = NormalDist()
    assert errors_of(1) == pytest.approx(2.0)
    # No more false claims over all six together than with one.
    assert 6 * normal.cdf(-errors_of(6)) == pytest.approx(normal.cdf(-2.0))
    found = Estimate(0.05, 0.02)
    assert found.clear and not found.clear_of(6)


def test_control_is_mixed_to_the_share() -> None:
    scores = dict.fromkeys(("slm", "llm", "low", "high"), EASY)
    both = paired(**scores)
    assert both.control(["low", "high"], 0.2) == pytest.approx({"low": 0.5, "high": 0.5})
    assert both.control(["low", "high"], 0.05) == pytest.approx({"slm": 0.5, "low": 0.5})
    assert both.control(["low", "high"], 0.1) == pytest.approx({"low": 1.0})
    # Below its first setting, a control that never calls the LLM is the SLM.
    assert both.control(["low", "high"], 0.05) == pytest.approx({"slm": 0.5, "low": 0.5})
    alone = Paired({"low": {"sums": EASY}}, {"low": 0.1})
    assert alone.control(["low"], 0.1) == {"low": 1.0}
    assert alone.control(["low"], 0.05) is None


@pytest.mark.parametrize("cost", [0.31, 0.65, 1.0, 0.2])
def test_a_control_that_was_not_run_nearby_is_not_made_up(cost: float) -> None:
    # Above its last setting, where the LLM alone is no setting of it, and between settings that are far apart.
    shares = {"slm": 0.0, "llm": 1.0, "low": 0.05, "high": 0.3}
    both = Paired({name: {"sums": EASY} for name in shares}, shares)
    assert both.control(["low", "high"], cost) is None
    assert isnan(both.against("llm", ["low", "high"]).value)


def test_a_mixture_of_distant_settings_would_flatter_whoever_is_compared() -> None:
    # The control's curve is the root of its share; the rule does no better anywhere.
    shares = {"slm": 0.0, "llm": 1.0, "low": 0.05, "middle": 0.15, "high": 0.8, "rule": 0.3, "near": 0.1}
    curve = {name: {"sums": {"a": sqrt(share), "b": sqrt(share)}} for name, share in shares.items()}
    both = Paired(curve, shares)
    assert isnan(both.against("rule", ["low", "middle", "high"]).value)
    chord = both.against("near", ["low", "middle"]).value
    assert 0 < chord < 0.02


def test_costs_other_than_the_share_are_mixed_alike() -> None:
    scores = dict.fromkeys(("slm", "low", "high", "speculative"), EASY)
    passes = {"slm": 0.0, "low": 0.12, "high": 0.28, "speculative": 0.2}
    both = Paired({name: {"sums": own} for name, own in scores.items()}, {"speculative": 0.9}, passes)
    assert both.control(["low", "high"], 0.2, passes) == pytest.approx({"low": 0.5, "high": 0.5})
    assert both.against("speculative", ["low", "high"], passes).value == pytest.approx(0.0)
    assert isnan(both.against("speculative", ["low", "high"]).value)


def test_against_the_mixed_control() -> None:
    flat = {"a": 0.0, "b": 0.0}
    scores = {"slm": flat, "low": flat, "high": {"a": 1.0, "b": 0.0}, "llm": {"a": 1.0, "b": 1.0}}
    router = {"a": 1.0, "b": 0.0}
    both = Paired(
        {name: {"sums": own} for name, own in (scores | {"router": router}).items()},
        {"slm": 0.0, "low": 0.1, "high": 0.18, "llm": 1.0, "router": 0.12},
    )
    # Problem by problem: a is 1 - 0.25 ahead, b is even.
    assert both.against("router", ["low", "high"]).value == pytest.approx(0.75 / 2)
    assert both.against("router", ["low", "high"]).error == pytest.approx(0.375)
    # The rule itself is none of its controls.
    assert isnan(both.against("high", ["low", "high"]).value)
