"""The page of the drift, and its findings in words: every sentence is worded from the numbers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from navtoken.analysis.drift import NUM_BINS, PERCENTILES, Checkpoint, Drift, Shift
from navtoken.analysis.ranking import Interval
from navtoken.commands.interval_words import curve, spread_of
from navtoken.commands.spelling import FrozenSpeller
from navtoken.report import (
    BarsSection,
    Column,
    Curve,
    CurvesSection,
    Page,
    Section,
    TableSection,
    TokenRow,
    TokenTableSection,
    TracesSection,
    build_page,
)
from navtoken.report.markup import percent
from navtoken.report.pieces import token_text
from navtoken.trace import Trace

MAX_CURVES = 5
"""Checkpoints whose change by bin is drawn."""

_INTRO = (
    "The responses are frozen, and every checkpoint says how uncertain it would have been at each of their tokens. The "
    "positions with the highest entropies are its forking tokens. How many of the base model's are still forking after "
    "training, where entropies change, and which tokens leave and enter?\n\n"
    "Intervals hold 95 % of bootstrap resamples of the problems."
)


def write_page(
    path: Path, found: Drift, speller: FrozenSpeller, traces: Sequence[Trace], record: Mapping[str, Any]
) -> Path:
    """Write the page: overlaps, changes, trajectories, the tokens that move, and responses to read."""
    top = percent(found.fraction)
    sections: list[Section] = [
        overlap_section(found),
        change_section(found),
        trajectory_section(found),
        sides_section(found),
    ]
    for title, count, rows in (
        (f"What leaves the top {top}", "left", found.leaving),
        (f"What enters the top {top}", "entered", found.entering),
    ):
        if rows:
            sections.append(shift_section(title, count, rows, speller))
    sections.append(checkpoints_section(found))
    if traces:
        sections.append(
            TracesSection(
                "Read the responses, shaded by the last checkpoint's entropy or the base's",
                traces,
                speller.decode,
                shade="entropy_llm",
                lines={
                    "entropy_llm": found.checkpoints[-1].threshold,
                    "entropy_base": found.checkpoints[0].threshold,
                },
                caption="entropy llm is the last checkpoint's; entropy change is the last one's less the base's.",
            )
        )
    return build_page(Page(_short(found), _INTRO, sections, record), path)


# ---- words ----------------------------------------------------------------------------------------------------


def findings(found: Drift, speller: FrozenSpeller) -> list[str]:
    """What the drift shows, a sentence each."""
    sizes = _known(found.checkpoints[-1].size_by_bin)
    sentences = [
        _headline(found) + ".",
        (
            f"{spread_of(found.share_ever_changed, 1)} of all {found.num_tokens:,} positions change sides at some checkpoint; "
            f"{found.num_returned:,} of them end where they began."
        ),
        (
            f"Entropies change by {sizes[-1]:.3f} nats on average at the 5 % of positions with the highest base entropy, and by "
            f"{sizes[0]:.5f} at the 5 % with the lowest."
        ),
    ]
    for words, shifts in (("Leave most, net", found.leaving), ("Enter most, net", found.entering)):
        if shifts:
            named = ", ".join(
                f"“{token_text(speller.token(each.token_id))}” {each.net:+,}" for each in shifts[:8]
            )
            sentences.append(f"{words}: {named}.")
    return sentences


def _headline(found: Drift) -> str:
    kept = spread_of(found.checkpoints[-1].overlap_base, 1)
    top = percent(found.fraction)
    return f"{kept} of the base model's top {top} of positions are in the last checkpoint's, too ({top} by chance)"


def _short(found: Drift) -> str:
    kept = percent(found.checkpoints[-1].overlap_base.value)
    return f"{kept} of the base's forking tokens are still forking in the last checkpoint"


# ---- sections -------------------------------------------------------------------------------------------------


def overlap_section(found: Drift) -> CurvesSection:
    """Overlap with base and with last checkpoint along the path."""
    steps = [float(index) for index in range(len(found.checkpoints))]
    base = curve("with the base", steps, [each.overlap_base for each in found.checkpoints])
    final = curve("with the last", steps, [each.overlap_final for each in found.checkpoints])
    return CurvesSection(
        f"The top {percent(found.fraction)} keeps {percent(found.checkpoints[-1].overlap_base.value, 1)} of its positions",
        [base, final],
        "checkpoint (0 is the base)",
        "same top positions",
        f"{_headline(found)}. Checkpoints: {_numbered(found.checkpoints)}. Bands: 95 % intervals over problems.",
        x_ticks=steps,
        y_percent=True,
        band=True,
    )


def change_section(found: Drift) -> CurvesSection:
    """Mean entropy change by 5 % bin of base entropy, for a few checkpoints."""
    places = [100 * (index + 0.5) / NUM_BINS for index in range(NUM_BINS)]
    last = found.checkpoints[-1]
    return CurvesSection(
        f"The most uncertain 5 % of positions {_moved(_known(last.change_by_bin)[-1], 2)} nats, "
        f"the lower half {_moved(_half(last), 4)}",
        [curve(each.name, places, each.change_by_bin) for each in _some(found.checkpoints[1:])],
        "positions by base entropy (percentile)",
        "mean change of entropy (nats)",
        "Each point is 5 % of the positions. Chosen for high base entropy, positions would fall back somewhat even if nothing but "
        "chance changed. Bands: 95 % intervals over problems.",
        band=True,
    )


def trajectory_section(found: Drift) -> CurvesSection:
    """Entropies at some percentiles along the path."""
    steps = [float(index) for index in range(len(found.checkpoints))]
    curves = [
        Curve(percent(share), steps, [each.percentiles[index] for each in found.checkpoints])
        for index, share in enumerate(PERCENTILES)
    ]
    first, last = (found.checkpoints[at].threshold for at in (0, -1))
    return CurvesSection(
        f"The top {percent(found.fraction)} begins at {first:.2f} nats in the base, at {last:.2f} in the last checkpoint",
        curves,
        "checkpoint (0 is the base)",
        "entropy (nats)",
        "Each curve is a percentile of the checkpoint's own entropies.",
        x_ticks=steps,
    )


def sides_section(found: Drift) -> BarsSection:
    """How often positions change sides."""
    bars = [
        (_changes(times), count / found.num_tokens, None, None)
        for times, count in sorted(found.changes.items())
    ]
    return BarsSection(
        f"{percent(found.share_ever_changed.value, 1)} of positions ever change sides",
        bars,
        "positions",
        f"A position changes sides where it is in the top {percent(found.fraction)} of one checkpoint and not of the next.",
        y_percent=True,
    )


def shift_section(
    title: str, count: str, shifts: Sequence[Shift], speller: FrozenSpeller
) -> TokenTableSection:
    """Vocabulary items by what they lose or gain."""
    words = ", ".join(speller.token(each.token_id).strip() or "␣" for each in shifts[:6])
    rows = [
        TokenRow(
            speller.token(each.token_id),
            getattr(each, count),
            float(each.net),
            [speller.place(position) for position in each.examples],
        )
        for each in shifts
    ]
    return TokenTableSection(
        f"{title}: {words}",
        rows,
        "By net change: positions of the token that enter, less those that leave.",
        value_label="net positions",
        count_label=count,
    )


def checkpoints_section(found: Drift) -> TableSection:
    """The numbers of each checkpoint."""
    columns = (
        Column("number", "", "count"),
        Column("name", "checkpoint", "code"),
        Column("base", "top as the base's", "text"),
        Column("final", "top as the last's", "text"),
        Column("mean", "mean entropy (nats)", "number", digits=4),
        Column("threshold", "top from (nats)", "number", digits=4),
    )
    rows = [
        {
            "number": index,
            "name": each.name,
            "base": spread_of(each.overlap_base, 1),
            "final": spread_of(each.overlap_final, 1),
            "mean": each.mean_entropy,
            "threshold": each.threshold,
        }
        for index, each in enumerate(found.checkpoints)
    ]
    return TableSection("Every checkpoint in numbers", columns, rows)


def _half(checkpoint: Checkpoint) -> float:
    known = _known(checkpoint.change_by_bin[: NUM_BINS // 2])
    return sum(known) / len(known)


def _known(bins: Sequence[Interval]) -> list[float]:
    """Values by bin, the empty ones left out: with fewer positions than bins there are such, but never the lowest."""
    return [each.value for each in bins if not math.isnan(each.value)]


def _moved(change: float, digits: int) -> str:
    return f"{'gain' if change > 0 else 'lose'} {abs(change):.{digits}f}"


def _some(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """At most `MAX_CURVES` of them, the last one among them."""
    step = math.ceil(len(checkpoints) / MAX_CURVES)
    return list(reversed(list(reversed(checkpoints))[::step]))


def _numbered(checkpoints: Sequence[Checkpoint]) -> str:
    return ", ".join(f"{index} {each.name}" for index, each in enumerate(checkpoints))


def _changes(times: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(times, f"{times} times")
