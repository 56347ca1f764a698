"""Policies by name. A new rule is one entry here: what it is called, and how it is made of its reference."""

from collections.abc import Callable

from navtoken.policies import hindsight, oracle, query, r_stitch, router
from navtoken.policies.arguments import check_options, number
from navtoken.policies.base import Policy
from navtoken.policies.rules import (
    EntropyPolicy,
    LLMPolicy,
    LLMProbPolicy,
    MarginPolicy,
    PolicyError,
    RandomPolicy,
    SLMPolicy,
    ThresholdPolicy,
)
from navtoken.policies.speculative import SpeculativePolicy
from navtoken.reference import Reference, parse_reference

Maker = Callable[[Reference], Policy]

_MAKERS: dict[str, Maker] = {}


class UnknownPolicyError(PolicyError):
    """A policy name that nobody registered."""


def register(name: str, maker: Maker) -> None:
    """Add a policy. The maker gets the parsed reference and refuses options that it does not know."""
    if name in _MAKERS:
        raise PolicyError(f"policy '{name}' is registered already; choose another name")
    _MAKERS[name] = maker


def known_policies() -> list[str]:
    return sorted(_MAKERS)


def make_policy(reference: str) -> Policy:
    """Make a policy from its reference: `slm`, `entropy:0.67`, `random,share=0.13`, ...

    Raises `UnknownPolicyError` or `PolicyError` naming the part that does not fit.
    """
    parsed = parse_reference(reference)
    if parsed.name not in _MAKERS:
        raise UnknownPolicyError(
            f"no policy is called '{parsed.name}'; there are {', '.join(known_policies())}"
        )
    return _MAKERS[parsed.name](parsed)


def _bare(policy: type[SLMPolicy] | type[LLMPolicy]) -> Maker:
    def make(reference: Reference) -> Policy:
        check_options(reference, ())
        if reference.target is not None:
            raise PolicyError(f"'{reference}': {reference.name} takes nothing after ':'")
        return policy()

    return make


def _random(reference: Reference) -> Policy:
    check_options(reference, ("share",))
    probability = number(reference.target, reference)
    share = number(reference.options.get("share"), reference)
    if (probability is None) == (share is None):
        raise PolicyError(f"'{reference}': write random:0.13 or random,share=0.13")
    return RandomPolicy(share if probability is None else probability)  # type: ignore[arg-type]


def _threshold(policy: type[ThresholdPolicy]) -> Maker:
    def make(reference: Reference) -> Policy:
        check_options(reference, ("share",))
        threshold = number(reference.target, reference)
        share = number(reference.options.get("share"), reference)
        made: Policy = policy(threshold=threshold, share=share)  # type: ignore[assignment]
        return made

    return make


def _speculative(reference: Reference) -> Policy:
    check_options(reference, ())
    target = reference.target or "auto"
    if target != "auto" and not target.isdigit():
        raise PolicyError(f"'{reference}': write speculative:4, or speculative:auto")
    return SpeculativePolicy(None if target == "auto" else int(target))


register("slm", _bare(SLMPolicy))
register("llm", _bare(LLMPolicy))
register("random", _random)
register("speculative", _speculative)
for _policy in (EntropyPolicy, MarginPolicy, LLMProbPolicy):
    register(_policy.name, _threshold(_policy))
for _module, _name in (
    (router, "router"),
    (query, "query"),
    (r_stitch, "r-stitch"),
    (hindsight, "hindsight"),
    (oracle, "oracle"),
):
    register(_name, _module.make)
