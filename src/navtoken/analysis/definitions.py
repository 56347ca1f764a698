"""Both definitions of a navigation token on the same tokens: forking by entropy, and where SLM and LLM part.

The 80/20 paper calls tokens forking by one model's entropy; R2R calls them divergent by what two models make of them. Neither
looks at the other's set. Here every position of the LLM's responses gets both models' entropies, the SLM's margin, and
whether the two models differ, and the sets that follow are laid over each other.

*Differs* is argmax against argmax. On greedy responses that is R2R's "SLM's argmax unlike the LLM's token"; on sampled ones
the LLM's draw would be counted against the SLM. *Divergent* exists only where traces carry labels, and figures on it are
over the labelled positions alone, those whose label is invalid left out.

Thresholds of sets are those of all positions: intervals say how the figures vary with the problems, not how a threshold does.

Shapes: N positions, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navtoken.analysis.frozen import FrozenSet, FrozenSetError, Scores
from navtoken.analysis.items import Ids, Item, typical_items
from navtoken.analysis.ranking import (
    MOST_CLUSTERS,
    MOST_EXACT,
    NUM_RANK_BINS,
    Areas,
    CurvePoint,
    Floats,
    Interval,
    Mask,
    Overlap,
    Ranked,
    Resampling,
    intervals,
    means_by_bin,
    overlap,
    rank_bins,
    ratio,
    top_count_mask,
    top_mask,
)
from navtoken.analysis.rarity import RarityBin, rarity_bins
from navtoken.labeling.labels import Label

SIGNALS = ("entropy_llm", "entropy_slm", "margin_slm", "rarity")
"""One number per position, the higher the more suspect: entropies, 1 - margin, and minus the token's count in the set.

Rarity looks at the token itself, which is not known before it is written; it is there as a control."""
TARGETS = ("forking_llm", "differs", "divergent")
"""Sets that signals are to find."""
NUM_BINS = 20
"""Bins of 5 % of the positions."""


@dataclass(frozen=True)
class Positions:
    """What is known of each position of the LLM's responses."""

    token_N: Ids
    cluster_N: NDArray[np.int32]
    entropy_llm_N: Floats
    """Nats, at T = 1, as all here."""
    entropy_slm_N: Floats
    margin_slm_N: Floats
    """The SLM's highest probability less its second highest."""
    differs_N: Mask
    """Do the argmaxes of SLM and LLM differ?"""
    label_N: NDArray[np.int8] | None = None
    """As in `Label`, -1 not labelled; None where there is none."""

    def __post_init__(self) -> None:
        if not len(self.token_N):
            raise FrozenSetError("no position to compare on: the responses have no tokens")

    @classmethod
    def of(cls, frozen: FrozenSet, slm: Scores, llm: Scores) -> "Positions":
        """Join a frozen set with what both models say of it."""
        return cls(
            token_N=frozen.response_id_N,
            cluster_N=frozen.cluster_N,
            entropy_llm_N=llm.column("entropy"),
            entropy_slm_N=slm.column("entropy"),
            margin_slm_N=slm.column("margin"),
            differs_N=slm.column("argmax") != llm.column("argmax"),
            label_N=frozen.label_N,
        )

    def signals(self) -> dict[str, Floats]:
        """By the names of `SIGNALS`."""
        count_V = np.bincount(self.token_N)
        return {
            "entropy_llm": self.entropy_llm_N,
            "entropy_slm": self.entropy_slm_N,
            "margin_slm": 1.0 - self.margin_slm_N.astype(np.float64),
            "rarity": -count_V[self.token_N].astype(np.float64),
        }

    def sets(self, fraction: float) -> dict[str, Mask]:
        """Forking tokens by either model's entropy, the SLM's narrowest margins (as many), and where the models part."""
        signals = self.signals()
        found = {
            "forking_llm": top_mask(signals["entropy_llm"], fraction),
            "forking_slm": top_mask(signals["entropy_slm"], fraction),
            "narrow_slm": top_mask(signals["margin_slm"], fraction),
            "differs": self.differs_N,
        }
        return found if self.label_N is None else found | {"divergent": self.label_N == Label.DIVERGENT}

    def counted(self, *names: str) -> Mask:
        """Positions that figures on the named sets are over."""
        if "divergent" in names and self.label_N is not None:
            return (self.label_N >= 0) & (self.label_N != Label.INVALID)
        return np.ones(len(self.token_N), dtype=bool)

    def clusters(self, counted_N: Mask) -> NDArray[np.int32]:
        """Problems of the positions that count, numbered without gaps: one that has no such position cannot be drawn."""
        own = self.cluster_N[counted_N]
        number_C = np.cumsum(np.bincount(own) > 0, dtype=np.int32) - 1
        return np.asarray(number_C[own], dtype=np.int32)


@dataclass(frozen=True)
class Agreement:
    """Two sets laid over each other."""

    found: str
    """A set, or at equal size the signal whose highest positions were taken."""
    wanted: str
    overlap: Overlap


@dataclass(frozen=True)
class Prediction:
    """How well a signal finds a set."""

    signal: str
    target: str
    areas: Areas
    share: float
    """Of positions in the set: the area under the precision-recall curve of a coin."""
    curve: list[CurvePoint]


@dataclass(frozen=True)
class Corner:
    """Positions in both sets, in one only, or in neither."""

    name: str
    """`both`, `only_forking`, `only_parting` or `neither`."""
    share: Interval
    """Of all positions."""
    items: list[Item]


@dataclass(frozen=True)
class Comparison:
    """Everything that one set of responses says of the two definitions."""

    num_tokens: int
    fraction: float
    """Share of positions that are forking."""
    parting: str
    """The set that stands for divergence in the corners: `divergent` where there are labels, else `differs`."""
    thresholds: dict[str, float]
    """Entropy in nats from which a token is forking, by set."""
    shares: dict[str, Interval]
    """Share of positions in each set, of those that it is over."""
    agreements: list[Agreement]
    """Every pair of sets at their own sizes."""
    equal_size: list[Agreement]
    """Each signal's highest positions, as many as the target has; precision and recall are then the same."""
    predictions: list[Prediction]
    rates: dict[str, list[Interval]]
    """Share of positions at which the models differ, by signal and 5 % bin of it from the lowest up."""
    entropy_ratio: dict[str, Interval]
    """Mean entropy where the models differ / where they agree, by signal."""
    corners: list[Corner]
    rarity: list[RarityBin]
    notes: tuple[str, ...] = ()
    """What a reader must know of these numbers."""

    @property
    def labelled(self) -> bool:
        """Were there labels?"""
        return self.parting == "divergent"


def compare(
    positions: Positions,
    fraction: float,
    resampling: Resampling,
    num_items: int = 25,
    min_count: int = 10,
) -> Comparison:
    """Lay the sets over each other. Corner tables list items with at least `min_count` positions."""
    signals, sets = positions.signals(), positions.sets(fraction)
    parting = "divergent" if "divergent" in sets else "differs"
    targets = [name for name in TARGETS if name in sets]
    pairs = [(signal, target) for target in targets for signal in SIGNALS if not _same(signal, target)]
    return Comparison(
        num_tokens=len(positions.token_N),
        fraction=fraction,
        parting=parting,
        thresholds={
            f"forking_{who}": float(signals[f"entropy_{who}"][sets[f"forking_{who}"]].min())
            for who in ("llm", "slm")
        },
        shares=_shares(positions, sets, resampling),
        agreements=_agreements(positions, sets, resampling),
        equal_size=[_equal_size(positions, signals[s], s, sets[t], t, resampling) for s, t in pairs],
        predictions=[_prediction(positions, signals[s], s, sets[t], t, resampling) for s, t in pairs],
        rates={name: rates_by_bin(positions, signal, resampling) for name, signal in signals.items()},
        entropy_ratio={
            name: _mean_ratio(signals[name], positions, resampling) for name in ("entropy_slm", "entropy_llm")
        },
        corners=_corners(
            positions, sets["forking_llm"], sets[parting], parting, resampling, num_items, min_count
        ),
        rarity=rarity_bins(positions.token_N, positions.differs_N, positions.cluster_N, resampling),
        notes=_notes(positions),
    )


def _notes(positions: Positions) -> tuple[str, ...]:
    num = len(positions.token_N)
    if num <= MOST_EXACT:
        return ()
    note = (
        f"Areas are exact. Of more than {MOST_EXACT:,} tokens their intervals are not: they come from {NUM_RANK_BINS:,} bins of "
        f"each signal and at most {MOST_CLUSTERS:,} groups of problems."
    )
    return (note,)


def _same(signal: str, target: str) -> bool:
    """Is the target made of the signal? Then it finds it by construction."""
    return (signal, target) == ("entropy_llm", "forking_llm")


def _shares(positions: Positions, sets: Mapping[str, Mask], resampling: Resampling) -> dict[str, Interval]:
    counted = {name: positions.counted(name) for name in sets}
    return {
        name: _share(mask[counted[name]], positions.clusters(counted[name]), resampling)
        for name, mask in sets.items()
    }


def _agreements(positions: Positions, sets: Mapping[str, Mask], resampling: Resampling) -> list[Agreement]:
    names = list(sets)
    return [
        Agreement(a, b, _overlap(positions, sets[a], sets[b], positions.counted(a, b), resampling))
        for index, a in enumerate(names)
        for b in names[index + 1 :]
    ]


def _equal_size(
    positions: Positions, signal_N: Floats, signal: str, target_N: Mask, target: str, resampling: Resampling
) -> Agreement:
    counted = positions.counted(target)
    found = np.zeros_like(counted)
    found[counted] = top_count_mask(signal_N[counted], int(target_N[counted].sum()))
    return Agreement(signal, target, _overlap(positions, found, target_N, counted, resampling))


def _overlap(
    positions: Positions, found_N: Mask, wanted_N: Mask, counted_N: Mask, resampling: Resampling
) -> Overlap:
    return overlap(found_N[counted_N], wanted_N[counted_N], positions.clusters(counted_N), resampling)


def _prediction(
    positions: Positions, signal_N: Floats, signal: str, target_N: Mask, target: str, resampling: Resampling
) -> Prediction:
    counted = positions.counted(target)
    ranked = Ranked.of(signal_N[counted], target_N[counted], positions.clusters(counted))
    return Prediction(
        signal, target, ranked.areas(resampling), float(target_N[counted].mean()), ranked.curve()
    )


def rates_by_bin(positions: Positions, signal_N: Floats, resampling: Resampling) -> list[Interval]:
    """Share of positions at which the models differ in each 5 % of the positions, the signal's lowest first."""
    bins = rank_bins(signal_N, NUM_BINS)
    return means_by_bin(positions.differs_N, bins, positions.cluster_N, NUM_BINS, resampling)


def _mean_ratio(value_N: Floats, positions: Positions, resampling: Resampling) -> Interval:
    """Mean where the models differ / mean where they agree."""
    masks = (positions.differs_N, ~positions.differs_N)
    num_clusters = int(positions.cluster_N.max()) + 1
    sums = [
        np.bincount(positions.cluster_N, weights=each, minlength=num_clusters)
        for mask in masks
        for each in (value_N * mask, mask)
    ]

    def statistic(weight_C: NDArray[Any]) -> NDArray[np.float64]:
        sum_differ, num_differ, sum_agree, num_agree = (float(each @ weight_C) for each in sums)
        return np.array([ratio(ratio(sum_differ, num_differ), ratio(sum_agree, num_agree))])

    return intervals(statistic, num_clusters, resampling)[0]


def _corners(
    positions: Positions,
    forking_N: Mask,
    parting_N: Mask,
    parting: str,
    resampling: Resampling,
    num_items: int,
    min_count: int,
) -> list[Corner]:
    counted = positions.counted(parting)
    corners = {
        "both": forking_N & parting_N,
        "only_forking": forking_N & ~parting_N,
        "only_parting": ~forking_N & parting_N,
        "neither": ~forking_N & ~parting_N,
    }
    where = np.flatnonzero(counted)
    return [
        Corner(
            name,
            _share(mask[counted], positions.clusters(counted), resampling),
            [
                Item(item.token_id, item.count, item.total, tuple(int(where[i]) for i in item.examples))
                for item in typical_items(positions.token_N[counted], mask[counted], num_items, min_count)
            ],
        )
        for name, mask in corners.items()
    ]


def _share(mask_N: Mask, cluster_N: NDArray[np.int32], resampling: Resampling) -> Interval:
    return means_by_bin(mask_N, np.zeros(len(mask_N), dtype=np.int64), cluster_N, 1, resampling)[0]
