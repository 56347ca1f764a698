"""Rare tokens against frequent ones, in words and as a curve: what the pages of `compare` and `label` share."""

from collections.abc import Sequence

from navtoken.analysis.rarity import RarityBin
from navtoken.commands.interval_words import curve, spread_of
from navtoken.report import CurvesSection

MIN_TOKENS = 50
"""Tokens of a bin of rarity that is spoken of or drawn."""


def frequent_bins(bins: Sequence[RarityBin]) -> Sequence[RarityBin]:
    """Bins with enough tokens to say something; all where none has."""
    return [each for each in bins if each.num_tokens >= MIN_TOKENS] or bins


def rarity_finding(bins: Sequence[RarityBin], verb: str) -> str:
    """The rarest items against the most frequent ones; `verb` is what they do, such as "differ"."""
    frequent = frequent_bins(bins)
    if len(frequent) < 2:
        return f"There are too few tokens to say whether rare ones {verb} more often."
    rarest, commonest = frequent[0], frequent[-1]
    return (
        f"Tokens that stand {_times_there(rarest.at_least)} in the responses {verb} at {spread_of(rarest.rate, 1)} of their "
        f"positions, the most frequent ones ({commonest.at_least:,} times or more) at {spread_of(commonest.rate, 1)}."
    )


def rarity_section(bins: Sequence[RarityBin], verb: str, y_label: str) -> CurvesSection:
    """Rate against frequency."""
    frequent = frequent_bins(bins)
    rarest, commonest = frequent[0].rate, frequent[-1].rate
    clear = rarest.low > commonest.high or commonest.low > rarest.high
    more = "more" if rarest.value > commonest.value else "less"
    return CurvesSection(
        f"Rare tokens {verb} {more} often than frequent ones"
        if clear
        else "Rarity makes no clear difference",
        [curve("tokens", [float(each.at_least) for each in frequent], [each.rate for each in frequent])],
        "times that the token stands in the responses, up to twice as often (log scale)",
        y_label,
        f"{rarity_finding(bins, verb)} Bars: 95 % intervals over problems.",
        x_log=True,
        y_percent=True,
    )


def _times_there(at_least: int) -> str:
    return "once" if at_least == 1 else f"{at_least:,} to {2 * at_least - 1:,} times"
