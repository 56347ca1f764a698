"""What the viewer knows of each token of a trace: its text, its writer, its columns, draft and alternatives.

The engine records what it has; every column is optional, and NaN (numbers) or -1 (ids) means not computed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from navtoken.report.markup import ReportError
from navtoken.report.pieces import Pieces, visible
from navtoken.trace import Trace

SLM, LLM = 0, 1

COLUMN_NAMES = {
    "entropy_slm": "entropy of the SLM (nats)",
    "entropy_llm": "entropy of the LLM (nats)",
    "p_divergent": "router's p(divergent)",
    "logprob_slm": "log-probability by the SLM",
    "logprob_llm": "log-probability by the LLM",
    "margin_slm": "margin of the SLM (p₁ − p₂)",
    "margin_llm": "margin of the LLM (p₁ − p₂)",
    "margin": "margin (p₁ − p₂)",
    "differs": "SLM and LLM differ",
}
"""Words for the columns that are known; others go by their own name."""

CLASSES = {"label": ["identical", "neutral", "divergent", "invalid"], "differs": ["no", "yes"]}
"""Words for the values of columns that hold a class."""
VOID = {"label": 3}
"""Of these, values that say nothing of the token: no shade shows them."""
MOST_IN_BRANCH = 64
"""Tokens shown of either continuation."""

SentenceEnd = Callable[[Trace, int], int]
"""A trace and a place in its response -> the place after the last token of the writer's own sentence there."""


class Branch(NamedTuple):
    """A place where the SLM's token is another than the LLM's: how either goes on, spelled out on one line."""

    llm: str
    """The LLM's token."""
    llm_rest: str
    """Its sentence after that."""
    slm: str
    """The SLM's token."""
    slm_rest: str
    """How the LLM goes on from that one."""


@dataclass(frozen=True)
class TokenView:
    """A trace as the page shows it: at most `limit` tokens of it."""

    trace: Trace
    pieces: list[str]
    """Text that each token adds (see `Pieces.text`)."""
    shown: list[str]
    """The same on one line, everything invisible spelled out."""
    writer: list[int]
    """0 SLM, 1 LLM."""
    columns: dict[str, list[float]]
    """Numbers per token by column name; NaN is not computed."""
    entropy: list[float]
    """The SLM's where it drafted, else the LLM's."""
    drafted: list[bool]
    """Did the SLM draft here? Its entropy alone does not say so: it may have been computed afterwards."""
    drafts: list[str | None]
    """The SLM's draft where the LLM wrote something else."""
    alternatives: list[list[tuple[str, float, bool, bool]]]
    """Text, probability, is it the token written, is it the draft; by the model that wrote the token; likeliest first."""
    branches: dict[int, Branch]
    """Both continuations, by position, where there are any."""

    @property
    def shades(self) -> dict[str, list[float]]:
        """Every column that the text can be shaded by."""
        return {"entropy": self.entropy, **self.columns}

    @property
    def judged(self) -> str:
        """`right`, `wrong`, or `unjudged` where there is no verdict."""
        return "unjudged" if self.trace.correct is None else "right" if self.trace.correct else "wrong"

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole response."""
        return len(self.trace.response_ids)


def view(
    trace: Trace, pieces: Pieces, limit: int, num_alternatives: int, sentence_end: SentenceEnd | None = None
) -> TokenView:
    """Gather the first `limit` tokens of `trace`. Raises `ReportError` where a column has another length."""
    ids = [int(token) for token in trace.response_ids]
    columns = dict(trace.columns)
    _check_lengths(trace, columns)
    previous: list[int | None] = [int(trace.prompt_ids[-1]) if len(trace.prompt_ids) else None, *ids][
        : len(ids)
    ]
    cut = slice(0, limit)
    numbers = {name: values[cut].tolist() for name, values in _numbers(columns).items()}
    recorded = columns.get("draft_ids")
    draft_ids = [-1] * len(ids) if recorded is None else [int(draft) for draft in recorded]
    writer = [int(each) for each in trace.writer]
    drafted = [draft >= 0 for draft in draft_ids] if recorded is not None else [SLM in writer] * len(ids)
    return TokenView(
        trace=trace,
        pieces=[pieces.text(*pair) for pair in zip(previous[cut], ids[cut], strict=True)],
        shown=[pieces.shown(*pair) for pair in zip(previous[cut], ids[cut], strict=True)],
        writer=writer[cut],
        columns=numbers,
        entropy=_entropy(numbers, drafted[cut]),
        drafted=drafted[cut],
        drafts=[
            pieces.shown(before, draft) if draft >= 0 and draft != token else None
            for before, draft, token in zip(previous[cut], draft_ids[cut], ids[cut], strict=True)
        ],
        alternatives=[
            _alternatives(
                columns, index, previous[index], ids[index], draft_ids[index], pieces, num_alternatives
            )
            for index in range(len(ids[cut]))
        ],
        branches=_branches(trace, pieces, limit, sentence_end),
    )


def branch_at(
    trace: Trace, position: int, pieces: Pieces, sentence_end: SentenceEnd | None = None
) -> Branch | None:
    """Both continuations at a place of a labelled response; None where there is no SLM's branch.

    Without `sentence_end` the LLM's own is shown as long as the branch.
    """
    recorded = trace.columns.get("continuation_ids")
    slm = [] if recorded is None else [int(token) for token in recorded[position] if int(token) >= 0]
    if not slm:
        return None
    end = position + len(slm) if sentence_end is None else sentence_end(trace, position)
    llm = [int(token) for token in trace.response_ids[position : max(end, position + 1)]]
    before = [*trace.prompt_ids[-1:], *trace.response_ids[:position]]
    previous = int(before[-1]) if before else None
    return Branch(*_spelled(previous, llm, pieces), *_spelled(previous, slm, pieces))


def _branches(
    trace: Trace, pieces: Pieces, limit: int, sentence_end: SentenceEnd | None
) -> dict[int, Branch]:
    if trace.columns.get("continuation_ids") is None:
        return {}
    found = (
        (index, branch_at(trace, index, pieces, sentence_end))
        for index in range(min(limit, len(trace.response_ids)))
    )
    return {index: branch for index, branch in found if branch is not None}


def _spelled(previous: int | None, ids: Sequence[int], pieces: Pieces) -> tuple[str, str]:
    """The first of some tokens, and the others, on one line."""
    shown = ids[:MOST_IN_BRANCH]
    first, *rest = (pieces.text(*pair) for pair in zip([previous, *shown], shown, strict=False))
    more = " …" if len(ids) > len(shown) else ""
    return _one_line(first) or f"⟨{ids[0]}⟩", _one_line("".join(rest)) + more


def _one_line(text: str) -> str:
    return "".join(segment.shown for segment in visible(text))


def _check_lengths(trace: Trace, columns: Mapping[str, Any]) -> None:
    expected = len(trace.response_ids)
    for name, values in [("writer", trace.writer), *columns.items()]:
        if values is not None and len(values) != expected:
            raise ReportError(
                f"trace {trace.task}/{trace.problem_id} of policy '{trace.policy}': column '{name}' has {len(values)} "
                f"values for {expected} tokens; write the trace again"
            )


def _numbers(columns: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Columns of one number per token in which something was computed."""
    kept = {}
    for name, values in columns.items():
        if values is None or name == "draft_ids" or name.startswith(("top_", "argmax_")):
            continue
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "bfiu":
            continue
        numbers = array.astype(np.float64)
        if array.dtype.kind == "i":
            numbers[array == -1] = np.nan
        if np.isfinite(numbers).any():
            kept[name] = numbers
    return kept


def _entropy(numbers: Mapping[str, list[float]], drafted: Sequence[bool]) -> list[float]:
    nothing = [math.nan] * len(drafted)
    pairs = zip(
        numbers.get("entropy_slm", nothing), numbers.get("entropy_llm", nothing), drafted, strict=True
    )
    return [slm if math.isnan(llm) or (by_slm and not math.isnan(slm)) else llm for slm, llm, by_slm in pairs]


def _alternatives(
    columns: Mapping[str, Any],
    index: int,
    previous: int | None,
    token: int,
    draft: int,
    pieces: Pieces,
    limit: int,
) -> list[tuple[str, float, bool, bool]]:
    if columns.get("top_ids") is None or columns.get("top_logprobs") is None:
        return []
    ids: Sequence[int] = columns["top_ids"][index]
    logprobs: Sequence[float] = columns["top_logprobs"][index]
    if ids is None or logprobs is None:
        return []
    known = [
        (int(i), math.exp(float(v)))
        for i, v in zip(ids, logprobs, strict=True)
        if int(i) >= 0 and not math.isnan(v)
    ]
    ranked = sorted(known, key=lambda pair: (-pair[1], pair[0]))[:limit]
    return [(pieces.shown(previous, i), p, i == token, i == draft) for i, p in ranked]
