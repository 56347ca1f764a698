"""The rule of "Beyond the 80/20 Rule" for decoding: forking tokens at one temperature, all others at another.

It is a pair of sampling parameters (`fork_threshold`, `fork_temperature`; `temperature` is the others') and not an option of
the engine: so it is a request's own, is recorded in its trace, keeps a folder from mixing two rules, and whatever takes
sampling parameters has it, a server's single request too. Inside it is two more dials (`dice`), so captured graphs
serve it like any other temperature.

A token's entropy is that of the model that draws it: a draft forks by the SLM's, what the LLM writes or judges by the
LLM's. It is taken at T = 1 and before penalties, biases and truncation, so it does not depend on the rule itself.

Shapes: M places at which a token is decided.
"""

import torch
from torch import Tensor


def fork_temperatures(entropy_M: Tensor, threshold_M: Tensor, fork_M: Tensor, other_M: Tensor) -> Tensor:
    """Temperature of each place: `fork_M` where the entropy (nats, T = 1) is above the threshold, else `other_M`.

    All float64 (M,). A threshold of infinity is no rule: no entropy is above it.
    """
    return torch.where(entropy_M.double() > threshold_M, fork_M, other_M)
