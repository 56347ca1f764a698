"""The trace viewer: responses as text in which every token shows who wrote it and how uncertain it was.

The text is HTML made here, so it reads without scripts; `assets/page.js` adds filters, shading by other columns
and the card with a token's alternatives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from navtoken.report.markup import Html, ReportError, each, element, escape, json_script
from navtoken.report.pieces import Decode, Pieces
from navtoken.report.responses import problems
from navtoken.report.tokens import CLASSES, COLUMN_NAMES, TokenView, view
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

    def html(self, anchor: str) -> Html:
        if not self.traces:
            raise ReportError(f"'{self.title}' has no traces to show; leave the section out or give it some")
        pieces = Pieces(self.decode)
        views = [
            view(trace, pieces, self.max_tokens, self.num_alternatives) for trace in _by_problem(self.traces)
        ]
        scales = _scales(views)
        blocks = problems(views, scales.get("entropy", 1.0))
        parts = [
            element("p", escape(self.caption)) if self.caption else "",
            _legend(scales.get("entropy", 1.0)),
            _controls(anchor, views, scales),
            element("div", blocks, class_="problems"),
            json_script(self._data(views, scales), f"{anchor}-data"),
        ]
        return element("div", *parts, class_="viewer", data_json=f"{anchor}-data")

    def _data(self, views: Sequence[TokenView], scales: dict[str, float]) -> dict[str, object]:
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
                "columns": {name: [_short(x) for x in values] for name, values in _shades(v).items()},
                "alternatives": [
                    [[index(text), _short(p), int(written), int(draft)] for text, p, written, draft in token]
                    for token in v.alternatives
                ],
            }
            for v in views
        ]
        names = {name: COLUMN_NAMES.get(name, name.replace("_", " ")) for name in scales}
        return {
            "texts": list(texts),
            "scales": scales,
            "names": names,
            "classes": CLASSES,
            "responses": responses,
        }


def _by_problem(traces: Sequence[Trace]) -> list[Trace]:
    order: dict[tuple[str, str], list[Trace]] = {}
    for trace in traces:
        order.setdefault((trace.task, str(trace.problem_id)), []).append(trace)
    return [trace for group in order.values() for trace in group]


def _shades(v: TokenView) -> dict[str, list[float]]:
    return {"entropy": v.entropy, **v.columns}


def _scales(views: Sequence[TokenView]) -> dict[str, float]:
    """Per column, the size that gets the darkest shade: the 98th percentile of what is shown, at least 1 but for shares."""
    names = dict.fromkeys(name for v in views for name in _shades(v))
    scales = {}
    for name in names:
        values = np.abs(
            np.concatenate([np.asarray(_shades(v).get(name, []), dtype=np.float64) for v in views])
        )
        values = values[np.isfinite(values)]
        if values.size:
            scales[name] = (
                1.0 if name.startswith("p_") else round(max(1.0, float(np.quantile(values, 0.98))), 2)
            )
    return scales


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _legend(scale: float) -> Html:
    slm = element("span", "plain", class_="t slm") + " written by the SLM"
    replaced = element("del", "draft", class_="draft")
    llm = (
        element("span", replaced, "bold", class_="t llm")
        + " written by the LLM, in place of the SLM's struck-out draft"
    )
    ramp = element("span", class_="ramp", aria_hidden="true")
    shade = f"0 {ramp} {scale:g} nats or more: entropy, how uncertain the model was"
    departs = (
        element("span", "departs here", class_="leaves")
        + " a wrong response is unlike every right one shown from here on"
    )
    keys = "Point at a token, tap it, or use the keys: ← → move, L to the next token of the LLM, Esc closes."
    items = each((slm, llm, shade, departs), lambda item: element("li", item))
    return element("ul", items, class_="legend", aria_label="Legend") + element("p", keys, class_="keys")


def _controls(anchor: str, views: Sequence[TokenView], scales: dict[str, float]) -> Html:
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
        ("split", "problems where policies differ"),
    ]
    shades = [
        (name, COLUMN_NAMES.get(name, "entropy (nats)" if name == "entropy" else name.replace("_", " ")))
        for name in scales
    ]
    parts = [
        element("fieldset", element("legend", "policy"), boxes),
        _select("task", "task", [("", "all tasks"), *((task, task) for task in tasks)])
        if len(tasks) > 1
        else "",
        _select("outcome", "outcome", outcomes),
        _select("shade", "shade by", shades) if len(shades) > 1 else "",
        element("label", element("input", type="checkbox", name="drafts", checked=True), "replaced drafts"),
        element("output", class_="shown", aria_live="polite"),
    ]
    return element("form", *parts, class_="controls", id=f"{anchor}-controls", hidden=True)


def _select(name: str, label: str, options: Sequence[tuple[str, str]]) -> Html:
    entries = each(options, lambda option: element("option", escape(option[1]), value=option[0]))
    return element("label", escape(label), " ", element("select", entries, name=name))
