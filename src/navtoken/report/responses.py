"""Responses as HTML: their text in spans that show writer and entropy, those to one problem side by side."""

import math
from collections.abc import Sequence
from itertools import groupby

from navtoken.report.markup import Html, each, element, escape
from navtoken.report.pieces import Segment, visible
from navtoken.report.tokens import LLM, TokenView

_BADGES = {"right": "✓ right", "wrong": "✗ wrong", "unjudged": "not judged"}
_ENDINGS = {"length": "cut at the length limit", "abort": "aborted"}
_LEAVES = "Up to here this response is the same as a right one to this problem; from here on it is unlike all of them."


def problems(views: Sequence[TokenView], scale: float) -> Html:
    numbered = list(enumerate(views))
    groups = [
        list(group)
        for _, group in groupby(numbered, lambda pair: (pair[1].trace.task, str(pair[1].trace.problem_id)))
    ]
    return each(groups, lambda group: _problem(group, scale))


def _problem(group: list[tuple[int, TokenView]], scale: float) -> Html:
    first = group[0][1].trace
    verdicts = {v.judged for _, v in group} - {"unjudged"}
    heading = element("h3", escape(first.task), " ", element("small", f"problem {escape(first.problem_id)}"))
    prompt = element("p", each(visible(first.prompt), _prompt_segment), class_="prompt")
    views = [v for _, v in group]
    cards = "".join(_response(number, v, _leaves(v, views), scale) for number, v in group)
    return element(
        "article",
        heading,
        prompt,
        element("div", cards, class_="responses"),
        class_="problem",
        data_task=first.task,
        data_split=len(verdicts) > 1,
    )


def _prompt_segment(segment: Segment) -> Html:
    kind, shown = segment.kind, segment.shown
    return {"plain": escape(shown), "newline": "\n", "tab": "\t"}.get(kind) or element(
        "i", escape(shown), class_="ws"
    )


def _leaves(v: TokenView, group: Sequence[TokenView]) -> int | None:
    """Where a wrong response leaves the right one that it follows longest; None where there is nothing to compare."""
    if v.judged != "wrong":
        return None
    shared = [
        _common(v.trace.response_ids, other.trace.response_ids) for other in group if other.judged == "right"
    ]
    return max(shared) if shared and max(shared) < v.num_tokens else None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))


def _response(number: int, v: TokenView, leaves: int | None, scale: float) -> Html:
    badge = element("span", _BADGES[v.judged], class_=f"badge {v.judged}")
    header = element(
        "header",
        element("h4", escape(v.trace.policy)),
        badge,
        element("p", escape(_facts(v)), class_="facts"),
    )
    spans = "".join(_token(v, index, index == leaves, scale) for index in range(len(v.pieces)))
    text = element(
        "p",
        spans,
        class_="tokens",
        data_response=number,
        role="group",
        aria_label=f"response of {v.trace.policy}",
    )
    hidden = v.num_tokens - len(v.pieces)
    more = element("p", f"… {hidden:,} more tokens not shown", class_="facts") if hidden else ""
    classes = "response all-llm" if v.writer and all(writer == LLM for writer in v.writer) else "response"
    attributes = {"data_policy": v.trace.policy, "data_outcome": v.judged}
    return element("section", header, _strip(v, scale), text, more, class_=classes, **attributes)


def _facts(v: TokenView) -> str:
    writers = [int(writer) for writer in v.trace.writer]
    total, llm = len(writers), sum(writer == LLM for writer in writers)
    facts = [f"{total:,} tokens"]
    if total:
        facts.append(f"{llm:,} by the LLM ({llm / total:.1%})")
    changed = sum(
        draft is not None and writer == LLM for draft, writer in zip(v.drafts, v.writer, strict=True)
    )
    if changed:
        facts.append(f"{changed:,} of them unlike the SLM's draft")
    if v.trace.finish_reason in _ENDINGS:
        facts.append(_ENDINGS[v.trace.finish_reason])
    return ", ".join(facts)


def _token(v: TokenView, index: int, leaves: bool, scale: float) -> Html:
    by_llm = v.writer[index] == LLM
    piece, draft = v.pieces[index], v.drafts[index] if by_llm else None
    classes = ["t", "llm" if by_llm else "slm"]
    if piece and not piece.strip(" "):
        classes.append("sp")
    struck = element("del", escape(draft), class_="draft") if draft is not None else ""
    shade = 0.0 if math.isnan(v.entropy[index]) else min(1.0, v.entropy[index] / scale)
    content = each(visible(piece), _segment) if piece else element("i", escape(v.shown[index]), class_="ws")
    token = element(
        "span",
        struck,
        content,
        class_=" ".join(classes),
        style=f"--e:{shade:.2f}" if shade >= 0.005 else None,
        tabindex=0 if index == 0 else -1,
    )
    return element("span", "departs here", class_="leaves", title=_LEAVES) + token if leaves else token


def _segment(segment: Segment) -> Html:
    kind, shown = segment.kind, escape(segment.shown)
    if kind == "plain":
        return shown
    return element("i", shown, class_="ws") + ("\n" if kind == "newline" else "")


def _strip(v: TokenView, scale: float) -> Html:
    """The response at a glance: entropies as bars upward, the LLM's tokens as ticks below."""
    count = max(1, len(v.pieces))
    bars, ticks = [], []
    for index, entropy in enumerate(v.entropy):
        if not math.isnan(entropy) and entropy >= 0.05 * scale:
            bars.append(f"M{index},20v-{20 * min(1.0, entropy / scale):.1f}h.9V20z")
        if v.writer[index] == LLM:
            ticks.append(f"M{index},23h1v7h-1z")
    paths = element("path", d="".join(bars), class_="bars") + element(
        "path", d="".join(ticks), class_="ticks"
    )
    return element(
        "svg",
        paths,
        class_="strip",
        viewBox=f"0 0 {max(count, 60)} 30",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
