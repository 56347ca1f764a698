"""Three disjoint sets of problems: one to learn from, one to choose by, one to report on.

The official code picks checkpoint and threshold on the very split that it then reports. Here the parts follow from a
problem's id alone, so that responses, drafts of either kind and tasks that share a problem never put it into two.
"""

import hashlib
from typing import Literal

Part = Literal["train", "validation", "test"]

PARTS: tuple[Part, ...] = ("train", "validation", "test")
"""Weights are learnt on the first; the second picks the checkpoint and all thresholds; the third is for the report."""
FRACTIONS = (0.7, 0.15, 0.15)


def part_of(problem_id: str) -> Part:
    """The part that a problem belongs to, always and everywhere."""
    digest = hashlib.sha256(f"router|{problem_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < FRACTIONS[0]:
        return "train"
    return "validation" if place < FRACTIONS[0] + FRACTIONS[1] else "test"
