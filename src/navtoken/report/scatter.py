"""Accuracy against a cost (LLM share, FLOPs, bytes): where a policy stands between the SLM alone and the LLM alone."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from navtoken.report.figure import (
    BOTTOM,
    LEFT,
    MARKERS,
    RIGHT,
    TOP,
    Figure,
    Scale,
    axes,
    fine_log_ticks,
    linear_ticks,
    text,
)
from navtoken.report.markup import Html, ReportError, each, element, escape, percent

_NUM_COLOURS = 4
"""Colours of series other than the SLM's and the LLM's; as many markers go with each."""
_CHORD_STEPS = 32
_SHARE_TICKS = tuple(range(0, 1001, 20))

LEGEND = {
    "whisker": "Whiskers: one standard error.",
    "chord": "Dotted: the SLM for some problems and the LLM for the rest.",
    "front": "Broad line: the Pareto front, where no other policy is both cheaper and more often right.",
}
"""What is drawn besides points, in words."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class ScatterPoint:
    """One policy on one task."""

    label: str
    """The policy as a person writes it."""
    x: float
    """Its cost: LLM share, 0 to 1, or what the section's axis says."""
    y: float
    """Accuracy, 0 to 1."""
    error: float | None = None
    """Standard error of `y`."""
    series: str = ""
    """Points of one series share a marker and are joined; by default the label's name before `:` or `,`."""
    front: bool = False
    """Is it on the Pareto front?"""

    @property
    def family(self) -> str:
        return self.series or re.split("[:,]", self.label)[0]


@dataclass(frozen=True)
class ScatterSection:
    """Accuracy against a cost, a panel per task."""

    title: str
    """The heading; best when it says the finding."""
    panels: Mapping[str, Sequence[ScatterPoint]]
    """Points by panel name."""
    caption: str = ""
    """Plain text under the figures."""
    x_label: str = "tokens written by the LLM (%)"
    """Name and unit of the horizontal axis."""
    y_label: str = "accuracy (%)"
    """Name and unit of the vertical axis."""
    x_log: bool = False
    """Costs are any numbers above 0, on a logarithmic axis; otherwise they are shares, shown in percent."""
    x_words: str = "LLM share {} %"
    """How a point says its cost, where that is no logarithmic axis's: in hundredths."""
    height: int = 330
    """Of each figure, in SVG units; many policies want more."""
    explain: bool = True
    """Say under the figures what whiskers and lines mean."""

    def figures(self) -> list[Figure]:
        """One figure per panel; markers and the accuracy axis are the same in all of them."""
        if not self.panels:
            raise ReportError(f"'{self.title}' has no panels; give points by panel name")
        for name, points in self.panels.items():
            if not points:
                raise ReportError(f"panel '{name}' of '{self.title}' has no points; leave it out")
            if self.x_log and not all(math.isfinite(p.x) and p.x > 0 for p in points):
                raise ReportError(f"panel '{name}' of '{self.title}' has costs of 0 or less; set x_log=False")
        y_range = _range([p for points in self.panels.values() for p in points])
        styles = _styles([p.family for points in self.panels.values() for p in points])
        return [self._figure(name, points, styles, y_range) for name, points in self.panels.items()]

    def html(self, anchor: str) -> Html:
        charts = each(self.figures(), lambda figure: element("figure", figure.html(), class_="chart"))
        drawn = [words for class_, words in LEGEND.items() if self.explain and f'class="{class_}"' in charts]
        note = " ".join([self.caption, *drawn]).strip()
        words = element("p", escape(note), class_="figure-note") if note else ""
        return element("div", charts, class_="panels") + words

    def _figure(
        self,
        name: str,
        points: Sequence[ScatterPoint],
        styles: Mapping[str, "Style"],
        y_range: tuple[float, float],
    ) -> Figure:
        width = 440
        drawing = _Drawing(
            # In percent, as its axis is; costs keep their unit.
            [p if self.x_log else replace(p, x=100 * p.x) for p in points],
            points,
            styles,
            self._across(points, LEFT + 4, width - RIGHT - 10),
            Scale(*y_range, self.height - BOTTOM, TOP + 22),
            self.x_log,
            self.x_words,
        )
        x, y = drawing.x, drawing.y
        x_ticks = fine_log_ticks(x.low, x.high) if self.x_log else [at for at in _SHARE_TICKS if at <= x.high]
        frame = axes(x, y, x_ticks, linear_ticks(y.low, y.high, 6), self.x_label, self.y_label)
        heading = text(name, (x.start + x.end) / 2, 30, "name", "middle")
        words = "; ".join(f"{p.label}: {percent(p.y, 1)} at {drawing.at(p)}" for p in points)
        return Figure(name, words, width, self.height, frame + drawing.html() + heading)

    def _across(self, points: Sequence[ScatterPoint], start: float, end: float) -> Scale:
        if not self.x_log:
            return Scale(0, max(100.0, *(100 * p.x for p in points)), start, end)
        low, high = min(p.x for p in points), max(p.x for p in points)
        # Room around the outermost marks, also where all cost the same.
        room = max((high / low) ** 0.06, 1.05)
        return Scale(low / room, high * room, start, end, log=True)


@dataclass(frozen=True)
class Style:
    """How a series is told from the others."""

    colour: int
    marker: int

    @property
    def class_(self) -> str:
        return f"s{self.colour}"


@dataclass(frozen=True)
class _Drawing:
    """The marks of one panel."""

    points: Sequence[ScatterPoint]
    """In the axis's unit."""
    given: Sequence[ScatterPoint]
    """As they were given."""
    styles: Mapping[str, Style]
    x: Scale
    y: Scale
    x_log: bool
    x_words: str

    def html(self) -> Html:
        marks = "".join(self._mark(p, given) for p, given in zip(self.points, self.given, strict=True))
        return self._chord() + self._front() + self._curves() + marks + self._labels()

    def at(self, given: ScatterPoint) -> str:
        """A point's cost in words."""
        return f"{given.x:.4g}" if self.x_log else self.x_words.format(f"{100 * given.x:.1f}")

    def _place(self, p: ScatterPoint) -> tuple[float, float]:
        return self.x(p.x), self.y(100 * p.y)

    def _mark(self, p: ScatterPoint, given: ScatterPoint) -> Html:
        at_x, at_y = self._place(p)
        style = self.styles[p.family]
        spread = "" if p.error is None else f" ± {percent(p.error, 1)}"
        tip = element("title", escape(f"{p.label}: {percent(p.y, 1)}{spread} at {self.at(given)}"))
        whisker = ""
        if p.error:
            top, bottom = self.y(min(100.0, (p.y + p.error) * 100)), self.y(max(0.0, (p.y - p.error) * 100))
            whisker = element("line", class_="whisker", x1=at_x, x2=at_x, y1=top, y2=bottom)
        marker = element(
            "path", tip, d=MARKERS[style.marker], class_="marker", transform=f"translate({at_x} {at_y})"
        )
        return element("g", whisker, marker, class_=style.class_, data_x=given.x, data_y=given.y)

    def _curves(self) -> Html:
        curves = []
        for family, style in self.styles.items():
            own = sorted(self._place(p) for p in self.points if p.family == family)
            if len(own) > 1:
                curves.append(element("path", d=_path(own), class_=f"curve {style.class_}"))
        return "".join(curves)

    def _chord(self) -> Html:
        """From SLM to LLM: what sending that share of whole problems to the LLM gives, a curve on a logarithmic axis."""
        ends = {p.label: p for p in self.points if p.label in ("slm", "llm")}
        if len(ends) < 2:
            return ""
        a, b = ends["slm"], ends["llm"]
        if not self.x_log:
            (x1, y1), (x2, y2) = self._place(a), self._place(b)
            return element("line", class_="chord", x1=x1, y1=y1, x2=x2, y2=y2)
        mixed = [index / _CHORD_STEPS for index in range(_CHORD_STEPS + 1)]
        path = [
            (self.x(a.x + part * (b.x - a.x)), self.y(100 * (a.y + part * (b.y - a.y)))) for part in mixed
        ]
        return element("path", class_="chord", d=_path(path))

    def _front(self) -> Html:
        """Steps: between two points of the front the cheaper one is what there is."""
        own = sorted(self._place(p) for p in self.points if p.front)
        if not own:
            return ""
        d = f"M{own[0][0]},{own[0][1]}" + "".join(f"H{at_x}V{at_y}" for at_x, at_y in own[1:])
        return element("path", d=f"{d}H{self.x.end}", class_="front")

    def _labels(self) -> Html:
        """A label at each lone point and at the right end of each curve, where it hides no point and no other label."""
        last = {p.family: p for p in sorted(self.points, key=lambda p: p.x)}
        counts = {family: sum(p.family == family for p in self.points) for family in last}
        taken = [_around(*self._place(p)) for p in self.points]
        parts = []
        for family, p in last.items():
            words = p.label if counts[family] == 1 else family
            at = self._place(p)
            left, baseline = _spot(at, 7.2 * len(words), taken, self.x, self.y)
            class_ = self.styles[family].class_
            parts.append(_lead(at, left, baseline, words, class_))
            parts.append(text(words, left, baseline, f"point {class_}"))
        return "".join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a},{b}" for a, b in points)


def _styles(families: Sequence[str]) -> dict[str, Style]:
    """Colour and marker by series: the SLM's and the LLM's are the page's own, the rest in order of appearance.

    No two of the first sixteen others are alike in both.
    """
    others = [name for name in dict.fromkeys(families) if name not in ("slm", "llm")]
    known = {"slm": Style(0, 0), "llm": Style(1, 1)}
    return known | {
        name: Style(2 + i % _NUM_COLOURS, 2 + (i + i // _NUM_COLOURS) % _NUM_COLOURS)
        for i, name in enumerate(others)
    }


def _range(points: Sequence[ScatterPoint]) -> tuple[float, float]:
    """Accuracy axis in percent: round ends around the points and their whiskers, inside 0 to 100."""
    low = min(p.y - (p.error or 0) for p in points) * 100
    high = max(p.y + (p.error or 0) for p in points) * 100
    return max(0.0, (low - 3) // 10 * 10), min(100.0, -(-(high + 3) // 10) * 10)


def _around(at_x: float, at_y: float) -> Box:
    return at_x - 7, at_y - 7, at_x + 7, at_y + 7


def _spot(at: tuple[float, float], width: float, taken: list[Box], x: Scale, y: Scale) -> tuple[float, float]:
    """Left end and baseline of a label of `width` near a point, the nearest that is free; notes its box in `taken`."""
    at_x, at_y = at
    lifts = (0, 14, -14, 26, -26, 38, -38, 50, -50, 64, -64, 78, -78, 92, -92)
    spots = [
        (at_x + side, at_y + lift)
        for lift in lifts
        for side in (10, -10 - width, -width / 2, 34, -34 - width)
    ]
    boxes = [(left, mid - 7, left + width, mid + 7) for left, mid in spots]
    inside = [
        b for b in boxes if b[0] >= x.start and b[2] <= x.end + 22 and y.end - 4 <= b[1] and b[3] <= y.start
    ] or boxes
    free = [b for b in inside if not any(_overlap(b, other) for other in taken)]
    box = (free or inside)[0]
    taken.append(box)
    return round(box[0], 2), round(box[1] + 11.5, 2)


def _lead(at: tuple[float, float], left: float, baseline: float, words: str, class_: str) -> Html:
    """A thin line to a point from a label that stands away from it."""
    middle, right = baseline - 4.5, left + 7.2 * len(words)
    end = min(max(at[0], left), right)
    if math.hypot(end - at[0], middle - at[1]) < 24:
        return ""
    edge = middle + (7 if at[1] > middle else -7) if abs(middle - at[1]) > 7 else middle
    ends = {"x1": at[0], "y1": at[1], "x2": round(end, 2), "y2": round(edge, 2)}
    return element("line", class_=f"lead {class_}", **ends)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
