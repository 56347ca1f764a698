"""The page: title, provenance, contents and sections, in one file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from navtoken.report.markup import Html, each, element, escape, write_whole

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""Content security policy: the page may use what is in it and fetch nothing."""


class Section(Protocol):
    """A part of the page."""

    @property
    def title(self) -> str:
        """The heading; best when it says the finding."""
        ...

    def html(self, anchor: str) -> Html:
        """The section's body; ids in it start with `anchor`, which is unique in the page."""
        ...


@dataclass(frozen=True)
class TextSection:
    """A few paragraphs."""

    title: str
    """The heading."""
    text: str
    """Plain text; an empty line ends a paragraph."""

    def html(self, anchor: str) -> Html:
        return paragraphs(self.text)


@dataclass(frozen=True)
class Page:
    """What a report says, in order."""

    title: str
    """Title of the page; best when it says the finding."""
    intro: str
    """Plain text under the title; an empty line ends a paragraph."""
    sections: Sequence[Section]
    """The parts, in order."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from (arguments, revision, versions, fingerprints); may be nested."""


def build_page(page: Page, path: str | Path) -> Path:
    """Write `page` to `path` as one HTML file, whole or not at all. The same page gives the same bytes."""
    return write_whole(path, render_page(page))


def render_page(page: Page) -> Html:
    """The page's HTML."""
    anchors = [f"section-{index}" for index in range(1, len(page.sections) + 1)]
    body = "".join(_section(section, anchor) for section, anchor in zip(page.sections, anchors, strict=True))
    head = "".join(
        [
            '<meta charset="utf-8"/>',
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", name="generator", content="navtoken"),
            element("title", escape(page.title)),
            f"<style>{asset('figure.css')}{asset('page.css')}</style>",
        ]
    )
    main = element("main", _header(page, anchors), body, id="main")
    script = f"<script>{asset('page.js')}</script>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{main}\n{script}</body></html>\n'


def paragraphs(text: str) -> Html:
    """Plain text as paragraphs, split at empty lines."""
    return each(
        (part for part in text.split("\n\n") if part.strip()), lambda part: element("p", escape(part))
    )


def asset(name: str) -> str:
    """A file of `report/assets`."""
    return (files("navtoken.report") / "assets" / name).read_text(encoding="utf-8")


def _section(section: Section, anchor: str) -> Html:
    heading = element("h2", escape(section.title), id=f"{anchor}-title")
    return "\n" + element(
        "section", heading, section.html(anchor), id=anchor, aria_labelledby=f"{anchor}-title"
    )


def _header(page: Page, anchors: list[str]) -> Html:
    parts = [element("h1", escape(page.title)), element("div", paragraphs(page.intro), class_="intro")]
    folds = []
    # Folded, so that the first section shows at once, on a phone too.
    if len(anchors) > 2:
        links = "".join(
            element("li", element("a", escape(section.title), href=f"#{anchor}"))
            for section, anchor in zip(page.sections, anchors, strict=True)
        )
        contents = element("details", element("summary", "Contents"), element("ul", links))
        folds.append(element("nav", contents, aria_label="Contents"))
    if page.provenance:
        rows = each(
            _flat(page.provenance), lambda row: element("dt", escape(row[0])) + element("dd", escape(row[1]))
        )
        summary = element("summary", "Where these numbers come from")
        folds.append(element("details", summary, element("dl", rows), class_="provenance"))
    if folds:
        parts.append(element("div", *folds, class_="folds"))
    return element("header", *parts)


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested provenance as dotted names, in the order given."""
    rows: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return rows
