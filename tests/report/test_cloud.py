import importlib
from itertools import combinations

import pytest

from navtoken.report import CloudSection, ReportError
from navtoken.report.cloud import _HEIGHT, _RANGE, _WIDTH, _labels

WORDS = [(f" word{i}" if i % 2 else f"piece{i}", 2.0 - i / 30) for i in range(40)]


def drawn(parsed):
    """Word, left, baseline, size and width of each."""
    keys = ("x", "y", "font-size", "textlength")
    return [(text, *(float(a[key]) for key in keys)) for a, text in parsed.find("text")]


@pytest.fixture
def package():
    return pytest.importorskip("wordcloud")


def test_every_word_is_there_and_larger_weights_are_larger(parse, package):
    words = drawn(parse(CloudSection("T", WORDS).html("s")))
    sizes = {text: size for text, _, _, size, _ in words}
    assert sizes.keys() == {token.strip() for token, _ in WORDS}
    ordered = [sizes[token.strip()] for token, _ in WORDS]
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[-1] / ordered[0] == pytest.approx(_RANGE, abs=0.08)


def test_words_lie_inside_and_do_not_cover_each_other(parse, package):
    words = drawn(parse(CloudSection("T", WORDS).html("s")))
    # From the top of small letters to the baseline: what every word inks.
    boxes = [(x, y - 0.5 * size, x + width, y) for _, x, y, size, width in words]
    assert all(a >= -1 and b >= 0 and c <= _WIDTH + 1 and d <= _HEIGHT for a, b, c, d in boxes)
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1


def test_lowest_entropies_make_a_cloud_by_their_negatives(parse, package):
    low = [("sure", -0.0001), ("likely", -0.01), ("open", -1.0)]
    sizes = {text: size for text, _, _, size, _ in drawn(parse(CloudSection("T", low).html("s")))}
    assert sizes["sure"] >= sizes["likely"] > sizes["open"]


def test_same_words_same_picture(package):
    assert CloudSection("T", WORDS).html("s") == CloudSection("T", list(WORDS)).html("s")


def test_words_that_do_not_fit_are_counted(parse, package):
    words = [(f"{i}{'long' * 5}", 1.0) for i in range(150)]
    parsed = parse(CloudSection("T", words).html("s"))
    left_out = 150 - len(parsed.find("text"))
    assert left_out > 0 and parsed.find("figcaption")[0][1] == f"{left_out} more did not fit."


def test_space_is_shown_only_where_it_tells_words_apart():
    assert _labels([" wait", " so", "so", " ", "\n"]) == ["wait", "␣so", "so", "␣", "↵"]


def test_missing_package_is_named(monkeypatch):
    def refuse(name):
        raise ImportError("No module named 'wordcloud'")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ReportError, match="pip install wordcloud"):
        CloudSection("T", [("never laid out before", 1.0)]).html("s")


@pytest.mark.parametrize(("words", "message"), [([], "no words"), ([("a", float("nan"))], "weight of 'a'")])
def test_data_that_makes_no_figure_is_refused(words, message):
    with pytest.raises(ReportError, match=message):
        CloudSection("T", words).html("s")
