import math

import pytest

from navtoken.report import BarsSection, ReportError


def rects(parsed):
    return [(float(a["x"]), float(a["width"])) for a, _ in parsed.find("rect", "bar")]


def test_lengths_are_the_values(parse):
    bars = [("a", 1.0, None, None), ("b", 4.0, None, None)]
    (left, short), (other, long) = rects(parse(BarsSection("T", bars, "y", "").html("s")))
    assert left == other and long == pytest.approx(4 * short, abs=0.1)


def test_negative_values_go_left_of_zero(parse):
    bars = [("down", -2.0, None, None), ("up", 2.0, None, None)]
    (down_left, down), (up_left, up) = rects(parse(BarsSection("T", bars, "y", "").html("s")))
    assert down_left + down == pytest.approx(up_left, abs=0.1) and down == pytest.approx(up, abs=0.1)


def test_error_bar_and_percent(parse):
    section = BarsSection("T", [("a", 0.5, 0.25, 0.75), ("b", 0.25, None, None)], "share", "", y_percent=True)
    parsed = parse(section.html("s"))
    assert len(parsed.find("path", "whisker")) == 1
    left, width = rects(parsed)[0]
    low, high = left + width / 2, left + width * 1.5
    path = parsed.find("path", "whisker")[0][0]["d"]
    assert float(path.split(",")[0][1:]) == pytest.approx(low, abs=0.1)
    assert float(path.split("H")[1].split("M")[0]) == pytest.approx(high, abs=0.1)
    assert [text for _, text in parsed.find("text", "value")] == ["50.0", "25.0"]
    assert "share (%)" in [text for _, text in parsed.find("text", "label")]


def test_long_names_stand_above_their_bars(parse):
    short, long = "high", "high entropy and divergent, as the labels say"
    beside = parse(BarsSection("T", [(short, 1.0, None, None)], "y", "").html("s"))
    above = parse(BarsSection("T", [(long, 1.0, None, None)], "y", "").html("s"))
    assert rects(beside)[0][0] > 30 and rects(above)[0][0] < 10
    name = next(a for a, text in above.find("text") if text == long)
    assert float(name["y"]) < float(above.find("rect", "bar")[0][0]["y"])


@pytest.mark.parametrize(("bars", "message"), [([], "no bars"), ([("a", math.nan, None, None)], "bar 'a'")])
def test_data_that_makes_no_figure_is_refused(bars, message):
    with pytest.raises(ReportError, match=message):
        BarsSection("T", bars, "y", "").html("s")
