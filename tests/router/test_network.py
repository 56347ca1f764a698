"""The router network: what changes its word, and what does not."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from navtoken.router import DEFAULT_INPUTS, INPUTS, DraftFeatures, RouterNetwork, RouterShape, features_of
from tiny_routers import random_drafts, random_network

VOCAB, HIDDEN, SIZE = 40, 6, 12
EMBEDDING_VE = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(3))


def shape_of(top_k: int = 9, inputs: tuple[str, ...] = DEFAULT_INPUTS) -> RouterShape:
    return RouterShape.of_sizes(HIDDEN, HIDDEN, VOCAB, 20_000, inputs, top_k)


def said(network: RouterNetwork, features: DraftFeatures) -> torch.Tensor:
    with torch.no_grad():
        return network(features, EMBEDDING_VE[features.token_ids_B.long()])


def features(top_k: int = 9, **changes: torch.Tensor) -> DraftFeatures:
    return features_of(replace(random_drafts(SIZE, VOCAB, HIDDEN), **changes), shape_of(top_k))


def stored(full: DraftFeatures, top_k: int) -> DraftFeatures:
    """The same as labelled traces hold them."""
    best = full.top_logits_BK.topk(top_k, dim=-1)
    ids = full.top_ids_BK.gather(1, best.indices)
    return DraftFeatures(ids.int(), best.values.half(), full.token_ids_B.int(), full.hidden_BD.half())


@pytest.mark.parametrize("top_k", [9, VOCAB])
def test_stored_features_and_those_of_the_engine_say_the_same(top_k: int) -> None:
    network = random_network(shape_of(top_k))
    live = features(top_k)
    assert live.in_id_order == (top_k == VOCAB)
    ours, theirs = said(network, live).sigmoid(), said(network, stored(live, top_k)).sigmoid()
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_more_logits_than_are_read_change_nothing() -> None:
    network = random_network(shape_of(9))
    assert torch.equal(said(network, features(9)), said(network, features(20)))


def test_a_shift_of_all_logits_changes_nothing() -> None:
    network = random_network(shape_of())
    moved = replace(features(), top_logits_BK=features().top_logits_BK + 30.0)
    torch.testing.assert_close(said(network, features()), said(network, moved), atol=1e-4, rtol=1e-4)


def other_features() -> dict[str, DraftFeatures]:
    """Features that differ in one thing each."""
    here, generator = features(), torch.Generator().manual_seed(9)
    return {
        "logits": replace(here, top_logits_BK=here.top_logits_BK * 1.3),
        "token": replace(here, token_ids_B=(here.token_ids_B + 1) % VOCAB),
        "hidden": replace(here, hidden_BD=torch.randn(SIZE, HIDDEN, generator=generator)),
    }


@pytest.mark.parametrize(
    ("inputs", "changing"),
    [
        (("logits",), {"logits"}),
        (("embedding",), {"token"}),
        (("hidden",), {"hidden"}),
        (("summary",), {"logits", "token"}),
        (("entropy",), {"logits"}),
        (DEFAULT_INPUTS, {"logits", "token", "hidden"}),
    ],
)
def test_only_the_inputs_that_are_on_are_read(inputs: tuple[str, ...], changing: set[str]) -> None:
    network = random_network(shape_of(inputs=inputs))
    base = said(network, features())
    changed = {
        name for name, other in other_features().items() if not torch.equal(said(network, other), base)
    }
    assert changed == changing


def test_every_input_can_be_alone() -> None:
    for name in INPUTS:
        assert said(random_network(shape_of(inputs=(name,))), features()).shape == (SIZE,)


def summary_of(network: RouterNetwork, given: DraftFeatures) -> torch.Tensor:
    return network._inputs(given, None)["summary"]


@pytest.mark.parametrize("top_k", [VOCAB - 1, VOCAB])
def test_the_summary_is_entropy_the_drafts_log_probability_and_the_margin(top_k: int) -> None:
    network = random_network(shape_of(top_k, ("summary",)))
    drafts = random_drafts(SIZE, VOCAB, HIDDEN)
    logprobs_BK = drafts.logits_BV.topk(top_k).values.log_softmax(-1)
    drafted_B = drafts.logprobs_BV.gather(1, drafts.token_ids_B[:, None])[:, 0]
    best_B2 = logprobs_BK.exp().topk(2).values
    entropy_B = torch.special.entr(logprobs_BK.exp()).sum(-1)
    expected = torch.stack([entropy_B, drafted_B.clamp(min=-12), best_B2[:, 0] - best_B2[:, 1]], 1)
    assert (drafts.token_ids_B != drafts.logits_BV.argmax(-1)).any()
    torch.testing.assert_close(summary_of(network, features(top_k)), expected, atol=1e-3, rtol=1e-3)


def test_a_draft_that_is_not_among_the_logits_read_is_at_the_floor() -> None:
    network = random_network(shape_of(3, ("summary",)))
    worst = random_drafts(SIZE, VOCAB, HIDDEN).logits_BV.argmin(-1)
    assert (summary_of(network, features(3, token_ids_B=worst))[:, 1] == -12.0).all()


def test_a_draft_is_judged_alike_alone_and_in_a_batch() -> None:
    network = random_network(shape_of(VOCAB))
    together = said(network, features(VOCAB))
    alone = torch.cat([said(network, features(VOCAB)[index : index + 1]) for index in range(SIZE)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_what_the_slm_computes_in_bfloat16_is_judged_in_float32() -> None:
    network = random_network(shape_of())
    half = replace(
        features(),
        top_logits_BK=features().top_logits_BK.bfloat16(),
        hidden_BD=features().hidden_BD.bfloat16(),
    )
    with torch.no_grad():
        judged = network(half, EMBEDDING_VE[half.token_ids_B].bfloat16())
    assert judged.dtype == torch.float32
    torch.testing.assert_close(judged.sigmoid(), said(network, features()).sigmoid(), atol=0.1, rtol=0)


def test_a_weight_in_training_can_be_set_right() -> None:
    network = random_network(shape_of())
    before = said(network, features())
    network.shift(-2.0)
    torch.testing.assert_close(said(network, features()), before - 2.0)


@pytest.mark.parametrize("top_k", [9, VOCAB])
def test_a_router_learns_which_drafts_diverge(top_k: int) -> None:
    """Of an SLM that is sure, unless its draft is improbable; some logits never vary, as those of unused tokens."""
    drafts = random_drafts(600, VOCAB, HIDDEN)
    drafts.logits_BV[:, -1] = -60.0
    drafted_B = drafts.logprobs_BV.gather(1, drafts.token_ids_B[:, None])[:, 0]
    diverges_B = (drafted_B < -0.8).float()
    assert 0.1 < diverges_B.mean() < 0.9
    given = features_of(drafts, shape_of(top_k))
    torch.manual_seed(0)
    network = RouterNetwork(shape_of(top_k))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        logit_B = network(given, EMBEDDING_VE[given.token_ids_B])
        loss = functional.binary_cross_entropy_with_logits(logit_B, diverges_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right_B = (said(network.eval(), given) > 0) == (diverges_B > 0)
    assert right_B.float().mean() > 0.95


def test_a_token_that_was_never_probable_in_training_does_not_outweigh_everything() -> None:
    drafts = random_drafts(300, VOCAB, HIDDEN)
    drafts.logits_BV[:, -1] = -60.0
    network = RouterNetwork(shape_of(VOCAB)).train()
    given = features_of(drafts, shape_of(VOCAB))
    network(given, EMBEDDING_VE[given.token_ids_B])
    certain_BV = torch.zeros(1, VOCAB)
    assert network.eval().norms["logits"](certain_BV).abs().max() < 50
