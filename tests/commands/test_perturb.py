"""The experiment in a shell: table, page and JSON, and a title that says no more than the numbers do."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from navtoken.analysis.perturbation import BASE, PAPER, Outcome, PerturbOptions, Point, Study
from navtoken.commands import perturb
from navtoken.commands.config import parse_invocation
from navtoken.commands.perturb_page import curves, finding, telling_temperature
from small_runs import few
from tiny_models import tiny_pair


def study(accuracies: dict[Point, list[float]]) -> Study:
    """A study of these accuracies per problem."""
    outcomes: dict[Point, Any] = {}
    for point, own in accuracies.items():
        mean = sum(own) / len(own)
        metrics = {"accuracy": mean, "accuracy_se": 0.01, "num_problems": len(own), "num_responses": len(own)}
        by_problem = {str(index): each for index, each in enumerate(own)}
        outcomes[point] = Outcome(point, metrics, 0.2, by_problem, None, Path())  # type: ignore[arg-type]
    return Study("llm", "countdown", 0.5, outcomes)


def swept(at: float, forking: list[float], others: list[float]) -> Study:
    return study({BASE: [0.5, 0.75, 1.0, 0.75], Point(at, 1): forking, Point(1, at): others})


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            swept(2, [0.5, 0.75, 1.0, 0.75], [0.0, 0.25, 0.5, 0.0]),
            "at T = 2, forking tokens make no clear difference, all others lose 56 points",
        ),
        (
            swept(2, [0.0, 0.25, 0.5, 0.25], [0.5, 0.77, 1.0, 0.77]),
            "at T = 2, forking tokens lose 50 points, all others make no clear difference",
        ),
        (
            swept(3, [0.51, 0.76, 1.01, 0.76], [0.0, 0.25, 0.5, 0.0]),
            "at T = 3, forking tokens gain 1 point, all others lose 56 points",
        ),
        (swept(2, [0.0, 1.0, 1.0, 1.0], [0.5, 0.75, 0.0, 1.0]), "do not clearly differ"),
        (study({BASE: [0.5]}), "Only temperature 1"),
    ],
)
def test_a_difference_is_claimed_only_beyond_its_error(made: Study, words: str) -> None:
    assert words in finding(made)


def test_the_telling_temperature_is_2_else_the_lowest_hot_one() -> None:
    def of(*temperatures: float) -> float | None:
        points = {Point(t, 1): [0.5] for t in temperatures} | {Point(1, t): [0.5] for t in temperatures}
        return telling_temperature(study({BASE: [0.5], **points}))

    assert [of(0, 2, 1.5), of(0, 5, 3), of(0, 0.3), of()] == [2, 3, 0, None]


def test_the_picture_has_both_sweeps_with_their_intervals() -> None:
    section = curves(swept(2, [0.5, 0.75, 1.0, 0.75], [0.0, 0.25, 0.5, 0.0]))
    forking, others = section.curves
    assert (forking.name, list(forking.x), list(others.x)) == ("forking tokens", [1, 2], [1, 2])
    assert list(others.y) == [0.75, 0.1875]
    assert forking.low is not None and forking.high is not None
    assert (forking.low[0], forking.high[0]) == pytest.approx((0.75 - 0.0196, 0.75 + 0.0196))
    (figure,) = section.figures()
    assert "all others" in figure.body


def test_the_command_prints_writes_and_resumes(tmp_path: Path) -> None:
    generation = few(policy=("random:0.4", "slm"), num=3, samples=2)
    options = PerturbOptions(generation=generation, temperatures=(0.0, 1.0, 2.0), out=tmp_path)
    out = io.StringIO()
    result = perturb.run(options, Console(file=out, width=80), tiny_pair())
    assert json.loads((tmp_path / "perturb.json").read_text()) == {
        name: value
        for name, value in json.loads(json.dumps(result, allow_nan=False)).items()
        if name != "page"
    }
    assert [(row["fork_temperature"], row["other_temperature"]) for row in result["rows"]] == [
        (1, 1), (0, 1), (1, 0), (2, 1), (1, 2),
    ] * 2  # fmt: skip
    assert {row["num_responses"] for row in result["rows"]} == {6}
    assert result["provenance"]["arguments"]["temperatures"] == [0, 1, 2]
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80 or "page:" in max(text.splitlines(), key=len)
    assert "random:0.4 · arithmetic: a token forks above" in text
    page = (tmp_path / "index.html").read_text()
    assert (
        "random:0.4 · arithmetic, forking tokens swept" in page
        and "slm · arithmetic, all others swept" in page
    )
    assert "random:0.4, forking tokens at 2" in page and "random:0.4, both at 1" in page
    again = perturb.run(options, Console(file=io.StringIO()), tiny_pair())
    assert again["rows"] == result["rows"]


def test_flags_and_files_give_the_sweep(tmp_path: Path) -> None:
    def parsed(*args: str) -> PerturbOptions:
        return parse_invocation(PerturbOptions, "perturb", args).options

    plain = parsed()
    assert (plain.temperatures, plain.generation.samples) == (PAPER, 4)
    assert (plain.generation.task, plain.generation.policy) == (("countdown",), ("llm",))
    assert parsed("--temperatures", "0", "2", "--threshold", "0.672").temperatures == (0, 2)
    config = tmp_path / "c.yaml"
    config.write_text("temperatures: [0, 1.5]\npercentile: 90\nnum: 7\npolicy: slm\n")
    given = parsed("--config", str(config), "--num", "9")
    assert (given.temperatures, given.percentile, given.generation.num) == ((0, 1.5), 90, 9)
    assert given.generation.policy == ("slm",)
