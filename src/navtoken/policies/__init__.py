"""Who writes the next token: the protocol, the simple rules, the registry and its grammar."""

from navtoken.policies.base import (
    Action,
    BasePolicy,
    Drafts,
    Judged,
    Noise,
    PairView,
    Policy,
    Verdicts,
    Writer,
    Writes,
    route,
)
from navtoken.policies.noise import NoiseKeys, Purpose, derive_seed, uniform
from navtoken.policies.registry import UnknownPolicyError, known_policies, make_policy, register
from navtoken.policies.rules import PolicyError, ThresholdPolicy, UncalibratedError

__all__ = [
    "Action",
    "BasePolicy",
    "Drafts",
    "Judged",
    "Noise",
    "NoiseKeys",
    "PairView",
    "Policy",
    "PolicyError",
    "Purpose",
    "ThresholdPolicy",
    "UncalibratedError",
    "UnknownPolicyError",
    "Verdicts",
    "Writer",
    "Writes",
    "derive_seed",
    "known_policies",
    "make_policy",
    "register",
    "route",
    "uniform",
]
