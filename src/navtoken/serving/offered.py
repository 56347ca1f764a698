"""Which policies a client may ask for, and how its reference and threshold become one.

A reference may name a folder, and no client may have the server open folders: only the server's own router is read.
"""

from collections import OrderedDict
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from navtoken.checkpoints import ModelPair
from navtoken.engine import SamplingParams
from navtoken.policies import Policy, PolicyError, ThresholdPolicy, make_policy
from navtoken.policies.hindsight import PAIRS_ROUTER, HindsightPolicy
from navtoken.policies.query import QueryPolicy
from navtoken.policies.router import RouterPolicy
from navtoken.reference import BadReference, Reference, parse_reference
from navtoken.router import ALL_TASKS
from navtoken.serving.answers import OfferedPolicy
from navtoken.serving.errors import BadRequest

MOST_KEPT = 256
"""Policies that are remembered."""
SIGNALS = {
    "router": ("p(divergent)", 0.0, 1.0, "a trained network reads every draft"),
    "entropy": ("entropy of the SLM (nats)", 0.0, 3.0, "the LLM writes where the SLM is uncertain"),
    "margin": ("margin of the SLM", 0.0, 1.0, "the LLM writes where the SLM's two best are close"),
    "r-stitch": (
        "entropy / log V",
        0.0,
        0.3,
        "control goes to the LLM where the SLM is uncertain, back when it is sure",
    ),
    "llm-prob": ("probability by the LLM", 0.0, 1.0, "the LLM reads every draft and replaces unlikely ones"),
}
"""By policy: what its threshold is held against, a range for it, and what the policy does."""
RULES = (
    "entropy:0.67",
    "margin:0.1",
    "r-stitch:0.06",
    "hindsight:0.05",
    "speculative:4",
    "random:0.2",
    "slm",
    "llm",
)
"""What the page offers beside the server's own policy."""
PLAIN = {
    "hindsight": "the LLM takes back what it finds unlikely when it catches up",
    "speculative": "the LLM checks several drafts in one pass: its own text, sooner",
    "random": "the LLM writes at random: the control",
    "query": "one of both writes everything, as the prompt says",
    "slm": "the SLM alone",
    "llm": "the LLM alone",
}


@dataclass(eq=False)
class Offered:
    """The policies of one server."""

    pair: ModelPair
    served: Policy
    """What the server was started with."""
    router: RouterPolicy | None = None
    """Where the server has a router that is not the one it was started with: the embedded pair's."""
    _known: "OrderedDict[tuple[Any, ...], Policy]" = field(default_factory=OrderedDict)

    def policy(self, reference: str | None, threshold: float | None, sampling: SamplingParams) -> Policy:
        """What a request asked for, at its sampling parameters. Raises `BadRequest`."""
        # All that changes what is drawn: a stored threshold is of one sampling.
        key = (reference, threshold, replace(sampling, stop=(), ignore_eos=False, min_tokens=0))
        if key not in self._known:
            self._known[key] = self._made(reference, threshold, sampling)
            if len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        return self._known[key]

    def lacks_threshold(self, sampling: SamplingParams) -> bool:
        """Is the router that is served without a threshold of its own for these sampling parameters, so that its default stands in?"""
        policy = self.served
        if not (isinstance(policy, RouterPolicy) and policy.by_default):
            return False
        return policy.in_sampling(asdict(sampling), self.pair.llm.fingerprint).by_default

    def offers(self) -> list[OfferedPolicy]:
        """What the page offers: what is served, then a rule of each kind."""
        own = [self._router] if self._router else []
        policies = [self.served, *own, *map(make_policy, RULES)]
        offered = {policy.reference: _offered(policy) for policy in policies}
        return list(offered.values())

    @property
    def _router(self) -> RouterPolicy | None:
        served = self.served
        return served if isinstance(served, RouterPolicy) and served.name == "router" else self.router

    def _made(self, reference: str | None, threshold: float | None, sampling: SamplingParams) -> Policy:
        try:
            policy = self.served if reference is None else self._named(reference, sampling)
            if isinstance(policy, RouterPolicy):
                policy = policy.in_sampling(asdict(sampling), self.pair.llm.fingerprint)
            if threshold is not None:
                policy = _moved(policy, threshold)
            policy.check_ready()
        except (PolicyError, BadReference) as error:
            raise BadRequest(str(error), "policy") from error
        return policy

    def _named(self, text: str, sampling: SamplingParams) -> Policy:
        reference = self._completed(parse_reference(text))
        if reference.name == "router":
            return self._own_router(reference, sampling)
        folder = reference.options.get("router") if reference.name == "hindsight" else reference.target
        if reference.name in ("query", "hindsight") and folder not in self._folders(reference.name):
            raise _not_ours(reference)
        if reference.name == "oracle":
            raise BadRequest(
                "policy 'oracle' needs problems with answers; it is for navtoken evaluate", "policy"
            )
        return make_policy(str(reference))

    def _completed(self, reference: Reference) -> Reference:
        """A reference to a router without its folder, as `public` spells it, with the server's own."""
        if reference.name == "query" and reference.target is None and isinstance(self.served, QueryPolicy):
            return replace(reference, target=self.served.target)
        folder = self._base_folder if reference.options.get("router") == PAIRS_ROUTER else None
        if folder is not None:
            return replace(reference, options=reference.options | {"router": folder})
        return reference

    @property
    def _base_folder(self) -> str | None:
        """What hindsight's router is on this server: that of the hindsight it was started with, else the server's own."""
        if isinstance(self.served, HindsightPolicy) and isinstance(self.served.base, RouterPolicy):
            return self.served.base.target or PAIRS_ROUTER
        return None if self._router is None else self._router.target or PAIRS_ROUTER

    def _folders(self, name: str) -> tuple[str | None, ...]:
        """How a client may name a router's folder in a policy: not at all, or as the server does."""
        served = self.served
        if name == "query":
            return (None, served.target) if isinstance(served, QueryPolicy) else (None,)
        return (None, self._base_folder)

    def _own_router(self, reference: Reference, sampling: SamplingParams) -> Policy:
        own = self._router
        if own is None:
            raise BadRequest("this server has no router; start it with --policy router:FOLDER", "policy")
        if reference.target not in (None, own.target):
            raise _not_ours(reference)
        asked = make_policy(str(replace(reference, target=own.target)))
        assert isinstance(asked, RouterPolicy)
        if asked.threshold is not None:
            return asked
        stored = asked.stored(ALL_TASKS, asdict(sampling), self.pair.llm.fingerprint)
        if stored is None:
            raise BadRequest(
                f"the router has no threshold for share={asked.share:g} at these sampling parameters; give a threshold, "
                "or find one with navtoken calibrate",
                "policy",
            )
        return stored


def public(policy: Policy) -> str:
    """A policy's reference for clients: without the router's folder, as paths are nobody's business."""
    reference = parse_reference(policy.reference)
    if reference.name in ("router", "query"):
        return str(replace(reference, target=None))
    if reference.name == "hindsight" and "router" in reference.options:
        return str(replace(reference, options=reference.options | {"router": PAIRS_ROUTER}))
    return policy.reference


def _not_ours(reference: Reference) -> BadRequest:
    return BadRequest(
        f"policy '{reference}' names a router that this server does not have; leave the folder out to take its own",
        "policy",
    )


def _moved(policy: Policy, threshold: float) -> Policy:
    if not isinstance(policy, ThresholdPolicy):
        raise BadRequest(f"policy '{policy.reference}' has no threshold; leave it out", "threshold")
    moved = replace(policy.with_threshold(threshold), share=None)
    return replace(moved, by_default=False) if isinstance(moved, RouterPolicy) else moved


def _offered(policy: Policy) -> OfferedPolicy:
    name = parse_reference(policy.reference).name
    threshold = policy.threshold if isinstance(policy, ThresholdPolicy) else None
    if name not in SIGNALS or threshold is None:
        return OfferedPolicy(
            reference=public(policy),
            threshold=None,
            signal=None,
            low=None,
            high=None,
            llm_above=None,
            description=PLAIN.get(name, ""),
        )
    signal, low, high, description = SIGNALS[name]
    assert isinstance(policy, ThresholdPolicy)
    return OfferedPolicy(
        reference=name if isinstance(policy, RouterPolicy) else policy.reference,
        threshold=threshold,
        signal=signal,
        low=low,
        high=max(high, threshold),
        llm_above=policy.llm_above,
        description=description,
    )
