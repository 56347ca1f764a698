"""The page of labels, their table in the terminal and as plain data; every sentence is worded from the numbers.

The paper tells how many tokens are divergent. This page shows them: which they are, where they stand, and both continuations
side by side, so that a person can judge what the verifier said.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from navtoken.analysis.items import Item
from navtoken.analysis.label_pool import COLUMNS, Example
from navtoken.analysis.labels import NUM_BINS, LabelStudy, study_labels
from navtoken.analysis.plain import plain
from navtoken.analysis.ranking import Interval
from navtoken.commands.interval_words import curve, spread_of
from navtoken.commands.label_words import (
    CLASSES,
    DIVERGE,
    cut_finding,
    entropy_finding,
    findings,
    medians,
    named,
    says_something,
    shares_finding,
)
from navtoken.commands.rarity_words import rarity_finding, rarity_section
from navtoken.commands.spelling import Speller
from navtoken.labeling.sentences import SentenceEnds
from navtoken.report import (
    BarsSection,
    BranchesSection,
    BranchRow,
    Column,
    CurvesSection,
    Page,
    PanelsSection,
    Section,
    SentenceEnd,
    TableSection,
    TextSection,
    TokenRow,
    TokenTableSection,
    TracesSection,
    build_page,
)
from navtoken.report.markup import percent
from navtoken.report.pieces import Pieces, token_text
from navtoken.report.tokens import branch_at
from navtoken.trace import Trace

__all__ = ["COLUMNS", "gather", "print_labels", "summary", "write_page"]

Labelled = LabelStudy | Iterable[Trace]
"""Labelled traces, or what `gather` made of them."""

CONTEXT = 12
"""Tokens of the text before a place that is shown with both continuations."""

_INTRO = (
    "The SLM reads the LLM's own responses. Where its draft is the LLM's token, the token is identical. Everywhere else the LLM goes "
    "on from the SLM's token to the end of the sentence, and a verifier says whether that takes the same path (neutral) or another "
    "(divergent). Divergent tokens are those that a router should hand to the LLM.\n\n"
    "Intervals hold 95 % of bootstrap resamples of the problems."
)
_WORDS = {
    "divergent": "Divergent: the verifier says that the two take different paths",
    "neutral": "Neutral: the verifier says that the two take the same path",
    "invalid": "Invalid: a stage failed, so the token has no class",
}


def gather(traces: Iterable[Trace]) -> LabelStudy:
    """Read labelled traces once: what the functions here take instead of traces. Raises `NoLabelsError`."""
    return study_labels(traces)


def write_page(
    path: Path,
    labelled: Labelled,
    tokenizer: Any,
    record: Mapping[str, Any] | None = None,
    sentence_end: SentenceEnd | None = None,
) -> Path:
    """Write the page: shares, entropy, rarity, tokens, both continuations, and responses to read.

    `sentence_end` says where the LLM's own sentence ends; None goes by the usual marks.
    """
    study, speller = _studied(labelled), Speller(tokenizer)
    ends = sentence_end or sentence_ends(tokenizer)
    sections: list[Section] = [
        TextSection("What it shows", "\n\n".join(findings(study, speller))),
        *([PanelsSection(shares_finding(study), class_figures(study))] if says_something(study) else []),
        *([tasks_section(study)] if len(study.task_shares) > 1 else []),
        *([uncertainty_section(study)] if study.rates else []),
        *([rarity_section(study.rarity, DIVERGE, "divergent")] if study.rarity else []),
        *([tokens_section(study, speller)] if study.items else []),
        *([pairs_section(study, speller)] if study.pairs else []),
        *branch_sections(study, speller, ends),
    ]
    if study.shown:
        sections.append(
            TracesSection(
                "Read the responses: divergent tokens stand out",
                study.shown,
                speller.decode,
                "Point at a struck-out draft's token to see both continuations.",
                shade="label",
                lines={"label": float(CLASSES.index("divergent"))},
                sentence_end=ends,
            )
        )
    return build_page(Page("Which tokens would the SLM get wrong?", _INTRO, sections, record or {}), path)


def summary(labelled: Labelled, tokenizer: Any = None) -> dict[str, Any]:
    """The figures as plain data, JSON-serialisable; tokens are spelled where there is a `tokenizer`."""
    study, speller = _studied(labelled), Speller(tokenizer)
    result: dict[str, Any] = plain(
        {
            "findings": findings(study, speller),
            "num_responses": study.num_responses,
            "num_problems": study.num_problems,
            "num_tokens": study.num_tokens,
            "shares": _as_dicts(study.shares),
            "invalid": asdict(study.invalid),
            "cut_off": asdict(study.cut_off),
            "tasks": study.task_shares,
            "entropy": _as_dicts(study.entropy),
            "entropy_ratio": asdict(study.entropy_ratio),
            "rates": {name: [asdict(rate) for rate in rates] for name, rates in study.rates.items()},
            "rarity": [asdict(each) for each in study.rarity],
            "tokens": [_item(item, study, speller) for item in study.items],
            "pairs": [
                asdict(pair) | {"llm": speller.token(pair.llm_id), "slm": speller.token(pair.slm_id)}
                for pair in study.pairs
            ],
        }
    )
    return result


def sentence_ends(tokenizer: Any) -> SentenceEnd | None:
    """Ends of the LLM's own sentences by the usual marks; None without a tokenizer."""
    if tokenizer is None:
        return None
    ends = SentenceEnds(tokenizer)

    def end(trace: Trace, position: int) -> int:
        before = [*trace.prompt_ids, *trace.response_ids[:position]]
        length = ends.length(before, trace.response_ids[position:], more=False)
        return len(trace.response_ids) if length is None else position + length

    return end


def _studied(labelled: Labelled) -> LabelStudy:
    return labelled if isinstance(labelled, LabelStudy) else gather(labelled)


def _as_dicts(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: asdict(value) for name, value in values.items()}


def _item(item: Item, study: LabelStudy, speller: Speller) -> dict[str, Any]:
    return {
        "token": speller.token(item.token_id),
        "token_id": item.token_id,
        "divergent": item.count,
        "total": item.total,
        "rate": item.rate,
        "contexts": [speller.context(*study.pool.around(position)) for position in item.examples],
    }


# ---- the terminal ---------------------------------------------------------------------------------------------


def print_labels(console: Console, labelled: Labelled) -> None:
    """Shares and entropies by class, and by task where there are several. Fits into 80 columns."""
    study = _studied(labelled)
    table = _table(["label", "tokens", "share (%)", "mean entropy", "median (nats)"])
    for name in CLASSES:
        entropy = study.entropy.get(name)
        table.add_row(
            name,
            f"{_count(study, name):,}",
            _percent(study.shares[name].value),
            _number(entropy.mean.value if entropy else math.nan),
            _number(entropy.median if entropy else math.nan),
        )
    table.add_row("invalid", f"{round(study.invalid.value * study.num_tokens):,}", "", "", "")
    console.print(table)
    if len(study.task_shares) > 1:
        tasks = _table(["task", "tokens", *(f"{name} (%)" for name in CLASSES), "invalid (%)"])
        for task, own in study.task_shares.items():
            shares = [_percent(own[name]) for name in (*CLASSES, "invalid")]
            tasks.add_row(task, f"{own['num_tokens']:,}", *shares)
        console.print(tasks)
    cut = [cut_finding(study)] if study.cut_off.num_responses else []
    for line in (entropy_finding(study), rarity_finding(study.rarity, DIVERGE), *cut):
        console.print(f"· {line}")


def _table(headings: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=bool(index))
    return table


def _count(study: LabelStudy, name: str) -> int:
    return (
        round(study.shares[name].value * (1 - study.invalid.value) * study.num_tokens)
        if says_something(study)
        else 0
    )


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


# ---- sections -------------------------------------------------------------------------------------------------


def class_figures(study: LabelStudy) -> list[BarsSection]:
    """The share of each class, and the SLM's mean entropy there where it is known."""
    note = "Of the tokens whose label says something. Bars: 95 % intervals over problems."
    shares = BarsSection("Shares", _bars(study.shares), "of the tokens", note, y_percent=True)
    means = _bars({name: each.mean for name, each in study.entropy.items()})
    if not means:
        return [shares]
    note = f"Medians: {medians(study)}. Bars: 95 % intervals over problems."
    return [shares, BarsSection("The SLM's entropy", means, "mean entropy (nats)", note)]


def _bars(values: Mapping[str, Interval]) -> list[tuple[str, float, float | None, float | None]]:
    return [
        (name, each.value, _end(each.low), _end(each.high))
        for name, each in values.items()
        if not math.isnan(each.value)
    ]


def _end(value: float) -> float | None:
    return None if math.isnan(value) else value


def tasks_section(study: LabelStudy) -> TableSection:
    """Shares by task."""
    columns = (
        Column("task", "task", "text"),
        Column("num_tokens", "tokens", "count"),
        *(Column(name, f"{name} (%)", "percent", bar=True) for name in CLASSES),
        Column(
            "invalid",
            "invalid (%)",
            "percent",
            help="Of all labelled tokens; the other shares are of the rest.",
        ),
    )
    rows = [{"task": task} | own for task, own in study.task_shares.items()]
    return TableSection(_tasks_title(study), columns, rows)


def _tasks_title(study: LabelStudy) -> str:
    """Names the task with the most divergent tokens only where its interval lies above all others."""
    known = {task: each for task, each in study.task_divergent.items() if not math.isnan(each.value)}
    if len(known) < 2:
        return "By task"
    most = max(known, key=lambda task: known[task].value)
    others = [each.high for task, each in known.items() if task != most]
    # An interval that is not there (NaN) sets nothing apart.
    if not all(known[most].low > high for high in others):
        return "By task: none has clearly the most divergent tokens"
    return f"By task: {most} has the most divergent tokens, {spread_of(known[most], 1)}"


def uncertainty_section(study: LabelStudy) -> CurvesSection:
    """How often a token is neutral or divergent, by how uncertain the SLM was."""
    places = [100 * (index + 0.5) / NUM_BINS for index in range(NUM_BINS)]
    curves = [
        curve(name, places, rates)
        for name, rates in study.rates.items()
        if any(not math.isnan(rate.value) for rate in rates)
    ]
    top = study.rates["divergent"][-1]
    return CurvesSection(
        f"Of the tokens with the highest SLM entropy, {percent(top.value)} are divergent",
        curves,
        "tokens from the most certain to the least, by the SLM's entropy (percentile)",
        "of the tokens",
        f"Each point is 5 % of the tokens; the last one begins at {study.edges[-2]:.2g} nats. Bands: 95 % intervals over problems.",
        y_percent=True,
        band=True,
    )


def tokens_section(study: LabelStudy, speller: Speller) -> TokenTableSection:
    """The LLM's tokens that the SLM most often gets wrong."""
    rows = [
        TokenRow(
            speller.token(item.token_id),
            item.count,
            item.rate,
            [speller.context(*study.pool.around(position)) for position in item.examples],
        )
        for item in study.items
    ]
    return TokenTableSection(
        f"The divergent tokens: {named(study.items, speller)}",
        rows,
        "Tokens of the LLM that are divergent most often beyond what their frequency lets expect.",
        value_label="of its positions are divergent",
        count_label="times divergent",
        percent=True,
    )


def pairs_section(study: LabelStudy, speller: Speller) -> TableSection:
    """What the SLM would have written instead."""
    columns = (
        Column("llm", "the LLM wrote", "code"),
        Column("slm", "the SLM would have written", "code"),
        Column("divergent", "times divergent", "count"),
        Column("rate", "of all such cases (%)", "percent", bar=True, help="The rest were neutral."),
    )
    rows = [
        {
            "llm": token_text(speller.token(pair.llm_id)),
            "slm": token_text(speller.token(pair.slm_id)),
            "divergent": pair.divergent,
            "rate": pair.divergent / pair.total,
        }
        for pair in study.pairs
    ]
    first = rows[0]
    return TableSection(f"Most often {first['llm']} became {first['slm']}", columns, rows)


def branch_sections(study: LabelStudy, speller: Speller, ends: SentenceEnd | None) -> list[BranchesSection]:
    """Places with both continuations, by class: divergent, neutral, invalid."""
    pieces = Pieces(speller.decode)
    sections = []
    for name, title in _WORDS.items():
        found = [_branch_row(each, pieces, speller, ends) for each in study.examples.get(name, [])]
        rows = [row for row in found if row is not None]
        if rows:
            text = "Drawn at random, at most one place of a response. Is the verifier right?"
            sections.append(BranchesSection(title, rows, "" if name == "invalid" else text))
    return sections


def _branch_row(
    example: Example, pieces: Pieces, speller: Speller, ends: SentenceEnd | None
) -> BranchRow | None:
    trace, position = example.trace, example.position
    branch = branch_at(trace, position, pieces, ends)
    if branch is None:
        return None
    ids = [int(token) for token in trace.response_ids[max(0, position - CONTEXT) : position]]
    before = "".join(pieces.text(*pair) for pair in zip([None, *ids], ids, strict=False))
    facts = [f"{trace.task}, token {position + 1} of {len(trace.response_ids)}"]
    entropies = trace.columns.get("entropy_slm")
    if entropies is not None and math.isfinite(entropies[position]):
        facts.append(f"SLM's entropy {entropies[position]:.2f} nats")
    return BranchRow(("… " if position > CONTEXT else "") + before, branch, " · ".join(facts))
