"""Is a sample what a distribution gives?"""

import torch
from torch import Tensor

LEAST_EXPECTED = 5.0
"""Rarer outcomes are counted together: below this the test's own approximation fails."""


def p_value(counts: Tensor, probs: Tensor) -> float:
    """Probability of counts this far from `probs` or further, by Pearson's chi-square test; 0 where the impossible happened."""
    counts, probs = counts.flatten().double(), probs.flatten().double()
    assert abs(float(probs.sum()) - 1) < 1e-9
    if counts[probs == 0].sum() > 0:
        return 0.0
    expected = probs * counts.sum()
    common = expected >= LEAST_EXPECTED
    rare = torch.stack([counts[~common].sum(), expected[~common].sum()])
    counts, expected = counts[common], expected[common]
    if rare[1] >= LEAST_EXPECTED:
        counts, expected = torch.cat([counts, rare[:1]]), torch.cat([expected, rare[1:]])
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    assert freedom > 0, "one outcome is certain: nothing to test"
    return float(torch.special.gammaincc(freedom, statistic / 2))
