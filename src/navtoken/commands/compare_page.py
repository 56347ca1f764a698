"""The page of the comparison, and its findings in words: every sentence is worded from the numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from navtoken.analysis.definitions import NUM_BINS, Comparison, Corner, Prediction
from navtoken.analysis.ranking import Overlap
from navtoken.commands.interval_words import area, curve, spread_of, times
from navtoken.commands.rarity_words import rarity_finding, rarity_section
from navtoken.commands.spelling import FrozenSpeller
from navtoken.report import (
    Column,
    Curve,
    CurvesSection,
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
from navtoken.trace import Trace

SIGNALS = {
    "entropy_llm": "LLM entropy",
    "entropy_slm": "SLM entropy",
    "margin_slm": "SLM margin",
    "rarity": "rarity",
}
"""Words for signals."""
SETS = {
    "forking_llm": "forking (LLM)",
    "forking_slm": "forking (SLM)",
    "narrow_slm": "narrow (SLM)",
    "differs": "SLM ≠ LLM",
    "divergent": "divergent",
}
"""Words for sets."""
PART = {"differs": "differ", "divergent": "are divergent"}
"""What tokens do that are in the set that stands for divergence."""

_INTRO = (
    "Two definitions of the tokens that decide where a chain of thought goes. A token is forking where a model's next-token "
    "entropy is among the highest. And it is a place where a small model (SLM) would send the reasoning elsewhere: its first "
    "choice differs from the large one's (LLM). Here both are taken on the same tokens of the same responses.\n\n"
    "Intervals hold 95 % of bootstrap resamples of the problems."
)
_CORNERS = {
    "both": "forking, and {part}",
    "only_forking": "forking, but {bare}",
    "only_parting": "not forking, but {part}",
    "neither": "neither forking, nor {part}",
}


def write_page(
    path: Path,
    comparison: Comparison,
    speller: FrozenSpeller,
    traces: Sequence[Trace],
    record: Mapping[str, Any],
) -> Path:
    """Write the page: rates, curves, tables, the four corners, rarity, and responses to read."""
    sections: list[Section] = [
        TextSection("What it shows", "\n\n".join(findings(comparison))),
        rates_section(comparison),
        *([curves_section(comparison)] if told_apart(comparison) else []),
        areas_section(comparison),
        overlaps_section(comparison),
        *(corner_section(comparison, corner, speller) for corner in comparison.corners if corner.items),
        rarity_section(comparison.rarity, "differ", "SLM ≠ LLM"),
    ]
    if comparison.notes:
        sections.append(TextSection("Of these numbers", "\n\n".join(comparison.notes)))
    if traces:
        sections.append(
            TracesSection(
                "Read the responses, shaded by any of the signals",
                traces,
                speller.decode,
                shade="entropy_llm",
                lines={
                    "entropy_llm": comparison.thresholds["forking_llm"],
                    "entropy_slm": comparison.thresholds["forking_slm"],
                    "differs": 1.0,
                },
            )
        )
    return build_page(
        Page("Two definitions of a navigation token, on the same tokens", _INTRO, sections, record), path
    )


# ---- words ----------------------------------------------------------------------------------------------------


def findings(comparison: Comparison) -> list[str]:
    """What the comparison shows, a sentence each."""
    both = overlap_of(comparison, "forking_llm", comparison.parting)
    part, ratios = PART[comparison.parting], comparison.entropy_ratio
    found = [
        f"SLM and LLM differ at {spread_of(comparison.shares['differs'], 1)} of {comparison.num_tokens:,} tokens.",
        (
            f"Of the forking tokens (the {percent(comparison.fraction)} with the highest LLM entropy, "
            f"{comparison.thresholds['forking_llm']:.2g} nats or more), {spread_of(both.precision, 1)} {part}; of the tokens that "
            f"{part}, {spread_of(both.recall)} are forking. Jaccard index {area(both.jaccard)}, by chance {both.expected:.2f}."
        ),
        best_signal(comparison),
        (
            f"The SLM's mean entropy is {times(ratios['entropy_slm'])} as high where the models differ as elsewhere, the LLM's "
            f"{times(ratios['entropy_llm'])}."
        ),
        rarity_finding(comparison.rarity, "differ"),
    ]
    if comparison.labelled:
        found.insert(1, f"Of labelled tokens, {spread_of(comparison.shares['divergent'], 1)} are divergent.")
    return found


def best_signal(comparison: Comparison) -> str:
    """Which signal finds the parting tokens best, and whether the next one is clearly behind."""
    ranked = _ranked(comparison)
    part = PART[comparison.parting]
    if not ranked:
        return f"No signal can be tested: all tokens {part}, or none."
    first, second, *_ = ranked
    clear = first.areas.roc.low > second.areas.roc.high
    others = ", ".join(f"{SIGNALS[each.signal]} {each.areas.roc.value:.2f}" for each in ranked[1:])
    lead = "best" if clear else f"best, if not clearly better than {SIGNALS[second.signal]}"
    return f"{SIGNALS[first.signal]} finds the tokens that {part} {lead}: ROC area {area(first.areas.roc)}; {others}."


def _ranked(comparison: Comparison) -> list[Prediction]:
    return sorted(told_apart(comparison), key=lambda each: -each.areas.roc.value)


def told_apart(comparison: Comparison) -> list[Prediction]:
    """Predictions of the parting tokens; none where there is nothing to tell apart."""
    return [
        each
        for each in comparison.predictions
        if each.target == comparison.parting and 0.0 < each.share < 1.0
    ]


def overlap_of(comparison: Comparison, found: str, wanted: str) -> Overlap:
    """The overlap of two sets by name."""
    return next(
        each.overlap for each in comparison.agreements if (each.found, each.wanted) == (found, wanted)
    )


# ---- sections -------------------------------------------------------------------------------------------------


def rates_section(comparison: Comparison) -> CurvesSection:
    """How often the models differ, by how high each signal is."""
    places = [100 * (index + 0.5) / NUM_BINS for index in range(NUM_BINS)]
    top = {name: rates[-1] for name, rates in comparison.rates.items()}
    title = (
        f"The models differ at {percent(top['entropy_slm'].value)} of the tokens with the highest SLM entropy, at "
        f"{percent(top['entropy_llm'].value)} of those with the highest LLM entropy"
    )
    curves = [
        curve(SIGNALS[name], places, comparison.rates[name])
        for name in ("entropy_slm", "margin_slm", "entropy_llm")
    ]
    return CurvesSection(
        title,
        curves,
        "tokens from the most certain to the least, by each signal (percentile)",
        "SLM ≠ LLM",
        "Each point is 5 % of the tokens, the last one the highest. A narrow margin counts as uncertain. Bands: 95 % intervals over problems.",
        y_percent=True,
        band=True,
    )


def curves_section(comparison: Comparison) -> PanelsSection:
    """ROC and precision-recall curves for the parting tokens."""
    wanted = told_apart(comparison)
    part = PART[comparison.parting]
    roc = CurvesSection(
        f"ROC: tokens that {part} against the rest",
        [_roc(each) for each in wanted],
        "other tokens taken for them (share)",
        "found",
        "The dotted line is a coin.",
        diagonal=True,
        y_percent=True,
    )
    pr = CurvesSection(
        f"Precision: a coin would have {percent(wanted[0].share, 1)}",
        [_pr(each) for each in wanted],
        "found (share)",
        "of those taken, rightly so",
        y_percent=True,
    )
    best = _ranked(comparison)[0]
    title = f"{SIGNALS[best.signal]} finds the tokens that {part} best (ROC area {best.areas.roc.value:.2f})"
    return PanelsSection(title, [roc, pr], best_signal(comparison))


def areas_section(comparison: Comparison) -> TableSection:
    """Every signal against every set."""
    columns = (
        Column("signal", "signal", "text"),
        Column("roc", "ROC area (0.5 by chance)", "text"),
        Column("pr", "area under precision and recall", "text"),
        Column("share", "the same by chance", "number", digits=3),
        Column("equal", "found at equal size", "text", help="Of the positions with the highest signal, as many as the set has: precision and recall in one."),
    )  # fmt: skip
    equal = {(each.found, each.wanted): each.overlap.recall for each in comparison.equal_size}
    rows = [
        {
            "target": f"to find: {SETS[each.target]}",
            "signal": SIGNALS[each.signal],
            "roc": area(each.areas.roc),
            "pr": area(each.areas.pr),
            "share": each.share,
            "equal": spread_of(equal[each.signal, each.target], 1),
        }
        for each in comparison.predictions
    ]
    return TableSection("How well each signal predicts each set", columns, rows, group_by="target")


def overlaps_section(comparison: Comparison) -> TableSection:
    """Every pair of sets."""
    columns = (
        Column("a", "set A", "text"),
        Column("b", "set B", "text"),
        Column("jaccard", "Jaccard index", "text", help="Tokens in both / tokens in either."),
        Column("expected", "by chance", "number", digits=2),
        Column("precision", "of A in B", "text"),
        Column("recall", "of B in A", "text"),
    )
    rows = [
        {
            "a": SETS[each.found],
            "b": SETS[each.wanted],
            "jaccard": area(each.overlap.jaccard),
            "expected": each.overlap.expected,
            "precision": spread_of(each.overlap.precision, 1),
            "recall": spread_of(each.overlap.recall, 1),
        }
        for each in comparison.agreements
    ]
    found = overlap_of(comparison, "forking_llm", comparison.parting).jaccard.value
    title = f"Forking tokens and tokens that {PART[comparison.parting]}: {percent(found)} of those in either set are in both"
    note = f"Forking and narrow are {percent(comparison.fraction)} of the tokens each: the highest entropies, the smallest margins."
    return TableSection(title, columns, rows, caption=note)


def corner_section(comparison: Comparison, corner: Corner, speller: FrozenSpeller) -> TokenTableSection:
    """The vocabulary items that are typical of a corner."""
    name = _CORNERS[corner.name].format(
        part=PART[comparison.parting],
        bare="do not differ" if comparison.parting == "differs" else "are not divergent",
    )
    words = ", ".join(speller.token(item.token_id).strip() or "␣" for item in corner.items[:6])
    rows = [
        TokenRow(
            speller.token(item.token_id),
            item.count,
            item.rate,
            [speller.place(position) for position in item.examples],
        )
        for item in corner.items
    ]
    return TokenTableSection(
        f"{name[0].upper()}{name[1:]} ({percent(corner.share.value, 1)} of tokens): {words}",
        rows,
        "Tokens that stand here most often beyond what their frequency lets expect.",
        value_label="of its positions are here",
        percent=True,
    )


def _roc(each: Prediction) -> Curve:
    points = [(0.0, 0.0), *((p.false_positive_rate, p.recall) for p in each.curve)]
    return Curve(SIGNALS[each.signal], [x for x, _ in points], [y for _, y in points])


def _pr(each: Prediction) -> Curve:
    points = [(p.recall, p.precision) for p in each.curve if p.recall >= 0.01]
    return Curve(SIGNALS[each.signal], [x for x, _ in points], [y for _, y in points])
