"""Places where SLM and LLM part, with both continuations side by side: what the label says, for a person to judge."""

from collections.abc import Sequence
from dataclasses import dataclass

from navtoken.report.markup import Html, ReportError, each, element, escape
from navtoken.report.pieces import visible
from navtoken.report.tokens import Branch


@dataclass(frozen=True)
class BranchRow:
    """One place."""

    before: str
    """The end of the text before it."""
    branch: Branch
    """How either goes on."""
    facts: str = ""
    """A few words on the place: task, entropy."""


@dataclass(frozen=True)
class BranchesSection:
    """Places one after the other, the two continuations of each side by side, one over the other on a phone."""

    title: str
    """The heading; best when it says the finding."""
    rows: Sequence[BranchRow]
    """What is shown, in order."""
    text: str = ""
    """Plain text under the heading."""
    num_shown: int = 12
    """Rows that are shown at once; the others when unfolded."""

    def html(self, anchor: str) -> Html:
        if not self.rows:
            raise ReportError(f"'{self.title}' has no places; leave the section out or give it some")
        first, rest = self.rows[: self.num_shown], self.rows[self.num_shown :]
        parts = [element("p", escape(self.text)) if self.text else "", each(first, _row)]
        if rest:
            more = element("summary", f"{len(rest):,} more")
            parts.append(element("details", more, each(rest, _row), class_="more"))
        return "".join(parts)


def _row(row: BranchRow) -> Html:
    branch = row.branch
    sides = (
        _side("llm", "LLM", branch.llm, branch.llm_rest),
        _side("slm", "from the SLM's token", branch.slm, branch.slm_rest),
    )
    before = element("p", escape(_one_line(row.before)), class_="context") if row.before else ""
    facts = element("p", escape(row.facts), class_="facts") if row.facts else ""
    return element("article", facts, before, element("div", *sides, class_="branch-pair"), class_="branch")


def _side(class_: str, name: str, token: str, rest: str) -> Html:
    line = element("p", element("mark", escape(token)), escape(rest), class_="context")
    return element("div", element("h6", escape(name)), line, class_=class_)


def _one_line(text: str) -> str:
    return "".join(segment.shown for segment in visible(text))
