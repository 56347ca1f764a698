"""Responses as HTML: their text in spans that show writer and shade, those to one problem side by side."""

from collections.abc import Sequence
from itertools import groupby

from navtoken.report.markup import Html, each, element, escape, percent
from navtoken.report.pieces import Segment, visible
from navtoken.report.shading import Shading
from navtoken.report.tokens import CLASSES, LLM, TokenView

_BADGES = {"right": "✓ right", "wrong": "✗ wrong", "unjudged": "not judged"}
_ENDINGS = {"length": "cut at the length limit", "abort": "aborted"}
_COUNTED = ("neutral", "divergent", "invalid")
"""Labels that a response's heading counts; the rest are identical, or have none."""
_LEAVES = "Up to here this response is the same as a right one to this problem; from here on it is unlike all of them."


def problems(views: Sequence[TokenView], shading: Shading | None) -> Html:
    """Every problem with its responses; `shading` is the one that the page opens with."""
    numbered = list(enumerate(views))
    groups = [
        list(group)
        for _, group in groupby(numbered, lambda pair: (pair[1].trace.task, str(pair[1].trace.problem_id)))
    ]
    return each(groups, lambda group: _problem(group, shading))


def _problem(group: list[tuple[int, TokenView]], shading: Shading | None) -> Html:
    first = group[0][1].trace
    verdicts = {v.judged for _, v in group} - {"unjudged"}
    heading = element("h3", escape(first.task), " ", element("small", f"problem {escape(first.problem_id)}"))
    prompt = element("p", each(visible(first.prompt), _prompt_segment), class_="prompt")
    views = [v for _, v in group]
    cards = "".join(_response(number, v, _name(v, views), _leaves(v, views), shading) for number, v in group)
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


def _name(v: TokenView, group: Sequence[TokenView]) -> str:
    """The policy, and which sample where it answered the problem more than once."""
    several = sum(other.trace.policy == v.trace.policy for other in group) > 1
    return f"{v.trace.policy}, sample {v.trace.sample + 1}" if several else v.trace.policy


def _response(number: int, v: TokenView, name: str, leaves: int | None, shading: Shading | None) -> Html:
    badge = element("span", _BADGES[v.judged], class_=f"badge {v.judged}")
    header = element(
        "header",
        element("h4", escape(name)),
        badge,
        element("p", escape(_facts(v)), class_="facts"),
    )
    values = v.shades.get(shading.name, []) if shading else []
    shades = [(shading.strength(value), shading.stands_out(value)) for value in values] if shading else []
    shades = shades or [(0.0, False)] * len(v.pieces)
    spans = "".join(_token(v, index, index == leaves, *shades[index]) for index in range(len(v.pieces)))
    text = element(
        "p",
        spans,
        class_="tokens",
        data_response=number,
        role="group",
        aria_label=f"response of {name}",
    )
    hidden = v.num_tokens - len(v.pieces)
    more = element("p", f"… {hidden:,} more tokens not shown", class_="facts") if hidden else ""
    classes = "response all-llm" if v.writer and all(writer == LLM for writer in v.writer) else "response"
    attributes = {"data_policy": v.trace.policy, "data_outcome": v.judged}
    return element("section", header, _strip(v, shades), text, more, class_=classes, **attributes)


def _facts(v: TokenView) -> str:
    writers = [int(writer) for writer in v.trace.writer]
    total, llm = len(writers), sum(writer == LLM for writer in writers)
    facts = [f"{total:,} tokens"]
    if 0 < llm < total:
        facts.append(f"{llm:,} by the LLM ({percent(llm / total, 1)})")
    changed = sum(
        draft is not None and writer == LLM for draft, writer in zip(v.drafts, v.writer, strict=True)
    )
    if changed:
        facts.append(f"{changed:,} of them unlike the SLM's draft")
    labels = [int(label) for label in v.trace.columns.get("label", ())]
    counts = {name: labels.count(CLASSES["label"].index(name)) for name in _COUNTED}
    facts += [f"{count:,} {name}" for name, count in counts.items() if count]
    if v.trace.finish_reason in _ENDINGS:
        facts.append(_ENDINGS[v.trace.finish_reason])
    return ", ".join(facts)


def _token(v: TokenView, index: int, leaves: bool, shade: float, stands_out: bool) -> Html:
    by_llm = v.writer[index] == LLM
    piece, draft = v.pieces[index], v.drafts[index] if by_llm else None
    classes = ["t", "llm" if by_llm else "slm"]
    if piece and not piece.strip(" "):
        classes.append("sp")
    if stands_out:
        classes.append("fork")
    struck = element("del", escape(draft), class_="draft") if draft is not None else ""
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


def _strip(v: TokenView, shades: Sequence[tuple[float, bool]]) -> Html:
    """The response at a glance: shades as bars upward, the LLM's tokens as ticks below where the SLM wrote some too."""
    count = max(1, len(v.pieces))
    bars: dict[bool, list[str]] = {False: [], True: []}
    for index, (shade, stands_out) in enumerate(shades):
        if shade >= 0.05:
            bars[stands_out].append(f"M{index},20v-{20 * shade:.1f}h.9V20z")
    mixed = len(set(v.writer)) > 1
    ticks = [f"M{index},23h1v7h-1z" for index, writer in enumerate(v.writer) if mixed and writer == LLM]
    paths = (
        element("path", d="".join(bars[False]), class_="bars")
        + element("path", d="".join(bars[True]), class_="bars forks")
        + element("path", d="".join(ticks), class_="ticks")
    )
    return element(
        "svg",
        paths,
        class_="strip",
        viewBox=f"0 0 {max(count, 60)} 30",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
