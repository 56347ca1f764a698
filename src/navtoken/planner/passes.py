"""What an LLM pass over so many parked rows takes, given that rows lack different numbers of tokens.

A parked row feeds the token that the LLM wrote last and all that the SLM wrote since: a geometric number, 1 /
share on average. Where the LLM's times bend, the time of the mean number is not the mean time (off by 40 %
for a single row at a sharp bend), so the time is averaged over the scatter: 16 quantiles of the total, from
Wilson and Hilferty's approximation of gamma quantiles, with the mean made exact. Within 3 % of the exact
average at the sharpest bends for shares up to 0.3.

Shapes: K numbers of parked rows, Q quantiles.
"""

from statistics import NormalDist

import numpy as np

from navtoken.planner.workload import Workload

_NUM_QUANTILES = 16
_NORMAL_Q = np.array([NormalDist().inv_cdf((i + 0.5) / _NUM_QUANTILES) for i in range(_NUM_QUANTILES)])


def llm_pass_seconds(workload: Workload) -> np.ndarray:
    """Mean seconds of a bare LLM pass over k = 0 .. rows parked rows, shape (rows + 1,); 0 for k = 0."""
    fed_KQ = new_tokens(np.arange(1, workload.rows + 1), workload.share)
    return np.concatenate(([0.0], workload.llm.at(fed_KQ).mean(1)))


def new_tokens(num_rows_K: np.ndarray, share: float) -> np.ndarray:
    """Equally probable numbers of new tokens of passes over k rows, shape (K, Q); their mean is k / share."""
    num_rows_K = num_rows_K[:, None]
    variance_K = (1 - share) / num_rows_K
    gamma_KQ = num_rows_K / share * (1 - variance_K / 9 + _NORMAL_Q * np.sqrt(variance_K) / 3) ** 3
    # A row feeds at least one token, so only what is above that scatters.
    above_KQ = np.maximum(gamma_KQ - num_rows_K, 0.0)
    wanted_K = num_rows_K * (1 - share) / share
    mean_K = above_KQ.mean(1, keepdims=True)
    return num_rows_K + above_KQ * np.divide(wanted_K, mean_K, out=np.zeros_like(mean_K), where=mean_K > 0)
