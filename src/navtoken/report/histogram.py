"""Histogram of entropies with logarithmic counts, the percentile line and the share of near-certain tokens.

The first paper's figure. Built from values or, where a corpus doesn't fit in memory, from counts made elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navtoken.report.figure import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Figure,
    Scale,
    axes,
    linear_ticks,
    log_ticks,
    nice_step,
    text,
)
from navtoken.report.markup import Html, ReportError, each, element, escape, percent
from navtoken.report.table import folded_table

_FLOOR = 0.6
"""Bottom of the logarithmic axis: a bin with one token still shows."""


@dataclass(frozen=True)
class EntropyHistogram:
    """Counts of tokens by entropy."""

    name: str
    """What was counted: a task, a model."""
    edges: Sequence[float]
    """Bin edges in nats, one more than there are counts."""
    counts: Sequence[int]
    """Tokens per bin."""
    line: float
    """Entropy in nats that `fraction` of the tokens do not exceed."""
    low_share: float
    """Share of tokens under `low` nats."""
    fraction: float = 0.8
    """Which quantile `line` is."""
    low: float = 0.01
    """What counts as near-certain, in nats."""
    missing: int = 0
    """Tokens whose entropy was not computed; in no bin."""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ReportError(
                f"'{self.name}': {len(self.counts)} counts need {len(self.counts) + 1} edges, got {len(self.edges)}"
            )
        if self.total == 0:
            raise ReportError(
                f"'{self.name}': no token with an entropy; record entropy_slm or entropy_llm in the traces"
            )

    @property
    def total(self) -> int:
        """Tokens counted."""
        return int(sum(self.counts))

    @classmethod
    def of(
        cls,
        name: str,
        entropies: ArrayLike,
        edges: Sequence[float] | None = None,
        fraction: float = 0.8,
        low: float = 0.01,
    ) -> "EntropyHistogram":
        """Count `entropies` (nats, any shape; NaN is not computed). Raises `ReportError` if `edges` leave tokens out."""
        values, missing = _finite(entropies)
        if not values.size:
            raise ReportError(
                f"'{name}': no token with an entropy; record entropy_slm or entropy_llm in the traces"
            )
        bins = nice_edges(float(values.max())) if edges is None else list(edges)
        counts, _ = np.histogram(values, bins)
        if counts.sum() != values.size:
            raise ReportError(
                f"'{name}': edges end at {bins[-1]} nats but entropies reach {values.max():.4g}; widen them"
            )
        return cls(
            name=name,
            edges=bins,
            counts=[int(count) for count in counts],
            line=float(np.quantile(values, fraction)),
            low_share=float((values < low).mean()),
            fraction=fraction,
            low=low,
            missing=missing,
        )

    @property
    def summary(self) -> str:
        """The histogram in words."""
        words = (
            f"{self.total:,} tokens. {percent(self.fraction)} have an entropy of at most {self.line:.3f} nats (dashed line); "
            f"the {percent(1 - self.fraction)} to its right are the forking tokens. "
            f"{percent(self.low_share, 1)} are under {self.low:g} nats."
        )
        return words + (f" {self.missing:,} more have no entropy recorded." if self.missing else "")

    def figure(
        self, width: int = 440, height: int = 290, x_high: float | None = None, heading: bool = False
    ) -> Figure:
        """The drawing; `x_high` sets the end of the axis so that several can be compared."""
        high = max(x_high or 0.0, self.edges[-1])
        x = Scale(self.edges[0], high, LEFT, width - RIGHT)
        y = Scale(
            _FLOOR,
            10 ** math.ceil(math.log10(max(self.counts) + 1)),
            height - BOTTOM,
            TOP + (20 if heading else 0),
            log=True,
        )
        frame = axes(
            x,
            y,
            linear_ticks(self.edges[0], high, 6),
            log_ticks(1, y.high),
            "entropy (nats)",
            "tokens (log scale)",
        )
        bars = "".join(self._bar(i, x, y) for i, count in enumerate(self.counts) if count)
        name = text(self.name, (x.start + x.end) / 2, 30, "name", "middle") if heading else ""
        return Figure(
            f"Entropy of tokens: {self.name}",
            self.summary,
            width,
            height,
            self._region(x, y) + frame + bars + self._line(x, y) + name,
        )

    def _bar(self, index: int, x: Scale, y: Scale) -> Html:
        low, high, count = self.edges[index], self.edges[index + 1], self.counts[index]
        tip = element("title", f"{low:.4g} to {high:.4g} nats: {count:,} tokens")
        width = round(max(x(high) - x(low) - 0.8, 0.6), 2)
        height = round(y.start - y(count), 2)
        return element(
            "rect", tip, class_="bar", x=x(low), y=y(count), width=width, height=height, data_count=count
        )

    def _region(self, x: Scale, y: Scale) -> Html:
        width, height = round(x.end - x(self.line), 2), round(y.start - y.end, 2)
        return element("rect", class_="region", x=x(self.line), y=y.end, width=width, height=height)

    def _line(self, x: Scale, y: Scale) -> Html:
        at = x(self.line)
        roomy = x.end - at > 150
        label = text(
            f"{percent(self.fraction)} line: {self.line:.2f} nats",
            at + (6 if roomy else -6),
            y.end + 13,
            "mark",
            "start" if roomy else "end",
        )
        return element("line", class_="quantile", x1=at, x2=at, y1=y.start, y2=y.end) + label


@dataclass(frozen=True)
class HistogramSection:
    """One pooled histogram, and small ones beside it (per task, say) on the same axis."""

    title: str
    """The heading; best when it says the finding."""
    pooled: EntropyHistogram
    """The large one."""
    panels: Sequence[EntropyHistogram] = ()
    """The small ones."""
    caption: str = ""
    """Plain text after the summary in numbers."""

    @classmethod
    def of(
        cls, title: str, entropies: Mapping[str, ArrayLike], pooled_name: str = "all tasks", caption: str = ""
    ) -> "HistogramSection":
        """Pool `entropies` (nats, by panel name); panels are drawn where there is more than one."""
        pool = np.concatenate(
            [np.asarray(values, dtype=np.float64).ravel() for values in entropies.values()] or [np.empty(0)]
        )
        pooled = EntropyHistogram.of(
            pooled_name if len(entropies) > 1 else next(iter(entropies), pooled_name), pool
        )
        panels = [EntropyHistogram.of(name, values, pooled.edges) for name, values in entropies.items()]
        return cls(title, pooled, panels if len(panels) > 1 else (), caption)

    def figures(self) -> list[Figure]:
        """The pooled figure, then the panels."""
        small = [panel.figure(300, 220, self.pooled.edges[-1], heading=True) for panel in self.panels]
        return [self.pooled.figure(), *small]

    def html(self, anchor: str) -> Html:
        pooled, *panels = self.figures()
        words = element("figcaption", escape(f"{self.pooled.summary} {self.caption}".strip()))
        large = element("figure", pooled.html(), words, self._counts(), class_="chart")
        small = each(
            zip(panels, self.panels, strict=True),
            lambda pair: element("figure", pair[0].html(), element("figcaption", escape(pair[1].summary))),
        )
        return large + (element("div", small, class_="panels") if panels else "")

    def _counts(self) -> Html:
        bins = zip(self.pooled.edges, self.pooled.edges[1:], self.pooled.counts, strict=False)
        return folded_table("Counts as a table", ("from (nats)", "to", "tokens"), list(bins))


def nice_edges(high: float, bins: int = 40) -> list[float]:
    """Round edges from 0 that cover `high` nats in at most `bins` bins."""
    step = nice_step(max(high, 0.1), bins)
    count = max(1, math.ceil(high / step - 1e-9))
    edges = [round(index * step, 10) for index in range(count + 1)]
    return edges if edges[-1] >= high else [*edges, round((count + 1) * step, 10)]


def _finite(entropies: ArrayLike) -> tuple[NDArray[np.float64], int]:
    """Finite values, rounding noise below zero cut off, and how many there were not."""
    values = np.asarray(entropies, dtype=np.float64).ravel()
    kept = values[np.isfinite(values)]
    return np.maximum(kept, 0.0), int(values.size - kept.size)
