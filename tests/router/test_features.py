"""What a router reads of drafts."""

import pytest
import torch

from navtoken.router import DraftFeatures, RouterShape, ShapeError, features_of
from tiny_routers import random_drafts

VOCAB, HIDDEN = 40, 6


def shape_of(top_k: int, *inputs: str) -> RouterShape:
    return RouterShape.of_sizes(HIDDEN, HIDDEN, VOCAB, 10_000, inputs or ("logits", "hidden"), top_k)


def test_the_largest_logits_come_first_with_their_ids() -> None:
    drafts = random_drafts(5, VOCAB, HIDDEN)
    features = features_of(drafts, shape_of(7))
    ordered = drafts.logits_BV.sort(dim=-1, descending=True)
    assert torch.equal(features.top_logits_BK, ordered.values[:, :7])
    assert torch.equal(features.top_ids_BK, ordered.indices[:, :7])
    assert torch.equal(features.token_ids_B, drafts.token_ids_B)
    assert torch.equal(features.hidden_BD, drafts.hidden_BD)
    assert not features.in_id_order


def test_all_logits_are_read_in_order_of_ids() -> None:
    drafts = random_drafts(5, VOCAB, HIDDEN)
    features = features_of(drafts, shape_of(VOCAB))
    assert features.in_id_order
    assert torch.equal(features.top_logits_BK, drafts.logits_BV)
    assert features.top_ids_BK[3].tolist() == list(range(VOCAB))


def test_a_router_without_logits_reads_none() -> None:
    features = features_of(random_drafts(5, VOCAB, HIDDEN), shape_of(9, "hidden"))
    assert features.top_logits_BK.shape == features.top_ids_BK.shape == (5, 0)


@pytest.mark.parametrize(("top_k", "vocab_size"), [(VOCAB, VOCAB + 1), (VOCAB, VOCAB - 1), (30, 20)])
def test_a_vocabulary_that_the_router_cannot_read_is_refused(top_k: int, vocab_size: int) -> None:
    with pytest.raises(ShapeError, match=f"this pair's has {vocab_size}"):
        features_of(random_drafts(2, vocab_size, HIDDEN), shape_of(top_k))


def test_some_of_the_drafts() -> None:
    features = features_of(random_drafts(5, VOCAB, HIDDEN), shape_of(7)).to("cpu")
    some = features[torch.tensor([3, 0])]
    assert isinstance(some, DraftFeatures) and len(some) == 2 and len(features) == 5
    assert torch.equal(some.hidden_BD, features.hidden_BD[[3, 0]])
    assert torch.equal(some.top_logits_BK, features.top_logits_BK[[3, 0]])
    assert torch.equal(features[1:3].token_ids_B, features.token_ids_B[1:3])
