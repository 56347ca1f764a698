"""How a column of numbers colours the text: how strong a shade a value gets, and from where on a token stands out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from navtoken.report.markup import ReportError
from navtoken.report.tokens import CLASSES, COLUMN_NAMES, VOID, TokenView


@dataclass(frozen=True)
class Shading:
    """A column that the text can be shaded by."""

    name: str
    """The column."""
    scale: float
    """The size that gets the strongest shade."""
    line: float | None = None
    """From this value on a token stands out; None where there is no such value."""

    @property
    def label(self) -> str:
        """Words for the column."""
        return COLUMN_NAMES.get(
            self.name, "entropy (nats)" if self.name == "entropy" else self.name.replace("_", " ")
        )

    @property
    def inverted(self) -> bool:
        """Is it the small values that stand out? A margin is small where a model wavers."""
        return self.name.startswith("margin")

    @property
    def weakest(self) -> str:
        """What no shade means."""
        if self.name in CLASSES:
            return CLASSES[self.name][0]
        return "1" if self.inverted else "0"

    @property
    def strongest(self) -> str:
        """What the strongest shade means, and what is shaded."""
        if self.name in CLASSES:
            return f"{CLASSES[self.name][int(self.scale)]}: {self.label}"
        return f"0: {self.label}" if self.inverted else f"{self.scale:g} or more: {self.label}"

    @property
    def line_words(self) -> str:
        """What it takes to stand out."""
        if self.line is None:
            return ""
        if self.name == "label":
            return f"{CLASSES[self.name][int(self.line)]} tokens"
        side = "at most" if self.inverted else "at least"
        forking = "forking tokens: " if self.name.startswith("entropy") else ""
        return f"{forking}{self.label} of {side} {self.line:.3g}"

    def strength(self, value: float) -> float:
        """0 to 1; NaN is 0."""
        if math.isnan(value) or value == VOID.get(self.name):
            return 0.0
        size = min(1.0, abs(value) / self.scale)
        return 1.0 - size if self.inverted else size

    def stands_out(self, value: float) -> bool:
        """Is the value on the far side of the line?"""
        if self.line is None or math.isnan(value) or value == VOID.get(self.name):
            return False
        return value <= self.line if self.inverted else value >= self.line


def shadings(views: Sequence[TokenView], lines: Mapping[str, float]) -> dict[str, Shading]:
    """A shading per column in which something was computed, by name."""
    scales = {name: _scale(name, views) for name in dict.fromkeys(name for v in views for name in v.shades)}
    own = [name for name in scales if name in ("entropy_slm", "entropy_llm")]
    known = dict(lines)
    if len(own) == 1:
        # Then "entropy" is that column by another name.
        for name, other in (("entropy", own[0]), (own[0], "entropy")):
            if other in lines:
                known.setdefault(name, lines[other])
    return {
        name: Shading(name, scale, known.get(name)) for name, scale in scales.items() if scale is not None
    }


def offered(known: Mapping[str, Shading]) -> list[Shading]:
    """What a reader chooses from: "entropy" only where it mixes the SLM's and the LLM's."""
    mixed = "entropy_slm" in known and "entropy_llm" in known
    return [shading for name, shading in known.items() if name != "entropy" or mixed or len(known) == 1]


def chosen(known: Mapping[str, Shading], name: str) -> Shading | None:
    """The shading that the page opens with. Raises `ReportError` for a column that no trace has."""
    choices = {shading.name: shading for shading in offered(known)}
    if name in choices or not choices:
        return choices.get(name)
    if name == "entropy":
        return next(iter(choices.values()))
    raise ReportError(f"no trace has a column '{name}' to shade by; choose one of {', '.join(choices)}")


def _scale(name: str, views: Sequence[TokenView]) -> float | None:
    """The 98th percentile of what is shown, at least 1 but for shares; None where nothing was computed."""
    values = np.abs(np.concatenate([np.asarray(v.shades.get(name, []), dtype=np.float64) for v in views]))
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    if name in CLASSES:
        return float(len(CLASSES[name]) - 1 - (name in VOID))
    if name.startswith(("p_", "margin")):
        return 1.0
    return round(max(1.0, float(np.quantile(values, 0.98))), 2)
