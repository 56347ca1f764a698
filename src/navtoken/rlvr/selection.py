"""Which tokens carry policy gradient: one function from per-token columns of a pool to weights.

The 80/20 paper keeps the tokens whose entropy is among the top 20 % of a batch. Its versions and its code differ on three
points, so each is an option here: the pool over which "the top" is taken, the normaliser, and ties. A rule sees the whole pool,
of all ranks, as flat columns without padding, and returns one weight >= 0 a token; a new rule (a band, a weighting, a
covariance) is a function of a few lines and a line of `RULES`.

What others get wrong and is held here: padding in the pool; a threshold of one rank's tokens taken for the batch's;
`torch.quantile`, which ends at 2^24 elements; a realised fraction that nobody looks at.

Shapes: N tokens of the pool.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from navtoken.entropy import Ties, select_top
from navtoken.reference import Reference, parse_reference

Pool = Literal["batch", "mini", "micro"]
Normaliser = Literal["kept", "all"]

SLACK = 0.005
"""By how much the realised fraction may differ from the asked one, beyond one token."""


class SelectionError(ValueError):
    """A selection that cannot be made as asked."""


class FractionError(ArithmeticError):
    """More or fewer tokens selected than were asked for."""


@dataclass(frozen=True)
class TokenColumns:
    """What a rule may look at: one value a token of the pool, padding left out."""

    entropy_N: Tensor
    """Nats, of softmax(z/T)."""
    advantage_N: Tensor
    """Of the response that the token is part of."""
    logprob_N: Tensor
    """Nats, of the token under the policy that wrote it; NaN where it was not computed."""
    noise_N: Tensor
    """Uniform in [0, 1), the same on every rank, fixed by the run's seed and the pool's number."""

    def __len__(self) -> int:
        return len(self.entropy_N)


Rule = Callable[[TokenColumns, float, Ties], Tensor]
"""(columns, fraction, ties) -> weights >= 0, float (N,)."""


def _all(columns: TokenColumns, fraction: float, ties: Ties) -> Tensor:
    return torch.ones_like(columns.entropy_N)


def _top_entropy(columns: TokenColumns, fraction: float, ties: Ties) -> Tensor:
    return select_top(columns.entropy_N, None, fraction, ties).mask.to(columns.entropy_N.dtype)


def _bottom_entropy(columns: TokenColumns, fraction: float, ties: Ties) -> Tensor:
    return select_top(-columns.entropy_N, None, fraction, ties).mask.to(columns.entropy_N.dtype)


def _random(columns: TokenColumns, fraction: float, ties: Ties) -> Tensor:
    # Noise has ties, too: in float32 every 2^24 tokens share a value or so. They must not add tokens.
    return select_top(columns.noise_N, None, fraction, "exact").mask.to(columns.entropy_N.dtype)


RULES: dict[str, Rule] = {
    "all": _all,
    "top_entropy": _top_entropy,
    "bottom_entropy": _bottom_entropy,
    "random": _random,
}
"""By the name before the colon of `--select`."""


@dataclass(frozen=True)
class SelectionOptions:
    """Which tokens carry gradient."""

    select: str = "top_entropy:0.2"
    """all, top_entropy:FRACTION, bottom_entropy:FRACTION or random:FRACTION: the tokens that carry policy gradient."""
    pool: Pool = "batch"
    """Where the fraction is taken: batch (the rollout batch over all ranks, entropies of the policy that wrote it: the paper's
    words), mini (one update's tokens over all ranks, entropies of the current policy) or micro (one forward on one rank:
    the authors' code)."""
    normaliser: Normaliser = "kept"
    """What the sum over kept tokens is divided by: kept (the paper's second version and the authors' code) or all tokens
    (its first version), which makes the same step smaller by the fraction."""
    ties: Ties = "threshold"
    """threshold keeps all tokens at or above tau (the paper), exact exactly the fraction rounded up (the authors' code)."""

    def __post_init__(self) -> None:
        self.rule()
        for name, known in (("pool", Pool), ("normaliser", Normaliser), ("ties", Ties)):
            if getattr(self, name) not in get_args(known):
                raise SelectionError(
                    f"{name} is '{getattr(self, name)}'; give one of {', '.join(get_args(known))}"
                )

    @property
    def reference(self) -> Reference:
        return parse_reference(self.select)

    @property
    def fraction(self) -> float:
        """Share of the pool that is to be kept; 1 for `all`."""
        return 1.0 if self.reference.target is None else float(self.reference.target)

    @property
    def keeps_all(self) -> bool:
        return self.reference.name == "all"

    def rule(self) -> Rule:
        """The rule that `select` names. Raises `SelectionError`."""
        name, target, options = self.reference.name, self.reference.target, self.reference.options
        if name not in RULES:
            raise SelectionError(
                f"select '{self.select}': there is no rule '{name}'; there are {', '.join(RULES)}"
            )
        if options:
            raise SelectionError(
                f"select '{self.select}' has options; pool, normaliser and ties are flags of their own"
            )
        if (target is None) != (name == "all"):
            wanted = "takes no fraction" if name == "all" else f"needs a fraction; write {name}:0.2"
            raise SelectionError(f"select '{self.select}': {name} {wanted}")
        try:
            fraction = self.fraction
        except ValueError:
            fraction = nan
        if not 0.0 < fraction <= 1.0:
            raise SelectionError(
                f"select '{self.select}': the fraction must be above 0 and at most 1, as in {name}:0.2"
            )
        return RULES[name]


class Selected(NamedTuple):
    """What became of a pool."""

    weight_N: Tensor
    """By which each token's loss is multiplied; with normaliser `kept` scaled so that their mean is 1."""
    threshold: float
    """Smallest entropy kept, nats; NaN of an empty pool."""
    fraction: float
    """Share of tokens with a weight above 0; NaN of an empty pool."""
    entropy_kept: float
    """Mean, nats."""
    entropy_dropped: float
    """Mean, nats; NaN where none is."""
    num_tokens: int
    """Of the pool."""

    def metrics(self) -> dict[str, float]:
        """By the names under which they are logged."""
        return {
            "selection/threshold": self.threshold,
            "selection/fraction": self.fraction,
            "selection/entropy_kept": self.entropy_kept,
            "selection/entropy_dropped": self.entropy_dropped,
            "selection/pool_tokens": float(self.num_tokens),
        }


def select(columns: TokenColumns, options: SelectionOptions) -> Selected:
    """Weights of a pool's tokens. Raises `FractionError` where the realised fraction is not the asked one, and `SelectionError`
    for weights of a rule that are none.

    An empty pool (no group of a batch has any signal) selects nothing: that is no error, its loss is 0.
    """
    if not len(columns):
        return Selected(columns.entropy_N, nan, nan, nan, nan, 0)
    weight_N = options.rule()(columns, options.fraction, options.ties)
    _check_weights(weight_N, options)
    kept_N = weight_N > 0
    found = Selected(
        weight_N * (len(columns) / weight_N.sum()) if options.normaliser == "kept" else weight_N,
        float(columns.entropy_N[kept_N].min()) if kept_N.any() else nan,
        float(kept_N.double().mean()),
        _mean(columns.entropy_N[kept_N]),
        _mean(columns.entropy_N[~kept_N]),
        len(columns),
    )
    _check_fraction(found, options)
    return found


def _check_weights(weight_N: Tensor, options: SelectionOptions) -> None:
    # The clipped loss is a minimum, which a weight below 0 would turn into a maximum.
    if bad := weight_N[~(weight_N >= 0)].tolist():
        raise SelectionError(
            f"select '{options.select}' gave a weight of {bad[0]:g}; a rule's weights must be 0 or above"
        )


def _check_fraction(found: Selected, options: SelectionOptions) -> None:
    # A rule keeps whole tokens, rounded up.
    if abs(found.fraction - options.fraction) <= SLACK + 1 / found.num_tokens:
        return
    remedy = "; many tokens have one entropy: give ties exact" if options.ties == "threshold" else ""
    raise FractionError(
        f"select '{options.select}' kept {found.fraction:.4f} of {found.num_tokens} tokens instead of "
        f"{options.fraction:g} (threshold {found.threshold:.3g} nats){remedy}"
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else nan
