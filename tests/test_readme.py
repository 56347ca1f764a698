"""Figures in the README are those of the committed results."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "embedded_pair"
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "benchmarks")]

import embedded_pair
import rlvr_report
import routing

import summary


def test_the_table_is_the_committed_one():
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- experiments/embedded_pair/table.md -->\n(.*?)<!-- end -->", readme, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == (RESULTS / "table.md").read_text().strip()


def test_the_committed_table_follows_from_the_committed_rows():
    rows = json.loads((RESULTS / "table.json").read_text())["rows"]
    assert embedded_pair.markdown(rows) == (RESULTS / "table.md").read_text()


def test_the_rows_of_the_routing_table_are_the_committed_ones():
    shown = re.search(
        r"<!-- experiments/routing/readme.md -->\n(.*?)<!-- end -->",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert shown is not None
    result = json.loads((ROOT / "experiments" / "routing" / "table.json").read_text())
    table = routing.readme_markdown(result["greedy"]["rows"])
    assert (
        shown[1].strip()
        == table.strip()
        == (ROOT / "experiments" / "routing" / "readme.md").read_text().strip()
    )
    assert len(table.splitlines()) == 2 + len(routing.IN_README)


def test_routers_give_the_share_that_they_are_asked_for_and_most_of_the_gap() -> None:
    """The bars of routing, on the committed table: 750 test problems, means over the families."""
    result = json.loads((ROOT / "experiments" / "routing" / "table.json").read_text())
    for sampling in ("greedy", "sampled"):
        asked = [
            each
            for each in result[sampling]["asked"]
            if each["policy"].startswith("router") and each["task"] == "mean"
        ]
        assert len(asked) >= 4
        assert all(abs(each["had"] - each["asked"]) <= 0.02 for each in asked), asked
    means = [row for row in result["greedy"]["rows"] if row["task"] == "mean" and row["num_problems"] >= 600]
    routers = [row for row in means if row["policy"].startswith("router") and row["llm_share"] <= 0.2]
    assert max(row["recovered"] for row in routers) >= 0.8
    against = [each for each in result["greedy"]["comparisons"] if each["policy"].startswith("router")]
    assert {each["control"] for each in against} == {"random", "entropy"}
    assert all(each["difference"] > 2 * each["error"] for each in against)


def test_the_arms_of_training_are_the_committed_runs() -> None:
    folder = ROOT / "experiments" / "rlvr"
    runs = [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))]
    (base,) = [run for run in runs if run["name"] == "base"]
    arms = rlvr_report.by_arm([run for run in runs if run["name"].split("_")[0] not in ("base", "tune")])
    table = rlvr_report.readme_markdown(arms, base)
    assert table == (folder / "readme.md").read_text()
    shown = re.search(
        r"<!-- experiments/rlvr/readme.md -->\n(.*?)<!-- end -->", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert shown is not None
    assert shown[1].strip() == table.strip()
    assert all(len(arms[arm]) >= 3 for arm in rlvr_report.FOUR)


def test_speeds_are_those_of_the_committed_results():
    table = summary.markdown(summary.committed())
    assert table == (summary.RESULTS / "summary.md").read_text()
    shown = re.search(
        r"<!-- benchmarks/results/summary.md -->\n(.*?)<!-- end -->",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert shown is not None
    assert shown[1].strip() == table.strip()


def test_links_lead_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_what_it_says_of_the_two_definitions_is_the_committed_comparison() -> None:
    """Forking tokens of the LLM, and where SLM and LLM differ."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    agreements = json.loads((ROOT / "experiments" / "definitions" / "compare.json").read_text())["agreements"]
    (overlap,) = [
        each["overlap"]
        for each in agreements
        if (each["found"], each["wanted"]) == ("forking_llm", "differs")
    ]
    jaccard = re.search(r"mostly other tokens than these \(Jaccard ([\d.]+)\)", readme)
    differ = re.search(r"of the forking tokens (\d+) % differ", readme)
    assert jaccard is not None and float(jaccard[1]) == round(overlap["jaccard"]["value"], 2)
    assert differ is not None and int(differ[1]) == round(100 * overlap["precision"]["value"])
