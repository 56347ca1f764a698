import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from navtoken.report import Curve, CurvesSection, ReportError, write_svg
from navtoken.report.curves import _apart
from navtoken.report.figure import Scale, label_lines, nice_range, tick_text

SWEEP = [0, 0.05, 0.3, 0.6, 1, 2, 3, 5]


def section(*curves, **options):
    return CurvesSection("T", curves or [Curve("a", [0, 1, 2], [1.0, 2.0, 4.0])], "x", "y", **options)


def ticks_up(parsed):
    """Heights of the vertical axis's numbers."""
    found = [(a, t) for a, t in parsed.find("text", "tick") if a["text-anchor"] == "end"]
    return {float(text): float(a["y"]) - 4 for a, text in found}


def ticks_across(parsed):
    found = [(a, t) for a, t in parsed.find("text", "tick") if a["text-anchor"] == "middle"]
    return {float(text): float(a["x"]) for a, text in found}


def markers(parsed):
    places = [a["transform"] for a, _ in parsed.find("path", "marker")]
    return [
        tuple(map(float, re.match(r"translate\(([\d.-]+) ([\d.-]+)\)", place).groups())) for place in places
    ]


def paths(parsed):
    return [a["d"] for a, _ in parsed.find("path", "line")]


def test_points_lie_where_the_axes_say(parse):
    parsed = parse(section().html("s"))
    across, up = ticks_across(parsed), ticks_up(parsed)
    assert markers(parsed) == [(across[0], up[1]), (across[1], up[2]), (across[2], up[4])]
    assert paths(parsed) == ["M" + "L".join(f"{x},{y}" for x, y in markers(parsed))]


def test_fractions_are_shown_in_percent(parse):
    parsed = parse(section(Curve("a", [0, 1], [0.0, 0.5]), y_percent=True).html("s"))
    assert markers(parsed)[1][1] == ticks_up(parsed)[50]
    assert "y (%)" in [text for _, text in parsed.find("text", "label")]


def test_everything_at_a_hundred_percent_has_an_axis_with_height(parse):
    parsed = parse(section(Curve("a", [0, 1], [1.0, 1.0]), y_percent=True).html("s"))
    up = ticks_up(parsed)
    assert markers(parsed)[0][1] == up[100] == min(up.values()) and len(up) > 1


def test_a_few_percent_have_an_axis_from_nothing(parse):
    parsed = parse(section(Curve("a", [0, 1], [0.01, 0.04]), y_percent=True).html("s"))
    assert min(ticks_up(parsed)) == 0


def test_missing_value_leaves_a_gap(parse):
    parsed = parse(section(Curve("a", [0, 1, 2, 3, 4], [1, 2, math.nan, 3, 4])).html("s"))
    assert paths(parsed)[0].count("M") == 2 and paths(parsed)[0].count("L") == 2
    assert len(markers(parsed)) == 4


def test_zero_stands_left_of_a_logarithmic_axis(parse):
    parsed = parse(section(Curve("a", SWEEP, [1.0] * 8), x_log=True, x_ticks=SWEEP).html("s"))
    across = ticks_across(parsed)
    assert across[0] == markers(parsed)[0][0] < across[0.05] - 20
    assert across[2] - across[1] == pytest.approx(across[0.6] - across[0.3], abs=0.1)
    assert len(parsed.find("rect", "gap")) == 1


def test_error_bars_end_at_low_and_high(parse):
    curve = Curve("a", [0, 1, 2], [1.0, 2.0, 1.0], [0.0, math.nan, 0.5], [2.0, math.nan, 2.0])
    parsed = parse(section(curve).html("s"))
    up = ticks_up(parsed)
    ends = [a["d"] for a, _ in parsed.find("path", "whisker")]
    assert len(ends) == 2
    bottom, top = map(float, re.match(r"M[\d.]+,([\d.]+)V([\d.]+)", ends[0]).groups())
    assert (bottom, top) == (up[0], up[2])
    assert not parsed.find("path", "band")


def test_band_replaces_error_bars(parse):
    curve = Curve("a", [0, 1, 2], [1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [2.0, 3.0, 4.0])
    parsed = parse(section(curve, band=True).html("s"))
    assert not parsed.find("path", "whisker")
    corners = re.findall(r"[\d.]+,([\d.]+)", parsed.find("path", "band")[0][0]["d"])
    up = ticks_up(parsed)
    assert [float(corner) for corner in corners] == [up[2], up[3], up[4], up[2], up[1], up[0]]


def test_curves_differ_in_more_than_colour(parse):
    parsed = parse(section(*(Curve(str(i), [0, 1], [i, i + 1]) for i in range(6))).html("s"))
    groups = [a["class"] for a, _ in parsed.find("g") if "data-curve" in a]
    dashes = [a["class"] for a, _ in parsed.find("path", "line")]
    shapes = [a["d"] for a, _ in parsed.find("path", "marker")]
    assert len(set(groups)) == len(set(dashes)) == len(set(shapes)) == 6


def test_names_stand_beside_ends_that_are_apart(parse):
    curves = [Curve("low", [0, 1], [0, 1]), Curve("high", [0, 1], [0, 10])]
    parsed = parse(section(*curves).html("s"))
    names = {text: float(a["y"]) - 4 for a, text in parsed.find("text", "point")}
    up = ticks_up(parsed)
    assert names["high"] == up[10] and abs(names["low"] - (up[0] + (up[10] - up[0]) / 10)) < 1
    assert not parsed.find("g", "key")
    # 8 units a letter are what the widest common font takes in bold.
    assert all(float(a["x"]) + 8 * len(text) <= 440 for a, text in parsed.find("text", "point"))


@pytest.mark.parametrize(
    "curves",
    [
        [Curve(str(i), [0, 1], [i / 10, 1.0]) for i in range(5)],
        [Curve("n" * 40, [0, 1], [0, 1]), Curve("b", [0, 1], [0, 10])],
        [Curve("a", [0, 1], [0, 1]), Curve("b", [0, 0.5], [0, 10])],
    ],
    ids=["ends in one place", "long name", "ends in the middle"],
)
def test_names_stand_above_where_they_cannot_stand_beside(parse, curves):
    parsed = parse(section(*curves).html("s"))
    assert len(parsed.find("g", "key")) == len(curves)
    heights = [float(a["y"]) for a, _ in parsed.find("text", "point")]
    assert max(heights) <= min(ticks_up(parsed).values()) + 4


def test_names_are_moved_apart_and_stay_in_the_plot():
    moved = _apart([100.0, 98.0, 20.0, 101.0], Scale(0, 1, 104, 0))
    order = sorted(moved)
    assert all(b - a >= 14 for a, b in pairwise(order))
    assert max(moved) <= 104 and moved[2] == 20
    assert moved[1] < moved[0] < moved[3]


def test_more_curves_than_styles_are_named_beside_them(parse):
    curves = [Curve(f"p{i}", [0, 1], [0, i / 1000]) for i in range(20)]
    parsed = parse(section(*curves).html("s"))
    assert not parsed.find("g", "key") and len(parsed.find("text", "point")) == 20
    assert parsed.find("line", "lead")
    figure = section(*curves).figures()[0]
    assert all(0 < float(a["y"]) < figure.height for a, _ in parsed.find("text", "point"))


def test_long_curves_have_few_markers(parse):
    xs = list(range(500))
    assert 6 <= len(markers(parse(section(Curve("a", xs, xs)).html("s")))) <= 9


def test_diagonal_joins_equal_values(parse):
    curve = Curve("roc", [0.2, 0.6, 1], [0, 0.8, 1])
    parsed = parse(section(curve, diagonal=True, y_percent=True).html("s"))
    line = parsed.find("line", "chord")[0][0]
    up, across = ticks_up(parsed), ticks_across(parsed)
    assert [float(line[k]) for k in ("x1", "y1", "x2", "y2")] == [across[0.2], up[20], across[1], up[100]]


def test_numbers_are_there_as_a_table(parse):
    parsed = parse(section(Curve("a", [1, 2], [0.25, 0.5], [0.2, 0.4], [0.3, 0.6])).html("s"))
    assert [text for _, text in parsed.find("td")] == [
        "a",
        "1",
        "0.25",
        "0.2",
        "0.3",
        "a",
        "2",
        "0.5",
        "0.4",
        "0.6",
    ]


def test_logarithmic_values(parse):
    parsed = parse(section(Curve("a", [0, 1, 2], [1e-3, 1e-2, 1.0]), y_log=True).html("s"))
    heights = [y for _, y in markers(parsed)]
    assert heights[0] - heights[1] == pytest.approx((heights[1] - heights[2]) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurvesSection("T", [], "x", "y").html("s"), "has no curves"),
        (lambda: Curve("a", [0, 1], [1.0]), "2 x but 1 y"),
        (lambda: Curve("a", [0], [1.0], low=[0.0]), "only one of low and high"),
        (lambda: Curve("a", [0], [math.nan]), "no finite y"),
        (lambda: Curve("a", [math.inf], [1.0]), "x that is not finite"),
        (lambda: section(Curve("a", [-1, 1], [1, 2]), x_log=True).html("s"), "negative x"),
        (lambda: section(Curve("a", [0, 1], [0.0, 2]), y_log=True).html("s"), "0 or less"),
    ],
)
def test_data_that_makes_no_figure_is_refused(make, message):
    with pytest.raises(ReportError, match=message):
        make()


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [5.0, 5.0], [-3.0, -1.0], [1e-7, 2e-7], [0.97, 0.99], [1e6, 3e6]]
)
def test_any_range_of_values_fits_its_axis(values):
    low, high = nice_range(min(values), max(values))
    assert low <= min(values) and max(values) <= high and low < high
    section(Curve("a", [0, 1], values)).figures()


def test_tiny_numbers_on_axes_are_powers():
    assert [tick_text(value) for value in (0, 0.5, 1500, 1e-4, 5e-6)] == [
        "0",
        "0.5",
        "1,500",
        "10⁻⁴",
        "5·10⁻⁶",
    ]


def test_long_names_of_axes_take_lines_of_like_length():
    lines = label_lines("temperature of the swept tokens (all the others at 1)", 300)
    assert len(lines) == 2 and abs(len(lines[0]) - len(lines[1])) < 12
    label = "word " * 30
    short, tall = (
        section(Curve("a", [0], [1])).figures()[0],
        CurvesSection("T", [Curve("a", [0], [1])], label, "y").figures()[0],
    )
    assert tall.height > short.height and tall.body.count("word") == 30


def test_zero_of_a_linear_scale_is_its_own():
    assert Scale(0, 10, 0, 100)(0) == 0 and Scale(1, 10, 50, 100, log=True, zero=7)(0) == 7


def test_svg_file_may_carry_its_title(tmp_path):
    title = "Raising the temperature of forking tokens helps, raising the others' ruins the answer"
    one = CurvesSection(title, [Curve("a", [0, 1], [0, 1])], "x", "y")
    root = ET.fromstring(write_svg(one, tmp_path / "a.svg", heading=True).read_text(encoding="utf-8"))
    lines = [node.text for node in root.findall("{http://www.w3.org/2000/svg}text")]
    assert " ".join(lines) == title and len(lines) == 2
    figure = one.figures()[0]
    assert int(root.get("height")) == figure.height + 44
