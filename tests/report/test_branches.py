"""Both continuations at a place where SLM and LLM part: in the list, in the viewer's data, and what stands out there."""

import numpy as np
import pytest

from navtoken.report import Branch, BranchesSection, BranchRow, ReportError, TracesSection
from navtoken.report.pieces import Pieces
from navtoken.report.tokens import MOST_IN_BRANCH, branch_at

# The LLM wrote `7 + 5 = 12`; the SLM would have begun with 5, and ended in 13.
BRANCHES = np.array([[-1] * 3] * 4 + [[5, 6, 10]], np.int32)
BRANCHES[0] = [2, 3, -1]
LABELS = np.array([1, 0, 0, 3, 2], np.int8)


@pytest.fixture
def labelled(make_trace):
    columns = {
        "label": LABELS,
        "draft_ids": np.array([2, 1, 2, 7, 5], np.int32),
        "entropy_slm": np.array([0.5, 0.0, 0.0, 0.1, 1.5], np.float32),
        "continuation_ids": BRANCHES,
    }
    return make_trace(policy="llm", writer=[1] * 5, columns=columns)


def test_branch_is_the_drafts_and_the_llms_own(labelled, decode):
    branch = branch_at(labelled, 4, Pieces(decode))
    assert branch == Branch(" 12", "", " 13", "↵wait")
    assert branch_at(labelled, 0, Pieces(decode)) == Branch("7", " +", " 5", " =")
    assert branch_at(labelled, 0, Pieces(decode), lambda trace, position: 3) == Branch(
        "7", " + 5", " 5", " ="
    )
    assert branch_at(labelled, 1, Pieces(decode)) is None
    assert branch_at(labelled, 0, Pieces(decode), lambda trace, position: position) == Branch(
        "7", "", " 5", " ="
    )


def test_long_branch_is_cut_and_says_so(labelled, decode):
    labelled.columns["continuation_ids"] = np.full((5, MOST_IN_BRANCH + 3), 10, np.int32)
    branch = branch_at(labelled, 0, Pieces(decode))
    assert branch.slm_rest == "wait" * (MOST_IN_BRANCH - 1) + " …"
    assert "…" not in branch.llm_rest


def test_viewer_holds_both_continuations(labelled, decode, parse):
    section = TracesSection("T", [labelled], decode, shade="label", lines={"label": 2.0})
    parsed = parse(section.html("s"))
    (response,) = parsed.data()["responses"]
    assert response["branches"] == {"0": ["7", " +", " 5", " ="], "4": [" 12", "", " 13", "↵wait"]}
    assert response["labelled"] == 1
    assert parsed.find("p", "facts")[0][1] == (
        "5 tokens, 3 of them unlike the SLM's draft, 1 neutral, 1 divergent, 1 invalid"
    )


def test_divergent_tokens_stand_out_and_invalid_ones_do_not(labelled, decode, parse):
    section = TracesSection("T", [labelled], decode, shade="label", lines={"label": 2.0})
    parsed = parse(section.html("s"))
    spans = [a for a, _ in parsed.find("span", "t") if "tabindex" in a]
    assert ["fork" in a["class"].split() for a in spans] == [False, False, False, False, True]
    assert [a.get("style") for a in spans] == ["--e:0.50", None, None, None, "--e:1.00"]
    assert parsed.data()["voids"] == {"label": 3}
    assert "divergent tokens" in parsed.find("span", "line-words")[0][1]
    assert parsed.find("span", "to")[0][1].startswith("divergent")


def test_drafts_of_an_slm_that_reads_along_are_explained(labelled, make_trace, decode, parse):
    along = parse(TracesSection("T", [labelled], decode).html("s"))
    legend = " ".join(text for _, text in along.find("ul", "legend"))
    assert "would have written" in legend
    (box,) = [a for a, text in along.find("label") if "SLM's drafts" in text]
    assert "hidden" not in box
    routed = parse(TracesSection("T", [make_trace()], decode).html("s"))
    assert "would have written" not in " ".join(text for _, text in routed.find("ul", "legend"))


def test_traces_without_labels_have_no_branches(make_trace, decode, parse):
    (response,) = parse(TracesSection("T", [make_trace()], decode).html("s")).data()["responses"]
    assert response["branches"] == {} and response["labelled"] == 0


def test_places_stand_one_after_the_other(parse):
    rows = [BranchRow(f"so{i} ", Branch("<b>7", " = 7↵", " 5", " = 5"), f"fact {i}") for i in range(5)]
    html = BranchesSection("T", rows, "Is it right?", num_shown=3).html("s")
    parsed = parse(html)
    assert len(parsed.find("article", "branch")) == 5
    assert "2 more" in parsed.find("summary")[0][1]
    assert not parsed.find("b")
    sides = [text for _, text in parsed.find("p", "context")][:3]
    assert sides == ["so0 ", "<b>7 = 7↵", " 5 = 5"]
    assert [text for _, text in parsed.find("mark")][:2] == ["<b>7", " 5"]


def test_no_places_are_refused():
    with pytest.raises(ReportError, match="no places"):
        BranchesSection("T", []).html("s")
