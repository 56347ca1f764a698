"""The front against its definition."""

import numpy as np

from navtoken.evaluation import pareto_front


def test_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    points = {str(i): (float(x), float(y)) for i, (x, y) in enumerate(rng.integers(0, 6, (40, 2)))}
    front = pareto_front(points)
    for name, (x, y) in points.items():
        beaten = any((ox <= x and oy > y) or (ox < x and oy >= y) for ox, oy in points.values())
        assert (name in front) == (not beaten)
    assert [points[name] for name in front] == sorted(points[name] for name in front)


def test_equals_stand_beside_each_other() -> None:
    assert sorted(pareto_front({"a": (1.0, 0.5), "b": (1.0, 0.5), "c": (2.0, 0.4)})) == ["a", "b"]
    assert pareto_front({}) == []
