"""Figures as SVG text made by hand: scales, ticks, axes, and one file for a README.

The classes used in them are styled by `assets/figure.css`, which a page embeds once and a file of its own embeds too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import Protocol

from navtoken.report.markup import Html, ReportError, element, escape, write_whole

LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 44
"""Room around the plot, in SVG units."""
LINE = 14
"""Height of a further line of an axis's name."""

MARKERS = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-5.5L5.5,4.5H-5.5z",
    "M0,-6L6,0L0,6L-6,0z",
    "M0,5.5L5.5,-4.5H-5.5z",
    "M-1.8,-5.5h3.6v3.7h3.7v3.6h-3.7v3.7h-3.6v-3.7h-3.7v-3.6h3.7z",
)
"""Marker of a series beside its colour, centred on 0."""

_HEADING_CHAR = 8.4
"""Width of a character of a heading, in SVG units."""
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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


def write_svg(section: Drawn, path: str | Path, columns: int = 3, heading: bool = False) -> Path:
    """Write a section's figures, side by side in `columns`, as one standalone SVG that follows light and dark.

    `heading` writes the section's title over them.
    """
    figures = section.figures()
    if not figures:
        raise ReportError(f"'{section.title}' has no figure to write; give it data")
    columns = min(columns, len(figures))
    width, height = max(f.width for f in figures), max(f.height for f in figures)
    rows = math.ceil(len(figures) / columns)
    style = (files("navtoken.report") / "assets" / "figure.css").read_text(encoding="utf-8")
    lines = wrap(section.title, int(columns * width / _HEADING_CHAR)) if heading else []
    top = 22 * len(lines)
    words = "".join(text(line, 4, 17 + 22 * i, "heading") for i, line in enumerate(lines))
    parts = [f.nested(i % columns * width, top + i // columns * height) for i, f in enumerate(figures)]
    svg = element(
        "svg",
        element("title", escape(section.title)),
        element("style", style),
        words,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=columns * width,
        height=top + rows * height,
        viewBox=f"0 0 {columns * width} {top + rows * height}",
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
    zero: float | None = None
    """Where 0 stands beside a logarithmic scale, if anywhere."""

    @property
    def left(self) -> float:
        """Where the axis begins."""
        return self.start if self.zero is None else self.zero

    def __call__(self, value: float) -> float:
        if self.zero is not None and value <= 0:
            return self.zero
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


def fine_log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], with 2 and 5 times them where there are few."""
    ticks = log_ticks(low, high)
    if len(ticks) >= 4:
        return ticks
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def nice_range(low: float, high: float) -> tuple[float, float]:
    """Round ends around [low, high]; 0 is one of them where it is near."""
    if 0 < low < 0.6 * high:
        low = 0.0
    elif 0 > high > 0.6 * low:
        high = 0.0
    step = max(nice_step((high - low) or abs(high) or 1.0, 6), 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return round(first * step, 10), round(max(last, first + 1) * step, 10)


def tick_text(value: float) -> str:
    """A number beside an axis: few digits, powers of ten where it is tiny."""
    if value and abs(value) < 1e-3:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        factor = f"{value / 10.0**power:.3g}"
        return ("" if factor == "1" else f"{factor}·") + "10" + str(power).translate(_SUPERSCRIPT)
    return f"{value:,.6g}"


def text_width(content: str, bold: bool = False) -> float:
    """About how wide a line of text is, in SVG units: in a wide font, rather too much than too little."""
    return (8.2 if bold else 6.8) * len(content)


def label_lines(label: str, width: float) -> list[str]:
    """An axis's name in lines of about the same length that fit `width`."""
    longest = max(20, int(width / 6.1))
    num_lines = len(wrap(label, longest))
    balanced = wrap(label, min(longest, len(label) // max(1, num_lines) + 8))
    return balanced if len(balanced) == num_lines else wrap(label, longest) or [""]


def label_width(x: Scale) -> float:
    """How wide the name of a horizontal axis may be: it stands under the middle of the plot and may reach beyond it."""
    return min(x.end - x.left + 80, 385)


def axes(
    x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> Html:
    """Grid, tick labels and axis names for a plot between the two scales; a long `x_label` takes several lines."""
    left = x.left
    parts, free = [], -math.inf
    for tick in y_ticks:
        parts.append(element("line", class_="grid", x1=left, x2=x.end, y1=y(tick), y2=y(tick)))
        parts.append(text(tick_text(tick), left - 7, y(tick) + 4, "tick", "end"))
    parts.append(element("line", class_="axis", x1=left, x2=x.end, y1=y.start, y2=y.start))
    if x.zero is not None:
        middle = (left + x.start) / 2
        parts.append(element("rect", class_="gap", x=middle - 3, y=y.start - 4, width=6, height=8))
    for tick in x_ticks:
        parts.append(element("line", class_="axis", x1=x(tick), x2=x(tick), y1=y.start, y2=y.start + 4))
        half = text_width(tick_text(tick)) / 2
        # Neighbours that would run into each other keep their tick but share a number.
        if x(tick) - half >= free:
            parts.append(text(tick_text(tick), x(tick), y.start + 17, "tick", "middle"))
            free = x(tick) + half + 2
    for i, line in enumerate(label_lines(x_label, label_width(x))):
        parts.append(text(line, (left + x.end) / 2, y.start + 36 + LINE * i, "label", "middle"))
    parts.append(text(y_label, 4, 14, "label", "start"))
    return "".join(parts)


def text(content: str, x: float, y: float, class_: str, anchor: str = "start") -> Html:
    """One line of text; `x` is where `anchor` (start, middle, end) lies."""
    return element("text", escape(content), x=round(x, 2), y=round(y, 2), class_=class_, text_anchor=anchor)
