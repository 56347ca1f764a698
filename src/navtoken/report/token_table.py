"""Tokens with a number, a count and where they were seen: the table in which a person reads what kind of token it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from navtoken.report.markup import Html, ReportError, each, element, escape, percent
from navtoken.report.pieces import token_text, visible

Context = tuple[str, str, str]
"""Text before the token, the token, text after it."""


@dataclass(frozen=True)
class TokenRow:
    """One item of the vocabulary."""

    token: str
    """Its text, spaces included."""
    count: int
    """How often it was seen."""
    value: float
    """What the rows are ranked by; NaN shows a dash."""
    contexts: Sequence[Context] = ()
    """Places where it was seen; the first one is shown at once, the others when unfolded."""
    error: float = math.nan
    """Standard error of the value; NaN shows none."""


@dataclass(frozen=True)
class TokenTableSection:
    """Tokens from the first to the last, each with a place where it stands."""

    title: str
    """The heading; best when it says the finding."""
    rows: Sequence[TokenRow]
    """In the order in which they are shown."""
    text: str = ""
    """Plain text over the table."""
    value_label: str = "mean entropy (nats)"
    """Name and unit of the rows' values."""
    count_label: str = "times"
    """What the rows' counts count."""
    num_shown: int = 20
    """Rows that are shown at once; the others when unfolded."""
    percent: bool = False
    """Values are fractions, shown in percent."""
    forking: bool = True
    """Colour the tokens as forking ones; otherwise as the rest."""

    def html(self, anchor: str) -> Html:
        if not self.rows:
            raise ReportError(f"'{self.title}' has no tokens; leave the section out or give it some")
        first, rest = self.rows[: self.num_shown], self.rows[self.num_shown :]
        parts = [element("p", escape(self.text)) if self.text else "", self._table(first, 0, anchor)]
        if rest:
            summary = element("summary", f"The other {len(rest):,} tokens")
            parts.append(element("details", summary, self._table(rest, len(first), anchor), class_="more"))
        return "".join(parts)

    def _table(self, rows: Sequence[TokenRow], before: int, anchor: str) -> Html:
        seen = any(row.contexts for row in self.rows)
        labels = [("token", ""), (self.value_label, "value"), (self.count_label, "num")]
        head = each(
            [*labels, *([("where it stands", "")] if seen else [])],
            lambda label: element(
                "th", escape(label[0]), scope="col", class_=label[1] or None, role="columnheader"
            ),
        )
        top = max((abs(row.value) for row in self.rows if math.isfinite(row.value)), default=0.0) or 1.0
        body = each(rows, lambda row: self._row(row, top, seen))
        return element(
            "table",
            element("thead", element("tr", head, role="row"), role="rowgroup"),
            element("tbody", body, role="rowgroup"),
            class_="token-table" if self.forking else "token-table calm",
            role="table",
            aria_labelledby=f"{anchor}-title",
        )

    def _row(self, row: TokenRow, top: float, seen: bool) -> Html:
        share = abs(row.value) / top if math.isfinite(row.value) else 0.0
        bar = element("i", style=f"--v:{share:.3f}", class_="size", aria_hidden="true")
        error = f" ± {self._shown(row.error)}" if math.isfinite(row.error) else ""
        value = element("span", escape(self._shown(row.value) + error))
        cells = [
            element("th", element("code", escape(token_text(row.token))), scope="row", role="rowheader"),
            element("td", bar, value, class_="value", role="cell", data_value=row.value),
            element(
                "td",
                f"{row.count:,}",
                element("small", f" {escape(self.count_label)}"),
                class_="num",
                role="cell",
            ),
        ]
        if seen:
            cells.append(element("td", _contexts(row.contexts), class_="contexts", role="cell"))
        return element("tr", *cells, role="row")

    def _shown(self, value: float) -> str:
        if not math.isfinite(value):
            return "–"
        if self.percent:
            return percent(value, 1)
        if value and abs(value) < 0.01:
            return np.format_float_positional(value, precision=2, fractional=False, trim="-")
        return f"{value:,.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}" if value else "0"


def _contexts(contexts: Sequence[Context]) -> Html:
    if not contexts:
        return ""
    first, *rest = contexts
    if not rest:
        return _context(first)
    more = element("summary", f"{len(rest)} more")
    return _context(first) + element("details", more, each(rest, _context))


def _context(context: Context) -> Html:
    before, token, after = (_one_line(part) for part in context)
    # The space before a word stays outside, or a line that ends there would end in an empty mark.
    space = len(token) - len(token.lstrip(" ")) if token.strip(" ") else 0
    before, token = before + token[:space], token[space:]
    return element("p", escape(before), element("mark", escape(token)), escape(after), class_="context")


def _one_line(text: str) -> str:
    return "".join(segment.shown for segment in visible(text))
