"""A results table: numbers aligned right, standard errors beside them, rows in groups."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from typing import Any, Literal

from navtoken.report.markup import Html, ReportError, each, element, escape
from navtoken.report.pieces import visible

Row = Mapping[str, Any]
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """How one key of the rows is shown."""

    key: str
    """Key in the rows; a row without it, or with None or NaN, shows a dash."""
    label: str
    """Heading, with the unit."""
    kind: Literal["text", "code", "number", "percent", "count", "metric"] = "number"
    """`percent` takes fractions (0.13 is shown as 13.0), `count` groups thousands, `metric` shows three digits (1.17 M), `code`
    is for names and tokens."""
    digits: int = 1
    """Decimals of `number` and `percent`."""
    error: str | None = None
    """Key of the standard error, in the same unit."""
    bar: bool = False
    """Draw the value as a bar behind the number (`percent` only)."""
    help: str = ""
    """One sentence that says what the number is, listed under the table."""

    @property
    def numeric(self) -> bool:
        return self.kind not in ("text", "code")

    def show(self, value: Any) -> str:
        """The value as text; raises `ReportError` where a numeric column holds something else."""
        if value is None or (isinstance(value, Real) and math.isnan(value)):
            return MISSING
        if not self.numeric:
            return "".join(segment.shown for segment in visible(str(value)))
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ReportError(f"column '{self.key}' holds {value!r}: give a number or kind='text'") from None
        if self.kind == "metric":
            return _metric(number)
        if self.kind == "count":
            return f"{round(number):,}" if math.isfinite(number) else str(number)
        return f"{number * (100 if self.kind == 'percent' else 1):,.{self.digits}f}"


@dataclass(frozen=True)
class TableSection:
    """Rows as a table."""

    title: str
    """The heading; best when it says the finding."""
    columns: Sequence[Column]
    """What is shown, from left to right; the first one names the row."""
    rows: Sequence[Row]
    """Plain dicts."""
    group_by: str | None = None
    """Key by which neighbouring rows stand under a heading of their own (the task, say)."""
    caption: str = ""
    """Plain text under the heading."""

    def html(self, anchor: str) -> Html:
        if not self.columns:
            raise ReportError(f"table '{self.title}' has no columns; give at least one Column")
        head = element("thead", element("tr", each(self.columns, self._heading)))
        table = element(
            "table", element("caption", escape(self.caption)) if self.caption else "", head, self._bodies()
        )
        scroller = element(
            "div", table, class_="scroll", tabindex=0, role="region", aria_labelledby=f"{anchor}-title"
        )
        notes = [column for column in self.columns if column.help]
        terms = each(
            notes, lambda column: element("dt", escape(column.label)) + element("dd", escape(column.help))
        )
        return scroller + (element("dl", terms, class_="notes") if notes else "")

    def _heading(self, column: Column) -> Html:
        return element("th", escape(column.label), scope="col", class_="num" if column.numeric else None)

    def _bodies(self) -> Html:
        if self.group_by is None:
            return element("tbody", each(self.rows, self._row))
        key = self.group_by
        return each(
            ((name, list(rows)) for name, rows in groupby(self.rows, lambda row: row.get(key, MISSING))),
            lambda group: element("tbody", self._group_heading(group[0]), each(group[1], self._row)),
        )

    def _group_heading(self, name: object) -> Html:
        heading = element("th", escape(name), scope="rowgroup", colspan=len(self.columns))
        return element("tr", heading, class_="group")

    def _row(self, row: Row) -> Html:
        first, *others = self.columns
        name = element("th", self._content(first, row), scope="row", class_="num" if first.numeric else None)
        return element("tr", name, each(others, lambda column: self._cell(column, row)))

    def _cell(self, column: Column, row: Row) -> Html:
        value = row.get(column.key)
        if not column.numeric:
            return element("td", self._content(column, row))
        drawn = column.bar and isinstance(value, Real) and math.isfinite(value)
        style = f"--v:{min(max(float(value or 0), 0.0), 1.0):.4f}" if drawn else None
        classes = "num bar" if drawn else "num"
        return element("td", self._content(column, row), class_=classes, style=style, data_value=value)

    def _content(self, column: Column, row: Row) -> Html:
        text = escape(column.show(row.get(column.key)))
        if column.kind == "code":
            return element("code", text)
        if column.error is None or text == MISSING:
            return text
        error = column.show(row.get(column.error))
        return text + ("" if error == MISSING else element("span", f" ± {escape(error)}", class_="se"))


def _metric(number: float) -> str:
    """Three digits and a prefix: 1.17 M."""
    if not math.isfinite(number):
        return str(number)
    # By the rounded number: 999,900 is 1 M.
    size = abs(float(f"{number:.3g}"))
    power = min(4, int(math.log10(size) // 3)) if size >= 1 else 0
    return f"{number / 1000**power:.3g}" + ("", " k", " M", " G", " T")[power]


def folded_table(summary: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    """The numbers behind a figure, to be unfolded: text on the left, numbers (six digits, NaN a dash) on the right."""
    classes = [None if any(isinstance(row[i], str) for row in rows) else "num" for i in range(len(head))]
    headings = "".join(
        element("th", escape(label), scope="col", class_=class_)
        for label, class_ in zip(head, classes, strict=True)
    )
    body = each(
        rows,
        lambda row: element(
            "tr",
            *(element("td", _cell(cell), class_=class_) for cell, class_ in zip(row, classes, strict=True)),
        ),
    )
    table = element("table", element("thead", element("tr", headings)), element("tbody", body))
    scroller = element("div", table, class_="scroll", tabindex=0, role="region", aria_label=summary)
    return element("details", element("summary", escape(summary)), scroller, class_="counts")


def _cell(value: Any) -> Html:
    value = value.item() if hasattr(value, "item") else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if isinstance(value, float) else value
    return escape(text)
