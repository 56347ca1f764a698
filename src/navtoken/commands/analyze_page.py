"""The page of an analysis, and its findings in words: every sentence is worded from the numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from navtoken.analysis.analyze import ALL, Analysis, EntropyCounts
from navtoken.analysis.profile import MeanByBin, OutcomeProfile
from navtoken.analysis.tokens import Context, TokenStat
from navtoken.commands.demo_page import decode_of
from navtoken.report import (
    BarsSection,
    CloudSection,
    Column,
    Curve,
    CurvesSection,
    EntropyHistogram,
    HistogramSection,
    Page,
    PanelsSection,
    Section,
    TableSection,
    TextSection,
    TokenRow,
    TokenTableSection,
    TracesSection,
    build_page,
)
from navtoken.report.pieces import Pieces, token_text
from navtoken.trace import Trace

CERTAIN = 1.96
"""Standard errors on either side of a mean that make a 95 % interval."""
NUM_NAMED = 6
"""Tokens named in a heading."""
FEWEST = 30
"""Tokens in a bin below which a mean is not drawn."""
PER_OUTCOME = 1
"""Responses shown of each task and outcome."""
MOST_SHOWN = 8
"""Responses shown in all."""

_INTRO = (
    "In a chain of thought most tokens nearly follow from what came before, and a few decide where it goes. Entropy tells them apart: "
    "how uncertain the model was before it wrote the token, in nats. The tokens above the percentile line are its forking tokens."
)

_OUTCOMES = (
    Column("outcome", "outcome", "text"),
    Column("num_responses", "responses", "count"),
    Column("length", "tokens per response", "number"),
    Column("mean", "mean entropy (nats)", "number", digits=3, error="error", help="Over tokens, ± one standard error over responses."),
    Column("percentile", "percentile line (nats)", "number", digits=3, help="Entropy that the asked percentage of the tokens do not exceed."),
    Column("certain_share", "all but certain (%)", "percent", help="Share of the tokens under the asked number of nats."),
)  # fmt: skip


class TokenTexts:
    """Texts of tokens, alone and where they stand; numbers where there is no tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.decode = _by_number if tokenizer is None else decode_of(tokenizer)
        self._pieces = Pieces(self.decode)

    def token(self, token_id: int) -> str:
        """The token alone, spaces included."""
        return self._pieces.text(None, token_id) or f"⟨{token_id}⟩"

    def context(self, token_id: int, context: Context) -> tuple[str, str, str]:
        """Text before the token, the token, text after it."""
        ids = [*context.before, token_id, *context.after]
        texts = [self._pieces.text(previous, each) for previous, each in zip([None, *ids], ids, strict=False)]
        at = len(context.before)
        return "".join(texts[:at]), texts[at] or f"⟨{token_id}⟩", "".join(texts[at + 1 :])


def _by_number(ids: list[int]) -> str:
    return "".join(f"⟨{token_id}⟩" for token_id in ids)


def write_page(
    path: Path, analysis: Analysis, texts: TokenTexts, traces: Sequence[Trace], record: Mapping[str, Any]
) -> Path:
    """Write the page: which tokens, how entropies lie, where in the response, in which outcome, and responses to read."""
    tables = analysis.tables
    sections: list[Section] = []
    if tables.highest:
        sections.append(clouds(analysis, texts))
    sections.append(histogram(analysis))
    if tables.highest:
        sections += [token_table(analysis, texts, "highest"), token_table(analysis, texts, "lowest")]
    sections.append(PanelsSection(along_finding(analysis), (along_response(analysis), by_position(analysis))))
    if len(analysis.outcomes) > 1:
        sections += by_outcome(analysis)
    if traces:
        sections.append(_responses(analysis, texts, traces))
    if analysis.notes:
        sections.append(TextSection("Of these numbers", "\n\n".join(analysis.notes)))
    return build_page(Page(_title(analysis, texts), _INTRO, sections, record), path)


def tokens_as_json(analysis: Analysis, texts: TokenTexts) -> dict[str, Any]:
    """The token tables with texts."""

    def row(stat: TokenStat) -> dict[str, Any]:
        examples = [
            dict(zip(("before", "token", "after"), texts.context(stat.token_id, c), strict=True))
            | {"entropy": c.entropy}
            for c in stat.contexts
        ]
        numbers = {name: value for name, value in asdict(stat).items() if name != "contexts"}
        return {"token": texts.token(stat.token_id), **numbers, "examples": examples}

    tables = analysis.tables
    return {
        "highest": [row(stat) for stat in tables.highest],
        "lowest": [row(stat) for stat in tables.lowest],
        "min_frequency": tables.min_frequency,
        "num_items": tables.num_items,
        "num_frequent": tables.num_frequent,
    }


def telling_traces(traces: Iterable[Trace], column: str) -> list[Trace]:
    """Of each task the first right and the first wrong response that have `column`."""
    kept: dict[tuple[str, bool | None], list[Trace]] = {}
    for trace in traces:
        own = kept.setdefault((trace.task, trace.correct), [])
        if len(own) < PER_OUTCOME and trace.response_ids and column in trace.columns:
            own.append(trace)
    return [trace for own in kept.values() for trace in own][:MOST_SHOWN]


# ---- words ----------------------------------------------------------------------------------------------------


def findings(analysis: Analysis, texts: TokenTexts) -> list[str]:
    """What the analysis shows, a sentence each."""
    found = [f"{pattern_finding(analysis)}."]
    if analysis.tables.highest:
        found += [
            f"Highest mean entropy: {named(analysis.tables.highest, texts, 12)}.",
            f"Lowest mean entropy: {named(analysis.tables.lowest, texts, 12)}.",
        ]
    found.append(f"{along_finding(analysis)}.")
    if {"right", "wrong"} <= analysis.outcomes.keys():
        found.append(f"{outcome_finding(analysis.outcomes['right'], analysis.outcomes['wrong'])}.")
    return found


def pattern_finding(analysis: Analysis) -> str:
    """The share of near-certain tokens and the percentile line."""
    whole, options = analysis.whole, analysis.options
    return (
        f"{whole.certain_share:.1%} of {whole.num_tokens:,} tokens are all but certain (under {options.certain:g} nats), and "
        f"{100 - options.percentile:g} % are above {whole.percentile:.3f} nats"
    )


def named(stats: Sequence[TokenStat], texts: TokenTexts, num: int) -> str:
    """The first of some tokens, in quotes, each spelling once."""
    spelled = dict.fromkeys(token_text(texts.token(stat.token_id)).strip("␣") or "␣" for stat in stats)
    return ", ".join(f"“{text}”" for text in list(spelled)[:num])


def along_finding(analysis: Analysis) -> str:
    """Where in the response the mean is highest."""
    edges, means = pooled_parts(analysis)
    known = [index for index, mean in enumerate(means) if math.isfinite(mean)]
    top, bottom = max(known, key=means.__getitem__), min(known, key=means.__getitem__)

    def place(index: int) -> str:
        return f"{100 * edges[index]:.0f} to {100 * edges[index + 1]:.0f} %"

    return (
        f"Along the response, entropy is highest {place(top)} of the way ({means[top]:.2f} nats) and lowest {place(bottom)} "
        f"of the way ({means[bottom]:.2f})"
    )


def outcome_finding(right: OutcomeProfile, wrong: OutcomeProfile) -> str:
    """Which outcome has the higher mean; claimed only beyond two standard errors."""
    gap = wrong.mean - right.mean
    if not abs(gap) > 2 * math.hypot(right.error, wrong.error):
        return f"Right and wrong responses do not clearly differ in entropy ({right.mean:.3f} and {wrong.mean:.3f} nats a token)"
    more = "more" if gap > 0 else "less"
    return f"Wrong responses are {more} uncertain than right ones: {wrong.mean:.3f} against {right.mean:.3f} nats a token"


def pooled_parts(analysis: Analysis) -> tuple[tuple[float, ...], list[float]]:
    """Edges and means along the response, over all outcomes."""
    tables = [profile.by_part for profile in analysis.outcomes.values()]
    means = []
    for index in range(len(tables[0].num_tokens)):
        num = sum(table.num_tokens[index] for table in tables)
        total = sum(
            table.num_tokens[index] * table.mean[index] for table in tables if table.num_tokens[index]
        )
        means.append(total / num if num else math.nan)
    return tables[0].edges, means


def _title(analysis: Analysis, texts: TokenTexts) -> str:
    if not analysis.tables.highest:
        return "Where the model is uncertain"
    return f"Where the reasoning forks: {named(analysis.tables.highest, texts, NUM_NAMED)}"


# ---- sections -------------------------------------------------------------------------------------------------


def clouds(analysis: Analysis, texts: TokenTexts) -> PanelsSection:
    """Both ends of the vocabulary side by side."""
    tables = analysis.tables
    high = [(texts.token(stat.token_id), stat.mean_entropy) for stat in tables.highest]
    # Means near 0 differ by orders of magnitude.
    low = [(texts.token(stat.token_id), -math.log10(max(stat.mean_entropy, 1e-9))) for stat in tables.lowest]
    return PanelsSection(
        "Which tokens fork, and which complete what was decided",
        (
            CloudSection(
                f"Most uncertain: {named(tables.highest, texts, NUM_NAMED)}",
                high,
                f"The {len(high)} tokens of highest mean entropy; the larger, the higher.",
            ),
            CloudSection(
                f"Most certain: {named(tables.lowest, texts, NUM_NAMED)}",
                low,
                f"The {len(low)} tokens of lowest mean entropy; the larger, the lower (by orders of magnitude).",
                forking=False,
            ),
        ),
        f"Tokens that come {tables.min_frequency:,} times or more, {tables.num_frequent:,} of {tables.num_items:,} different ones.",
    )


def token_table(analysis: Analysis, texts: TokenTexts, end: str) -> TokenTableSection:
    """One end of the vocabulary with counts and examples."""
    stats = analysis.tables.highest if end == "highest" else analysis.tables.lowest
    rows = [
        TokenRow(
            texts.token(stat.token_id),
            stat.count,
            stat.mean_entropy,
            [texts.context(stat.token_id, context) for context in stat.contexts],
        )
        for stat in stats
    ]
    return TokenTableSection(f"The {len(rows)} tokens of {end} mean entropy", rows)


def histogram(analysis: Analysis) -> HistogramSection:
    """All tokens, and beside them the tokens of each outcome and task."""
    panels = [
        _drawn(name.removeprefix("task "), counts, analysis)
        for name, counts in analysis.groups.items()
        if name != ALL
    ]
    pooled = _drawn("all tokens", analysis.whole, analysis, analysis.num_missing)
    return HistogramSection(pattern_finding(analysis), pooled, panels)


def _drawn(name: str, counts: EntropyCounts, analysis: Analysis, missing: int = 0) -> EntropyHistogram:
    return EntropyHistogram(
        name=name,
        edges=counts.edges,
        counts=counts.counts,
        line=counts.percentile,
        low_share=counts.certain_share,
        fraction=analysis.options.percentile / 100,
        low=analysis.options.certain,
        missing=missing,
    )


def along_response(analysis: Analysis) -> CurvesSection:
    """Mean entropy by part of the response, a curve per outcome."""
    return CurvesSection(
        "By part of the response",
        [
            _curve(name, profile.by_part, [100 * at for at in _middles(profile.by_part.edges)])
            for name, profile in analysis.outcomes.items()
        ],
        x_label="part of the response (%)",
        y_label="mean entropy (nats)",
        text="Every response is cut into 20 equal parts. Bands are 95 % intervals over responses.",
        band=True,
    )


def by_position(analysis: Analysis) -> CurvesSection:
    """Mean entropy by token position, a curve per outcome."""
    return CurvesSection(
        "By token position",
        [
            _curve(name, profile.by_position, [at + 0.5 for at in _middles(profile.by_position.edges)])
            for name, profile in analysis.outcomes.items()
        ],
        x_label="token position (log scale)",
        y_label="mean entropy (nats)",
        text=f"The first token is 1. Bands are 95 % intervals over responses; bins of fewer than {FEWEST} tokens are not drawn.",
        x_log=True,
        band=True,
    )


def by_outcome(analysis: Analysis) -> list[Section]:
    """Means as bars, and the numbers behind them."""
    profiles = analysis.outcomes
    title = (
        outcome_finding(profiles["right"], profiles["wrong"])
        if {"right", "wrong"} <= profiles.keys()
        else "Entropy by outcome"
    )
    bars = [
        (name, each.mean, each.mean - CERTAIN * each.error, each.mean + CERTAIN * each.error)
        for name, each in profiles.items()
    ]
    rows = [
        {
            "outcome": name,
            "num_responses": each.num_responses,
            "length": each.num_tokens / each.num_responses,
            "mean": each.mean,
            "error": each.error,
            "percentile": analysis.groups[name].percentile,
            "certain_share": analysis.groups[name].certain_share,
        }
        for name, each in profiles.items()
    ]
    text = "Over all tokens of the responses; bars are 95 % intervals over responses."
    if any(name.startswith("task ") for name in analysis.groups):
        text += " Tasks are pooled, and those on which more responses are wrong weigh more among the wrong."
    return [
        BarsSection(title, bars, "mean entropy (nats)", text),
        TableSection("The same in numbers", _OUTCOMES, rows),
    ]


def _responses(analysis: Analysis, texts: TokenTexts, traces: Sequence[Trace]) -> TracesSection:
    return TracesSection(
        "Read responses, forking tokens marked",
        traces,
        texts.decode,
        shade=analysis.column,
        lines={analysis.column: analysis.whole.percentile},
    )


def _curve(name: str, table: MeanByBin, x: Sequence[float]) -> Curve:
    few = [num < FEWEST for num in table.num_tokens]
    # A short corpus is drawn whole rather than not at all.
    if all(few):
        few = [False] * len(few)
    means = [math.nan if hidden else mean for hidden, mean in zip(few, table.mean, strict=True)]
    reach = [CERTAIN * error for error in table.error]
    return Curve(
        name,
        x,
        means,
        [
            max(0.0, mean - r) if math.isfinite(mean - r) else math.nan
            for mean, r in zip(means, reach, strict=True)
        ],
        [mean + r for mean, r in zip(means, reach, strict=True)],
    )


def _middles(edges: Sequence[float]) -> list[float]:
    return [(low + high) / 2 for low, high in pairwise(edges)]
