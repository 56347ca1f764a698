"""Accuracy against any cost: logarithmic axes, the Pareto front, and many rules told apart."""

import re
from itertools import combinations

import pytest

from navtoken.report import ReportError, ScatterPoint, ScatterSection
from navtoken.report.scatter import _styles

FLOPS = [
    ScatterPoint("slm", 1.0, 0.2, 0.02, front=True),
    ScatterPoint("entropy:0.67", 10.0, 0.4, 0.03),
    ScatterPoint("router", 10.0, 0.6, 0.03, front=True),
    ScatterPoint("llm", 100.0, 0.9, 0.02, front=True),
]


def places(html):
    return [tuple(map(float, place)) for place in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", html)]


def test_costs_lie_on_a_logarithmic_axis(parse):
    html = ScatterSection("T", {"all": FLOPS}, x_label="FLOPs", x_log=True).html("s")
    across = [x for x, _ in places(html)]
    assert across[1] - across[0] == pytest.approx(across[3] - across[1], abs=0.02)
    ticks = [text for a, text in parse(html).find("text", "tick") if a["text-anchor"] == "middle"]
    assert {"1", "10", "100"} <= set(ticks)
    assert "at 10" in html and "LLM share" not in html
    # Mixing whole problems is linear in cost, so no line on this axis.
    assert not parse(html).find("line", "chord") and len(parse(html).find("path", "chord")) == 1


def test_front_is_steps_through_its_points(parse):
    html = ScatterSection("T", {"all": FLOPS}, x_log=True).html("s")
    ((front, _),) = parse(html).find("path", "front")
    slm, _, router, llm = places(html)
    numbers = [float(each) for each in re.findall(r"[\d.]+", front["d"])]
    assert numbers[:6] == [*slm, *router, *llm] and numbers[6] > llm[0]
    assert re.sub(r"[\d.,]+", "", front["d"]) == "MHVHVH"
    assert "Pareto" in html
    plain = ScatterSection("T", {"all": FLOPS[1:2]}, x_log=True).html("s")
    assert "front" not in plain and "Pareto" not in plain


def test_a_cost_of_nothing_has_no_logarithm():
    with pytest.raises(ReportError, match="x_log=False"):
        ScatterSection("T", {"all": [ScatterPoint("slm", 0.0, 0.2)]}, x_log=True).html("s")


def test_all_costs_alike_still_have_an_axis(parse):
    points = [ScatterPoint("a", 5.0, 0.2), ScatterPoint("b", 5.0, 0.6)]
    html = ScatterSection("T", {"all": points}, x_log=True).html("s")
    assert places(html)[0][0] == places(html)[1][0]


def test_sixteen_rules_are_told_apart():
    names = [f"rule{i}" for i in range(16)]
    styles = _styles(["slm", *names, "llm"])
    assert len({(style.colour, style.marker) for style in styles.values()}) == 18


def test_labels_of_many_rules_do_not_cover_each_other(parse):
    crowd = [ScatterPoint(f"policy{i}", 0.13 + i / 300, 0.5 + i / 200) for i in range(12)]
    labels = parse(ScatterSection("T", {"sums": crowd}, height=430).html("s")).find("text", "point")
    boxes = [(float(a["x"]), float(a["y"]), 7 * len(text)) for a, text in labels]
    assert len(boxes) == 12
    for (x, y, width), (other_x, other_y, other_width) in combinations(boxes, 2):
        assert abs(y - other_y) >= 12 or x + width <= other_x or other_x + other_width <= x


def test_what_may_exceed_one_is_inside_the_axis_and_named() -> None:
    points = [ScatterPoint("slm", 0.0, 0.3), ScatterPoint("retries", 1.3, 0.6)]
    section = ScatterSection(
        "Passes", {"all": points}, x_label="LLM passes per 100 tokens", x_words="{} LLM passes per 100 tokens"
    )
    html = section.html("a")
    assert ">120<" in html
    assert "retries: 60.0 % at 130.0 LLM passes per 100 tokens" in html
    (figure,) = section.figures()
    at = [float(x) for x in re.findall(r"translate\(([\d.]+) ", figure.html())]
    assert max(at) <= 440
