"""Noise that belongs to a token, not to a call: uniform numbers keyed by (seed, sample, position, purpose).

A generator's stream would make a request's tokens depend on its batch neighbours and on the batching rule. A
counter-based hash (splitmix64's finaliser, chained over the key) does not, and no two uses share a number.
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a number is used for."""

    DRAFT = 0
    """Sampling a token from the SLM."""
    LLM_WRITE = 1
    """Sampling a token from the LLM."""
    ACCEPTANCE = 2
    """Accepting a provisional draft."""
    RESIDUAL = 3
    """Sampling from what remains after a rejection."""
    ROUTING = 4
    """The coin of random routing."""


@dataclass(frozen=True)
class NoiseKeys:
    """Names the noise that each of some tokens may use."""

    seed_B: np.ndarray
    sample_B: np.ndarray
    position_B: np.ndarray
    """Index, in prompt and response together, of the token being decided."""

    def uniform(self, purpose: Purpose) -> np.ndarray:
        return uniform(self.seed_B, self.sample_B, self.position_B, purpose)


_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_TO_UNIT = 2.0**-53


def uniform(seed_B: np.ndarray, sample_B: np.ndarray, position_B: np.ndarray, purpose: Purpose) -> np.ndarray:
    """Numbers in [0, 1), float64, shape (B,): one per key. Keys are integers of any sign."""
    state_B = _mix(np.asarray(seed_B).astype(np.uint64))
    for part in (sample_B, position_B, np.full_like(position_B, int(purpose))):
        state_B = _mix(state_B ^ np.asarray(part).astype(np.uint64))
    return (state_B >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def derive_seed(seed: int, *names: str) -> int:
    """A seed of its own for each name (a problem's id, a task): 63 bits, stable across machines."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _mix(state_B: np.ndarray) -> np.ndarray:
    """splitmix64: add the increment, then a bijection in which every input bit moves every output bit."""
    state_B = state_B + _INCREMENT
    state_B = (state_B ^ (state_B >> np.uint64(30))) * _FACTORS[0]
    state_B = (state_B ^ (state_B >> np.uint64(27))) * _FACTORS[1]
    return state_B ^ (state_B >> np.uint64(31))
