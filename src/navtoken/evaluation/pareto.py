"""Which of several choices are worth making: the Pareto front of cost and accuracy."""

from collections.abc import Mapping

Point = tuple[float, float]
"""Cost, the less the better; value, the more the better."""


def pareto_front(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other beats: none is at most as dear and at least as good, and better in one of them.

    From the cheapest to the dearest. By the points' own values: whether neighbours differ is for their standard errors to say.
    """
    return sorted(
        (name for name, own in points.items() if not any(_beats(other, own) for other in points.values())),
        key=lambda name: points[name],
    )


def _beats(other: Point, own: Point) -> bool:
    return other[0] <= own[0] and other[1] >= own[1] and other != own
