"""A router's inputs, and its size beside its SLM's."""

import json

import pytest

from navtoken.checkpoints import load_model
from navtoken.router import DEFAULT_INPUTS, RouterNetwork, RouterShape, ShapeError

R1_SMALL = {"hidden": 1536, "embedding": 1536, "vocab_size": 151_665, "slm_parameters": 1_777_088_000}


def test_the_papers_pair_gets_the_papers_size() -> None:
    shape = RouterShape.of_sizes(**R1_SMALL)
    assert (shape.width, shape.depth, shape.expansion, shape.top_k) == (1024, 6, 4, 100)
    assert 50e6 < shape.parameters < 57e6
    assert not shape.by_id


@pytest.mark.parametrize(
    ("hidden", "parameters"),
    [
        (1024, 596_049_920),
        (2048, 1_720_574_976),
        (2560, 4_022_468_096),
        (4096, 8_190_735_360),
        (896, 494_032_768),
    ],
)
def test_a_router_is_a_small_share_of_its_slm(hidden: int, parameters: int) -> None:
    shape = RouterShape.of_sizes(hidden, hidden, 151_669, parameters)
    assert shape.parameters <= 0.032 * parameters
    assert 2 <= shape.depth <= 6
    assert shape.width <= min(1024, hidden)
    # Nor is it a token one.
    assert shape.parameters >= min(0.008 * parameters, 50e6)


@pytest.mark.parametrize("top_k", [100, 500])
def test_the_embedded_slms_router_is_no_larger_than_itself(top_k: int) -> None:
    slm = load_model("embedded:slm")
    shape = RouterShape.for_slm(slm, top_k=top_k)
    assert shape.parameters <= slm.card.parameters
    assert shape.by_id == (top_k == 500)
    assert (shape.slm_hidden, shape.embedding_size, shape.vocab_size) == (32, 32, 500)


@pytest.mark.parametrize("norm", ["standard", "none", "softmax"])
@pytest.mark.parametrize(
    "inputs", [DEFAULT_INPUTS, ("hidden",), ("entropy",), ("logits", "embedding", "hidden")]
)
def test_parameters_are_those_of_the_network(norm: str, inputs: tuple[str, ...]) -> None:
    shape = RouterShape(24, 20, 96, inputs, top_k=10, norm=norm, width=16, depth=3, expansion=2)  # type: ignore[arg-type]
    assert RouterNetwork(shape).num_parameters == shape.parameters


def test_asked_sizes_are_taken_as_they_are() -> None:
    shape = RouterShape.of_sizes(**R1_SMALL, width=48, depth=9, dropout=0.3, expansion=None)
    assert (shape.width, shape.depth, shape.dropout, shape.expansion) == (48, 9, 0.3, 4)


def test_inputs_are_put_in_order_and_logits_left_out_where_none_needs_them() -> None:
    shape = RouterShape.of_sizes(32, 32, 500, 40_000, inputs=("hidden", "logits"))
    assert shape.inputs == ("logits", "hidden")
    alone = RouterShape.of_sizes(32, 32, 500, 40_000, inputs=("hidden",))
    assert (alone.top_k, alone.reads_logits) == (0, False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"inputs": ()}, "none"),
        ({"inputs": ("hidden", "logits")}, "in that order"),
        ({"inputs": ("hiden",)}, "hiden"),
        ({"top_k": 1}, "top_k is 1"),
        ({"by_id": True}, "all 96"),
        ({"width": 0}, "width 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields: dict, named: str) -> None:
    with pytest.raises(ShapeError, match=named):
        RouterShape(**({"slm_hidden": 8, "embedding_size": 8, "vocab_size": 96, "top_k": 10} | fields))


def test_an_unknown_input_names_the_known_ones() -> None:
    with pytest.raises(ShapeError, match="'hiden'.*logits, embedding, hidden"):
        RouterShape.of_sizes(32, 32, 500, 40_000, inputs=("hiden",))


def test_a_shape_survives_json() -> None:
    shape = RouterShape.of_sizes(32, 32, 500, 40_000, top_k=500, inputs=("logits", "entropy"))
    assert RouterShape.from_json(json.loads(json.dumps(shape.as_json()))) == shape
    with pytest.raises(ShapeError, match="colour"):
        RouterShape.from_json(shape.as_json() | {"colour": 3})
