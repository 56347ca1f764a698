"""`navtoken plan` as a person meets it."""

import json
from pathlib import Path
from typing import Any

import pytest

from navtoken.cli import main
from navtoken.commands.plan import parse_step_times
from navtoken.planner import PlanError, StepTimes

Capture = pytest.CaptureFixture[str]
TIMES = ["plan", "--slm-ms", "6", "--llm-ms", "27.9"]
TOKENROUTER = [*TIMES, "--share", "0.35", "--concurrency", "4", "--placement", "side-by-side"]


def planned(args: list[str], capsys: Capture) -> dict[str, Any]:
    assert main([*args, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_the_table_marks_the_best_rule_and_says_that_routing_pays(capsys: Capture):
    assert main(TOKENROUTER) == 0
    out = capsys.readouterr().out
    assert "* 3    208.0      1.45" in out
    assert "Routing pays at concurrency 4: B = 3" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_where_routing_does_not_pay_it_says_so(capsys: Capture):
    args = ["plan", "--slm-ms", "6", "--llm-ms", "1:2,2:4", "--share", "0.13", "--concurrency", "16"]
    assert main(args) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Routing does not pay at concurrency 16" in out
    assert "let the LLM write." in out


def test_json_holds_every_rule(capsys: Capture):
    data = planned(TOKENROUTER, capsys)
    assert [row["min_rows"] for row in data["rows"]] == [1, 2, 3, 4]
    assert data["best_min_rows"] == 3
    assert data["pays"] is True
    assert data["rows"][2]["tokens_per_second"] == pytest.approx(207.9, abs=0.1)
    assert data["llm_alone"] == pytest.approx(4 / 0.0279)
    assert data["rows"][2]["times_llm_alone"] == pytest.approx(207.95 / data["llm_alone"], abs=1e-3)
    assert data["roofline"] == pytest.approx(1 / (0.006 + 0.35 * 0.0279))
    assert data["speculative"] == []


def test_many_rows_are_shown_in_part_the_best_always(capsys: Capture):
    data = planned([*TIMES, "--share", "0.13", "--concurrency", "64"], capsys)
    shown = [row["min_rows"] for row in data["rows"]]
    assert len(shown) <= 9
    assert {1, 2, 32, 64, data["best_min_rows"]} <= set(shown)
    rates = {row["min_rows"]: row["tokens_per_second"] for row in data["rows"]}
    assert max(rates, key=lambda num: rates[num]) == data["best_min_rows"]


def test_the_simulation_stands_beside_the_chain(capsys: Capture):
    args = [*TIMES, "--share", "0.35", "--concurrency", "2", "--simulate"]
    for row in planned(args, capsys)["rows"]:
        simulated = row["simulated"]
        assert simulated["tokens_per_second"] == pytest.approx(row["tokens_per_second"], rel=0.02)
        assert simulated["standard_error"] > 0
    assert main(args) == 0
    assert "simulated" in (out := capsys.readouterr().out)
    assert "±" in out


def test_speculative_decoding_is_predicted_when_an_acceptance_is_given(capsys: Capture):
    args = [*TIMES, "--share", "0.13", "--acceptance", "0.8"]
    rows = planned(args, capsys)["speculative"]
    (best,) = (row for row in rows if row["best"])
    assert best["tokens_per_second"] == max(row["tokens_per_second"] for row in rows)
    assert main(args) == 0
    assert f"* {best['num_drafts']}" in capsys.readouterr().out


def test_options_come_from_a_file_too(tmp_path: Path, capsys: Capture):
    config = tmp_path / "pair.yaml"
    config.write_text("slm_ms: 6\nllm_ms: '1:27.9,64:60'\nshare: 0.35\nplacement: side-by-side\n")
    data = planned(["plan", "--config", str(config), "--concurrency", "2"], capsys)
    assert data["workload"]["llm"]["num_tokens"] == [1.0, 64.0]
    assert data["workload"]["llm"]["seconds"] == pytest.approx([0.0279, 0.06])
    assert data["workload"]["placement"] == "side-by-side"
    assert len(data["rows"]) == 2


def test_step_times_are_numbers_or_points():
    assert parse_step_times("28", "--llm-ms") == StepTimes.constant(0.028)
    assert parse_step_times("8:30, 1:20", "--llm-ms") == StepTimes.of({1: 0.02, 8: 0.03})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("6ms", "'6ms' is no time"),
        ("", "'' is no time"),
        ("1:2,4", "'4' is no point"),
        ("1:2,1:3", "1 new tokens are given twice"),
        ("1:0", "0.0 seconds"),
        ("x:1", "'x:1' is no time"),
        ("1:nan", "cannot be"),
    ],
)
def test_times_that_cannot_be_read_are_refused_by_name(text: str, words: str):
    with pytest.raises(PlanError, match="--slm-ms") as refused:
        parse_step_times(text, "--slm-ms")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--share", "0"], "share is 0.0"),
        (["--share", "0.1", "--concurrency", "0"], "rows is 0"),
        (["--share", "0.1", "--acceptance", "2"], "acceptance is 2.0"),
    ],
)
def test_errors_are_one_line(args: list[str], words: str, capsys: Capture):
    assert main([*TIMES, *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert words in line
