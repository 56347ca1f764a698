"""Figures as SVG text made by hand: scales, ticks, axes, and one file for a README.

The classes used in them are styled by `assets/figure.css`, which a page embeds once and a file of its own embeds too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from navtoken.report.markup import Html, ReportError, element, escape, write_whole

LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 44
"""Room around the plot, in SVG units."""


@dataclass(frozen=True)
class Figure:
    """A drawing with its size in SVG units."""

    title: str
    """What assistive technology reads first."""
    description: str
    """The figure in words."""
    width: int
    height: int
    body: Html
    """Elements inside `<svg>`."""

    def html(self) -> Html:
        """Inline SVG for a page."""
        return self._svg(class_="figure", role="img", width=None, height=None)

    def nested(self, x: int, y: int) -> Html:
        """The figure as a part of a larger one."""
        return self._svg(x=x, y=y, width=self.width, height=self.height)

    def _svg(self, **attributes: object) -> Html:
        words = element("title", escape(self.title)) + element("desc", escape(self.description))
        return element("svg", words, self.body, viewBox=f"0 0 {self.width} {self.height}", **attributes)


class Drawn(Protocol):
    """A section that can be a file of its own."""

    @property
    def title(self) -> str: ...

    def figures(self) -> list[Figure]: ...


def write_svg(section: Drawn, path: str | Path, columns: int = 3) -> Path:
    """Write a section's figures, side by side in `columns`, as one standalone SVG that follows light and dark."""
    figures = section.figures()
    if not figures:
        raise ReportError(f"'{section.title}' has no figure to write; give it data")
    columns = min(columns, len(figures))
    width, height = max(f.width for f in figures), max(f.height for f in figures)
    rows = math.ceil(len(figures) / columns)
    style = (files("navtoken.report") / "assets" / "figure.css").read_text(encoding="utf-8")
    parts = [f.nested(i % columns * width, i // columns * height) for i, f in enumerate(figures)]
    svg = element(
        "svg",
        element("title", escape(section.title)),
        element("style", style),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=columns * width,
        height=rows * height,
        viewBox=f"0 0 {columns * width} {rows * height}",
        role="img",
    )
    return write_whole(path, svg + "\n")


@dataclass(frozen=True)
class Scale:
    """Data values [low, high] to coordinates [start, end], linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 2)


def nice_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that cuts `span` into at most `count` steps."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * (1 - 1e-9))


def linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values in [low, high]."""
    step = nice_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1)]


def axes(
    x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> Html:
    """Grid, tick labels and axis names for a plot between the two scales."""
    parts = []
    for tick in y_ticks:
        parts.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick)))
        parts.append(text(f"{tick:,.6g}", x.start - 7, y(tick) + 4, "tick", "end"))
    parts.append(element("line", class_="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start))
    for tick in x_ticks:
        parts.append(element("line", class_="axis", x1=x(tick), x2=x(tick), y1=y.start, y2=y.start + 4))
        parts.append(text(f"{tick:,.6g}", x(tick), y.start + 17, "tick", "middle"))
    parts.append(text(x_label, (x.start + x.end) / 2, y.start + 36, "label", "middle"))
    parts.append(text(y_label, 4, 14, "label", "start"))
    return "".join(parts)


def text(content: str, x: float, y: float, class_: str, anchor: str = "start") -> Html:
    """One line of text; `x` is where `anchor` (start, middle, end) lies."""
    return element("text", escape(content), x=round(x, 2), y=round(y, 2), class_=class_, text_anchor=anchor)
