"""The experiment's table says what its rows say, and names the share that a policy was asked for."""

import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest

from navtoken.evaluation import Table
from small_runs import few
from tiny_models import tiny_pair

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def routing():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import routing
    finally:
        sys.path.pop(0)
    # The tiny pair's context is too short for the third.
    routing.FAMILIES = ("arithmetic", "countdown")
    return routing


@pytest.fixture(scope="module")
def table(routing, tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("work")
    options = routing.Options(num=2, work=folder)
    policies = ("slm", "margin,share=0.5", "random:0.5", "speculative:2", "llm")
    with pytest.MonkeyPatch.context() as patch:
        small = few(task=routing.FAMILIES, num=2).engine
        patch.setattr(
            routing,
            "GenerationOptions",
            lambda **own: few(**own, max_tokens=6, engine=small, calibration_num=3),
        )
        made: Table = routing.table_of(options, "greedy", policies, 0.0, 1, tiny_pair())
    assert (folder / "greedy" / "index.html").exists()
    return made


def test_share_asked_for_is_read_from_the_reference(routing) -> None:
    assert routing.asked_share("router,share=0.13") == 0.13
    assert routing.asked_share("random:0.2") is None
    assert all(routing.asked_share(policy) for policy in routing.GREEDY if policy.startswith("router"))


def test_controls_were_run_near_every_share(routing) -> None:
    for policies in (routing.GREEDY, routing.SAMPLED):
        asked = max(routing.asked_share(policy) for policy in policies if policy.startswith("router"))
        for control, spelt in (("random", "random:{}"), ("entropy", "entropy,share={}")):
            shares = [
                share
                for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
                if spelt.format(share) in policies
            ]
            # Above what was asked too: the share that a router has may be larger.
            assert shares[-1] >= asked + 0.1 - 1e-6, control
            assert max(b - a for a, b in zip([0.0, *shares], shares, strict=False)) < 0.1 + 1e-6


def test_what_was_not_computed_is_a_dash(routing, table: Table) -> None:
    nothing = {"recovered": nan, "recovered_se": nan}
    rows = [row | nothing for row in table.rows]
    assert "nan" not in routing.rows_markdown(replace(table, rows=rows))
    assert routing.with_error({"a": 0.5, "a_se": 0.1}, "a", 1) == "50.0 ± 10.0"
    assert routing.with_error({"a": 0.5, "a_se": None}, "a", 0) == "50"
    assert routing.with_error({"a": None, "a_se": None}, "a", 0) == "–"


def test_shares_had_are_those_of_the_rows(routing, table: Table) -> None:
    asked = routing.asked_shares(table)
    assert {each["policy"] for each in asked} == {"margin,share=0.5"}
    assert [each["task"] for each in asked] == [*routing.FAMILIES, "mean"]
    rows = {row["task"]: row for row in table.rows if row["policy"] == "margin,share=0.5"}
    assert all(each["had"] == rows[each["task"]]["llm_share"] for each in asked)
    off = max(abs(each["had"] - 0.5) for each in asked if each["task"] != "mean")
    line = routing.shares_markdown({"greedy": table}).splitlines()[-1]
    assert line.startswith("| `margin,share=0.5` | greedy | 50 |") and line.endswith(f"| {100 * off:.1f} |")


def test_table_has_a_line_per_policy_and_a_cell_per_column(routing, table: Table) -> None:
    head, rule, *lines = routing.rows_markdown(table).splitlines()
    assert len(lines) == 5
    assert {line.count(" | ") for line in (head, *lines)} == {rule.count("---") - 1}
    assert table.verifying == {"speculative:2"}
    passes = [row["llm_passes_per_token"] for row in table.rows if row["policy"] == "speculative:2"]
    assert table.paired.passes["speculative:2"] == passes[-1]
    mean = next(row for row in table.rows if (row["policy"], row["task"]) == ("llm", "mean"))
    (line,) = [line for line in lines if line.startswith("| `llm`")]
    assert f"{100 * mean['accuracy']:.1f} ± {100 * mean['accuracy_se']:.1f}" in line
