import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest

from navtoken.report import (
    EntropyHistogram,
    HistogramSection,
    ReportError,
    ScatterPoint,
    ScatterSection,
    write_svg,
)
from navtoken.report.figure import Scale, linear_ticks, log_ticks
from navtoken.report.histogram import nice_edges

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [
    ScatterPoint("slm", 0.0, 0.2, 0.02),
    ScatterPoint("entropy:0.67", 0.1, 0.4, 0.03),
    ScatterPoint("entropy:0.3", 0.3, 0.6, 0.03),
    ScatterPoint("llm", 1.0, 0.9, 0.02),
]


@pytest.fixture
def entropies():
    rng = np.random.default_rng(0)
    return np.where(rng.random(5000) < 0.3, rng.gamma(2.0, 0.5, 5000), rng.exponential(0.004, 5000))


def test_bins_hold_every_token_with_an_entropy(entropies, parse):
    values = np.concatenate([entropies, [np.nan] * 7, [-1e-9]])
    histogram = EntropyHistogram.of("sums", values)
    assert histogram.total == 5001 and histogram.missing == 7
    bars = parse(histogram.figure().html()).find("rect", "bar")
    assert sum(int(attributes["data-count"]) for attributes, _ in bars) == 5001


def test_line_and_share_are_those_of_the_values(entropies):
    histogram = EntropyHistogram.of("sums", entropies)
    assert (entropies <= histogram.line).mean() == pytest.approx(0.8, abs=1e-3)
    assert histogram.low_share == (entropies < 0.01).mean()
    assert f"{100 * histogram.low_share:.1f} % are under 0.01 nats" in histogram.summary


def test_panels_share_edges_and_sum_to_the_pool(entropies, parse):
    section = HistogramSection.of("T", {"a": entropies[:1000], "b": entropies[1000:]})
    assert sum(panel.total for panel in section.panels) == section.pooled.total == 5000
    assert all(list(panel.edges) == list(section.pooled.edges) for panel in section.panels)
    parsed = parse(section.html("s"))
    assert section.pooled.summary in parsed.find("figcaption")[0][1]
    cells = [text for _, text in parsed.find("td")]
    assert sum(int(cell.replace(",", "")) for cell in cells[2::3]) == 5000


@pytest.mark.parametrize("high", [0.0, 0.01, 0.3, 1.0, 2.999, 11.93])
def test_edges_cover_the_values(high):
    edges = nice_edges(high)
    assert edges[0] == 0 and edges[-1] >= high and len(edges) <= 42
    assert EntropyHistogram.of("x", [0.0, high]).total == 2


def test_logarithmic_axis_shows_single_tokens():
    scale = Scale(0.6, 1000, 300, 0, log=True)
    steps = [scale(10**power) - scale(10 ** (power + 1)) for power in range(3)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.05)
    assert scale(1) < 300
    assert log_ticks(1, 1000) == [1, 10, 100, 1000]
    assert linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EntropyHistogram.of("sums", [np.nan]), "no token with an entropy"),
        (lambda: EntropyHistogram.of("sums", [3.0], edges=[0, 1, 2]), "entropies reach 3"),
        (lambda: EntropyHistogram("sums", [0, 1], [1, 2], 0.5, 0.5), "need 3 edges"),
        (lambda: HistogramSection.of("T", {}), "no token with an entropy"),
        (lambda: ScatterSection("T", {"sums": []}).html("s"), "no points"),
        (lambda: ScatterSection("T", {}).html("s"), "no panels"),
    ],
)
def test_data_that_makes_no_figure_is_refused(make, message):
    with pytest.raises(ReportError, match=message):
        make()


def test_points_lie_where_their_numbers_say(parse):
    html = ScatterSection("T", {"sums": POINTS}).html("s")
    groups = [attributes for attributes, _ in parse(html).find("g")]
    assert [(float(g["data-x"]), float(g["data-y"])) for g in groups] == [(p.x, p.y) for p in POINTS]
    places = [tuple(map(float, place)) for place in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", html)]
    ticks = {
        text: float(a["y"]) - 4 for a, text in parse(html).find("text", "tick") if a["text-anchor"] == "end"
    }
    assert places[0][1] == pytest.approx(ticks["20"]) and places[1][1] == pytest.approx(ticks["40"])
    across, up = [x for x, _ in places], [y for _, y in places]
    assert across == sorted(across) and up == sorted(up, reverse=True)
    assert (across[1] - across[0]) / (across[3] - across[0]) == pytest.approx(0.1, abs=1e-3)
    assert (up[0] - up[1]) / (up[0] - up[3]) == pytest.approx(2 / 7, abs=1e-3)


def test_one_series_is_joined_and_has_its_own_marker():
    html = ScatterSection("T", {"sums": POINTS}).html("s")
    assert html.count('class="curve') == 1
    assert len(set(re.findall(r'<path d="([^"]+)" class="marker"', html))) == 3


def test_labels_do_not_cover_each_other(parse):
    crowd = [ScatterPoint(f"policy{i}", 0.13 + i / 1000, 0.5 + i / 500) for i in range(6)]
    labels = parse(ScatterSection("T", {"sums": crowd}).html("s")).find("text", "point")
    boxes = [(float(a["x"]), float(a["y"]), 7 * len(text)) for a, text in labels]
    assert len(boxes) == 6
    for (x, y, width), (other_x, other_y, other_width) in combinations(boxes, 2):
        assert abs(y - other_y) >= 12 or x + width <= other_x or other_x + other_width <= x


@pytest.mark.parametrize(("points", "chord"), [(POINTS, True), (POINTS[1:3], False)])
def test_note_explains_only_what_is_drawn(parse, points, chord):
    parsed = parse(ScatterSection("T", {"sums": points}).html("s"))
    assert bool(parsed.find("line", "chord")) == ("Dotted" in parsed.find("p")[0][1]) == chord


def test_svg_file_stands_alone(tmp_path):
    section = ScatterSection("Accuracy & share", {name: POINTS for name in ("a", "b", "c", "d")})
    path = write_svg(section, tmp_path / "picture.svg", columns=2)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    assert len(root.findall(f"{SVG}svg")) == 4
    assert (root.get("width"), root.get("height")) == ("880", "660")
    assert "prefers-color-scheme: dark" in root.findtext(f"{SVG}style")
    assert path.read_bytes() == write_svg(section, tmp_path / "again.svg", columns=2).read_bytes()
