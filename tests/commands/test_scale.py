"""`navtoken scale` from the command line: its table, page, JSON and what a second run draws."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from navtoken.cli import main
from navtoken.commands.scale import ScaleOptions, parse_numbers
from navtoken.commands.scale_page import Scaled, budget_sections, choosers_sections, findings, samples_section
from navtoken.engine.options import OptionError
from navtoken.generation import GenerationOptions
from navtoken.trace import read_traces
from small_runs import saved_pair

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    slm, llm = saved_pair(tmp_path_factory.mktemp("pair"))
    return ["--slm", slm, "--llm", llm]


SMALL = [
    "--num",
    "3",
    "--max-tokens",
    "8",
    "--task",
    "arithmetic",
    "--policy",
    "slm",
    "--policy",
    "random:0.4",
]


def scaled(args: list[str], capsys: Capture) -> dict[str, Any]:
    assert main(["scale", *args, "--json"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result: dict[str, Any] = json.loads(line)
    return result


def keys_in(folder: Path) -> list[tuple[str, str, str, int]]:
    return [trace.key for trace in read_traces(folder)]


def test_every_policy_k_and_budget_has_a_row_and_a_larger_k_only_adds(
    pair: list[str], tmp_path: Path, capsys: Capture
) -> None:
    args = [*pair, *SMALL, "--out", str(tmp_path)]
    first = scaled([*args, "--k", "2,1", "--budget", "4"], capsys)
    assert {(row["policy"], row["k"], row["budget"]) for row in first["rows"]} == {
        (policy, k, budget) for policy in ("slm", "random:0.4") for k in (1, 2) for budget in (4, None)
    }
    drawn = keys_in(tmp_path)
    assert len(drawn) == 2 * 3 * 2
    assert all(row["tokens"] <= 4 * row["k"] for row in first["rows"] if row["budget"] == 4)
    again = scaled([*args, "--k", "1,2", "--budget", "4"], capsys)
    assert keys_in(tmp_path) == drawn
    assert again["rows"] == first["rows"]
    more = scaled([*args, "--k", "1,4"], capsys)
    assert keys_in(tmp_path)[: len(drawn)] == drawn and len(keys_in(tmp_path)) == 2 * 3 * 4
    assert more["num_samples"] == {"slm": 4, "random:0.4": 4}
    assert [(row["policy"], row["less"], row["k"]) for row in more["differences"]] == [
        ("random:0.4", "slm", 1), ("random:0.4", "slm", 4),
    ]  # fmt: skip
    fewer = scaled([*args, "--k", "1"], capsys)
    assert len(keys_in(tmp_path)) == 24 and fewer["num_samples"] == {"slm": 1, "random:0.4": 1}
    tight = scaled([*args, "--k", "1", "--samples", "4"], capsys)
    assert tight["num_samples"] == more["num_samples"]
    assert tight["rows"] == [row for row in more["rows"] if row["k"] == 1]


def test_page_files_and_table(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    args = [
        "scale",
        *pair,
        *SMALL,
        "--task",
        "knights",
        "--k",
        "1,3",
        "--budget",
        "3,6",
        "--out",
        str(tmp_path),
    ]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    for words in ("maj@k", "knights, at most 3 tokens", "mean", "a vote of 3"):
        assert words in out
    html = (tmp_path / "index.html").read_text()
    for words in (
        "Accuracy against samples, mean of 2 tasks", "pass@k against k", "maj@k against FLOPs per problem",
        "Choosing one answer of k", "million FLOPs per problem", "longest response in tokens", "random:0.4", "All figures", "band",
    ):  # fmt: skip
        assert words in html
    figures = json.loads((tmp_path / "scale.json").read_text())
    assert {row["task"] for row in figures["rows"]} == {"arithmetic", "knights", "mean"}
    assert figures["provenance"]["arguments"]["samples"] == 3


def test_checkpoints_stand_beside_the_pair_on_the_same_problems(
    pair: list[str], tmp_path: Path, capsys: Capture
) -> None:
    slm, llm = pair[1], pair[3]
    args = [*pair, "--num", "3", "--max-tokens", "8", "--task", "arithmetic", "--policy", "llm", "--k", "1,2"]
    found = scaled([*args, "--checkpoint", slm, "--out", str(tmp_path / "both")], capsys)
    assert list(found["num_samples"]) == ["llm", f"{slm}: llm"]
    alone = scaled([*args[:3], slm, *args[4:], "--out", str(tmp_path / "alone")], capsys)
    rows = [row["avg"] for row in found["rows"] if row["policy"] == f"{slm}: llm"]
    assert rows == [row["avg"] for row in alone["rows"]] and len(rows) == 2
    tokens = {row["policy"]: row["tokens"] for row in found["rows"] if row["k"] == 2}
    assert {row["tokens"] for row in alone["rows"] if row["k"] == 2} == {tokens[f"{slm}: llm"]}
    (folder,) = (tmp_path / "both" / "checkpoints").iterdir()
    assert len(keys_in(folder)) == 6 and len(keys_in(tmp_path / "both")) == 6
    for twice in (["--checkpoint", slm, "--checkpoint", slm], ["--checkpoint", llm]):
        assert main(["scale", *args, *twice, "--out", str(tmp_path / "x")]) == 2
        assert "is there twice, or is llm itself" in capsys.readouterr().err


def test_runs_are_compared_on_the_same_problems(pair: list[str], tmp_path: Path, capsys: Capture) -> None:
    swapped = [pair[0], pair[3], pair[2], pair[1]]
    short = [*SMALL[:-2], "--k", "1,2"]
    scaled([*swapped, *short, "--out", str(tmp_path / "swapped")], capsys)
    ours = ["--out", str(tmp_path / "ours"), "--compare", str(tmp_path / "swapped")]
    found = scaled([*pair, *short, *ours], capsys)
    assert {row["policy"] for row in found["rows"]} == {"slm", "swapped: slm"}
    assert [(row["policy"], row["less"]) for row in found["differences"]] == [("swapped: slm", "slm")] * 2
    other = ["--out", str(tmp_path / "seeded"), "--seed", "5", "--compare", str(tmp_path / "swapped")]
    assert main(["scale", *pair, *short, *other]) == 2
    assert "did not answer the same problems" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--k", "1,0"], "'0' is no number from 1 on"),
        (["--k", "1,two"], "'two' is no number"),
        (["--k", "4,4"], "4 twice"),
        (["--budget", ""], "budget ''"),
        (["--temperature", "0"], "temperature is 0 with 16 samples.*--k 1"),
        (["--resamples", "-1"], "resamples is -1"),
        (["--compare", "out/a/x", "--compare", "out/b/x"], "two folders called 'x'"),
        (["--compare", "out/scale"], "this run's own folder"),
        (["--compare", "no/such"], "cannot read 'no/such/measurements.json'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_once(args: list[str], words: str, capsys: Capture) -> None:
    assert main(["scale", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert re.search(words, line)


def test_one_sample_may_be_greedy() -> None:
    greedy = ScaleOptions(k="1", generation=GenerationOptions(policy=("slm",)))
    greedy.check()
    assert greedy.num_samples == 1
    with pytest.raises(OptionError, match="temperature is 0 with 3 samples"):
        ScaleOptions(k="1", generation=GenerationOptions(policy=("slm",), samples=3)).check()
    assert parse_numbers("16, 1,4", "k") == [1, 4, 16]


def row(policy: str, k: int, maj: float, budget: int | None = None) -> dict[str, Any]:
    figures = {
        f"{name}{end}": maj + shift
        for name in ("avg", "pass", "maj", "best_logprob", "best_entropy", "best_length")
        for end, shift in (("", 0.0), ("_low", -0.02), ("_high", 0.02))
    }
    costs = dict.fromkeys(("tokens", "flops", "bytes", "seconds"), 10.0 * k)
    return {"policy": policy, "task": "sums", "k": k, "budget": budget} | figures | costs


def made(gap: float, ks: tuple[int, ...] = (1, 8), budget: int | None = None) -> Scaled:
    rows = [row(policy, k, 0.5, b) for policy in ("llm", "router") for k in ks for b in {budget, None}]
    differences = [row("router", k, gap) | {"less": "llm"} for k in ks]
    return Scaled(rows, differences, {"llm": 8, "router": 8}, {})


def test_a_difference_is_claimed_only_where_its_interval_leaves_out_0() -> None:
    assert findings(made(0.01))[-1] == (
        "router against llm on the same problems: avg@8 no clear difference, maj@8 no clear difference, pass@8 no clear "
        "difference."
    )
    assert "maj@8 -5.0 points (-7.0 to -3.0)" in findings(made(-0.05))[-1]
    assert (
        findings(made(0.0))[0]
        == "llm gets 50.0 % right, a vote of 8 50.0 %, and one of 8 is right in 50.0 %."
    )


def test_sections_that_have_nothing_to_show_are_left_out() -> None:
    assert [len(section.panels) for section in choosers_sections(made(0.0))] == [2]
    assert choosers_sections(made(0.0, ks=(1,))) == []
    assert budget_sections(made(0.0)) == []
    assert [len(section.panels) for section in budget_sections(made(0.0, budget=64))] == [2]
    assert all(curve.low is not None for panel in samples_section(made(0.0)).panels for curve in panel.curves)
