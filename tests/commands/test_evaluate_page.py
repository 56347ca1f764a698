"""What the page of an evaluation says and draws, from rows made by hand and from a run."""

import json
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from navtoken.cli import main
from navtoken.commands import evaluate_page
from navtoken.commands.show import print_costs, print_rows
from navtoken.evaluation import Paired, Table
from small_runs import saved_pair

Capture = pytest.CaptureFixture[str]
NUM = 200
CHANCES = {
    "slm": (0.0, 0.3),
    "random:0.1": (0.1, 0.36),
    "random:0.3": (0.3, 0.48),
    "entropy,share=0.2": (0.2, 0.5),
    "router,share=0.2": (0.2, 0.85),
    "llm-prob:0.1": (0.08, 0.88),
    "llm": (1.0, 0.9),
}
"""LLM share and chance to be right."""


def table(tasks: tuple[str, ...] = ("countdown", "knights"), chances: Any = CHANCES) -> Table:
    """Policies that are right by chance, on the same problems."""
    rng = np.random.default_rng(0)
    luck = {task: rng.random(NUM) for task in tasks}
    scores = {
        policy: {task: {str(i): float(u < chance) for i, u in enumerate(luck[task])} for task in tasks}
        for policy, (_, chance) in chances.items()
    }
    paired = Paired(scores, {policy: share for policy, (share, _) in chances.items()})
    rows = []
    for policy, (share, _) in chances.items():
        for task in (*tasks, "mean") if len(tasks) > 1 else tasks:
            own = None if task == "mean" else task
            accuracy = paired.contrast({policy: 1.0}, own)
            recovered = paired.recovered(policy, own)
            rows.append(
                {
                    "policy": policy, "task": task, "threshold": None,
                    "accuracy": accuracy.value, "accuracy_se": accuracy.error,
                    "recovered": recovered.value, "recovered_se": recovered.error,
                    "llm_share": share, "average_activated_parameters": 1e6 * share, "total_cost": 1e8 * share,
                    "computed_cost": 1e8, "flops_per_token": 1e6 * (1 + share), "bytes_per_token": 4e6 * (1 + share),
                    "llm_passes_per_token": share, "discarded_per_token": share, "acceptance": nan,
                    "tokens_per_second": 1000.0, "mean_length": 100.0, "cut_share": 0.0,
                    "num_problems": NUM, "num_responses": NUM,
                }
            )  # fmt: skip
    return Table(rows, {"revision": "abc"}, paired)


def test_findings_claim_only_what_is_clear() -> None:
    words = evaluate_page.findings(table())
    router = next(line for line in words if line.startswith("router"))
    assert "LLM share of 20.0 %" in router and "of the gap" in router
    assert "points more than random" in router and "points more than entropy" in router
    poor = CHANCES | {"router,share=0.2": (0.2, 0.5)}
    router = next(line for line in evaluate_page.findings(table(chances=poor)) if line.startswith("router"))
    assert "no clear difference from entropy" in router


def test_a_control_at_another_share_says_nothing() -> None:
    # Only the models alone surround the share: that is no random routing.
    chances = {name: CHANCES[name] for name in ("slm", "router,share=0.2", "llm")}
    words = " ".join(evaluate_page.findings(table(chances=chances)))
    assert "random" not in words and "entropy" not in words
    assert evaluate_page.comparisons(table(chances=chances)) == []


def test_comparisons_are_at_the_policys_own_share() -> None:
    found = {(each["policy"], each["control"]): each for each in evaluate_page.comparisons(table())}
    assert set(found) >= {("router,share=0.2", "random"), ("router,share=0.2", "entropy")}
    # Halfway between random:0.1 and random:0.3.
    rows = evaluate_page.whole(table())
    middle = (rows["random:0.1"]["accuracy"] + rows["random:0.3"]["accuracy"]) / 2
    expected = rows["router,share=0.2"]["accuracy"] - middle
    assert found["router,share=0.2", "random"]["difference"] == pytest.approx(expected)


def test_offline_rules_stand_on_no_front() -> None:
    front = evaluate_page.fronts(table())
    assert front["llm_share"] == ["slm", "random:0.1", "router,share=0.2", "llm"]
    drawn = evaluate_page.cost_section(table(), evaluate_page.COSTS[0])
    (points,) = drawn.panels.values()
    assert {point.label for point in points if not point.front} >= {"llm-prob:0.1", "random:0.3"}


def test_title_names_the_cheapest_policy_that_recovers_most() -> None:
    assert evaluate_page.front_title(table()).startswith("router,share=0.2 recovers 9")
    poor = {name: CHANCES[name] for name in ("slm", "random:0.1", "llm")}
    assert evaluate_page.front_title(table(chances=poor)) == "Accuracy against cost"


def test_rules_on_other_bases_are_other_curves() -> None:
    settings = ("hindsight:0.05", "hindsight:0.2", "hindsight:0.05,router=pair", "hindsight:0.2,router=pair")
    chances = CHANCES | {name: (0.1 + i / 100, 0.6 + i / 10) for i, name in enumerate(settings)}
    (points,) = evaluate_page.cost_section(table(chances=chances), evaluate_page.COSTS[0]).panels.values()
    curves = {point.series for point in points if point.label.startswith("hindsight")}
    assert curves == {"hindsight", "hindsight+router"}
    words = evaluate_page.findings(table(chances=chances))
    assert [line.split()[0] for line in words if line.startswith("hindsight")] == list(settings[1::2])


def test_costs_are_drawn_in_short_units() -> None:
    section = evaluate_page.cost_section(table(), evaluate_page.COSTS[1])
    assert section.x_log and section.x_label == "million FLOPs per token (log scale)"
    (points,) = section.panels.values()
    assert max(point.x for point in points) == pytest.approx(2.0)


def test_page_holds_every_row(tmp_path: Path) -> None:
    path = evaluate_page.write_page(tmp_path / "index.html", table(), [], None)
    page = path.read_text()
    assert page.count('<th scope="row"') == 7 * 3
    for words in (
        "total cost",
        "LLM passes per token",
        "discarded per token",
        "accepted (%)",
        "Pareto front",
    ):
        assert words in page
    single = evaluate_page.write_page(tmp_path / "one.html", table(("countdown",)), [], None).read_text()
    assert "Task by task" not in single


def test_tables_fit_into_80_columns() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    rows = table().rows
    print_rows(console, rows)
    rows[-1]["policy"] = "hindsight:0.05,router=pair,threshold=0.41"
    print_costs(console, rows)
    out = console.export_text()
    assert max(map(len, out.splitlines())) <= 80
    assert "entropy,share=0.2" in out and "…" not in out


def test_evaluate_writes_page_and_table(tmp_path: Path, capsys: Capture) -> None:
    slm, llm = saved_pair(tmp_path / "pair")
    args = ["evaluate", "--slm", slm, "--llm", llm, "--num", "3", "--max-tokens", "8"]
    args += ["--task", "arithmetic", "--task", "countdown"]
    for policy in ("slm", "random:0.2", "random:0.6", "speculative:2", "llm"):
        args += ["--policy", policy]
    assert main([*args, "--out", str(tmp_path / "out"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = (tmp_path / "out" / "index.html").read_text()
    assert data["page"] == str(tmp_path / "out" / "index.html")
    assert {"findings", "pareto", "comparisons", "rows", "provenance"} <= data.keys()
    saved = json.loads((tmp_path / "out" / "table.json").read_text())
    assert saved == {name: value for name, value in data.items() if name != "page"}
    by_key = {(row["policy"], row["task"]): row for row in data["rows"]}
    assert by_key["speculative:2", "mean"]["acceptance"] is not None
    # Two problems of each task, under the best setting of each rule.
    assert page.count('<article class="problem"') == 4
    assert page.count('<section class="response') == 4 * 4
    # Run again it generates nothing, and without a folder there is no page.
    assert main([*args, "--out", str(tmp_path / "out"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["rows"] == data["rows"]
    assert main([*args, "--json"]) == 0
    assert "page" not in json.loads(capsys.readouterr().out.splitlines()[-1])
