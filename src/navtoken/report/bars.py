"""Bars with error bars: one number per name, lying, so that names of any length can be read on a phone too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from navtoken.report.figure import (
    LINE,
    Figure,
    Scale,
    label_lines,
    linear_ticks,
    nice_range,
    text,
    text_width,
    tick_text,
)
from navtoken.report.markup import Html, ReportError, element, escape
from navtoken.report.table import folded_table

_WIDTH, _EDGE, _TOP, _BOTTOM = 440, 8, 8, 40
_THICK = 14
_LONGEST_NAME = 150
"""Widest name, in SVG units, that may stand left of its bar; longer ones stand above it."""

Bar = tuple[str, float, float | None, float | None]
"""Name, value, low, high."""


@dataclass(frozen=True)
class BarsSection:
    """A bar per name."""

    title: str
    """The heading; best when it says the finding."""
    bars: Sequence[Bar]
    """(name, value, low, high) from top to bottom; low and high are the ends of the error bar, or None."""
    y_label: str
    """Name and unit of the values."""
    text: str = ""
    """Plain text under the figure; says what the error bars are."""
    y_percent: bool = False
    """Values are fractions, shown in percent."""

    def figures(self) -> list[Figure]:
        """The one figure."""
        bars = self._scaled()
        above = max(text_width(bar[0]) for bar in bars) > _LONGEST_NAME
        names = 0.0 if above else max(text_width(bar[0]) for bar in bars) + 8
        pitch = _THICK + (20 if above else 8)
        ends = [v for bar in bars for v in bar[1:] if v is not None and math.isfinite(v)]
        low, high = nice_range(min([0.0, *ends]), max([0.0, *ends]))
        numbers = max(text_width(self._shown(bar[1]), bold=True) for bar in bars) + 8
        x = Scale(low, high, _EDGE + names + (numbers if low < 0 else 0), _WIDTH - _EDGE - numbers)
        bottom = _TOP + pitch * len(bars)
        height = bottom + _BOTTOM + LINE * (len(label_lines(self._label, _WIDTH)) - 1)
        rows = "".join(
            self._bar(bar, x, _TOP + pitch * i + (16 if above else 0), above) for i, bar in enumerate(bars)
        )
        return [Figure(self.title, self._words(), _WIDTH, height, self._frame(x, bottom) + rows)]

    def html(self, anchor: str) -> Html:
        figure = self.figures()[0].html()
        words = element("figcaption", escape(self.text)) if self.text else ""
        head = ["", self._label, "low", "high"]
        table = folded_table("Numbers as a table", head, self._scaled())
        return element("figure", figure, words, table, class_="chart")

    @property
    def _label(self) -> str:
        return f"{self.y_label} (%)" if self.y_percent and "%" not in self.y_label else self.y_label

    def _scaled(self) -> list[Bar]:
        """The bars in the unit that is shown; raises `ReportError` where there is nothing to draw."""
        if not self.bars:
            raise ReportError(f"'{self.title}' has no bars; leave the section out or give it some")
        for name, value, *_ in self.bars:
            if not math.isfinite(value):
                raise ReportError(f"bar '{name}' of '{self.title}' is {value}; leave it out")
        factor = 100.0 if self.y_percent else 1.0
        return [
            (name, value * factor, _times(low, factor), _times(high, factor))
            for name, value, low, high in self.bars
        ]

    def _shown(self, value: float) -> str:
        return f"{value:.1f}" if self.y_percent else f"{value:,.3g}" if abs(value) < 1e3 else f"{value:,.0f}"

    def _frame(self, x: Scale, bottom: float) -> Html:
        grid = "".join(
            element("line", class_="grid", x1=x(tick), x2=x(tick), y1=_TOP, y2=bottom)
            + text(tick_text(tick), x(tick), bottom + 14, "tick", "middle")
            for tick in linear_ticks(x.low, x.high, 5)
        )
        zero = element("line", class_="axis", x1=x(0), x2=x(0), y1=_TOP, y2=bottom)
        lines = label_lines(self._label, _WIDTH)
        middle = (
            _WIDTH / 2 if len(lines) > 1 or text_width(lines[0]) > x.end - x.start else (x.start + x.end) / 2
        )
        name = "".join(
            text(line, middle, bottom + 32 + LINE * i, "label", "middle") for i, line in enumerate(lines)
        )
        return grid + zero + name

    def _bar(self, bar: Bar, x: Scale, top: float, above: bool) -> Html:
        name, value, low, high = bar
        left, right = sorted((x(0), x(value)))
        tip = element("title", escape(f"{name}: {self._shown(value)}"))
        rect = element(
            "rect",
            tip,
            class_="bar",
            x=left,
            y=top,
            width=round(right - left, 2),
            height=_THICK,
            data_value=value,
        )
        middle = top + _THICK / 2
        if above:
            label = text(name, _EDGE, top - 4, "halo")
        elif x.low < 0:
            label = text(name, _EDGE, middle + 4, "halo")
        else:
            label = text(name, x.start - 8, middle + 4, "", "end")
        whisker, far = _whisker(low, high, x, middle), [x(value)]
        if whisker and low is not None and high is not None:
            far += [x(low), x(high)]
        number = (
            text(self._shown(value), max(far) + 6, middle + 4, "value")
            if value >= 0
            else text(self._shown(value), min(far) - 6, middle + 4, "value", "end")
        )
        return element("g", rect, whisker, label, number)

    def _words(self) -> str:
        return "; ".join(f"{name}: {self._shown(value)}" for name, value, _, _ in self._scaled())


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None or not math.isfinite(value) else value * factor


def _whisker(low: float | None, high: float | None, x: Scale, middle: float) -> Html:
    if low is None or high is None:
        return ""
    left, right = x(low), x(high)
    d = f"M{left},{middle:g}H{right}M{left},{middle - 3:g}v6M{right},{middle - 3:g}v6"
    return element("path", d=d, class_="whisker")
