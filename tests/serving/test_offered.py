"""Which policy a request's reference and threshold become, on a server with a router of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from navtoken.engine import SamplingParams
from navtoken.policies import make_policy
from navtoken.policies.router import RouterPolicy
from navtoken.router import ALL_TASKS, StoredThreshold
from navtoken.serving.errors import BadRequest
from navtoken.serving.offered import MOST_KEPT, Offered, public
from tiny_models import tiny_pair
from tiny_routers import tiny_router

GREEDY, WARM = SamplingParams(), SamplingParams(temperature=1.0)
STORED = (
    StoredThreshold(ALL_TASKS, 0.5, share=0.2, realised_share=0.2),
    StoredThreshold(ALL_TASKS, 0.6, temperature=1.0, share=0.2, realised_share=0.2),
    StoredThreshold(ALL_TASKS, 0.8, share=0.1, realised_share=0.1),
    StoredThreshold(ALL_TASKS, 0.7, temperature=1.0, repetition_penalty=1.05, share=0.2, realised_share=0.2),
    StoredThreshold(ALL_TASKS, 0.4, repetition_penalty=1.05, share=0.2, realised_share=0.2),
)


@pytest.fixture
def offered(tmp_path: Path) -> Offered:
    """A tiny pair under a router that lies in a folder."""
    pair = tiny_pair()
    tiny_router(tmp_path / "router", pair, thresholds=STORED)
    tiny_router(tmp_path / "other", pair, seed=1)
    return Offered(pair, make_policy(f"router:{tmp_path / 'router'}"))


def threshold(policy: object) -> float | None:
    assert isinstance(policy, RouterPolicy)
    return policy.threshold


def test_router_is_the_servers_own_at_the_requests_sampling(offered: Offered) -> None:
    served = offered.served
    assert isinstance(served, RouterPolicy)
    for reference in (None, "router", f"router:{served.target}"):
        greedy, warm = (offered.policy(reference, None, sampling) for sampling in (GREEDY, WARM))
        assert (threshold(greedy), threshold(warm)) == (0.5, 0.6)
        assert isinstance(greedy, RouterPolicy) and greedy.router.weights == served.router.weights
    assert threshold(offered.policy("router,threshold=0.3", None, WARM)) == 0.3
    assert threshold(offered.policy("router,share=0.1", None, GREEDY)) == 0.8


def test_a_penalty_has_a_threshold_of_its_own(offered: Offered) -> None:
    # One after the other: what was made for one sampling must not be remembered for another.
    for sampling, wanted in ((GREEDY, (0.5, 0.4)), (WARM, (0.6, 0.7))):
        without, under = sampling, replace(sampling, repetition_penalty=1.05)
        found = [threshold(offered.policy("router,share=0.2", None, each)) for each in (without, under)]
        assert tuple(found) == wanted
    with pytest.raises(BadRequest, match="no threshold for share=0.2"):
        offered.policy("router,share=0.2", None, replace(WARM, repetition_penalty=1.1))
    with pytest.raises(BadRequest, match="no threshold for share=0.2"):
        offered.policy("router,share=0.2", None, replace(WARM, frequency_penalty=0.5))


def test_a_threshold_is_not_kept_for_another_sampling(offered: Offered) -> None:
    for sampling, kept in ((WARM, 0.6), (replace(WARM, frequency_penalty=0.5), 0.5), (WARM, 0.6)):
        assert threshold(offered.policy(None, None, sampling)) == kept


def test_a_share_without_a_stored_threshold_is_refused(offered: Offered) -> None:
    with pytest.raises(BadRequest, match="no threshold for share=0.1"):
        offered.policy("router,share=0.1", None, WARM)
    with pytest.raises(BadRequest, match="no threshold yet"):
        offered.policy("entropy,share=0.1", None, GREEDY)


def test_a_threshold_moves_any_policy_that_has_one(offered: Offered) -> None:
    assert threshold(offered.policy(None, 0.25, WARM)) == 0.25
    assert offered.policy("entropy:0.67", 1.5, GREEDY).reference == "entropy:1.5"
    assert offered.policy("margin:0.1", 0.5, GREEDY).reference == "margin:0.5"
    for reference in ("slm", "llm", "random:0.2", "speculative:4", "hindsight:0.05"):
        with pytest.raises(BadRequest, match="has no threshold") as refused:
            offered.policy(reference, 0.5, GREEDY)
        assert refused.value.param == "threshold"


def test_no_client_opens_a_folder(offered: Offered, tmp_path: Path) -> None:
    # Readable, fitting, and still not the server's.
    other = tmp_path / "other"
    assert make_policy(f"router:{other}")
    for reference in (
        f"router:{other}",
        f"router:{other},threshold=0.1",
        f"query:{other}",
        f"hindsight:0.1,router={other}",
        f"hindsight:0.1,router={other},threshold=0.4",
        f"hindsight:0.1,router={offered.served.target}/../other",  # type: ignore[attr-defined]
    ):
        with pytest.raises(BadRequest, match="does not have") as refused:
            offered.policy(reference, None, GREEDY)
        assert refused.value.param == "policy"
    own = offered.policy(f"hindsight:0.1,router={offered.served.target},threshold=0.4", None, GREEDY)  # type: ignore[attr-defined]
    assert own.verifies


@pytest.mark.parametrize(
    "reference", ["oracle", "nothing", "entropy", "entropy:x", "", "entropy:0.6,foo=1", "a" * 150]
)
def test_what_is_no_policy_is_refused(offered: Offered, reference: str) -> None:
    with pytest.raises(BadRequest) as refused:
        offered.policy(reference, None, GREEDY)
    assert refused.value.param == "policy"


def test_a_server_without_a_router_says_so() -> None:
    offered = Offered(tiny_pair(), make_policy("entropy:0.67"))
    with pytest.raises(BadRequest, match="has no router"):
        offered.policy("router", None, GREEDY)
    assert not any(offer.reference.startswith("router") for offer in offered.offers())


def test_the_page_is_offered_what_can_be_asked_for(offered: Offered) -> None:
    offers = offered.offers()
    assert offers[0].reference == "router" and offers[0].threshold == 0.5
    assert len({offer.reference for offer in offers}) == len(offers)
    for offer in offers:
        policy = offered.policy(offer.reference, offer.threshold, GREEDY)
        assert (offer.threshold is None) == (offer.signal is None)
        assert policy.reference


@pytest.mark.parametrize("router", [False, True], ids=["", "beside another router"])
@pytest.mark.parametrize(
    "served",
    [
        "router:{}/router",
        "router:{}/router,threshold=0.3",
        "query:{}/query",
        "hindsight:0.1,router={}/router,threshold=0.4",
        "hindsight:0.1,router={}/router",
        "hindsight:0.1,entropy=0.67",
        "entropy:0.67",
        "speculative:4",
    ],
)
def test_no_path_is_told_and_what_is_told_can_be_asked_for(
    offered: Offered, tmp_path: Path, served: str, router: bool
) -> None:
    tiny_router(tmp_path / "query", offered.pair, kind="query", inputs=("hidden",), thresholds=STORED)
    other = make_policy(f"router:{tmp_path / 'other'}") if router else None
    assert other is None or isinstance(other, RouterPolicy)
    own = Offered(offered.pair, make_policy(served.format(tmp_path)), other)
    told = public(own.served)
    assert str(tmp_path) not in told
    assert own.policy(told, None, GREEDY).reference == own.served.reference
    assert str(tmp_path) not in public(own.policy(told, None, GREEDY))


def test_hindsight_takes_the_router_that_is_served(offered: Offered, tmp_path: Path) -> None:
    hindsight = make_policy(f"hindsight:0.1,router={tmp_path / 'router'},threshold=0.4")
    assert offered.policy(public(hindsight), None, GREEDY).reference == hindsight.reference


def test_references_are_forgotten_in_time(offered: Offered) -> None:
    for number in range(MOST_KEPT + 20):
        offered.policy(f"entropy:{number}", None, GREEDY)
    assert len(offered._known) == MOST_KEPT
