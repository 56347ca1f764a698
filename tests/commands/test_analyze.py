"""`navtoken analyze` from a shell: made, given or scored responses; the page; refusals in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from navtoken.analysis.analyze import Analysis, PatternOptions, analyze_traces
from navtoken.analysis.columns import KEY_FIELDS, stream_columns
from navtoken.analysis.profile import MeanByBin, OutcomeProfile
from navtoken.cli import main
from navtoken.commands.analyze_page import (
    along_finding,
    findings,
    outcome_finding,
    telling_keys,
    tokens_as_json,
)
from navtoken.commands.spelling import Speller
from navtoken.trace import Trace, TraceWriter, read_provenance, read_traces
from small_runs import saved_pair
from small_traces import RECORD, small_trace, written

Capture = pytest.CaptureFixture[str]
MAKE = ["--task", "arithmetic", "--num", "4", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return saved_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def made(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the LLM wrote and its analysis."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["analyze", "--model", pair[1], *MAKE, "--out", str(folder)]) == 0
    return folder


def analyzed(args: list[str], capsys: Capture) -> dict[str, Any]:
    assert main(["analyze", *args, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def refused(args: list[str], capsys: Capture) -> str:
    capsys.readouterr()
    assert main(["analyze", *args]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    return line


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on where the responses came from."""
    return {name: result[name] for name in ("num_tokens", "groups", "tables", "outcomes", "column")}


def test_what_is_made_is_analysed_and_kept(
    pair: tuple[str, str], made: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    args = ["--model", pair[1], *MAKE, "--out", str(tmp_path)]
    shards = sorted(path.name for path in (tmp_path / "traces").iterdir())
    result = analyzed(args, capsys)
    assert sorted(path.name for path in (tmp_path / "traces").iterdir()) == shards
    traces = list(read_traces(tmp_path / "traces"))
    entropy = np.concatenate([trace.columns["entropy_llm"] for trace in traces]).astype(np.float64)
    assert result["num_responses"] == len(traces) == 4
    assert result["groups"]["all"]["percentile"] == pytest.approx(np.percentile(entropy, 80), rel=1e-9)
    assert result["groups"]["all"]["certain_share"] == (entropy < 0.01).mean()
    assert result["provenance"]["traces"]["arguments"]["sampling"]["temperature"] == 1.0
    assert numbers(json.loads((tmp_path / "analysis.json").read_text())) == numbers(result)
    more = analyzed([*args, "--num", "6"], capsys)
    assert more["num_responses"] == 6
    assert len(list(read_traces(tmp_path / "traces"))) == 6
    assert numbers(analyzed(args, capsys)) == numbers(result)


def test_the_slm_writes_as_itself(pair: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    args = ["--slm", pair[0], "--llm", pair[1], "--model", pair[0], *MAKE, "--out", str(tmp_path)]
    result = analyzed(args, capsys)
    assert result["column"] == "entropy_slm"
    assert {trace.policy for trace in read_traces(tmp_path / "traces")} == {"slm"}


def test_given_traces_say_the_same(made: Path, tmp_path: Path, capsys: Capture) -> None:
    expected = json.loads((made / "analysis.json").read_text())
    result = analyzed([str(made / "traces"), "--out", str(tmp_path)], capsys)
    assert numbers(result) == numbers(expected)
    assert not (tmp_path / "scored").exists()
    assert all(len(row["token"]) <= 5 for row in result["tables"]["highest"])


def without_entropies(source: Path, folder: Path) -> Path:
    with TraceWriter(folder, read_provenance(source)) as writer:
        for trace in read_traces(source):
            writer.write(replace(trace, columns={}))
    return folder


def test_traces_without_entropies_are_scored_by_who_wrote_them(
    made: Path, tmp_path: Path, capsys: Capture
) -> None:
    bare = without_entropies(made / "traces", tmp_path / "bare")
    result = analyzed([str(bare), "--out", str(tmp_path / "out")], capsys)
    expected = analyzed([str(made / "traces"), "--out", str(tmp_path / "as-made")], capsys)
    assert result["num_tokens"] == expected["num_tokens"]
    for name in ("mean", "percentile"):
        assert result["groups"]["all"][name] == pytest.approx(expected["groups"]["all"][name], rel=1e-3)
    again = analyzed([str(bare), "--out", str(tmp_path / "out")], capsys)
    assert numbers(again) == numbers(result)


def test_a_checkpoint_reads_what_another_wrote(
    pair: tuple[str, str], made: Path, tmp_path: Path, capsys: Capture
) -> None:
    own = analyzed([str(made / "traces"), "--model", pair[1], "--out", str(tmp_path / "own")], capsys)
    assert not (tmp_path / "own" / "scored").exists()
    other = analyzed([str(made / "traces"), "--model", pair[0], "--out", str(tmp_path / "other")], capsys)
    assert (tmp_path / "other" / "scored").exists()
    assert other["num_tokens"] == own["num_tokens"]
    assert other["groups"]["all"]["mean"] != own["groups"]["all"]["mean"]


def test_what_was_scored_before_is_not_analysed_with_it(
    pair: tuple[str, str], made: Path, tmp_path: Path, capsys: Capture
) -> None:
    for seed in ("0", "1"):
        part = ["--model", pair[1], *MAKE, "--seed", seed]
        assert main(["analyze", *part, "--out", str(tmp_path / seed)]) == 0
    capsys.readouterr()
    both = [
        analyzed(
            [str(tmp_path / seed / "traces"), "--model", pair[0], "--out", str(tmp_path / "out")], capsys
        )
        for seed in ("0", "1")
    ]
    assert [result["num_responses"] for result in both] == [4, 4]


def test_only_responses_that_count_are_scored(pair: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    two = ["--task", "arithmetic", "--task", "countdown", "--num", "3", "--max-tokens", "8"]
    assert main(["analyze", "--model", pair[1], *two, "--out", str(tmp_path / "both")]) == 0
    capsys.readouterr()
    args = [str(tmp_path / "both" / "traces"), "--model", pair[0], "--out", str(tmp_path / "out")]
    part = analyzed([*args, "--task", "countdown", "--num", "2"], capsys)
    (copies,) = (tmp_path / "out" / "scored").iterdir()
    assert part["num_responses"] == 2
    assert [trace.task for trace in read_traces(copies)] == ["countdown"] * 2
    assert analyzed(args, capsys)["num_responses"] == 6
    assert len(list(read_traces(copies))) == 6
    assert numbers(analyzed([*args, "--task", "countdown", "--num", "2"], capsys)) == numbers(part)


def test_traces_made_anew_at_the_same_place_are_scored_anew(
    pair: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    source, args = tmp_path / "source", ["--model", pair[0], "--out", str(tmp_path / "out")]
    found = []
    for seed in ("0", "1"):
        shutil.rmtree(source, ignore_errors=True)
        assert main(["analyze", "--model", pair[1], *MAKE, "--seed", seed, "--out", str(source)]) == 0
        capsys.readouterr()
        found.append(analyzed([str(source / "traces"), *args], capsys))
    more = ["--model", pair[1], *MAKE, "--num", "6", "--seed", "1", "--out", str(source)]
    assert main(["analyze", *more]) == 0
    capsys.readouterr()
    found.append(analyzed([str(source / "traces"), *args], capsys))
    assert [result["num_responses"] for result in found] == [4, 4, 6]
    assert found[0]["groups"]["all"]["mean"] != found[1]["groups"]["all"]["mean"]
    # What was only added to is gone on with.
    assert len(list((tmp_path / "out" / "scored").iterdir())) == 2


def test_entropies_of_another_type_are_computed_anew(
    pair: tuple[str, str], made: Path, tmp_path: Path, capsys: Capture
) -> None:
    args = [str(made / "traces"), "--model", pair[1], "--out", str(tmp_path)]
    analyzed(args, capsys)
    assert not (tmp_path / "scored").exists()
    half = analyzed([*args, "--dtype", "bfloat16"], capsys)
    assert (tmp_path / "scored").exists()
    assert (
        half["groups"]["all"]["mean"]
        != json.loads((made / "analysis.json").read_text())["groups"]["all"]["mean"]
    )


def test_tokens_that_the_checkpoint_has_not_seen_are_scored(
    pair: tuple[str, str], made: Path, tmp_path: Path, capsys: Capture
) -> None:
    with TraceWriter(tmp_path / "holes", read_provenance(made / "traces")) as writer:
        for trace in read_traces(made / "traces"):
            seen = np.where(np.arange(len(trace.response_ids)) % 2, trace.columns["entropy_llm"], np.nan)
            writer.write(replace(trace, columns={"entropy_llm": seen}))
    args = [str(tmp_path / "holes"), "--out", str(tmp_path / "out")]
    assert analyzed(args, capsys)["num_missing"] > 0
    assert analyzed([*args, "--model", pair[1]], capsys)["num_missing"] == 0


def test_the_page_is_whole(made: Path) -> None:
    page = (made / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    for words in ("Most uncertain", "Most certain", "of lowest mean entropy", "token position", "nats"):
        assert words in page
    assert '<article class="problem"' in page


def test_people_read_the_findings(made: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["analyze", str(made / "traces"), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "all but certain (under 0.01 nats)" in out
    assert "Highest mean entropy: “" in out
    assert str(tmp_path / "index.html") in out


def test_only_one_policy_counts(tmp_path: Path, capsys: Capture) -> None:
    traces = [
        small_trace([5, 6], 0, entropy_llm=[0.1, 0.2]),
        small_trace([7], 1, policy="slm", writer=[0], entropy_slm=[0.5]),
    ]
    written(tmp_path / "traces", traces, record=RECORD | {"arguments": {}})
    result = analyzed([str(tmp_path / "traces"), "--policy", "slm", "--out", str(tmp_path)], capsys)
    assert (result["column"], result["num_tokens"]) == ("entropy_slm", 1)
    # Nobody says who wrote them, so tokens go by their number.
    assert [row["token"] for row in result["tables"]["highest"]] in ([], ["⟨7⟩"])
    assert any("by number" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["TRACES", "--samples", "3"], "samples 3 is for making responses"),
        (["--num", "0"], "num is 0"),
        (["TRACES", "--entropy", "slm"], "no column 'entropy_slm'"),
        (["TRACES", "--task", "gsm8k"], "no trace has task gsm8k; there are arithmetic"),
        (["TRACES", "--model", "embedded:llm"], "under the tokenizer of 'embedded:llm'"),
        (["TRACES", "--model", "embedded:llm", "--entropy", "llm"], "both say whose entropies"),
        (["--policy", "llm"], "chooses among TRACES"),
        (["--entropy", "slm"], "entropy slm chooses among"),
        (["/nowhere"], "no traces at /nowhere"),
    ],
)
def test_refusals_are_one_line(
    made: Path, tmp_path: Path, capsys: Capture, args: list[str], words: str
) -> None:
    given = [str(made / "traces") if arg == "TRACES" else arg for arg in args]
    assert words in refused([*given, "--out", str(tmp_path)], capsys)


def test_files_of_another_kind_are_refused(tmp_path: Path, capsys: Capture) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "foreign.parquet")
    out = ["--out", str(tmp_path / "out")]
    assert "schema version none" in refused([str(tmp_path / "foreign.parquet"), *out], capsys)
    (tmp_path / "notes.txt").write_text("these are notes, and no table at all")
    assert "is no Parquet file" in refused([str(tmp_path / "notes.txt"), *out], capsys)
    (tmp_path / "empty").mkdir()
    assert "no traces at" in refused([str(tmp_path / "empty"), *out], capsys)


def test_an_unknown_writer_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    written(tmp_path / "traces", [small_trace([5])], record=RECORD | {"arguments": {}})
    line = refused([str(tmp_path / "traces"), "--out", str(tmp_path / "out")], capsys)
    assert "no entropies and do not say who wrote them" in line


NO_BINS = MeanByBin((), (), (), ())


@pytest.mark.parametrize(
    ("wrong", "words"), [(0.5, "more uncertain"), (0.1, "less uncertain"), (0.32, "not clearly")]
)
def test_a_difference_is_claimed_only_beyond_its_error(wrong: float, words: str) -> None:
    right, other = (OutcomeProfile(9, 90, mean, 0.01, NO_BINS, NO_BINS) for mean in (0.3, wrong))
    assert words in outcome_finding(right, other)


def told(folder: Path, traces: list[Trace]) -> list[tuple[str, bool | None]]:
    """Task and outcome of the responses that a page shows."""
    written(folder, traces)
    keys = telling_keys(stream_columns(folder, (*KEY_FIELDS, "correct", "entropy_llm")), "entropy_llm")
    by_key = {trace.key: trace for trace in traces}
    return [(by_key[key].task, by_key[key].correct) for key in keys]


def test_a_right_and_a_wrong_response_are_shown(tmp_path: Path) -> None:
    traces = [
        small_trace([1], sample, task=task, correct=sample % 2 == 0, entropy_llm=[0.1])
        for task in ("a", "b")
        for sample in range(6)
    ]
    unknown = [small_trace([], 9, entropy_llm=[]), small_trace([1], 8)]
    assert told(tmp_path, [*unknown, *traces]) == [("a", True), ("a", False), ("b", True), ("b", False)]


def test_examples_are_spread_over_tasks(tmp_path: Path) -> None:
    """Nine tasks one after the other, two outcomes of each: eight tasks have one response on the page."""
    traces = [
        small_trace([1], sample, task=f"t{task}", correct=bool(sample), entropy_llm=[0.1])
        for task in range(9)
        for sample in range(2)
    ]
    assert told(tmp_path, traces) == [(f"t{task}", False) for task in range(8)]


def analysis_of(folder: Path, entropies: list[list[float]]) -> Analysis:
    """Of responses of 20 tokens each with these entropies; token ids are 0 to 19."""
    traces = [small_trace(list(range(20)), sample, entropy_llm=own) for sample, own in enumerate(entropies)]
    return analyze_traces(written(folder, traces), PatternOptions(min_frequency=1))


def test_a_place_along_the_response_is_named_only_beyond_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = [rng.uniform(0, 1, 20).astype(np.float32) for _ in range(30)]
    assert "do not clearly differ" in along_finding(analysis_of(tmp_path / "flat", flat))
    peaked = [values + np.eye(20, dtype=np.float32)[7] for values in flat]
    assert "highest 35 to 40 % of the way" in along_finding(analysis_of(tmp_path / "peaked", peaked))
    # Of one response nobody knows how responses differ.
    assert "do not clearly differ" in along_finding(analysis_of(tmp_path / "one", peaked[:1]))


def test_means_over_few_tokens_come_with_their_errors(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, [[0.1 * i for i in range(20)], [0.3 * i for i in range(20)]])
    speller = Speller(None)
    row = tokens_as_json(analysis, speller)["highest"][0]
    # 1.9 and 5.7 nats: a standard deviation of 2.69, over the root of 2.
    assert (row["token"], row["count"], row["error"]) == ("⟨19⟩", 2, pytest.approx(1.9, rel=1e-5))
    assert "(each at least 2 times, standard errors up to 1.9 nats)" in findings(analysis, speller)[1]
    alone = analysis_of(tmp_path / "one", [[0.1 * i for i in range(20)]])
    assert tokens_as_json(alone, speller)["highest"][0]["error"] is None
    assert "(each at least once)" in findings(alone, speller)[1]


def test_tokens_without_a_tokenizer_go_by_number() -> None:
    assert Speller(None).token(7) == "⟨7⟩"
    assert Speller(None).context([1, 2], 7, [3]) == ("⟨1⟩⟨2⟩", "⟨7⟩", "⟨3⟩")
