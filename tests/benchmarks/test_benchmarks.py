"""Every benchmark runs, says what it should, and its ceilings are made of the passes that were made."""

import json
from pathlib import Path

import pytest
import torch

import batching
import bench
import candidates
import context
import decode
import decode_point
import decode_report
import measuring
import memory
import overhead
import pairs
from bare import GROUPED, BareModel, Passes, bare_seconds
from candidates import Assisted, Continuous, EngineCandidate, Generate
from measuring import Bar, BenchmarkError
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.planner import StepTimes
from navtoken.policies import Writer
from pairs import Load, PairSource, Request
from planned import Planner, acceptance_of
from tiny_models import PADDED_VOCAB_SIZE, tiny_model

TEXT = pairs.random_text(90)
ENGINE_FIELDS = {
    "roofline_tokens_per_second",
    "roofline_fraction",
    "bytes_fraction",
    "planned_tokens_per_second",
    "planned_fraction",
    "llm_share",
    "passes",
    "min_rows",
}


def json_line(capsys: pytest.CaptureFixture[str]) -> dict:
    """What a script's last line of standard output says."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_decode_puts_every_row_beside_its_ceilings(
    source: PairSource, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "results" / "decode.json"
    rows = ",".join(decode_point.ROWS)
    decode.main(["--concurrency", "1,4", "--repeats", "1", "--only", rows, "--out", str(out)], source)
    result = json_line(capsys)
    assert json.loads(out.read_text()) == result
    one, four = result["points"]
    assert [row["row"] for row in one["rows"]] == list(decode_point.ROWS)
    assert [row["row"] for row in four["rows"]] == [row for row in decode_point.ROWS if row != "assisted"]
    for row in (*one["rows"], *four["rows"]):
        assert "error" not in row, row
        assert row["tokens_per_second"]["median"] > 0
        assert row["settings"]
        if row["row"] not in decode_point.PEERS:
            assert row.keys() >= ENGINE_FIELDS
            assert row["roofline_fraction"] > 0
            assert row["bytes_fraction"] > 0
    by_name = {row["row"]: row for row in four["rows"]}
    assert {row["tokens"] for row in four["rows"]} == {36}
    assert by_name["slm"]["llm_share"] == 0
    assert by_name["llm"]["llm_share"] == 1
    assert by_name["lockstep:0.13"]["min_rows"] == 1
    assert four["ratios"]["llm"].keys() == {"lockstep:0.13", "generate", "continuous"}
    assert four["predicted_before"]["gain"] > 0
    assert {bar["name"] for bar in result["bars"]} >= {
        "1 row: routed at 0.13, of the roofline",
        "16 rows: LLM alone / generate",
    }
    # A build from PyPI names itself 2.13.0 to installers and 2.13.0+cu130 to programs.
    assert torch.__version__.startswith(result["provenance"]["versions"]["torch"])


def test_rows_are_those_that_a_concurrency_is_about() -> None:
    assert "lockstep:0.13" not in decode_point.Options().rows_at(1)
    assert decode_point.Options().rows_at(16) == list(decode_point.ROWS)
    assert decode_point.Options(only="lockstep:0.13,llm").rows_at(1) == ["lockstep:0.13", "llm"]
    with pytest.raises(BenchmarkError, match="no row 'lllm'"):
        decode_point.Options(only="lllm").rows_at(1)


def test_json_leaves_standard_output_to_one_line(
    source: PairSource, capsys: pytest.CaptureFixture[str]
) -> None:
    decode.main(["--concurrency", "1", "--repeats", "1", "--only", "llm", "--tokens", "4", "--json"], source)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert "roofline" in printed.err
    assert json.loads(printed.out)["points"][0]["load"]["response_tokens"] == [4, 4]


def test_roofline_is_bare_time_of_the_recorded_passes(
    source: PairSource, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A bare pass takes a second per new token: the bound must be as many seconds as tokens were fed.
    monkeypatch.setattr(BareModel, "times", lambda self: StepTimes.of({1: 1.0, 2: 2.0}))
    made: list[candidates.Run] = []
    run = EngineCandidate.run

    def kept(self: EngineCandidate, requests: list[Request]) -> candidates.Run:
        made.append(run(self, requests))
        return made[-1]

    monkeypatch.setattr(EngineCandidate, "run", kept)
    decode.main(["--concurrency", "4", "--repeats", "1", "--only", "random:0.35"], source)
    (row,) = json_line(capsys)["points"][0]["rows"]
    log = made[-1].log
    assert log is not None
    fed = sum(model.tokens for model in log.ledger.models)
    prompts = sum(len(request.prompt_ids) for request in source.load(4).requests(TEXT, 0))
    assert fed > 2 * prompts, "both models read the prompts"
    assert row["roofline_fraction"] == pytest.approx(fed / made[-1].seconds)
    assert log.ledger.llm.catchup_tokens > 0


def test_recorded_passes_are_the_forwards_that_were_made(source: PairSource) -> None:
    pair = source.make("cpu")
    fed: list[Passes] = []
    for model in Writer:
        pair[model].model.register_forward_pre_hook(
            lambda _, args, kwargs, model=model: fed.append(Passes(model, 1, kwargs["input_ids"].shape[1])),
            with_kwargs=True,
        )
    candidate = EngineCandidate(pair, "random:0.35", EngineOptions(max_rows=4))
    run = candidate.run(source.load(4).requests(TEXT, seed=0))
    assert run.log is not None
    assert list(run.log.passes) == fed
    assert run.num_tokens == 36
    again = candidate.run(source.load(4).requests(TEXT, seed=0))
    assert again.log is not None
    assert again.log.ledger.as_dict() == run.log.ledger.as_dict(), "a run's ledger is that run's alone"


def test_bare_seconds_by_hand() -> None:
    slm, llm = StepTimes.constant(1.0), StepTimes.of({1: 10.0, 2: 12.0})
    passes = [Passes(Writer.SLM, 1, 4), Passes(Writer.LLM, 1, 3), Passes(Writer.LLM, 2, 4)]
    assert bare_seconds(passes, (slm, llm)) == pytest.approx(1 + 14 + 2 * 12)


@pytest.mark.parametrize("attention", [None, GROUPED])
def test_bare_forward_computes_what_the_model_does(attention: str | None) -> None:
    loaded = tiny_model("qwen3", seed=3)
    ids_1T = torch.randint(2, 90, (1, 9), generator=torch.Generator().manual_seed(0))
    timed = BareModel(loaded, grid=(1, 5), context=9)
    timed.forward(ids_1T[:, :5], 0, attention)()
    timed.forward(ids_1T[:, 5:8], 5, attention)()
    last_11V = timed.forward(ids_1T[:, 8:], 8, attention)()
    assert torch.allclose(last_11V[0, 0], loaded.model(ids_1T).logits[0, -1])


def test_bare_times_err_downwards() -> None:
    timed = BareModel(tiny_model("qwen3"), grid=(1, 2, 4), context=8)
    timed.samples = {1: [3.0, 1.0, 2.0], 2: [1.5], 4: [5.0]}
    assert timed.times() == StepTimes.of({1: 1.5, 2: 1.5, 4: 5.0})


def test_planned_seconds_by_hand() -> None:
    requests = [Request([2, 3], 5, seed=0)] * 4
    steady = Planner(StepTimes.constant(1.0), StepTimes.constant(10.0))
    # Two batches of two; each reads its prompts in one pass, which gives the first of five tokens.
    alone = steady.seconds(requests, 2, steady.alone(Writer.LLM), (Writer.LLM,))
    assert alone == pytest.approx(2 * 5 * 10)
    routed = steady.seconds(requests[:1], 1, steady.routed(0.5), tuple(Writer))
    assert routed == pytest.approx(11 + 4 * (1 + 0.5 * 10))
    growing = Planner(StepTimes.of({1: 1.0, 2: 2.0}), StepTimes.of({1: 1.0, 2: 2.0}))
    # The third request joins when the short one has ended, and its two prompt tokens share a pass with the long one's.
    mixed = [Request([2, 3], 2, 0), Request([2, 3], 4, 0), Request([2, 3], 2, 0)]
    assert growing.seconds(mixed, 2, growing.alone(Writer.LLM), (Writer.LLM,)) == pytest.approx(
        4 + 2 + 2 + 2 + 1
    )


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 1.0])
def test_acceptance_comes_back_from_tokens_per_pass(acceptance: float) -> None:
    assert acceptance_of(sum(acceptance**i for i in range(5)), 4) == pytest.approx(acceptance, abs=1e-9)


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    named = {name: lambda number, name=name: order.append(f"{name}{number}") for name in "AB"}
    measuring.interleaved(named, 2)
    assert order == ["A0", "B0", "A1", "B1"]
    assert measuring.paired_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == (3.0, 2.0, 4.0)


def test_what_a_peer_fails_with_is_its_result(
    source: PairSource, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Continuous, requests: list[Request]) -> None:
        raise NotImplementedError("no paged attention here")

    monkeypatch.setattr(Continuous, "run", fail)
    decode.main(["--concurrency", "4", "--repeats", "1", "--only", "llm,continuous"], source)
    point = json_line(capsys)["points"][0]
    assert point["rows"][1]["error"] == "NotImplementedError: no paged attention here"
    assert point["ratios"] == {"llm": {}}


def test_a_peer_that_decodes_too_little_is_refused(source: PairSource) -> None:
    model = source.make("cpu").llm.model
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = list(range(PADDED_VOCAB_SIZE))
    with pytest.raises(BenchmarkError, match="decoded 1 tokens where 6"):
        Generate(model, 1).run(source.load(1).requests(TEXT, 0))


def test_bars_are_met_missed_or_not_run() -> None:
    row = {"row": "random:0.13", "roofline_fraction": 0.9, "planned_fraction": 0.5}
    ratios = {"llm": {"generate": {"median": 1.0}}}
    points = [
        {"concurrency": 1, "rows": [row], "ratios": ratios, "predicted_before": {"gain": 1.0}},
        {"concurrency": 4, "rows": [row], "ratios": {}, "predicted_before": {"gain": 1.0}},
    ]
    met = {bar.name: bar.met for bar in decode_report.check_bars("bandwidth", points)}
    assert met["1 row: routed at 0.13, of the roofline"] is True
    assert met["4 rows: routed at 0.13, of the planner's bound"] is False
    assert met["1 row: LLM alone / generate"] is False
    assert met["16 rows: gain of auto over lockstep, of the predicted"] is None
    assert [bar.wanted for bar in decode_report.check_bars("embedded", points)] == [3.0]
    assert [bar.wanted for bar in decode_report.check_bars("r1", points)] == [4.4, 0.8]


def test_batching_compares_the_pick_with_the_best(
    source: PairSource, capsys: pytest.CaptureFixture[str]
) -> None:
    batching.main(["--concurrency", "2", "--repeats", "1", "--tokens", "8"], source)
    result = json_line(capsys)
    point = result["points"][0]
    speeds = {rule["min_rows"]: rule["tokens_per_second"] for rule in point["rules"]}
    assert speeds.keys() == {1, 2}
    assert point["best"] == max(speeds, key=speeds.get)  # type: ignore[arg-type]
    assert point["pick_over_best"] == pytest.approx(speeds[point["pick"]] / speeds[point["best"]])
    assert result["bars"][0]["met"] == (point["pick_over_best"] >= 0.95)


def test_overhead_is_what_no_forward_explains(source: PairSource, capsys: pytest.CaptureFixture[str]) -> None:
    overhead.main(["--concurrency", "2", "--repeats", "1", "--tokens", "6"], source)
    rows = json_line(capsys)["rows"]
    assert [row["policy"] for row in rows] == list(overhead.POLICIES)
    assert all(0 < row["outside_share"] < 1 for row in rows)
    assert all(row["ceiling"] == 0 for row in rows)
    # The first step reads the prompts and is left out; one more gives each further token.
    assert rows[0]["steps"] == 5


def test_forwards_are_timed_and_left_as_they_were(source: PairSource) -> None:
    pair = source.make("cpu")
    with overhead.timed_forwards(pair) as seconds:
        pair.slm.model(torch.tensor([[2, 3]]))
        pair.llm.model(torch.tensor([[2, 3]]))
    assert len(seconds) == 2
    pair.llm.model(torch.tensor([[2, 3]]))
    assert len(seconds) == 2


def test_memory_holds_little_more_than_it_must(
    source: PairSource, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.main(["--concurrency", "4"], source)
    (row,) = json_line(capsys)["rows"]
    assert row["held_bytes"] >= row["least_bytes"] > 0
    assert row["held_over_least"] == row["held_bytes"] / row["least_bytes"]
    per_token = sum(source.make("cpu")[model].card.kv_bytes for model in Writer)
    assert row["least_bytes"] <= 4 * (14 + 9) * per_token
    assert row["static_bytes"] == 4 * (14 + 9) * per_token
    assert row["peak_process_bytes"] > row["held_bytes"]


def test_context_is_held_against_a_linear_bound(
    source: PairSource, capsys: pytest.CaptureFixture[str]
) -> None:
    context.main(["--contexts", "16,64", "--tokens", "3"], source)
    result = json_line(capsys)
    near, far = result["rows"]
    assert (near["context"], far["context"]) == (16, 64)
    grown = 48 * source.make("cpu").llm.card.kv_bytes / result["bandwidth_bytes_per_second"]
    assert far["linear_ms"] - near["linear_ms"] == pytest.approx(1e3 * grown)
    assert near["bare_fraction"] == near["linear_fraction"]
    with pytest.raises(BenchmarkError, match="pass the 192"):
        context.main(["--contexts", "190", "--tokens", "3"], source)


def test_rounds_have_the_same_lengths_and_other_prompts() -> None:
    load = Load(5, (10, 20), (4, 12))
    first, second = load.requests(TEXT, seed=0), load.requests(TEXT, seed=1)
    assert [len(r.prompt_ids) for r in first] == [len(r.prompt_ids) for r in second]
    assert [r.num_tokens for r in first] == [r.num_tokens for r in second]
    assert sorted(r.num_tokens for r in first) == [4, 6, 8, 10, 12]
    assert all(a.prompt_ids != b.prompt_ids for a, b in zip(first, second, strict=True))


def test_embedded_prompts_are_its_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs.PAIRS["embedded"]
    pair = source.make("cpu")
    text = source.text(pair)
    ids = text(120, 7)
    assert len(ids) == 120
    assert ids == text(120, 7) != text(120, 8)
    logprobs_TV = pair.llm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    assert logprobs_TV[60:].gather(1, torch.tensor(ids[61:])[:, None]).mean() > -1
    with pytest.raises(BenchmarkError, match="ask for shorter prompts"):
        text(100_000, 7)


def test_large_pairs_are_refused_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchmarkError, match="'r1' is made on an accelerator .* take embedded or bandwidth"):
        pairs.source_named("r1")
    with pytest.raises(BenchmarkError, match="no pair is called 'r2'"):
        pairs.source_named("r2")
    assert not any("r1" in name or "qwen3" in name for name in bench.jobs())


def test_random_pair_is_seeded_and_finite() -> None:
    shape = pairs._qwen3(64, 96, 2, 4, 2, 16, vocab_size=128, tie_word_embeddings=True)
    first, second = (pairs.random_model(shape, 7, "cpu", "random:test") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 128
    assert bool(first.model(torch.tensor([[2, 3, 4]])).logits.isfinite().all())


def test_bench_gathers_bars_and_names_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], out: Path) -> bool:
        out.write_text(json.dumps({"bars": [Bar("fast", 2.0, 3.0).as_json()]}))
        return command[0] != "context.py"

    monkeypatch.setattr(bench, "_run", run)
    with pytest.raises(SystemExit) as exit_info:
        bench.main(["--only", "decode-embedded,context", "--results", str(tmp_path)])
    assert exit_info.value.code == 1
    result = json_line(capsys)
    assert result["failed"] == ["context"]
    assert result["bars"]["decode-embedded"][0]["met"] is True
    with pytest.raises(SystemExit, match="no benchmark 'nowhere'"):
        bench.main(["--only", "nowhere"])


def test_bandwidth_is_that_of_the_faster_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((2.0, 1.0))
    monkeypatch.setattr(measuring, "median_seconds", lambda *_: next(seconds))
    assert measuring.memory_bandwidth("cpu", num_bytes=1 << 10) == 1 << 10


def test_all_peers_decode_the_same_greedy_tokens(source: PairSource) -> None:
    pair, plain = pairs.packed_and_plain(source)
    load = source.load(4)
    requests = load.requests(TEXT, seed=0)
    generate = Generate(plain[Writer.LLM], 4)
    assisted = Assisted(plain[Writer.LLM], plain[Writer.SLM], 0.0)
    continuous = Continuous(plain[Writer.LLM], 4)
    for peer in (generate, assisted, continuous):
        peer.warm_up(load, TEXT)
        assert len(peer.settings["trials"]) >= 2
    with continuous.serving():
        told = [continuous.decode(requests), generate.decode(requests), assisted.decode(requests)]
    continuous.close()
    engine = EngineCandidate(pair, "llm", EngineOptions(max_rows=4)).engine
    rows = [
        engine.add(each.prompt_ids, SamplingParams(ignore_eos=True), each.num_tokens) for each in requests
    ]
    for _ in engine.run():
        pass
    assert all(ids == [row.response_ids for row in rows] for ids in told)
