import math

import numpy as np
import pytest

from navtoken.report import ReportError, TracesSection
from navtoken.report.shading import Shading


@pytest.fixture
def show(decode, parse):
    return lambda *traces, **options: parse(TracesSection("T", traces, decode, **options).html("s"))


def llm_only(make_trace, **columns):
    return make_trace(policy="llm", writer=[1] * 5, columns={k: np.asarray(v) for k, v in columns.items()})


def forks(parsed):
    return ["fork" in a["class"].split() for a, _ in parsed.find("span", "t") if "tabindex" in a]


ENTROPIES = np.array([0.0, 0.7, 0.2, 1.4, math.nan], np.float32)


def test_tokens_beyond_the_line_stand_out(show, make_trace):
    parsed = show(llm_only(make_trace, entropy_llm=ENTROPIES), lines={"entropy_llm": 0.7})
    # 0.7 in single precision is below 0.7.
    assert forks(parsed) == [False, False, False, True, False]
    parsed = show(llm_only(make_trace, entropy_llm=ENTROPIES), lines={"entropy": 0.69})
    assert forks(parsed) == [False, True, False, True, False]
    assert "lined" in parsed.find("div", "viewer")[0][0]["class"].split()
    assert "at least 0.69" in parsed.find("span", "line-words")[0][1]


def test_small_margins_stand_out(show, make_trace):
    trace = llm_only(make_trace, entropy_llm=ENTROPIES, margin_llm=[1.0, 0.05, 0.6, 0.2, math.nan])
    parsed = show(trace, shade="margin_llm", lines={"margin_llm": 0.1})
    assert forks(parsed) == [False, True, False, False, False]
    styles = [a.get("style") for a, _ in parsed.find("span", "t") if "tabindex" in a]
    assert styles == [None, "--e:0.95", "--e:0.40", "--e:0.80", None]
    data = parsed.data()
    assert data["inverted"] == ["margin_llm"] and data["lines"] == {"margin_llm": 0.1}


def test_every_number_per_token_can_be_chosen(show, make_trace):
    columns = {
        "entropy_slm": ENTROPIES, "entropy_llm": ENTROPIES, "logprob_llm": [-1.0] * 5, "p_divergent": [0.5] * 5,
        "label": [0, 1, 2, -1, 0], "margin_slm": [0.5] * 5, "differs": [True, False, True, False, False],
    }  # fmt: skip
    parsed = show(llm_only(make_trace, **columns), shade="label")
    options = {
        a["value"]: "selected" in a for a, _ in parsed.find("option") if a["value"] in {"entropy", *columns}
    }
    assert options.keys() == {"entropy", *columns}
    assert [name for name, selected in options.items() if selected] == ["label"]
    assert parsed.data()["responses"][0]["columns"]["differs"] == [1, 0, 1, 0, 0]


def test_classes_are_shaded_by_their_own_range(show, make_trace):
    parsed = show(llm_only(make_trace, label=np.array([0, 1, 0, 0, 0], np.int8)), shade="label")
    styles = [a.get("style") for a, _ in parsed.find("span", "t") if "tabindex" in a]
    assert styles == [None, "--e:0.50", None, None, None]
    assert parsed.find("span", "to")[0][1] == "divergent: label"


def test_one_entropy_is_offered_once(show, make_trace):
    parsed = show(llm_only(make_trace, entropy_llm=ENTROPIES, logprob_llm=[-1.0] * 5))
    options = [a["value"] for a, _ in parsed.find("option")]
    assert "entropy_llm" in options and "entropy" not in options


def test_page_opens_with_what_there_is(show, make_trace):
    parsed = show(llm_only(make_trace, p_divergent=[0.0, 0.5, 0, 0, 0]))
    styles = [a.get("style") for a, _ in parsed.find("span", "t") if "tabindex" in a]
    assert styles == [None, "--e:0.50", None, None, None]
    assert len(show(llm_only(make_trace)).find("p", "tokens")) == 1


def test_unknown_column_is_refused(show, make_trace):
    with pytest.raises(ReportError, match="no trace has a column 'margin'.*entropy_llm"):
        show(llm_only(make_trace, entropy_llm=ENTROPIES), shade="margin")


def test_writers_are_explained_only_where_there_are_two(show, make_trace):
    alone, both = show(llm_only(make_trace, entropy_llm=ENTROPIES)), show(make_trace())
    assert "one-writer" in alone.find("div", "viewer")[0][0]["class"]
    assert "written by the SLM" not in alone.find("ul", "legend")[0][1]
    assert "one-writer" not in both.find("div", "viewer")[0][0]["class"]
    assert "written by the SLM" in both.find("ul", "legend")[0][1]


def test_samples_of_one_policy_are_told_apart(show, make_trace):
    parsed = show(make_trace(), make_trace(sample=1), make_trace(policy="slm"))
    assert [text for _, text in parsed.find("h4")] == [
        "entropy:0.67, sample 1",
        "entropy:0.67, sample 2",
        "slm",
    ]


def test_entropy_of_the_slm_computed_afterwards_is_no_draft(show, make_trace):
    slm = np.array([2.0] * 5, np.float32)
    scored = show(llm_only(make_trace, entropy_llm=ENTROPIES, entropy_slm=slm)).data()["responses"][0]
    assert scored["drafted"] == [0] * 5
    assert scored["columns"]["entropy"] == [pytest.approx(x) for x in (0, 0.7, 0.2, 1.4)] + [2.0]
    drafted = show(make_trace()).data()["responses"][0]
    assert drafted["drafted"] == [1] * 5 and drafted["columns"]["entropy"][4] == 1.25


def test_strength_is_between_0_and_1():
    assert [Shading("logprob_llm", 4.0).strength(v) for v in (0.0, -2.0, -9.0, math.nan)] == [0, 0.5, 1, 0]
    assert [Shading("margin", 1.0).strength(v) for v in (0.0, 0.25, 1.0)] == [1, 0.75, 0]
