"""The page of a trained router, and its findings in words: every sentence is worded from the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from navtoken.commands.interval_words import area, curve, spread_of
from navtoken.report import (
    Column,
    Curve,
    CurvesSection,
    Page,
    PanelsSection,
    Section,
    TableSection,
    TextSection,
    build_page,
)
from navtoken.report.markup import percent
from navtoken.router import ALL_TASKS, StoredThreshold
from navtoken.router_training.build import Built, LabelThreshold
from navtoken.router_training.quality import SHARES, Quality

TO_FIND = {"divergent": "divergent tokens", "different": "tokens at which the models differ"}
"""Words for what a router looks for."""
SPOKEN_SHARE = 0.2
"""LLM share at which recall is spoken of."""
CLOSE = 0.01
"""Shares that differ by less are not told apart in words."""


@dataclass(frozen=True)
class Words:
    """What the two kinds of router are spoken of with."""

    intro: str
    ones: str
    """What is judged."""
    signal: str
    drawn: str
    """What was drawn in one mode or another."""
    lie: str
    """Where labels lie."""


_TOKEN = Words(
    "A router looks at every token that the small model (SLM) drafts, and says how likely the response would go elsewhere with "
    "it; such tokens are left to the large model (LLM).",
    "tokens",
    "p(divergent)",
    "drafts",
    "Labels lie on the LLM's own responses",
)
_QUERY = Words(
    "A router looks at what the small model (SLM) makes of a prompt, and says how likely the large one (LLM) is needed: the SLM "
    "would answer wrongly, and the LLM rightly. One of the two then writes the whole response.",
    "prompts",
    "p(LLM needed)",
    "responses",
    "A prompt is one label, however long its response",
)
_TRAINED = (
    "Its weights come from one part of the problems, the checkpoint and all thresholds from another, and what stands here from "
    "a third."
)
_IMPORTED = (
    "Its weights were imported from {name}, trained elsewhere on problems that are not known here. Thresholds were looked for on "
    "one part of the labelled problems, and what stands here comes from another."
)
_INTERVALS = "Intervals hold 95 % of bootstrap resamples of the problems."


def write_page(path: Path, built: Built) -> Path:
    """Write the page: findings, recall against share, ROC and calibration, tables, thresholds, training."""
    whole = built.qualities[0]
    sections: list[Section] = [
        TextSection("What it shows", "\n\n".join(findings(built))),
        recall_section(whole, built),
        PanelsSection(
            f"The router's ROC area is {area(whole.router.roc)}, entropy's {area(whole.entropy.roc)}",
            [roc_section(whole, built), calibration_section(whole, built)],
        ),
        qualities_section(built),
        thresholds_section(built),
    ]
    if built.from_labels:
        sections.append(shares_section(built))
    if built.history:
        sections.append(training_section(built))
    return build_page(Page(_title(built), intro_of(built), sections, built.card.provenance), path)


# ---- words ----------------------------------------------------------------------------------------------------


def intro_of(built: Built) -> str:
    """What such a router does, and where this one's weights and thresholds are from."""
    made = _TRAINED if built.imported is None else _IMPORTED.format(name=built.imported)
    return f"{_words(built).intro} {made}\n\n{_INTERVALS}"


def tested_problems(built: Built) -> str:
    """Which problems the report is on."""
    if built.imported is None:
        return "problems that the router never saw"
    return "problems that no threshold was looked for on"


def findings(built: Built) -> list[str]:
    """What the report shows, a sentence each."""
    whole = built.qualities[0]
    at = SHARES.index(SPOKEN_SHARE)
    target, words = _target(built), _words(built)
    found = [
        (
            f"Of the {whole.num_tokens:,} labels on {whole.num_problems:,} {tested_problems(built)}, "
            f"{spread_of(whole.share, 1)} are {target}."
        ),
        (
            f"The {percent(SPOKEN_SHARE)} of them with the highest {words.signal} hold "
            f"{spread_of(whole.router_recall[at], 1)} of the {target}; those with the highest SLM entropy "
            f"{spread_of(whole.entropy_recall[at], 1)}."
        ),
        (
            f"Area under precision and recall {area(whole.router.pr)}, of entropy {area(whole.entropy.pr)}; ROC area "
            f"{area(whole.router.roc)}, of entropy {area(whole.entropy.roc)}."
        ),
        f"On average its probabilities are {whole.calibration.error:.3f} away from the rates that they stand for (ECE).",
    ]
    parts = [
        f"{each.name} {area(each.router.pr)}" for each in built.qualities if each.name in built.tested_modes
    ]
    if parts:
        found.append(f"By how {words.drawn} were drawn, area under precision and recall: {', '.join(parts)}.")
    return [*found, *_modes_finding(built), *_split_finding(built), *_shares_finding(built)]


def _modes_finding(built: Built) -> list[str]:
    """On what it was tested, and whether it had learnt on that."""
    drawn, learnt, tested = _words(built).drawn, built.learnt_modes, built.tested_modes
    how = "trained" if built.imported is None else "given thresholds"
    if learnt != tested:
        return [f"It was {how} on {' and '.join(learnt)} {drawn}, and tested on {' and '.join(tested)} ones."]
    if len(tested) == 1:
        only = f"{tested[0]} {drawn} only"
        return [f"{how.capitalize()} and tested on {only}."]
    return []


def _split_finding(built: Built) -> list[str]:
    """A warning where it learnt from problems that others test on."""
    record = built.card.provenance
    sources, arguments = record.get("sources", {}), record.get("arguments", {})
    learnt = {*arguments.get("labels", ()), *arguments.get("traces", ())}
    splits = {split for folder in learnt for split in sources.get(folder, {}).get("splits", ())}
    if wrong := sorted(splits - {"train"}):
        return [
            f"It has seen problems of split {' and '.join(wrong)}: what it does on that split says nothing of other problems."
        ]
    return []


def _shares_finding(built: Built) -> list[str]:
    """How far a share of labels is from the share in generation."""
    if not built.from_labels:
        return []
    worst = _worst(built)
    known = [each for each in _overall(built) if each.share is not None and each.realised_share is not None]
    off = max(abs(each.realised_share - each.share) for each in known)  # type: ignore[operator]
    return [
        (
            f"A threshold taken from labels for an LLM share of {percent(worst.share)} gives {percent(worst.realised_share, 1)} in "
            f"generation; thresholds found by routed generation are at most {100 * off:.1f} points off on the problems that "
            "they were found on."
        )
    ]


def _title(built: Built) -> str:
    at = SHARES.index(SPOKEN_SHARE)
    found = built.qualities[0].router_recall[at].value
    if built.card.kind == "query":
        return f"A query router: {percent(SPOKEN_SHARE)} of the prompts hold {percent(found)} of those that need the LLM"
    return f"A router: {percent(SPOKEN_SHARE)} of the tokens hold {percent(found)} of the {_target(built)}"


def _target(built: Built) -> str:
    return "prompts that need the LLM" if built.card.kind == "query" else TO_FIND[built.target]


def _words(built: Built) -> Words:
    return _QUERY if built.card.kind == "query" else _TOKEN


def _overall(built: Built) -> list[StoredThreshold]:
    return [each for each in built.card.thresholds if each.task == ALL_TASKS]


# ---- sections -------------------------------------------------------------------------------------------------


def recall_section(quality: Quality, built: Built) -> CurvesSection:
    """How much is found by how much is left to the LLM."""
    known = [index for index, share in enumerate(SHARES) if share <= 0.5]
    places = [100 * SHARES[index] for index in known]
    at = SHARES.index(SPOKEN_SHARE)
    router, entropy = quality.router_recall[at].value, quality.entropy_recall[at].value
    words = _words(built)
    return CurvesSection(
        f"At {percent(SPOKEN_SHARE)} of the {words.ones} the router finds {percent(router)}, entropy {percent(entropy)}",
        [
            curve("router", places, [quality.router_recall[index] for index in known]),
            curve("entropy", places, [quality.entropy_recall[index] for index in known]),
        ],
        f"{words.ones} left to the LLM, of all labels (%)",
        f"{_target(built)} among them",
        f"Shares are of labels. {words.lie}. Bands: 95 % intervals over problems.",
        y_percent=True,
        band=True,
    )


def roc_section(quality: Quality, built: Built) -> CurvesSection:
    """ROC curves of router and entropy."""
    return CurvesSection(
        f"ROC: {_target(built)} against the rest",
        [Curve(name, [x for x, _ in points], [y for _, y in points]) for name, points in quality.roc.items()],
        "others taken for them (share)",
        "found",
        "The dotted line is a coin.",
        diagonal=True,
        y_percent=True,
    )


def calibration_section(quality: Quality, built: Built) -> CurvesSection:
    """What the probabilities say, and what is."""
    bins = quality.calibration.bins
    return CurvesSection(
        f"Calibration: {quality.calibration.error:.3f} off on average",
        [curve("router", [each.mean for each in bins], [each.rate for each in bins])],
        _words(built).signal,
        "of them rightly so",
        f"Bins of equal width with {', '.join(f'{each.num:,}' for each in bins)} labels. Dotted: as it should be.",
        diagonal=True,
        y_percent=True,
    )


def qualities_section(built: Built) -> TableSection:
    """Per task and per draft mode."""
    words = _words(built)
    columns = (
        Column("name", "labels of", "text"),
        Column("tokens", "number", "count"),
        Column("share", "to find (%)", "text"),
        Column("roc", "ROC area", "text", help=f"How often one that is to be found has the higher {words.signal}; 0.5 by chance."),
        Column("roc_entropy", "of entropy", "text"),
        Column("pr", "area under precision and recall", "text", help="By chance the share of what is to be found."),
        Column("pr_entropy", "of entropy", "text"),
        Column("recall", "found in the top 20 %", "text"),
        Column("ece", "calibration error", "number", digits=3, help=f"Mean distance of {words.signal} from the rate in its bin."),
    )  # fmt: skip
    at = SHARES.index(SPOKEN_SHARE)
    rows = [
        {
            "name": each.name,
            "tokens": each.num_tokens,
            "share": spread_of(each.share, 1),
            "roc": area(each.router.roc),
            "roc_entropy": area(each.entropy.roc),
            "pr": area(each.router.pr),
            "pr_entropy": area(each.entropy.pr),
            "recall": spread_of(each.router_recall[at]),
            "ece": each.calibration.error,
        }
        for each in built.qualities
    ]
    return TableSection(f"Test part: all, per task, and by how {words.drawn} were drawn", columns, rows)


def thresholds_section(built: Built) -> TableSection:
    """All thresholds that are stored with the router."""
    columns = (
        Column("asked", "asked for", "text"),
        Column("task", "task", "code"),
        Column("threshold", "threshold", "number", digits=4),
        Column("realised", "LLM share in generation", "percent"),
        Column("problems", "validation problems", "count"),
    )
    rows = [
        {
            "asked": f"share {each.share:g}" if each.share is not None else f"recall {each.recall:g}",
            "task": each.task,
            "threshold": each.threshold,
            "realised": each.realised_share,
            "problems": each.num_problems,
            "temperature": f"T = {each.temperature:g}",
        }
        for each in built.card.thresholds
    ]
    default = built.card.default_threshold
    whose = ", as the checkpoint brought it" if built.own_threshold else ""
    note = (
        f"Found by routed generation. The default threshold is {default:.4g}{whose}."
        if default is not None
        else ""
    )
    return TableSection(
        "Thresholds stored with the router", columns, rows, group_by="temperature", caption=note
    )


def shares_section(built: Built) -> CurvesSection:
    """Thresholds from labels, and what they come to."""
    places = [100 * each.share for each in built.from_labels]
    greedy = {
        each.share: each for each in _overall(built) if each.share is not None and each.temperature == 0
    }
    curves = [Curve("from labels", places, [each.realised_share for each in built.from_labels])]
    if routed := [greedy[each.share] for each in built.from_labels if each.share in greedy]:
        values = [each.realised_share or 0.0 for each in routed]
        curves.append(Curve("from generation", [100 * (each.share or 0.0) for each in routed], values))
    return CurvesSection(
        _shares_title(built),
        curves,
        "LLM share asked for (%)",
        "LLM share in greedy generation",
        f"On the validation problems. Thresholds from labels are quantiles of {_words(built).signal} among labels. "
        f"{_words(built).lie}.",
        y_percent=True,
    )


def _shares_title(built: Built) -> str:
    """What thresholds from labels come to, at worst."""
    worst = _worst(built)
    off = abs(worst.realised_share - worst.share)
    if off < CLOSE:
        return f"Shares of labels are within {100 * off:.1f} points of those in generation"
    return f"{percent(worst.share)} of the labels become {percent(worst.realised_share, 1)} of the tokens in generation"


def _worst(built: Built) -> LabelThreshold:
    return max(built.from_labels, key=lambda each: abs(each.realised_share - each.share))


def training_section(built: Built) -> PanelsSection:
    """Loss and area by epoch."""
    epochs = [float(each.number) for each in built.history]
    loss = CurvesSection(
        "Weighted cross-entropy",
        [
            Curve("train part", epochs, [each.loss for each in built.history]),
            Curve("validation part", epochs, [each.validation_loss for each in built.history]),
        ],
        "epoch",
        "loss (nats)",
        x_ticks=_ticks(epochs),
    )
    pr = CurvesSection(
        "Area under precision and recall, validation part",
        [Curve("router", epochs, [each.validation_pr for each in built.history])],
        "epoch",
        "area",
        x_ticks=_ticks(epochs),
    )
    return PanelsSection(f"Training: the weights are those of epoch {built.best}", [loss, pr])


def _ticks(epochs: Sequence[float]) -> list[float]:
    step = max(1, len(epochs) // 6)
    return list(epochs[::step])
