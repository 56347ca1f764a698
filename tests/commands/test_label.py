"""`navtoken label`: labels beside the LLM's responses, resumed after any end, refused where they would mean nothing."""

import io
import json
import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.cli import main
from navtoken.commands import label
from navtoken.commands.label import FIXED, LabelOptions, _provenance
from navtoken.commands.label_inputs import Models
from navtoken.engine import EngineOptions
from navtoken.engine.options import OptionError
from navtoken.generation import GenerateOptions, GenerationOptions, generate
from navtoken.labeling.labels import Label
from navtoken.labeling.left_out import LeftOut, read_left_out
from navtoken.labeling.openai_client import EndpointOptions
from navtoken.labeling.pipeline import LabelingError
from navtoken.labeling.verdicts import VerdictError, verifier_named
from navtoken.trace import Trace, TraceError, TraceWriter, read_provenance, read_traces, shard_paths
from small_runs import saved_pair

NUM = 6
TASKS = ("countdown", "arithmetic")
LABELS = ("identical", "neutral", "divergent", "invalid")


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_pair()


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory, pair: ModelPair) -> Path:
    """Responses of both policies to training problems."""
    folder = tmp_path_factory.mktemp("responses")
    wanted = GenerationOptions(
        task=TASKS, policy=("slm", "llm"), num=NUM, split="train", seed=3, max_tokens=300
    )
    generate(GenerateOptions(generation=wanted, out=folder), pair)
    return folder


def run(pair: ModelPair, out: Path, traces: Path | None = None, **changes: Any) -> dict[str, Any]:
    return label.run(LabelOptions(traces, out=out, **changes), Console(file=io.StringIO()), pair)


def labelled(folder: Path) -> dict[Any, Trace]:
    """Traces of a folder by key, each of them there once."""
    traces = list(read_traces(folder))
    found = {trace.key: trace for trace in traces}
    assert len(found) == len(traces)
    return found


def assert_same(one: dict[Any, Trace], other: dict[Any, Trace]) -> None:
    assert one.keys() == other.keys()
    for key, trace in one.items():
        assert trace.response_ids == other[key].response_ids
        for name in ("label", "draft_ids", "continuation_ids"):
            np.testing.assert_array_equal(
                trace.columns[name], other[key].columns[name], err_msg=f"{key} {name}"
            )


def test_labels_lie_beside_the_llms_own_responses(pair: ModelPair, responses: Path, tmp_path: Path) -> None:
    result = run(pair, tmp_path / "out", responses, num_logits=8)
    found = labelled(tmp_path / "out")
    given = {trace.key: trace for trace in read_traces(responses) if trace.policy == "llm"}
    assert found.keys() == given.keys()
    assert result["num_responses"] == result["now"]["responses"] == len(given) == len(TASKS) * NUM
    assert result["num_cut_off"] == 0
    counts = dict.fromkeys(LABELS, 0)
    for key, trace in found.items():
        assert trace.response_ids == given[key].response_ids
        assert trace.columns["slm_top_ids"].shape == (len(trace.response_ids), 8)
        assert trace.columns["slm_hidden"].dtype == np.float16
        np.testing.assert_array_equal(trace.columns["entropy_llm"], given[key].columns["entropy_llm"])
        same = trace.columns["draft_ids"] == np.asarray(trace.response_ids)
        np.testing.assert_array_equal(trace.columns["label"] == Label.IDENTICAL, same)
        for value in trace.columns["label"].tolist():
            counts[Label(value).name.lower()] += 1
    assert result["now"]["labels"] == counts
    assert all(counts[name] for name in ("identical", "neutral", "divergent"))


def test_provenance_and_manifest_say_what_was_done(pair: ModelPair, responses: Path, tmp_path: Path) -> None:
    result = run(pair, tmp_path, responses, draft="sampled", top_p=0.9, labels_only=True, shard_rows=5)
    record = read_provenance(tmp_path)
    arguments = record["arguments"]
    assert arguments["draft"] == "sampled"
    assert arguments["draft_sampling"]["temperature"] == 1.0
    assert arguments["draft_sampling"]["top_p"] == 0.9
    assert arguments["verdict"] == "same_step"
    assert arguments["num_logits"] == 0
    assert (arguments["split"], arguments["seed"]) == ("train", 3)
    assert arguments["llm_sampling"]["temperature"] == 0
    assert record["source"]["fingerprints"] == record["fingerprints"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["num_responses"] == result["num_responses"]
    assert [shard["file"] for shard in manifest["shards"]] == [path.name for path in shard_paths(tmp_path)]
    assert [shard["num_responses"] for shard in manifest["shards"]] == [5, 5, 2]
    assert manifest["labels"] == {name: num for name, num in result["now"]["labels"].items() if num}
    (trace, *_) = read_traces(tmp_path)
    assert "slm_hidden" not in trace.columns and "label" in trace.columns


def test_sampled_drafts_are_others_and_labelled_alike(
    pair: ModelPair, responses: Path, tmp_path: Path
) -> None:
    greedy, sampled = (
        run(pair, tmp_path / draft, responses, draft=draft, labels_only=True)
        for draft in ("greedy", "sampled")
    )
    assert sampled["now"]["labels"]["identical"] < greedy["now"]["labels"]["identical"]
    for trace in labelled(tmp_path / "sampled").values():
        assert (trace.columns["draft_ids"] != trace.columns["argmax_slm"]).any()
    with pytest.raises(TraceError, match="draft"):
        run(pair, tmp_path / "greedy", responses, draft="sampled", labels_only=True)


def test_only_what_is_asked_for_is_labelled_and_more_may_follow(
    pair: ModelPair, responses: Path, tmp_path: Path
) -> None:
    first = run(pair, tmp_path, responses, task=("arithmetic",), num=2)
    assert first["num_responses"] == len(labelled(tmp_path)) == 2
    before = labelled(tmp_path)
    second = run(pair, tmp_path, responses)
    assert second["now"]["responses"] == len(TASKS) * NUM - 2
    after = labelled(tmp_path)
    assert_same(before, {key: after[key] for key in before})
    third = run(pair, tmp_path, responses)
    assert third["now"]["responses"] == 0
    assert third["continuations"]["llm_tokens"] == 0


def test_responses_that_were_cut_off_are_left_out_unless_asked_for(
    pair: ModelPair, responses: Path, tmp_path: Path
) -> None:
    cut = {trace.key: trace for trace in read_traces(responses) if trace.policy == "llm"}
    record = read_provenance(responses)
    with TraceWriter(tmp_path / "some", record) as writer:
        for number, trace in enumerate(cut.values()):
            writer.write(replace(trace, finish_reason="length" if number % 3 else "stop"))
    some = run(pair, tmp_path / "out", tmp_path / "some", labels_only=True)
    assert (some["num_responses"], some["num_cut_off"]) == (4, 8)
    assert len(labelled(tmp_path / "out")) == 4
    # Who looks for thresholds must route these problems, too.
    cut_off = [trace for number, trace in enumerate(cut.values()) if number % 3]
    expected = {LeftOut(trace.task, trace.problem_id, tuple(trace.prompt_ids)) for trace in cut_off}
    assert set(read_left_out(tmp_path / "out")) == expected and len(expected) == 8
    everything = run(pair, tmp_path / "out", tmp_path / "some", labels_only=True, cut_off=True)
    assert (everything["num_responses"], everything["num_cut_off"]) == (12, 0)
    with TraceWriter(tmp_path / "none", record) as writer:
        writer.write(replace(trace, finish_reason="length"))
    with pytest.raises(LabelingError, match="all 1 responses .* were cut off"):
        run(pair, tmp_path / "other", tmp_path / "none")


def test_outcome_runs_to_the_end(pair: ModelPair, responses: Path, tmp_path: Path) -> None:
    step, outcome = (
        run(pair, tmp_path / verdict, responses, verdict=verdict, labels_only=True, task=("arithmetic",))
        for verdict in ("same_step", "outcome")
    )
    assert outcome["continuations"]["llm_tokens"] > 1.5 * step["continuations"]["llm_tokens"]
    assert outcome["now"]["labels"]["identical"] == step["now"]["labels"]["identical"]
    assert outcome["verdicts"]["verdict"] == "outcome"


def test_command_makes_its_responses_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "labels"
    args = ["label", "--task", "arithmetic", "--num", "3", "--out", str(out), "--json"]
    assert main(args) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result == json.loads((out / "labels.json").read_text())
    assert result["num_responses"] == 3
    assert {trace.key[1:] for trace in read_traces(out / "responses")} == {key[1:] for key in labelled(out)}
    assert "<html" in (out / "index.html").read_text()
    # Made with the split that routers are trained on.
    assert read_provenance(out)["arguments"]["split"] == "train"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.7}, "draft sampled"),
        ({"draft": "sampled", "temperature": 0.0}, "above 0"),
        ({"llm_url": "http://localhost:1/v1"}, "give both, or neither"),
        ({"llm_key_env": "KEY"}, "there is no llm_url"),
        ({"num_logits": 0}, "num_logits is 0"),
        ({"sentence_tokens": 0}, "sentence_tokens is 0"),
        ({"traces": Path("x"), "samples": 2}, "is for making responses"),
    ],
)
def test_options_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LabelOptions(**changes)


def test_one_key_goes_to_one_host(pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAVTOKEN_API_KEY", "secret")
    monkeypatch.setenv("OTHER", "hidden")
    # Nobody is there: past the check, each is an error of the endpoint.
    there: dict[str, Any] = {"llm_url": "http://127.0.0.1:9/v1", "llm_model": "m", "llm_timeout": 1.0}
    judge = "judge:http://localhost:9/v1,model=m"
    with pytest.raises(OptionError, match=r"127\.0\.0\.1 and to localhost; .*--llm-key-env") as raised:
        run(pair, tmp_path, verdict=judge, **there)
    assert "secret" not in str(raised.value)
    sent: list[str | None] = []

    def note(endpoint: EndpointOptions, _: Any) -> Any:
        sent.append(endpoint.key())
        raise ConnectionError("nobody there")

    monkeypatch.setattr("navtoken.commands.label_inputs.RemoteLLM", note)
    for changes in (
        {"llm_key_env": "OTHER", "verdict": judge},
        {"verdict": f"{judge},key_env=OTHER"},
        {"verdict": judge.replace("localhost", "127.0.0.1")},
        {"verdict": "same_step"},
    ):
        with pytest.raises(ConnectionError, match="nobody there"):
            run(pair, tmp_path, **there, **changes)
    assert sent == ["hidden", "secret", "secret", "secret"]


def test_labels_by_a_judge_that_moved_go_on(pair: ModelPair, responses: Path, tmp_path: Path) -> None:
    arguments = []
    for port in (1, 2):
        options = LabelOptions(responses, verdict=f"judge:http://h:{port}/v1,model=m", out=tmp_path)
        verifier = verifier_named(options.verdict)
        models = Models(pair, None, {"slm": "s", "llm": "l"})
        arguments.append(_provenance(options, models, {}, verifier)["arguments"])
        verifier.close()
    for name in FIXED:
        assert arguments[0][name] == arguments[1][name]
    assert [each["verdict_by"][:15] for each in arguments] == ["judge:http://h:", "judge:http://h:"]
    assert arguments[0]["verdict_by"] != arguments[1]["verdict_by"]


def test_a_task_that_nobody_can_judge_is_refused_before_responses_are_made(
    pair: ModelPair, tmp_path: Path
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"prompt": "1 + 1", "answer": "2"}) + "\n")
    with pytest.raises(VerdictError, match="cannot judge steps"):
        run(pair, tmp_path / "out", task=(f"jsonl:{problems}",), split="test")
    assert not (tmp_path / "out").exists()


def test_what_another_llm_wrote_is_refused(
    pair: ModelPair, responses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LabelingError, match="by another LLM"):
        run(ModelPair(pair.slm, pair.slm), tmp_path, responses)
    with pytest.raises(LabelingError, match="where their labels would go"):
        run(pair, responses, responses)
    with pytest.raises(LabelingError, match="no trace has task knights.*what the LLM writes alone"):
        run(pair, tmp_path, responses, task=("knights",))
    with pytest.raises(VerdictError, match="no verdict is called 'guess'"):
        run(pair, tmp_path, responses, verdict="guess")
    slm, llm = saved_pair(tmp_path / "pair")
    assert main(["label", str(responses), "--slm", slm, "--llm", llm, "--out", str(tmp_path / "out")]) == 2
    assert "with another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_killed_at_any_moment_it_loses_and_repeats_nothing(pair: ModelPair, tmp_path: Path) -> None:
    """SIGKILL at random moments: while responses are made, while they are labelled, while a file is written."""
    out = tmp_path / "killed"
    small = ["--shard-rows", "2", "--batch-tokens", "64", "--labels-only"]
    args = ["label", "--task", "arithmetic", "--num", "36", "--out", str(out), "--max-rows", "8", *small]
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["navtoken.cli", "navtoken.commands.label"])
    rng, killed, seen = random.Random(1), 0, [0]
    while killed < 6:
        process = processes.Process(target=main, args=(args,))
        process.start()
        # The first time in the middle of making responses, then with at least one more file each time.
        while process.is_alive() and not (
            _files(out) > seen[-1] or (killed == 0 and (out / "responses").exists())
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        killed += 1
        seen.append(_files(out))
        if seen[-1]:
            labelled(out)
    assert killed >= 4
    assert seen == sorted(seen) and seen[1] == 0 < seen[2]
    assert main(args) == 0
    found = labelled(out)
    assert len(found) == 36
    assert json.loads((out / "manifest.json").read_text())["num_responses"] == 36
    assert not list(out.glob(".*.tmp"))
    run(
        pair,
        tmp_path / "whole",
        task=("arithmetic",),
        num=36,
        labels_only=True,
        engine=EngineOptions(max_rows=8),
    )
    assert_same(labelled(tmp_path / "whole"), found)


def _files(folder: Path) -> int:
    return len(list(folder.glob("traces-*.parquet")))
