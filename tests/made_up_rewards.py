"""Rewards for models that know nothing: something about the text that a random model gets now right, now wrong."""

from typing import Any


def long_enough(completions: list[str], **columns: Any) -> list[float]:
    """1 for a text with more small letters than other characters."""
    return [float(2 * sum(char.islower() for char in text) > len(text)) for text in completions]
