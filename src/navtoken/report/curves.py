"""Curves with error bars or bands: accuracy against temperature, overlap against steps, entropy by position, ROC.

A curve is told from the others by colour, by dashes and by marker, and is named beside its end where there is room.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from navtoken.report.figure import (
    BOTTOM,
    LEFT,
    LINE,
    MARKERS,
    RIGHT,
    TOP,
    Figure,
    Scale,
    axes,
    fine_log_ticks,
    label_lines,
    label_width,
    linear_ticks,
    log_ticks,
    nice_range,
    text,
    text_width,
)
from navtoken.report.markup import Html, ReportError, each, element, escape
from navtoken.report.table import folded_table

_WIDTH, _PLOT_HEIGHT = 440, 250
_ROW = 16
"""Height of a line of names."""
_LONGEST_NAME = 125
"""Widest name, in SVG units, that may stand beside a curve's end."""
_FARTHEST = 12
"""How far from its curve's end a name may stand, in SVG units, before all names go above the plot."""
_STYLES = 6
"""Colours, dashes and markers there are; more curves than that can be told apart only by names beside them."""
_MANY = 24
"""With more points than this a curve has a marker only here and there."""
_ZERO_GAP = 36
"""Room between 0 and the rest of a logarithmic axis."""

Point = tuple[float, float, float, float]
"""x, y, low, high; NaN is not there."""


@dataclass(frozen=True)
class Curve:
    """One line of a figure."""

    name: str
    """What the line is, as short as it can be."""
    x: Sequence[float]
    """Places, in the order in which they are joined."""
    y: Sequence[float]
    """Values; NaN leaves a gap."""
    low: Sequence[float] | None = None
    """Lower ends of the error bars or of the band, in the unit of `y`; NaN draws none."""
    high: Sequence[float] | None = None
    """Upper ends."""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ReportError(f"curve '{self.name}' has only one of low and high; give both or neither")
        for part, values in {"y": self.y, "low": self.low, "high": self.high}.items():
            if values is not None and len(values) != len(self.x):
                raise ReportError(
                    f"curve '{self.name}' has {len(self.x)} x but {len(values)} {part}; give one per x"
                )
        if not all(math.isfinite(value) for value in self.x):
            raise ReportError(f"curve '{self.name}' has an x that is not finite; leave such points out")
        if not any(math.isfinite(value) for value in self.y):
            raise ReportError(f"curve '{self.name}' has no finite y; leave it out")

    def points(self, factor: float = 1.0) -> list[Point]:
        """The points; `factor` multiplies all but x."""
        nothing = [math.nan] * len(self.x)
        low, high = (nothing if ends is None else ends for ends in (self.low, self.high))
        rows = zip(self.x, self.y, low, high, strict=True)
        return [(float(a), float(b) * factor, float(c) * factor, float(d) * factor) for a, b, c, d in rows]


@dataclass(frozen=True)
class CurvesSection:
    """Curves between one pair of axes."""

    title: str
    """The heading; best when it says the finding."""
    curves: Sequence[Curve]
    """What is drawn."""
    x_label: str
    """Name and unit of the horizontal axis."""
    y_label: str
    """Name and unit of the vertical axis."""
    text: str = ""
    """Plain text under the figure; says what the error bars or the band are."""
    x_ticks: Sequence[float] | None = None
    """Labelled places of the horizontal axis; round ones by default."""
    x_log: bool = False
    """Logarithmic horizontal axis; a 0 stands left of it, after a gap."""
    y_percent: bool = False
    """Values are fractions, shown in percent."""
    diagonal: bool = False
    """Draw the line on which both axes say the same: chance in a ROC curve."""
    band: bool = False
    """Draw low to high as a band instead of error bars."""
    y_log: bool = False
    """Logarithmic vertical axis."""

    def figures(self) -> list[Figure]:
        """The one figure."""
        if not self.curves:
            raise ReportError(f"'{self.title}' has no curves; leave the section out or give it some")
        self._check_logarithms()
        x, y, names = self._laid_out()
        lines = label_lines(self.x_label, label_width(x))
        height = round(y.start) + BOTTOM + LINE * (len(lines) - 1)
        body = self._frame(x, y) + self._drawn(x, y) + names
        return [Figure(self.title, self._words(), _WIDTH, height, body)]

    def html(self, anchor: str) -> Html:
        figure = self.figures()[0].html()
        words = element("figcaption", escape(self.text)) if self.text else ""
        return element("figure", figure, words, self._table(), class_="chart")

    @property
    def _factor(self) -> float:
        return 100.0 if self.y_percent else 1.0

    def _points(self) -> list[list[Point]]:
        return [curve.points(self._factor) for curve in self.curves]

    def _check_logarithms(self) -> None:
        points = [point for curve in self._points() for point in curve]
        if self.x_log and not (all(p[0] >= 0 for p in points) and any(p[0] > 0 for p in points)):
            raise ReportError(f"'{self.title}' has negative x, or none above 0; set x_log=False")
        if self.y_log and any(value <= 0 for p in points for value in p[1:]):
            raise ReportError(f"'{self.title}' has values of 0 or less; set y_log=False or clip them")

    def _laid_out(self) -> tuple[Scale, Scale, Html]:
        """Both scales, and the names: none for a curve alone, beside the ends or in rows above the plot."""
        y = self._up(TOP)
        if len(self.curves) == 1:
            return self._across(RIGHT - 6), y, ""
        names = [curve.name for curve in self.curves]
        if self._ends_have_room(y):
            x = self._across(max(text_width(name, bold=True) for name in names) + 8)
            return x, y, _names_beside(self._ends(), x, y)
        key, rows = _key(names, _WIDTH - 6.0)
        return self._across(RIGHT - 6), self._up(TOP + rows * _ROW), key

    def _across(self, room: float) -> Scale:
        """The horizontal scale that leaves `room` right of the plot."""
        places = [p[0] for curve in self._points() for p in curve] + list(self.x_ticks or ())
        start, end = LEFT + 4.0, _WIDTH - 6.0 - room
        if self.x_log and min(places) <= 0:
            low = min(place for place in places if place > 0)
            return Scale(low, max(places), start + _ZERO_GAP, end, log=True, zero=start)
        low, high = min(places), max(places)
        return Scale(low, high if high > low else low + 1, start, end, log=self.x_log)

    def _up(self, top: float) -> Scale:
        """The vertical scale of a plot that begins `top` under the figure's upper edge."""
        values = [v for curve in self._points() for p in curve for v in p[1:] if math.isfinite(v)]
        if self.y_log:
            first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
            return Scale(10.0**first, 10.0 ** max(last, first + 1), top + _PLOT_HEIGHT, top, log=True)
        low, high = nice_range(min(values), max(values))
        if self.y_percent and max(values) <= 100:
            high = min(high, 100.0)
            low = low if low < high else high - 10
        return Scale(low, high, top + _PLOT_HEIGHT, top)

    def _frame(self, x: Scale, y: Scale) -> Html:
        label = self.y_label
        if self.y_percent and "%" not in label:
            label += " (%)"
        if self.x_ticks is not None:
            x_ticks = list(self.x_ticks)
        else:
            x_ticks = _log_places(x) if x.log else linear_ticks(x.low, x.high, 6)
        y_ticks = log_ticks(y.low, y.high) if y.log else linear_ticks(y.low, y.high, 6)
        return axes(x, y, x_ticks, y_ticks, self.x_label, label) + (
            self._diagonal(x, y) if self.diagonal else ""
        )

    def _diagonal(self, x: Scale, y: Scale) -> Html:
        low, high = max(x.low, y.low / self._factor), min(x.high, y.high / self._factor)
        if low >= high:
            return ""
        ends = {"x1": x(low), "x2": x(high), "y1": y(low * self._factor), "y2": y(high * self._factor)}
        return element("line", class_="chord", **ends)

    def _drawn(self, x: Scale, y: Scale) -> Html:
        drawn = list(zip(self.curves, self._points(), strict=True))
        bands = [_band(points, x, y, i) for i, (_, points) in enumerate(drawn)] if self.band else []
        lines = [
            _line(curve.name, points, x, y, i, whiskers=not self.band)
            for i, (curve, points) in enumerate(drawn)
        ]
        return "".join(bands + lines)

    def _ends(self) -> list[tuple[str, float, float]]:
        """Name, x and y of the last point of each curve that is there."""
        last = [[p for p in points if math.isfinite(p[1])][-1] for points in self._points()]
        return [(curve.name, p[0], p[1]) for curve, p in zip(self.curves, last, strict=True)]

    def _ends_have_room(self, y: Scale) -> bool:
        """Can each curve be named beside its end: short names, ends at the right, not all in one place?"""
        ends = self._ends()
        right = max(at for _, at, _ in ends)
        spread = [y(value) for _, _, value in ends]
        near = all(abs(a - b) <= _FARTHEST for a, b in zip(spread, _apart(spread, y), strict=True))
        short = max(text_width(name, bold=True) for name, _, _ in ends) <= _LONGEST_NAME
        return short and all(at == right for _, at, _ in ends) and (near or len(ends) > _STYLES)

    def _words(self) -> str:
        drawn = zip(self.curves, self._points(), strict=True)
        return "; ".join(f"{curve.name}: {_from_to(points, self.y_percent)}" for curve, points in drawn)

    def _table(self) -> Html:
        bounded = any(curve.low is not None for curve in self.curves)
        head = ["curve", self.x_label, self.y_label, *(["low", "high"] if bounded else [])]
        rows = [
            [curve.name, *(p if bounded else p[:2])]
            for curve, points in zip(self.curves, self._points(), strict=True)
            for p in points
        ]
        return folded_table("Numbers as a table", head, rows)


def _from_to(points: Sequence[Point], percent: bool) -> str:
    there = [p for p in points if math.isfinite(p[1])]
    unit = " %" if percent else ""
    first, last = there[0], there[-1]
    return f"{first[1]:.4g}{unit} at {first[0]:g}, {last[1]:.4g}{unit} at {last[0]:g}"


def _line(name: str, points: Sequence[Point], x: Scale, y: Scale, index: int, whiskers: bool) -> Html:
    """One curve: error bars under the line, markers over it."""
    every = 1 if len(points) <= _MANY else math.ceil(len(points) / 8)
    there = [p for p in points if math.isfinite(p[1])]
    bars = each(there, lambda p: _whisker(p, x, y)) if whiskers else ""
    path = element("path", d=_path(points, x, y), class_=f"line d{index % _STYLES}")
    marks = each(there[every // 2 :: every], lambda p: _marker(name, p, x, y, index))
    return element("g", bars, path, marks, class_=f"s{index % _STYLES}", data_curve=name)


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """Joined points, with a gap where one is not there."""
    parts, pen_down = [], False
    for at, value, *_ in points:
        if math.isfinite(value):
            parts.append(f"{'L' if pen_down else 'M'}{x(at)},{y(value)}")
        pen_down = math.isfinite(value)
    return "".join(parts)


def _band(points: Sequence[Point], x: Scale, y: Scale, index: int) -> Html:
    there = [p for p in points if math.isfinite(p[2]) and math.isfinite(p[3])]
    if len(there) < 2:
        return ""
    corners = [f"{x(p[0])},{y(p[3])}" for p in there] + [f"{x(p[0])},{y(p[2])}" for p in reversed(there)]
    return element("path", d=f"M{'L'.join(corners)}Z", class_=f"band s{index % _STYLES}")


def _whisker(p: Point, x: Scale, y: Scale) -> Html:
    if not (math.isfinite(p[2]) and math.isfinite(p[3])) or p[2] == p[3]:
        return ""
    at, low, high = x(p[0]), y(p[2]), y(p[3])
    d = f"M{at},{low}V{high}M{at - 3:g},{low}h6M{at - 3:g},{high}h6"
    return element("path", d=d, class_="whisker")


def _marker(name: str, p: Point, x: Scale, y: Scale, index: int) -> Html:
    spread = f" ({p[2]:.4g} to {p[3]:.4g})" if math.isfinite(p[2]) and math.isfinite(p[3]) else ""
    tip = element("title", escape(f"{name}: {p[1]:.4g}{spread} at {p[0]:g}"))
    place = f"translate({x(p[0])} {y(p[1])}) scale(.8)"
    return element("path", tip, d=MARKERS[index % _STYLES], class_="marker", transform=place)


def _apart(places: Sequence[float], y: Scale) -> list[float]:
    """Heights near `places`, in the plot, at which names do not cover each other unless there are too many."""
    step = min(_ROW - 2, (y.start - y.end) / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + step)
    moved[order[-1]] = min(moved[order[-1]], y.start)
    for below, above in pairwise(reversed(order)):
        moved[above] = min(moved[above], moved[below] - step)
    return moved


def _names_beside(ends: Sequence[tuple[str, float, float]], x: Scale, y: Scale) -> Html:
    """Names right of the plot, each led to its curve where it had to move."""
    heights = _apart([y(value) for _, _, value in ends], y)
    parts = []
    for index, ((name, _, value), height) in enumerate(zip(ends, heights, strict=True)):
        lead = element("line", class_="lead", x1=x.end + 3, y1=y(value), x2=x.end + 11, y2=round(height, 2))
        label = text(name, x.end + 13, height + 4, "point")
        parts.append(
            element("g", lead if abs(height - y(value)) > 3 else "", label, class_=f"s{index % _STYLES}")
        )
    return "".join(parts)


def _key(names: Sequence[str], end: float) -> tuple[Html, int]:
    """Names with a sample of each line, in rows above the plot, and how many rows they take."""
    left, row, parts = float(LEFT), 0, []
    for index, name in enumerate(names):
        width = 32 + text_width(name, bold=True)
        if left + width > end and left > LEFT:
            left, row = float(LEFT), row + 1
        height = TOP + row * _ROW
        line = element("line", class_=f"line d{index % _STYLES}", x1=left, x2=left + 26, y1=height, y2=height)
        mark = element(
            "path",
            d=MARKERS[index % _STYLES],
            class_="marker",
            transform=f"translate({left + 13:g} {height}) scale(.8)",
        )
        parts.append(
            element(
                "g", line, mark, text(name, left + 32, height + 4, "point"), class_=f"key s{index % _STYLES}"
            )
        )
        left += width + 10
    return "".join(parts), row + 1


def _log_places(x: Scale) -> list[float]:
    """Powers of ten, with 2 and 5 times them where there are few; 0 where the axis has it."""
    ticks = fine_log_ticks(x.low, x.high)
    return ticks if x.zero is None else [0.0, *ticks]
