"""What a token of the LLM's response is to the SLM: the four classes of a label, by the numbers that traces hold."""

from enum import IntEnum

REMOTE = "remote:"
"""How the place of a fingerprint begins where the LLM ran elsewhere: nobody knows its weights."""


class Label(IntEnum):
    """Class of one response token; -1 in a trace is one that nobody looked at."""

    IDENTICAL = 0
    """The SLM's draft is the LLM's token."""
    NEUTRAL = 1
    """Another token, and from it the LLM takes the same path."""
    DIVERGENT = 2
    """Another token, and from it the LLM takes another path."""
    INVALID = 3
    """A stage failed, so nobody knows. Never to be counted, nor trained on."""
