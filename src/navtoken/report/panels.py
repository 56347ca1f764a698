"""Figures side by side under one heading, to be compared at a glance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from navtoken.report.figure import Figure
from navtoken.report.markup import Html, ReportError, element, escape


class Panel(Protocol):
    """A section with figures: `CurvesSection`, `BarsSection`, `CloudSection`."""

    @property
    def title(self) -> str: ...

    def figures(self) -> list[Figure]: ...

    def html(self, anchor: str) -> Html: ...


@dataclass(frozen=True)
class PanelsSection:
    """Drawn sections side by side where the page is wide, one under the other where it is not."""

    title: str
    """The heading over all of them; best when it says the finding."""
    panels: Sequence[Panel]
    """Each keeps its own title, as a smaller heading."""
    text: str = ""
    """Plain text under the heading."""

    def figures(self) -> list[Figure]:
        """The panels' figures, in order."""
        return [figure for panel in self.panels for figure in panel.figures()]

    def html(self, anchor: str) -> Html:
        if not self.panels:
            raise ReportError(f"'{self.title}' has no panels; leave the section out or give it some")
        parts = [
            element(
                "div", element("h3", escape(panel.title)), panel.html(f"{anchor}-{index}"), class_="panel"
            )
            for index, panel in enumerate(self.panels, 1)
        ]
        words = element("p", escape(self.text)) if self.text else ""
        return words + element("div", *parts, class_="side-by-side")
