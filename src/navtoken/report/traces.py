"""The trace viewer: responses as text in which every token shows who wrote it and how uncertain the model was.

The text is HTML made here, so it reads without scripts; `assets/page.js` adds filters, shading by other columns
and the card with a token's alternatives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from navtoken.report.markup import Html, ReportError, each, element, escape, json_script
from navtoken.report.pieces import Decode, Pieces
from navtoken.report.responses import problems
from navtoken.report.shading import Shading, chosen, offered, shadings
from navtoken.report.tokens import CLASSES, LLM, VOID, SentenceEnd, TokenView, view
from navtoken.trace import Trace


@dataclass(frozen=True)
class TracesSection:
    """Responses, those to one problem side by side."""

    title: str
    """The heading; best when it says the finding."""
    traces: Sequence[Trace]
    """What is shown; responses to one problem stand together, in the order given."""
    decode: Decode
    """Text of token ids; `byte_level_decode(tokenizer)` where the tokenizer works on bytes."""
    caption: str = ""
    """Plain text under the heading."""
    max_tokens: int = 1500
    """Tokens shown of one response; the rest is counted."""
    num_alternatives: int = 6
    """Alternatives kept per token."""
    shade: str = "entropy"
    """Column that the text is shaded by at first; "entropy" is the SLM's where it drafted, else the LLM's."""
    lines: Mapping[str, float] = field(default_factory=dict)
    """By column, the value from which on a token stands out (for margins: down from which), such as the percentile line."""
    sentence_end: SentenceEnd | None = None
    """Where the LLM's own sentence ends, of labelled responses; None shows as much of it as of the SLM's branch."""

    def html(self, anchor: str) -> Html:
        if not self.traces:
            raise ReportError(f"'{self.title}' has no traces to show; leave the section out or give it some")
        pieces = Pieces(self.decode)
        views = [
            view(trace, pieces, self.max_tokens, self.num_alternatives, self.sentence_end)
            for trace in _by_problem(self.traces)
        ]
        known = shadings(views, self.lines)
        shading = chosen(known, self.shade)
        one_writer = len({writer for v in views for writer in v.writer}) < 2
        reads_along = one_writer and any(_struck(v) for v in views)
        blocks = problems(views, shading)
        parts = [
            element("p", escape(self.caption)) if self.caption else "",
            _legend(shading, one_writer, reads_along, departs='class="leaves"' in blocks),
            _controls(anchor, views, offered(known), shading, one_writer, reads_along),
            element("div", blocks, class_="problems"),
            json_script(self._data(views, known), f"{anchor}-data"),
        ]
        classes = ["viewer"]
        if one_writer:
            classes.append("one-writer")
        if shading and shading.line is not None:
            classes.append("lined")
        return element("div", *parts, class_=" ".join(classes), data_json=f"{anchor}-data")

    def _data(self, views: Sequence[TokenView], known: Mapping[str, Shading]) -> dict[str, object]:
        """What the card shows; texts are stored once and named by their index."""
        texts: dict[str, int] = {}

        def index(text: str) -> int:
            return texts.setdefault(text, len(texts))

        responses = [
            {
                "policy": v.trace.policy,
                "num": v.num_tokens,
                "writer": v.writer,
                "tokens": [index(text) for text in v.shown],
                "drafts": [-1 if draft is None else index(draft) for draft in v.drafts],
                "drafted": [int(each) for each in v.drafted],
                "labelled": int("label" in v.columns),
                "branches": {str(index): list(branch) for index, branch in v.branches.items()},
                "columns": {name: [_short(x) for x in values] for name, values in v.shades.items()},
                "alternatives": [
                    [[index(text), _short(p), int(written), int(draft)] for text, p, written, draft in token]
                    for token in v.alternatives
                ],
            }
            for v in views
        ]
        return {
            "texts": list(texts),
            "scales": {name: shading.scale for name, shading in known.items()},
            "lines": {name: shading.line for name, shading in known.items() if shading.line is not None},
            "inverted": [name for name, shading in known.items() if shading.inverted],
            "words": {name: [s.weakest, s.strongest, s.line_words] for name, s in known.items()},
            "names": {name: shading.label for name, shading in known.items()},
            "classes": CLASSES,
            "voids": VOID,
            "responses": responses,
        }


def _by_problem(traces: Sequence[Trace]) -> list[Trace]:
    order: dict[tuple[str, str], list[Trace]] = {}
    for trace in traces:
        order.setdefault((trace.task, str(trace.problem_id)), []).append(trace)
    return [trace for group in order.values() for trace in group]


def _struck(v: TokenView) -> bool:
    """Does the response show drafts that the SLM would have written?"""
    return any(draft is not None and writer == LLM for draft, writer in zip(v.drafts, v.writer, strict=True))


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _legend(shading: Shading | None, one_writer: bool, reads_along: bool, departs: bool) -> Html:
    """What the marks mean; the script rewrites the words for the shade when another one is chosen."""
    replaced = element("del", "draft", class_="draft")
    items = [] if shading is None else _shade_items(shading)
    if not one_writer:
        items.append(element("li", element("span", "plain", class_="t slm"), " written by the SLM"))
        llm = element("span", replaced, "bold", class_="t llm")
        items.append(element("li", llm, " written by the LLM, in place of the SLM's struck-out draft"))
    if reads_along:
        items.append(element("li", replaced, "token: the SLM would have written what is struck out"))
    if departs:
        mark = element("span", "departs here", class_="leaves")
        items.append(element("li", mark, " a wrong response is unlike every right one shown from here on"))
    jumps = "" if one_writer else "L to the next token of the LLM, "
    keys = (
        "Point at a token for its alternatives, tap it, or use the keys: ← → Home End move, "
        f"{jumps}F to the next one that stands out (with Shift: back), Esc closes."
    )
    legend = element("ul", *items, class_="legend", aria_label="Legend")
    return legend + element("p", keys, class_="keys")


def _shade_items(shading: Shading) -> list[Html]:
    example = element("span", "bold", class_="t fork")
    words = element("span", escape(shading.line_words), class_="line-words")
    ramp = element("span", class_="ramp", aria_hidden="true")
    ends = [escape(shading.weakest), escape(shading.strongest)]
    return [
        element("li", example, " ", words, class_="line-key", hidden=shading.line is None),
        element("li", element("span", ends[0], class_="from"), ramp, element("span", ends[1], class_="to")),
    ]


def _controls(
    anchor: str,
    views: Sequence[TokenView],
    shades: Sequence[Shading],
    first: Shading | None,
    one_writer: bool,
    reads_along: bool,
) -> Html:
    """Filters; hidden until the script that works them runs."""
    policies = list(dict.fromkeys(v.trace.policy for v in views))
    tasks = list(dict.fromkeys(v.trace.task for v in views))
    boxes = each(
        policies,
        lambda name: element(
            "label", element("input", type="checkbox", name="policy", value=name, checked=True), escape(name)
        ),
    )
    outcomes = [
        ("", "all answers"),
        ("right", "right answers"),
        ("wrong", "wrong answers"),
        ("split", "problems answered both right and wrong"),
    ]
    first_name = first.name if first else ""
    parts = [
        element("fieldset", element("legend", "policy"), boxes, hidden=len(policies) == 1),
        _select("task", "task", [("", "all tasks"), *((task, task) for task in tasks)])
        if len(tasks) > 1
        else "",
        _select("outcome", "outcome", outcomes),
        _select("shade", "shade by", [(shading.name, shading.label) for shading in shades], first_name)
        if len(shades) > 1
        else "",
        element(
            "label",
            element("input", type="checkbox", name="drafts", checked=True),
            "the SLM's drafts" if reads_along else "replaced drafts",
            hidden=one_writer and not reads_along,
        ),
        element("output", class_="shown", aria_live="polite"),
    ]
    return element("form", *parts, class_="controls", id=f"{anchor}-controls", hidden=True)


def _select(name: str, label: str, options: Sequence[tuple[str, str]], chosen: str = "") -> Html:
    entries = each(
        options,
        lambda option: element("option", escape(option[1]), value=option[0], selected=option[0] == chosen),
    )
    return element("label", escape(label), " ", element("select", entries, name=name))
