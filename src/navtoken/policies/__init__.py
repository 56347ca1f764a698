"""Who writes the next token: the protocol, the simple rules, the registry and its grammar."""

from navtoken.policies.base import (
    KEEP,
    TO_LLM,
    Action,
    BasePolicy,
    Drafts,
    NoiseKeys,
    Policy,
    Verdict,
    Verdicts,
    Writer,
    Writes,
)
from navtoken.policies.noise import Purpose, derive_seed, uniform
from navtoken.policies.registry import UnknownPolicyError, known_policies, make_policy, register
from navtoken.policies.rules import PolicyError, ThresholdPolicy, UncalibratedError

__all__ = [
    "KEEP",
    "TO_LLM",
    "Action",
    "BasePolicy",
    "Drafts",
    "NoiseKeys",
    "Policy",
    "PolicyError",
    "Purpose",
    "ThresholdPolicy",
    "UncalibratedError",
    "UnknownPolicyError",
    "Verdict",
    "Verdicts",
    "Writer",
    "Writes",
    "derive_seed",
    "known_policies",
    "make_policy",
    "register",
    "uniform",
]
