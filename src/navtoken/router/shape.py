"""What a router looks at, and how large it is.

The paper's router (56 million parameters for an SLM of 1.5 billion) is 3 % of its SLM. A router of one fixed size would
be larger than a small SLM, whose step it runs in; so width and depth follow from the SLM, and the paper's are the largest.
Beyond the paper there are two inputs: the draft's own probability, which sorted logits do not hold where drafts are
sampled, and (for comparison) the entropy alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from navtoken.checkpoints import LoadedModel
from navtoken.model_card import text_config

INPUTS = ("logits", "embedding", "hidden", "summary", "entropy")
"""The SLM's most probable logits; the embedding of the drafted token; the SLM's last hidden state; entropy, the draft's
log-probability and the margin of the best token; the entropy alone."""
DEFAULT_INPUTS = INPUTS[:4]
TOP_K = 100
"""Logits that the paper's router reads."""
SUMMARY_SIZE = 3

MOST_WIDTH, MOST_DEPTH = 1024, 6
"""The paper's, for an SLM of 1.5 billion parameters."""
LEAST_WIDTH, LEAST_DEPTH = 32, 2
MOST_SHARE = 0.032
"""Of the SLM's parameters."""
LEAST_PARAMETERS = 40_000
"""A router may have so many even where that is more than its share of the SLM, but never more than the SLM has."""

Norm = Literal["standard", "none", "softmax"]


class ShapeError(ValueError):
    """A router that cannot be built as asked."""


@dataclass(frozen=True)
class RouterShape:
    """Everything that a router network is built from."""

    slm_hidden: int
    """Size of the SLM's last hidden state."""
    embedding_size: int
    """Size of the SLM's token embeddings."""
    vocab_size: int
    """Token ids that logits cover."""
    inputs: tuple[str, ...] = DEFAULT_INPUTS
    """Some of `INPUTS`, in that order."""
    top_k: int = TOP_K
    """Logits read; 0 where no input needs any."""
    by_id: bool = False
    """Are logits read in order of token ids (all of them), rather than the most probable first?"""
    norm: Norm = "standard"
    """`standard`: log-probabilities among the logits read, standardised; layer norm of hidden state and embedding.
    `none` and `softmax` are what the official code does: inputs as they are; probabilities, and layer norms."""
    width: int = MOST_WIDTH
    depth: int = MOST_DEPTH
    """Residual blocks."""
    expansion: int = 4
    """Of each block's hidden layer, in widths."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not self.inputs or self.inputs != tuple(name for name in INPUTS if name in self.inputs):
            raise ShapeError(
                f"a router's inputs are {', '.join(self.inputs) or 'none'}; name some of {', '.join(INPUTS)}, in that order"
            )
        if self.reads_logits and self.top_k < 2:
            raise ShapeError(f"top_k is {self.top_k}; inputs made of logits need at least 2")
        if self.by_id and self.top_k != self.vocab_size:
            raise ShapeError(
                f"logits by token id are all {self.vocab_size} of them, top_k is {self.top_k}; give "
                f"top_k={self.vocab_size}, or by_id=False"
            )
        if min(self.width, self.depth, self.expansion) < 1 or not 0.0 <= self.dropout < 1.0:
            raise ShapeError(
                f"width {self.width}, depth {self.depth}, expansion {self.expansion} and dropout {self.dropout} make no "
                "router; give at least 1 of each, and a dropout from 0 to below 1"
            )

    @classmethod
    def for_slm(
        cls,
        slm: LoadedModel,
        inputs: Sequence[str] = DEFAULT_INPUTS,
        top_k: int = TOP_K,
        vocab_size: int | None = None,
        **sizes: Any,
    ) -> "RouterShape":
        """The router of an SLM, as large as suits it; `sizes` (width, depth, expansion, dropout) are taken as they are.

        `top_k` of the vocabulary's size or more reads all logits, by token id. `vocab_size` is the pair's, where that
        is not the SLM's.
        """
        return cls.of_sizes(
            hidden=text_config(slm.model).hidden_size,
            embedding=slm.model.get_input_embeddings().embedding_dim,
            vocab_size=vocab_size or slm.vocab_size,
            slm_parameters=slm.card.parameters,
            inputs=inputs,
            top_k=top_k,
            **sizes,
        )

    @classmethod
    def of_sizes(
        cls,
        hidden: int,
        embedding: int,
        vocab_size: int,
        slm_parameters: int,
        inputs: Sequence[str] = DEFAULT_INPUTS,
        top_k: int = TOP_K,
        **sizes: Any,
    ) -> "RouterShape":
        """The same from numbers."""
        if unknown := set(inputs) - set(INPUTS):
            raise ShapeError(f"a router has no input '{min(unknown)}'; there are {', '.join(INPUTS)}")
        ordered = tuple(name for name in INPUTS if name in inputs)
        read = min(top_k, vocab_size) if _needs_logits(ordered) else 0
        sizes = {key: value for key, value in sizes.items() if value is not None}
        base = cls(hidden, embedding, vocab_size, ordered, read, by_id=read == vocab_size)
        base = replace(base, **{key: value for key, value in sizes.items() if key not in ("width", "depth")})
        return _suited(base, slm_parameters, sizes.get("width"), sizes.get("depth"))

    @property
    def reads_logits(self) -> bool:
        return _needs_logits(self.inputs)

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers each input is."""
        known = {
            "logits": self.top_k,
            "embedding": self.embedding_size,
            "hidden": self.slm_hidden,
            "summary": SUMMARY_SIZE,
            "entropy": 1,
        }
        return {name: known[name] for name in self.inputs}

    @property
    def parameters(self) -> int:
        """Of the network; the SLM's embedding is not among them."""
        normed = (
            0 if self.norm == "none" else 2 * sum(self.sizes.get(name, 0) for name in ("embedding", "hidden"))
        )
        inner = self.width * self.expansion
        block = 2 * self.width + self.width * inner + inner + inner * self.width + self.width
        project = (sum(self.sizes.values()) + 1) * self.width
        return normed + project + self.depth * block + 3 * self.width + 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "RouterShape":
        """Raises `ShapeError` for fields that a shape does not have."""
        try:
            return cls(**(fields | {"inputs": tuple(fields["inputs"])}))
        except (TypeError, KeyError) as error:
            raise ShapeError(
                f"no router can be built of {fields} ({error}); take another version's file"
            ) from error


def _needs_logits(inputs: Sequence[str]) -> bool:
    return bool({"logits", "summary", "entropy"} & set(inputs))


def _suited(shape: RouterShape, slm_parameters: int, width: int | None, depth: int | None) -> RouterShape:
    """The largest router within the SLM's budget: two thirds of its hidden size wide, as the paper's, as deep as fits."""
    budget = max(MOST_SHARE * slm_parameters, min(slm_parameters, LEAST_PARAMETERS))
    widest = min(MOST_WIDTH, max(LEAST_WIDTH, round(shape.slm_hidden * 2 / 3 / 32) * 32))
    widths = [width] if width else list(range(widest, LEAST_WIDTH - 1, -32))
    depths = [depth] if depth else list(range(MOST_DEPTH, LEAST_DEPTH - 1, -1))
    sized = [replace(shape, width=each, depth=blocks) for each in widths for blocks in depths]
    return next((each for each in sized if each.parameters <= budget), sized[-1])
