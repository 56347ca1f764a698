import xml.etree.ElementTree as ET

import pytest

from navtoken.report import BarsSection, Curve, CurvesSection, PanelsSection, ReportError, write_svg

PANELS = [
    CurvesSection("One", [Curve("a", [0, 1], [0, 1])], "x", "y"),
    BarsSection("Two", [("a", 1.0, None, None)], "y", ""),
]


def test_each_panel_keeps_its_title_and_figure(parse):
    parsed = parse(PanelsSection("Both", PANELS, "Words.").html("s"))
    assert [text for _, text in parsed.find("h3")] == ["One", "Two"]
    assert len(parsed.find("svg", "figure")) == 2


def test_panels_are_one_picture(tmp_path):
    path = write_svg(PanelsSection("Both", PANELS), tmp_path / "a.svg", columns=2)
    assert (
        len(ET.fromstring(path.read_text(encoding="utf-8")).findall("{http://www.w3.org/2000/svg}svg")) == 2
    )


def test_no_panels_are_refused():
    with pytest.raises(ReportError, match="no panels"):
        PanelsSection("T", []).html("s")
