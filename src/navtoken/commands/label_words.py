"""What labels show, in words: every sentence is worded from the numbers."""

import math
from collections.abc import Sequence

from navtoken.analysis.items import Item
from navtoken.analysis.labels import LabelStudy
from navtoken.commands.interval_words import spread_of, times
from navtoken.commands.rarity_words import rarity_finding
from navtoken.commands.spelling import Speller
from navtoken.report.markup import percent
from navtoken.report.pieces import token_text

CLASSES = ("identical", "neutral", "divergent")
PAPER_RATIO = 3.8
"""The second paper's mean entropy of the SLM at divergent tokens over that at the others."""
DIVERGE = "are divergent"
"""What rare tokens are said to do."""
NUM_NAMED = 6
"""Tokens named in a heading."""


def says_something(study: LabelStudy) -> bool:
    """Does any label say something?"""
    return not math.isnan(study.shares["identical"].value)


def findings(study: LabelStudy, speller: Speller) -> list[str]:
    """What the labels show, a sentence each."""
    shares = ", ".join(f"{name} {spread_of(study.shares[name], 1)}" for name in CLASSES)
    found = [
        f"{study.num_tokens:,} tokens of {study.num_responses:,} responses: {shares}.",
        entropy_finding(study),
        rarity_finding(study.rarity, DIVERGE),
    ]
    if study.invalid.value:
        found.insert(
            1,
            f"{spread_of(study.invalid, 1)} of the labelled tokens are invalid: a stage failed there. They are in no other figure.",
        )
    if study.cut_off.num_responses:
        found.append(cut_finding(study))
    if study.items:
        found.append(f"Divergent beyond what their frequency lets expect: {named(study.items, speller)}.")
    return found


def shares_finding(study: LabelStudy) -> str:
    """The heading of the page's first figures."""
    if not says_something(study):
        return "No token has a label that says something"
    differs = study.shares["neutral"].value + study.shares["divergent"].value
    return (
        f"The SLM would write another token at {percent(differs, 1)} of the LLM's tokens, and leave its path at "
        f"{percent(study.shares['divergent'].value, 1)}"
    )


def entropy_finding(study: LabelStudy) -> str:
    """The SLM's entropy at divergent tokens against the others, beside the paper's figure."""
    ratio = study.entropy_ratio
    if math.isnan(ratio.value):
        return "The SLM's entropies at divergent tokens and at the others cannot be compared here."
    return (
        f"The SLM's mean entropy is {times(ratio)} as high at divergent tokens as at the others (the paper's pair: "
        f"{PAPER_RATIO:g} times); medians in nats: {medians(study)}."
    )


def medians(study: LabelStudy) -> str:
    """The SLM's median entropy in each class that has tokens, nats."""
    known = ((name, each.median) for name, each in study.entropy.items() if not math.isnan(each.median))
    return ", ".join(f"{name} {median:.2g}" for name, median in known)


def cut_finding(study: LabelStudy) -> str:
    """What the responses hold that never came to an end."""
    cut = study.cut_off
    return (
        f"{cut.num_responses:,} of the responses reached the length limit: they hold {percent(cut.tokens)} of the labels, and "
        f"{percent(cut.divergent)} of the divergent ones."
    )


def named(items: Sequence[Item], speller: Speller) -> str:
    """The first of some tokens, in quotes, each spelling once."""
    spelled = dict.fromkeys(token_text(speller.token(item.token_id)).strip("␣") or "␣" for item in items)
    return ", ".join(f"“{text}”" for text in list(spelled)[:NUM_NAMED])
