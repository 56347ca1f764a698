"""The page of an analysis, and its findings in words: every sentence is worded from the numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from navtoken.analysis.analyze import ALL, Analysis, EntropyCounts
from navtoken.analysis.columns import TokenBatch
from navtoken.analysis.plain import plain
from navtoken.analysis.profile import MeanByBin, OutcomeProfile
from navtoken.analysis.ranking import REACH
from navtoken.analysis.tokens import Context, TokenStat
from navtoken.commands.frozen_responses import spread_over_tasks
from navtoken.commands.spelling import Speller
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
from navtoken.report.markup import percent
from navtoken.report.pieces import token_text
from navtoken.trace import Key, Trace

NUM_NAMED = 6
"""Tokens named in a heading."""
SPREAD = 3.6
"""Standard errors of a difference by which the highest of 20 equal means exceeds the lowest once in 20 times."""
FEWEST = 30
"""Tokens in a bin below which a mean is not drawn."""
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


def write_page(
    path: Path, analysis: Analysis, speller: Speller, traces: Sequence[Trace], record: Mapping[str, Any]
) -> Path:
    """Write the page: which tokens, how entropies lie, where in the response, in which outcome, and responses to read."""
    tables = analysis.tables
    sections: list[Section] = []
    if tables.highest:
        sections.append(clouds(analysis, speller))
    sections.append(histogram(analysis))
    if tables.highest:
        sections += [token_table(analysis, speller, "highest"), token_table(analysis, speller, "lowest")]
    sections.append(PanelsSection(along_finding(analysis), (along_response(analysis), by_position(analysis))))
    if len(analysis.outcomes) > 1:
        sections += by_outcome(analysis)
    if traces:
        sections.append(_responses(analysis, speller, traces))
    if analysis.notes:
        sections.append(TextSection("Of these numbers", "\n\n".join(analysis.notes)))
    return build_page(Page(_title(analysis, speller), _INTRO, sections, record), path)


def tokens_as_json(analysis: Analysis, speller: Speller) -> dict[str, Any]:
    """The token tables, spelled."""

    def row(stat: TokenStat) -> dict[str, Any]:
        examples = [
            dict(zip(("before", "token", "after"), _spelled(speller, stat, c), strict=True))
            | {"entropy": c.entropy}
            for c in stat.contexts
        ]
        numbers = {name: value for name, value in asdict(stat).items() if name != "contexts"}
        return {"token": speller.token(stat.token_id), **numbers, "error": stat.error, "examples": examples}

    tables = analysis.tables
    result: dict[str, Any] = plain(
        {
            "highest": [row(stat) for stat in tables.highest],
            "lowest": [row(stat) for stat in tables.lowest],
            "min_frequency": tables.min_frequency,
            "num_items": tables.num_items,
            "num_frequent": tables.num_frequent,
        }
    )
    return result


def _spelled(speller: Speller, stat: TokenStat, context: Context) -> tuple[str, str, str]:
    return speller.context(list(context.before), stat.token_id, list(context.after))


def telling_keys(batches: Iterable[TokenBatch], column: str) -> list[Key]:
    """Of each task the first right, wrong and unjudged response with an entropy, at most `MOST_SHOWN`, tasks in turn.

    `batches` have the keys, `correct` and `column`.
    """
    first: dict[tuple[str, bool | None], Key] = {}
    for batch in batches:
        # The sum over each response of the tokens that have an entropy.
        known_R = np.bincount(batch.responses()[~np.isnan(batch[column])], minlength=len(batch.lengths))
        for key, correct, num_known in zip(batch.keys, batch["correct"], known_R, strict=True):
            if num_known:
                first.setdefault((key[1], correct), key)
    return spread_over_tasks(first.values(), MOST_SHOWN)


# ---- words ----------------------------------------------------------------------------------------------------


def findings(analysis: Analysis, speller: Speller) -> list[str]:
    """What the analysis shows, a sentence each."""
    found = [f"{pattern_finding(analysis)}."]
    if analysis.tables.highest:
        found += [
            f"Highest mean entropy: {named(analysis.tables.highest, speller, 12)} ({_sure(analysis.tables.highest)}).",
            f"Lowest mean entropy: {named(analysis.tables.lowest, speller, 12)} ({_sure(analysis.tables.lowest)}).",
        ]
    found.append(f"{along_finding(analysis)}.")
    if {"right", "wrong"} <= analysis.outcomes.keys():
        found.append(f"{outcome_finding(analysis.outcomes['right'], analysis.outcomes['wrong'])}.")
    return found


def pattern_finding(analysis: Analysis) -> str:
    """The share of near-certain tokens and the percentile line."""
    whole, options = analysis.whole, analysis.options
    return (
        f"{percent(whole.certain_share, 1)} of {whole.num_tokens:,} tokens are all but certain (under {options.certain:g} nats), and "
        f"{100 - options.percentile:g} % are above {whole.percentile:.3f} nats"
    )


def _sure(stats: Sequence[TokenStat]) -> str:
    """How sure the means of some tokens are."""
    fewest = min(stat.count for stat in stats)
    errors = [stat.error for stat in stats if math.isfinite(stat.error)]
    worst = f", standard errors up to {max(errors):.2g} nats" if errors else ""
    return f"each at least {'once' if fewest == 1 else f'{fewest:,} times'}{worst}"


def named(stats: Sequence[TokenStat], speller: Speller, num: int) -> str:
    """The first of some tokens, in quotes, each spelling once."""
    spelled = dict.fromkeys(token_text(speller.token(stat.token_id)).strip("␣") or "␣" for stat in stats)
    return ", ".join(f"“{text}”" for text in list(spelled)[:num])


def along_finding(analysis: Analysis) -> str:
    """Where in the response the mean is highest; claimed only beyond what the best of many parts may be by chance."""
    edges, means, errors = pooled_parts(analysis)
    known = [index for index, mean in enumerate(means) if math.isfinite(mean)]
    top, bottom = max(known, key=means.__getitem__), min(known, key=means.__getitem__)

    def place(index: int) -> str:
        return f"{100 * edges[index]:.0f} to {percent(edges[index + 1])}"

    if not means[top] - means[bottom] > SPREAD * math.hypot(errors[top], errors[bottom]):
        return f"Along the response, mean entropies do not clearly differ ({means[bottom]:.2f} to {means[top]:.2f} nats)"
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


def pooled_parts(analysis: Analysis) -> tuple[tuple[float, ...], list[float], list[float]]:
    """Edges, means and their standard errors along the response, over all outcomes."""
    tables = [profile.by_part for profile in analysis.outcomes.values()]
    means, errors = [], []
    for index in range(len(tables[0].num_tokens)):
        parts = [
            (each.num_tokens[index], each.mean[index], each.error[index])
            for each in tables
            if each.num_tokens[index]
        ]
        total = sum(num for num, _, _ in parts)
        means.append(sum(num * mean for num, mean, _ in parts) / total if total else math.nan)
        # Outcomes are different responses, so their errors are independent.
        errors.append(math.hypot(*(num * error for num, _, error in parts)) / total if total else math.nan)
    return tables[0].edges, means, errors


def _title(analysis: Analysis, speller: Speller) -> str:
    if not analysis.tables.highest:
        return "Where the model is uncertain"
    return f"Where the reasoning forks: {named(analysis.tables.highest, speller, NUM_NAMED)}"


# ---- sections -------------------------------------------------------------------------------------------------


def clouds(analysis: Analysis, speller: Speller) -> PanelsSection:
    """Both ends of the vocabulary side by side."""
    tables = analysis.tables
    high = [(speller.token(stat.token_id), stat.mean_entropy) for stat in tables.highest]
    # Means near 0 differ by orders of magnitude.
    low = [
        (speller.token(stat.token_id), -math.log10(max(stat.mean_entropy, 1e-9))) for stat in tables.lowest
    ]
    return PanelsSection(
        "Which tokens fork, and which complete what was decided",
        (
            CloudSection(
                f"Most uncertain: {named(tables.highest, speller, NUM_NAMED)}",
                high,
                f"The {len(high)} tokens of highest mean entropy; the larger, the higher.",
            ),
            CloudSection(
                f"Most certain: {named(tables.lowest, speller, NUM_NAMED)}",
                low,
                f"The {len(low)} tokens of lowest mean entropy; the larger, the lower (by orders of magnitude).",
                forking=False,
            ),
        ),
        f"Tokens that come {tables.min_frequency:,} times or more, {tables.num_frequent:,} of {tables.num_items:,} different ones.",
    )


def token_table(analysis: Analysis, speller: Speller, end: str) -> TokenTableSection:
    """One end of the vocabulary with counts and examples."""
    stats = analysis.tables.highest if end == "highest" else analysis.tables.lowest
    rows = [
        TokenRow(
            speller.token(stat.token_id),
            stat.count,
            stat.mean_entropy,
            [_spelled(speller, stat, context) for context in stat.contexts],
            stat.error,
        )
        for stat in stats
    ]
    title = f"The {len(rows)} tokens of {end} mean entropy"
    return TokenTableSection(title, rows, "± one standard error over the occurrences of a token.")


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
        (name, each.mean, each.mean - REACH * each.error, each.mean + REACH * each.error)
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


def _responses(analysis: Analysis, speller: Speller, traces: Sequence[Trace]) -> TracesSection:
    return TracesSection(
        "Read responses, forking tokens marked",
        traces,
        speller.decode,
        shade=analysis.column,
        lines={analysis.column: analysis.whole.percentile},
    )


def _curve(name: str, table: MeanByBin, x: Sequence[float]) -> Curve:
    few = [num < FEWEST for num in table.num_tokens]
    # A short corpus is drawn whole rather than not at all.
    if all(few):
        few = [False] * len(few)
    means = [math.nan if hidden else mean for hidden, mean in zip(few, table.mean, strict=True)]
    reach = [REACH * error for error in table.error]
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
