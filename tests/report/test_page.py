import re

import pytest

from navtoken.report import (
    BarsSection,
    CloudSection,
    Column,
    Curve,
    CurvesSection,
    HistogramSection,
    Page,
    PanelsSection,
    ScatterPoint,
    ScatterSection,
    TableSection,
    TextSection,
    TokenRow,
    TokenTableSection,
    TracesSection,
    build_page,
    render_page,
)

HOSTILE = """\" onfocus="alert(1)" x='</script></title><img src=x onerror="alert(1)">'&\udce2\0"""


@pytest.fixture
def page(make_trace, decode):
    sections = [
        TextSection("Text", "One.\n\nTwo."),
        TableSection(
            "Table", [Column("policy", "policy", "code"), Column("a", "a")], [{"policy": "slm", "a": 1}]
        ),
        HistogramSection.of("Entropies", {"sums": [0.0, 0.5, 1.5], "other": [0.1, 2.0]}),
        ScatterSection(
            "Scatter", {"sums": [ScatterPoint("slm", 0.0, 0.2, 0.03), ScatterPoint("llm", 1.0, 0.9)]}
        ),
        CurvesSection("Curves", [Curve("a", [0, 1], [0, 1]), Curve("b", [0, 1], [1, 1])], "x", "y"),
        PanelsSection("Panels", [BarsSection("Bars", [("a", 1.0, 0.5, 1.5)], "y", "")]),
        TokenTableSection("Tokens", [TokenRow(" so", 3, 1.5, [("a", " so", "b")])]),
        TracesSection("Traces", [make_trace(), make_trace(policy="slm", correct=False)], decode),
    ]
    return Page("Title", "Intro.", sections, {"git": "abc", "arguments": {"seed": 3}})


def test_page_is_well_formed_and_whole(page, parse):
    parsed = parse(render_page(page))
    assert [text for _, text in parsed.find("h2")] == [section.title for section in page.sections]
    assert [text for _, text in parsed.find("h1")] == ["Title"]
    assert {text for _, text in parsed.find("dt")} >= {"git", "arguments.seed"}
    ids = [attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"].removeprefix("#") for attributes, _ in parsed.find("a")}
    assert links <= set(ids) and len(links) == len(page.sections)


def test_page_asks_for_nothing_outside_itself(page, parse):
    html = render_page(page)
    for _, attributes, _ in parse(html).elements:
        assert not {"src", "srcset", "data", "action"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?:|url\(|@import|\bfetch\b|XMLHttpRequest|<link", html)
    assert "default-src 'none'" in parse(html).find("meta")[1][0]["content"]


def test_hostile_text_stays_text_everywhere(make_trace, parse):
    trace = make_trace(task=HOSTILE, problem_id=HOSTILE, prompt=HOSTILE, policy=HOSTILE)
    page = Page(
        HOSTILE,
        HOSTILE,
        [
            TextSection(HOSTILE, HOSTILE),
            TableSection(
                HOSTILE, [Column("k", HOSTILE, "code", help=HOSTILE)], [{"k": HOSTILE}], "k", HOSTILE
            ),
            HistogramSection.of(HOSTILE, {HOSTILE: [1.0], "b": [2.0]}, HOSTILE, HOSTILE),
            ScatterSection(
                HOSTILE, {HOSTILE: [ScatterPoint(HOSTILE, 0.1, 0.1, 0.1)]}, HOSTILE, HOSTILE, HOSTILE
            ),
            CurvesSection(
                HOSTILE, [Curve(HOSTILE, [0], [1]), Curve(HOSTILE, [0], [1])], HOSTILE, HOSTILE, HOSTILE
            ),
            PanelsSection(
                HOSTILE, [BarsSection(HOSTILE, [(HOSTILE, 1.0, None, None)], HOSTILE, HOSTILE)], HOSTILE
            ),
            TokenTableSection(HOSTILE, [TokenRow(HOSTILE, 1, 1.0, [(HOSTILE, HOSTILE, HOSTILE)])], HOSTILE),
            TracesSection(HOSTILE, [trace], lambda ids: HOSTILE * len(ids), HOSTILE),
        ],
        {HOSTILE: HOSTILE},
    )
    html = render_page(page)
    html.encode("utf-8")
    parsed = parse(html)
    assert "<img" not in html
    assert len(parsed.find("script")) == 2
    assert not any(name.startswith("on") for _, attributes, _ in parsed.elements for name in attributes)
    assert parsed.data()["responses"][0]["policy"] == HOSTILE


def test_hostile_words_of_a_cloud_stay_text(parse):
    pytest.importorskip("wordcloud")
    html = CloudSection(HOSTILE, [(HOSTILE, 1.0), ("<script>", 2.0)], HOSTILE).html("s")
    assert "<img" not in html and "<script" not in html
    parse(html)


def test_same_input_same_bytes_and_no_half_file(page, tmp_path):
    first, second = build_page(page, tmp_path / "new" / "a.html"), build_page(page, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.html", "b.html"]


def test_failure_keeps_the_old_page(page, tmp_path, monkeypatch):
    path = build_page(page, tmp_path / "a.html")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        build_page(Page("Other", "", []), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
