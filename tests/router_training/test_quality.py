"""What is said of a router: recall against share, calibration, thresholds for recalls, and parts."""

from pathlib import Path

import numpy as np
import pytest

from labelled_traces import VOCAB_SIZE, labels
from navtoken.analysis.ranking import Resampling
from navtoken.router_training.examples import gather
from navtoken.router_training.quality import (
    NUM_BINS,
    SHARES,
    calibration,
    qualities,
    recalls,
    threshold_at_recall,
)

NONE = Resampling(num=0)


def test_recall_is_counted_from_the_highest_signal() -> None:
    rng = np.random.default_rng(0)
    signal, wanted = rng.random(200), rng.random(200) < 0.3
    problem = np.arange(200) // 10
    found = recalls(signal, wanted, problem, Resampling(num=50))
    order = np.argsort(-signal)
    for share, recall in zip(SHARES, found, strict=True):
        top = order[: round(share * 200)]
        assert recall.value == pytest.approx(wanted[top].sum() / wanted.sum())
        assert recall.low <= recall.value <= recall.high
    assert found[-1].value == found[-1].low == 1.0


def test_calibration_of_honest_and_of_boastful_probabilities() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(20_000)
    wanted = rng.random(20_000) < p
    problem = np.arange(20_000) // 100
    honest = calibration(p, wanted, problem, NONE)
    assert honest.error < 0.02 and len(honest.bins) == NUM_BINS
    assert sum(each.num for each in honest.bins) == 20_000
    boastful = calibration(np.sqrt(p), wanted, problem, NONE)
    # Mean of sqrt(p) - p.
    assert boastful.error == pytest.approx(2 / 3 - 1 / 2, abs=0.02)
    certain = calibration(np.array([1.0, 0.0, 1.0]), np.array([True, False, False]), np.arange(3), NONE)
    assert [each.num for each in certain.bins] == [1, 2]
    assert certain.error == pytest.approx(2 / 3 * 0.5)


def test_a_threshold_for_a_recall() -> None:
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    wanted = np.array([True, False, True, True, False, True])
    for recall, least in ((0.25, 0.9), (0.5, 0.7), (0.6, 0.6), (1.0, 0.4)):
        threshold = threshold_at_recall(p, wanted, recall)
        assert (p > threshold)[wanted].mean() >= recall
        assert least - 1e-9 < threshold < least


def test_parts_of_the_report(tmp_path: Path) -> None:
    folders = [labels(tmp_path / draft, num=40, draft=draft) for draft in ("greedy", "sampled")]
    examples = gather(folders, VOCAB_SIZE, tmp_path / "work")
    index = examples.of("train")
    p = np.where(examples.wanted("divergent")[index], 0.9, 0.1)
    found = qualities(examples, index, p, "divergent", NONE)
    assert [each.name for each in found] == ["all", "countdown", "knights", "greedy", "sampled T=1"]
    whole, *parts = found
    assert whole.router.roc.value == whole.router.pr.value == 1.0
    assert whole.num_tokens == len(index) == parts[0].num_tokens + parts[1].num_tokens
    assert whole.num_tokens == parts[2].num_tokens + parts[3].num_tokens
    assert whole.num_problems == len(set(examples.problem_N[index]))
    assert whole.share.value == pytest.approx(examples.wanted("divergent")[index].mean())
    # Entropies here have nothing to do with labels.
    assert whole.entropy.roc.value == pytest.approx(0.5, abs=0.12)
    assert "roc" not in whole.as_json()


def test_one_task_is_not_told_twice(tmp_path: Path) -> None:
    folder = labels(tmp_path / "labels", num=30, tasks=("countdown",))
    examples = gather([folder], VOCAB_SIZE, tmp_path / "work")
    index = examples.of("train")
    p = examples.entropy_N[index].astype(np.float64) / 10
    assert [each.name for each in qualities(examples, index, p, "divergent", NONE)] == ["all"]
