import math

import pytest

from navtoken.report import ReportError, TokenRow, TokenTableSection
from navtoken.report.pieces import token_text

ROWS = [
    TokenRow(" wait", 120, 2.0, [("so ", "wait", ", 5"), ("\n", " wait", "\t"), ("a", " wait", "b")]),
    TokenRow("ing", 4000, 0.5),
    TokenRow("\n\n", 7, math.nan),
]


def test_rows_say_token_value_count_and_places(parse):
    parsed = parse(TokenTableSection("T", ROWS, "Words.").html("s"))
    assert [text for _, text in parsed.find("code")] == ["␣wait", "ing", "↵↵"]
    assert [text for _, text in parsed.find("td", "value")] == ["2.000", "0.500", "–"]
    assert [a["style"] for a, _ in parsed.find("i", "size")] == ["--v:1.000", "--v:0.250", "--v:0.000"]
    assert [text for _, text in parsed.find("td", "num")] == ["120 times", "4,000 times", "7 times"]
    assert [text for _, text in parsed.find("p", "context")] == ["so wait, 5", "↵ wait⇥", "a waitb"]
    assert [text for _, text in parsed.find("mark")] == ["wait", "wait", "wait"]


def test_first_place_is_open_and_the_others_are_folded(parse):
    parsed = parse(TokenTableSection("T", ROWS).html("s"))
    folded = "".join(text for _, text in parsed.find("details"))
    assert "2 more" in folded and "so wait" not in folded and "a waitb" in folded


def test_long_lists_are_folded_after_the_first_rows(parse):
    rows = [TokenRow(f"t{i}", 1, float(i)) for i in range(50)]
    parsed = parse(TokenTableSection("T", rows, num_shown=20).html("s"))
    folded = parsed.find("details", "more")
    assert len(folded) == 1 and "The other 30 tokens" in folded[0][1] and "t19" not in folded[0][1]
    assert [text for _, text in parsed.find("code")] == [f"t{i}" for i in range(50)]


def test_small_values_keep_their_order(parse):
    values = [0.5, 0.012, 0.0000213, 0.0]
    parsed = parse(TokenTableSection("T", [TokenRow(str(v), 1, v) for v in values]).html("s"))
    assert [text for _, text in parsed.find("td", "value")] == ["0.500", "0.012", "0.000021", "0"]


def test_no_column_for_places_where_there_are_none(parse):
    parsed = parse(
        TokenTableSection("T", [TokenRow("a", 1, 1.0)], value_label="rate", percent=True).html("s")
    )
    assert [text for _, text in parsed.find("th") if text != "a"] == ["token", "rate", "times"]
    assert parsed.find("td", "value")[0][1] == "100.0 %"


def test_no_tokens_are_refused():
    with pytest.raises(ReportError, match="no tokens"):
        TokenTableSection("T", []).html("s")


@pytest.mark.parametrize(
    ("token", "shown"), [(" a b ", "␣a b␣"), ("  ", "␣␣"), ("", "⟨⟩"), ("\n ", "↵␣"), ("x\u202e", "x\\u202E")]
)
def test_everything_invisible_in_a_token_is_spelled_out(token, shown):
    assert token_text(token) == shown
