"""Accuracy against LLM share: where a policy stands between the SLM alone and the LLM alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from navtoken.report.figure import BOTTOM, LEFT, MARKERS, RIGHT, TOP, Figure, Scale, axes, linear_ticks, text
from navtoken.report.markup import Html, ReportError, each, element, escape


@dataclass(frozen=True)
class ScatterPoint:
    """One policy on one task."""

    label: str
    """The policy as a person writes it."""
    x: float
    """LLM share, 0 to 1."""
    y: float
    """Accuracy, 0 to 1."""
    error: float | None = None
    """Standard error of `y`."""
    series: str = ""
    """Points of one series share a marker and are joined; by default the label's name before `:` or `,`."""

    @property
    def family(self) -> str:
        return self.series or re.split("[:,]", self.label)[0]


@dataclass(frozen=True)
class ScatterSection:
    """Accuracy against LLM share, a panel per task."""

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

    def figures(self) -> list[Figure]:
        """One figure per panel; markers and the accuracy axis are the same in all of them."""
        if not self.panels:
            raise ReportError(f"'{self.title}' has no panels; give points by panel name")
        for name, points in self.panels.items():
            if not points:
                raise ReportError(f"panel '{name}' of '{self.title}' has no points; leave it out")
        y_range = _range([p for points in self.panels.values() for p in points])
        styles = _styles([p.family for points in self.panels.values() for p in points])
        return [self._figure(name, points, styles, y_range) for name, points in self.panels.items()]

    def html(self, anchor: str) -> Html:
        charts = each(self.figures(), lambda figure: element("figure", figure.html(), class_="chart"))
        notes = [self.caption]
        if 'class="whisker"' in charts:
            notes.append("Whiskers: one standard error.")
        if 'class="chord"' in charts:
            notes.append("Dotted: the SLM for some problems and the LLM for the rest.")
        note = " ".join(notes).strip()
        return element("div", charts, class_="panels") + element("p", escape(note), class_="figure-note")

    def _figure(
        self,
        name: str,
        points: Sequence[ScatterPoint],
        styles: Mapping[str, int],
        y_range: tuple[float, float],
    ) -> Figure:
        width, height = 440, 330
        x = Scale(0, 100, LEFT + 4, width - RIGHT - 10)
        y = Scale(*y_range, height - BOTTOM, TOP + 22)
        frame = axes(
            x, y, [0, 20, 40, 60, 80, 100], linear_ticks(y.low, y.high, 6), self.x_label, self.y_label
        )
        marks = (
            _chord(points, x, y)
            + _curves(points, styles, x, y)
            + each(points, lambda p: _mark(p, styles[p.family], x, y))
        )
        heading = text(name, (x.start + x.end) / 2, 30, "name", "middle")
        words = "; ".join(f"{p.label}: {p.y:.1%} at LLM share {p.x:.1%}" for p in points)
        return Figure(name, words, width, height, frame + marks + _labels(points, styles, x, y) + heading)


def _styles(families: Sequence[str]) -> dict[str, int]:
    """Marker and colour by series: the SLM's and the LLM's are the page's own, the rest in order of appearance."""
    others = [name for name in dict.fromkeys(families) if name not in ("slm", "llm")]
    return {"slm": 0, "llm": 1} | {name: 2 + i % (len(MARKERS) - 2) for i, name in enumerate(others)}


def _range(points: Sequence[ScatterPoint]) -> tuple[float, float]:
    """Accuracy axis in percent: round ends around the points and their whiskers, inside 0 to 100."""
    low = min(p.y - (p.error or 0) for p in points) * 100
    high = max(p.y + (p.error or 0) for p in points) * 100
    return max(0.0, (low - 3) // 10 * 10), min(100.0, -(-(high + 3) // 10) * 10)


def _mark(p: ScatterPoint, style: int, x: Scale, y: Scale) -> Html:
    at_x, at_y = x(p.x * 100), y(p.y * 100)
    spread = "" if p.error is None else f" ± {p.error:.1%}"
    tip = element("title", escape(f"{p.label}: {p.y:.1%}{spread} at LLM share {p.x:.1%}"))
    whisker = ""
    if p.error:
        top, bottom = y(min(100.0, (p.y + p.error) * 100)), y(max(0.0, (p.y - p.error) * 100))
        whisker = element("line", class_="whisker", x1=at_x, x2=at_x, y1=top, y2=bottom)
    marker = element("path", tip, d=MARKERS[style], class_="marker", transform=f"translate({at_x} {at_y})")
    return element("g", whisker, marker, class_=f"s{style}", data_x=p.x, data_y=p.y)


def _curves(points: Sequence[ScatterPoint], styles: Mapping[str, int], x: Scale, y: Scale) -> Html:
    curves = []
    for family, style in styles.items():
        own = sorted((p.x, p.y) for p in points if p.family == family)
        if len(own) > 1:
            path = "M" + "L".join(f"{x(a * 100)},{y(b * 100)}" for a, b in own)
            curves.append(element("path", d=path, class_=f"curve s{style}"))
    return "".join(curves)


def _chord(points: Sequence[ScatterPoint], x: Scale, y: Scale) -> Html:
    """From SLM to LLM: what sending that share of whole problems to the LLM gives."""
    ends = {p.label: p for p in points if p.label in ("slm", "llm")}
    if len(ends) < 2:
        return ""
    a, b = ends["slm"], ends["llm"]
    return element("line", class_="chord", x1=x(a.x * 100), y1=y(a.y * 100), x2=x(b.x * 100), y2=y(b.y * 100))


def _labels(points: Sequence[ScatterPoint], styles: Mapping[str, int], x: Scale, y: Scale) -> Html:
    """A label at each lone point and at the right end of each curve, where it hides no point and no other label."""
    last = {p.family: p for p in sorted(points, key=lambda p: p.x)}
    counts = {family: sum(p.family == family for p in points) for family in last}
    taken = [(x(p.x * 100) - 7, y(p.y * 100) - 7, x(p.x * 100) + 7, y(p.y * 100) + 7) for p in points]
    parts = []
    for family, p in last.items():
        words = p.label if counts[family] == 1 else family
        left, baseline = _place(x(p.x * 100), y(p.y * 100), 7.2 * len(words), taken, x, y)
        parts.append(text(words, left, baseline, f"point s{styles[family]}"))
    return "".join(parts)


def _place(
    at_x: float, at_y: float, width: float, taken: list[tuple[float, float, float, float]], x: Scale, y: Scale
) -> tuple[float, float]:
    """Left end and baseline of a label of `width` near a point; notes its box in `taken`."""
    lifts = (0, 14, -14, 26, -26, 38, -38, 50, -50)
    spots = [(at_x + side, at_y + lift) for lift in lifts for side in (10, -10 - width, -width / 2)]
    boxes = [(left, mid - 7, left + width, mid + 7) for left, mid in spots]
    inside = [
        b for b in boxes if b[0] >= x.start and b[2] <= x.end + 22 and y.end - 4 <= b[1] and b[3] <= y.start
    ] or boxes
    free = [b for b in inside if not any(_overlap(b, other) for other in taken)]
    box = (free or inside)[0]
    taken.append(box)
    return round(box[0], 2), round(box[1] + 11.5, 2)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
