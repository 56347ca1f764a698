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


JUDGED = {"speculative:8": (0.3, 0.9), "hindsight:0.1": (0.05, 0.8), "hindsight:0.3": (0.1, 0.88)}
"""LLM share and chance to be right of policies under which the LLM judges every token, in 0.2 passes per token."""


def table(
    tasks: tuple[str, ...] = ("countdown", "knights"), chances: Any = CHANCES, verifying: Any = ()
) -> Table:
    """Policies that are right by chance, on the same problems."""
    rng = np.random.default_rng(0)
    luck = {task: rng.random(NUM) for task in tasks}
    scores = {
        policy: {task: {str(i): float(u < chance) for i, u in enumerate(luck[task])} for task in tasks}
        for policy, (_, chance) in chances.items()
    }
    shares = {policy: share for policy, (share, _) in chances.items()}
    passes = shares | dict.fromkeys(verifying, 0.2)
    paired = Paired(scores, shares, passes)
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
                    "llm_passes_per_token": passes[policy], "discarded_per_token": share, "acceptance": nan,
                    "tokens_per_second": 1000.0, "mean_length": 100.0, "cut_share": 0.0,
                    "num_problems": NUM, "num_responses": NUM,
                }
            )  # fmt: skip
    return Table(rows, {"revision": "abc"}, paired, verifying=frozenset(verifying))


def judged_table() -> Table:
    return table(chances=CHANCES | JUDGED, verifying=tuple(JUDGED))


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


def test_who_judges_every_token_has_no_cheap_share() -> None:
    found = judged_table()
    front = evaluate_page.fronts(found)
    for key in ("llm_share", "average_activated_parameters", "total_cost"):
        assert not JUDGED.keys() & set(front[key])
    # By what is computed and by passes they compete.
    assert {"speculative:8", "hindsight:0.3"} & set(front["flops_per_token"])
    assert "speculative:8" in front["llm_passes_per_token"]
    # A share of 10 % would be the lowest.
    assert evaluate_page.front_title(found).startswith("router,share=0.2")
    section = evaluate_page.front_section(found)
    assert "Under speculative and hindsight the LLM judges every token" in section.text
    assert "judges" not in evaluate_page.front_section(table()).text
    (points,) = evaluate_page.cost_section(found, evaluate_page.SHARE).panels.values()
    assert {point.label for point in points} >= JUDGED.keys()


def test_who_judges_every_token_is_compared_by_passes() -> None:
    found = judged_table()
    (entry,) = [
        each
        for each in evaluate_page.comparisons(found)
        if (each["policy"], each["control"]) == ("speculative:8", "random")
    ]
    assert entry["at"] == "llm_passes_per_token"
    rows = evaluate_page.whole(found)
    # Halfway between random:0.1 and random:0.3, whatever its LLM share.
    middle = (rows["random:0.1"]["accuracy"] + rows["random:0.3"]["accuracy"]) / 2
    assert entry["difference"] == pytest.approx(rows["speculative:8"]["accuracy"] - middle)
    (words,) = [line for line in evaluate_page.findings(found) if line.startswith("speculative")]
    assert "with 0.20 LLM passes per token" in words and "more than random with as many" in words
    assert "share" not in words


def test_the_best_of_many_settings_is_called_so() -> None:
    chances = CHANCES | {f"router,share={0.2 + i / 1000}": (0.2, 0.5 + i / 1000) for i in range(1, 6)}
    (words,) = [line for line in evaluate_page.findings(table(chances=chances)) if line.startswith("router")]
    assert "the best of 6 settings on these problems; clear from 2.7 standard errors" in words
    assert "settings" not in next(
        line for line in evaluate_page.findings(table()) if line.startswith("router")
    )


def test_a_difference_that_one_of_many_settings_has_by_luck_is_not_clear() -> None:
    close = CHANCES | {"router,share=0.2": (0.2, 0.43)}

    def clear(others: int) -> bool:
        more = {f"router,share=0.2{i:02}": (0.2, 0.3) for i in range(others)}
        found = evaluate_page.findings(table(chances=close | more))
        (words,) = [line for line in found if line.startswith("router,share=0.2 ")]
        return "more than random" in words

    assert clear(0) and not clear(30)


def test_title_names_the_cheapest_policy_that_recovers_most() -> None:
    assert evaluate_page.front_title(table()).startswith("router,share=0.2 recovers 9")
    # A little more than four fifths, within the error.
    unsure = table(chances=CHANCES | {"router,share=0.2": (0.2, 0.82)})
    assert evaluate_page.whole(unsure)["router,share=0.2"]["recovered"] > 0.8
    assert evaluate_page.front_title(unsure) == "Accuracy against cost"
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
    costs = {cost.key: cost for cost in evaluate_page.COSTS}
    section = evaluate_page.cost_section(table(), costs["flops_per_token"])
    assert section.x_log and section.x_label == "million FLOPs per token (log scale)"
    (points,) = section.panels.values()
    assert max(point.x for point in points) == pytest.approx(2.0)


def test_costs_per_response_and_passes_are_drawn() -> None:
    found = table()
    panels = evaluate_page.front_section(found).panels
    labels = [panel.x_label for panel in panels]  # type: ignore[union-attr]
    assert labels[:2] == ["tokens written by the LLM (%)", "LLM passes per 100 tokens"]
    for words in ("parameters x tokens written, per response", "parameters x tokens computed, per response"):
        assert f"million {words} (log scale)" in labels
    assert any("activated parameters per token" in label for label in labels)
    assert list(evaluate_page.fronts(found)) == [cost.key for cost in evaluate_page.COSTS]
    passes = evaluate_page.cost_section(found, evaluate_page.PASSES).html("a")
    assert "at 20.0 LLM passes per 100 tokens" in passes and "LLM share" not in passes


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ("router,share=0.2", "router"),
        ("router:build/a,share=0.2", "router:build/a"),
        ("router:build/b,share=0.2", "router:build/b"),
        ("entropy:0.67", "entropy"),
        ("speculative:auto", "speculative"),
        ("hindsight:0.1,router=pair", "hindsight+router"),
        ("hindsight:0.1,router=build/a,threshold=0.4", "hindsight+router=build/a"),
        ("hindsight:0.1,entropy=0.67", "hindsight+entropy"),
    ],
)
def test_other_routers_are_other_rules(policy: str, rule: str) -> None:
    assert evaluate_page.series(policy) == rule


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
