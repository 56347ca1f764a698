import math

import numpy as np
import pytest

from navtoken.report import ReportError, TracesSection


@pytest.fixture
def show(decode, parse):
    return lambda *traces, **options: parse(TracesSection("T", traces, decode, **options).html("s"))


def tokens_of(parsed):
    """Spans inside responses: the legend's examples have no tabindex."""
    return [(a, text) for a, text in parsed.find("span", "t") if "tabindex" in a]


def test_every_token_shows_writer_entropy_and_replaced_draft(show, make_trace):
    parsed = show(make_trace())
    spans = tokens_of(parsed)
    assert [text for _, text in spans] == ["7", " +", " 5", " =", "␣13 12"]
    assert [a["class"].split()[1] for a, _ in spans] == ["slm", "slm", "slm", "slm", "llm"]
    scale = parsed.data()["scales"]["entropy"]
    assert [a.get("style") for a, _ in spans][:3] == [None, "--e:0.02", f"--e:{0.5 / scale:.2f}"]
    assert (
        parsed.find("p", "facts")[0][1] == "5 tokens, 1 by the LLM (20.0 %), 1 of them unlike the SLM's draft"
    )


def test_data_behind_the_card_is_the_trace(show, make_trace):
    data = show(make_trace(), num_alternatives=2).data()
    response = data["responses"][0]
    assert [data["texts"][i] for i in response["tokens"]] == ["7", "␣+", "␣5", "␣=", "␣12"]
    assert response["writer"] == [0, 0, 0, 0, 1]
    assert [i if i < 0 else data["texts"][i] for i in response["drafts"]] == [-1, -1, -1, -1, "␣13"]
    assert response["columns"]["entropy_slm"] == pytest.approx([0, 0.02, 0.5, 0.001, 1.25])
    assert response["columns"]["entropy_llm"] == [None] * 4 + [0.125]
    names = [(data["texts"][i], p, written, draft) for i, p, written, draft in response["alternatives"][4]]
    assert names == [("␣12", 0.75, 1, 0), ("␣13", 0.2, 0, 1)]


def test_token_that_closes_a_script_stays_inert(decode, make_trace, parse):
    html = TracesSection("T", [make_trace(response_ids=[8, 8, 0, 3, 4])], decode).html("s")
    assert "</script><b>" not in html
    parsed = parse(html)
    assert not parsed.find("b") and len(parsed.find("script")) == 1
    assert parsed.data()["texts"][0] == "</script><b>"
    assert tokens_of(parsed)[0][1] == "</script><b>"


def test_white_space_and_empty_tokens_can_be_seen(show, make_trace):
    parsed = show(make_trace(response_ids=[6, 7, 9, 11, 10], columns={}))
    spans = tokens_of(parsed)
    assert [text for _, text in spans] == ["↵\n", " ", "⇥", "⟨11⟩", "wait"]
    assert ["sp" in a["class"].split() for a, _ in spans] == [False, True, False, False, False]


def test_entropy_falls_back_to_the_llm_and_missing_is_null(show, make_trace):
    nothing = np.full(5, np.nan, np.float32)
    columns = {"entropy_slm": nothing, "entropy_llm": np.array([0.25, 1, 0, 0, math.nan], np.float32)}
    data = show(make_trace(policy="llm", writer=[1] * 5, columns=columns)).data()
    assert data["responses"][0]["columns"]["entropy"] == [0.25, 1, 0, 0, None]
    assert "entropy_slm" not in data["names"]


def test_integer_columns_know_minus_one_as_missing(show, make_trace):
    data = show(make_trace(columns={"label": np.array([0, 0, 2, -1, 1], np.int8)})).data()
    assert data["responses"][0]["columns"]["label"] == [0, 0, 2, None, 1]
    assert data["classes"]["label"][2] == "divergent"


def test_answers_to_one_problem_stand_side_by_side(show, make_trace):
    right, other = make_trace(), make_trace(problem_id="p2")
    wrong = make_trace(policy="slm", correct=False, response_ids=[0, 1, 2, 3, 5])
    parsed = show(right, other, wrong)
    problems = parsed.find("article", "problem")
    assert len(problems) == 2
    assert ["data-split" in a for a, _ in problems] == [True, False]
    responses = [(a["data-policy"], a["data-outcome"]) for a, _ in parsed.find("section", "response")]
    assert responses == [("entropy:0.67", "right"), ("slm", "wrong"), ("entropy:0.67", "right")]
    assert [r["policy"] for r in parsed.data()["responses"]] == ["entropy:0.67", "slm", "entropy:0.67"]


@pytest.mark.parametrize(
    ("wrong_ids", "before"),
    [([0, 1, 2, 3, 5], 4), ([0, 2, 2, 3, 4], 1), ([5, 1, 2, 3, 4], 0), ([0, 1, 2, 3, 4], None)],
)
def test_wrong_response_is_marked_where_it_departs(show, make_trace, wrong_ids, before):
    wrong = make_trace(policy="slm", correct=False, response_ids=wrong_ids, columns={})
    parsed = show(make_trace(response_ids=[2, 1, 2, 3, 4], policy="random"), make_trace(columns={}), wrong)
    spans = [(a, t) for a, t in parsed.find("span") if "tabindex" in a or "title" in a]
    marks = [index for index, (attributes, _) in enumerate(spans) if "title" in attributes]
    assert marks == ([] if before is None else [10 + before])


def test_long_response_is_cut_and_says_so(show, make_trace):
    parsed = show(make_trace(), max_tokens=2)
    assert len(tokens_of(parsed)) == 2
    facts = [text for _, text in parsed.find("p", "facts")]
    assert facts[0].startswith("5 tokens, 1 by the LLM (20.0 %)") and facts[1] == "… 3 more tokens not shown"


def test_each_response_is_one_tab_stop(show, make_trace):
    spans = tokens_of(show(make_trace(), make_trace(problem_id="p2")))
    assert [a["tabindex"] for a, _ in spans] == ["0", "-1", "-1", "-1", "-1"] * 2


def test_empty_response_is_shown(show, make_trace):
    trace = make_trace(writer=[], columns={}, finish_reason="abort")
    trace.response_ids = []
    assert show(trace).find("p", "facts")[0][1] == "0 tokens, aborted"


def test_column_of_another_length_is_refused(decode, make_trace):
    with pytest.raises(ReportError, match=r"column 'entropy_slm' has 3 values for 5 tokens"):
        TracesSection("T", [make_trace(columns={"entropy_slm": [0.0] * 3})], decode).html("s")


def test_no_traces_is_refused(decode):
    with pytest.raises(ReportError, match="no traces"):
        TracesSection("T", [], decode).html("s")
