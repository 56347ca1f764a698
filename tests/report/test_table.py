import math

import numpy as np
import pytest

from navtoken.report import Column, ReportError, TableSection

ROWS = [
    {"task": "sums", "policy": "slm", "accuracy": 0.21, "se": 0.0288, "tokens": 1234567},
    {"task": "sums", "policy": "llm", "accuracy": np.float32(0.875), "se": None, "tokens": 0},
    {"task": "knights", "policy": "slm", "accuracy": math.nan, "tokens": None},
]
COLUMNS = [
    Column("policy", "policy", "code"),
    Column("accuracy", "accuracy (%)", "percent", error="se", bar=True, help="right answers"),
    Column("tokens", "tokens", "count"),
]


def test_numbers_are_those_given(parse):
    cells = parse(TableSection("T", COLUMNS, ROWS).html("s")).find("td")
    assert [text for _, text in cells] == ["21.0 ± 2.9", "1,234,567", "87.5", "0", "–", "–"]
    assert [attributes.get("data-value") for attributes, _ in cells] == [
        "0.21",
        "1234567",
        "0.875",
        "0",
        "nan",
        None,
    ]
    assert all("num" in attributes["class"].split() for attributes, _ in cells)


def test_rows_stand_under_their_group(parse):
    parsed = parse(TableSection("T", COLUMNS, ROWS, group_by="task").html("s"))
    assert [text for attributes, text in parsed.find("th") if attributes["scope"] == "rowgroup"] == [
        "sums",
        "knights",
    ]
    assert len(parsed.find("tbody")) == 2


def test_text_in_a_number_column_is_refused():
    with pytest.raises(ReportError, match="'accuracy' holds 'high'"):
        TableSection("T", COLUMNS, [{"policy": "slm", "accuracy": "high"}]).html("s")


def test_table_without_columns_is_refused():
    with pytest.raises(ReportError, match="no columns"):
        TableSection("T", [], ROWS).html("s")


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (1_171_968, "1.17 M"),
        (37_728, "37.7 k"),
        (999_900, "1 M"),
        (0, "0"),
        (0.25, "0.25"),
        (5.6e9, "5.6 G"),
        (math.nan, "–"),
    ],
)
def test_large_numbers_are_shown_in_three_digits(number, shown):
    assert Column("x", "x", "metric").show(number) == shown
