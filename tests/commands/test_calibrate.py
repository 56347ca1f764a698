"""`navtoken calibrate` as a person runs it: what is replaced and what stays, the same weights, going on, errors in one line."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from navtoken.checkpoints import ModelPair, load_pair
from navtoken.cli import main
from navtoken.commands import calibrate
from navtoken.engine import Engine, SamplingParams
from navtoken.generation import ready_policy
from navtoken.policies.router import embedded_router
from navtoken.router import StoredThreshold, load_card, load_router
from navtoken.router.splits import part_of
from navtoken.router_training import thresholds
from navtoken.router_training.thresholds import RoutedRuns
from navtoken.tasks import load_task
from navtoken.tasks.prompts import render
from small_runs import few, saved_pair
from tiny_routers import tiny_router

Capture = pytest.CaptureFixture[str]
TASKS = ("arithmetic", "countdown")
SMALL = ["--num", "4", "--max-tokens", "8", "--temperature", "0"]
GREEDY = tuple(
    StoredThreshold(task, 0.9 + digit / 100, share=share)
    for task in ("all", *TASKS)
    for digit, share in enumerate((0.2, 0.3))
)
# Others first: a threshold is told by all that it was looked for at, not by being the first of its task and share.
STORED = (
    StoredThreshold("all", 0.8, temperature=1.0, share=0.3),
    StoredThreshold("arithmetic", 0.85, temperature=1.0, top_p=0.9, share=0.3),
    StoredThreshold("all", 0.7, recall=0.3),
    *GREEDY,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return load_pair(*saved_pair(tmp_path_factory.mktemp("pair")))


@pytest.fixture(scope="module")
def models(pair: ModelPair) -> list[str]:
    return ["--slm", pair.slm.reference, "--llm", pair.llm.reference]


@pytest.fixture
def router(pair: ModelPair, tmp_path: Path) -> Path:
    """A router whose default is the threshold for 30 % over all tasks."""
    record = {"created": "before", "arguments": {"epochs": 3}}
    tiny_router(tmp_path / "router", pair, thresholds=STORED, default_threshold=0.91, provenance=record)
    return tmp_path / "router"


def run(args: list[str], capsys: Capture) -> dict[str, Any]:
    assert main(["calibrate", *args, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def refused(args: list[str], capsys: Capture) -> str:
    assert main(["calibrate", *args]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "router.safetensors").read_bytes()).hexdigest()


def key(stored: StoredThreshold) -> tuple[Any, ...]:
    return stored.task, stored.temperature, stored.top_p, stored.share, stored.recall


def test_what_is_asked_for_is_replaced_and_all_else_stays(
    router: Path, models: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out, before = tmp_path / "out", (router / "router.json").read_bytes()
    result = run([str(router), *models, *SMALL, "--share", "0.3", "--out", str(out)], capsys)
    card = load_card(out)
    assert [key(each) for each in card.thresholds] == [key(each) for each in STORED]
    new = {key(each): each for each in card.thresholds if each not in STORED}
    assert list(new) == [(task, 0.0, 1.0, 0.3, None) for task in ("all", *TASKS)]
    assert [asdict(each) for each in new.values()] == result["thresholds"]
    assert [each.num_problems for each in new.values()] == [8, 4, 4]
    assert {each.max_tokens for each in new.values()} == {8} and result["num_kept"] == len(STORED) - 3
    # Its share was found again.
    assert card.default_threshold == new["all", 0.0, 1.0, 0.3, None].threshold == result["default_threshold"]
    assert (router / "router.json").read_bytes() == before
    assert weights_of(out) == weights_of(router) == card.weights == result["weights"]
    load_router(out)
    assert sorted(path.name for path in out.iterdir()) == ["calibration", "router.json", "router.safetensors"]


def test_how_it_was_done_is_kept_beside_the_training(
    router: Path, models: list[str], capsys: Capture
) -> None:
    run([str(router), *models, *SMALL, "--share", "0.2"], capsys)
    # Into the router's own folder, which may be done again.
    run([str(router), *models, *SMALL, "--share", "0.3", "--seed", "4"], capsys)
    record = load_card(router).provenance
    assert record["created"] == "before" and record["arguments"] == {"epochs": 3}
    first, second = record["calibrations"]
    assert first["arguments"]["share"] == [0.2] and second["arguments"]["share"] == [0.3]
    assert second["arguments"]["seed"] == 4 and second["arguments"]["task"] == list(TASKS)
    assert second["arguments"]["folder"] == "router" and second["arguments"]["out"] is None
    assert second["num_problems"] == dict.fromkeys(TASKS, 4)
    assert second["created"] > "2026" and "git_revision" in second
    assert not set(load_card(router).thresholds) & set(GREEDY)


def test_what_is_not_said_of_sampling_is_as_a_server_draws(router: Path) -> None:
    card = load_card(router)
    served = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    asked = calibrate.CalibrateOptions(router)
    own = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    assert asked.wanted(card, served).samplings() == [SamplingParams(repetition_penalty=1.05), own]
    assert asked.wanted(card).samplings() == [SamplingParams(), SamplingParams(temperature=1.0)]
    off = replace(asked, temperature=(0.0, 0.6), top_p=1.0, top_k=0, repetition_penalty=1.0)
    assert off.wanted(card, served).samplings() == [SamplingParams(), SamplingParams(temperature=0.6)]
    assert asked.wanted(card, {"temperature": 0.0}).samplings() == [SamplingParams()]


def test_a_penalty_is_calibrated_beside_what_was_found_without(
    router: Path, models: list[str], capsys: Capture
) -> None:
    run([str(router), *models, *SMALL, "--share", "0.3", "--repetition-penalty", "1.05"], capsys)
    card = load_card(router)
    assert card.thresholds[: len(STORED)] == STORED
    assert {each.repetition_penalty for each in card.thresholds[len(STORED) :]} == {1.05}
    assert (
        main(["calibrate", str(router), *models, *SMALL, "--share", "0.3", "--repetition-penalty", "1.05"])
        == 0
    )
    assert "drawn with repetition_penalty 1.05" in capsys.readouterr().out


def test_the_new_threshold_is_the_one_that_routes(
    router: Path, pair: ModelPair, models: list[str], capsys: Capture
) -> None:
    result = run([str(router), *models, *SMALL, "--share", "0.3", "--num", "8"], capsys)
    (found,) = [each for each in result["thresholds"] if each["task"] == "arithmetic"]
    assert abs(found["realised_share"] - 0.3) <= 0.02
    policy: Any = ready_policy(f"router:{router},share=0.3", pair, load_task("arithmetic"), few(max_tokens=8))
    assert policy.threshold == found["threshold"]
    engine = Engine(pair, policy)
    task = load_task("arithmetic")
    kept = [each for each in task.problems("train", 200, 0) if part_of(each.problem_id) == "validation"][:8]
    for problem in kept:
        engine.add(render(pair.tokenizer, task, problem).ids, SamplingParams(), 8)
    for _ in engine.run():
        pass
    assert engine.ledger.llm_share == found["realised_share"]


def test_of_some_tasks_nothing_is_said_of_all(router: Path, models: list[str], capsys: Capture) -> None:
    args = [str(router), *models, *SMALL, "--share", "0.3"]
    assert "and countdown is not asked for" in refused(
        [*args, "--task", "arithmetic", "--default-share", "0.3"], capsys
    )
    result = run([*args, "--task", "arithmetic"], capsys)
    card = load_card(router)
    assert [each["task"] for each in result["thresholds"]] == ["arithmetic"]
    assert [each for each in card.thresholds if each.task != "arithmetic"] == [
        each for each in STORED if each.task != "arithmetic"
    ]
    assert card.default_threshold == 0.91


def test_the_default_is_that_of_its_share_or_of_the_one_asked_for(
    router: Path, models: list[str], tmp_path: Path, capsys: Capture
) -> None:
    args = [str(router), *models, *SMALL, "--share", "0.2"]
    kept = run([*args, "--out", str(tmp_path / "kept")], capsys)
    assert kept["default_threshold"] == load_card(tmp_path / "kept").default_threshold == 0.91
    other = run([*args, "--default-share", "0.2", "--out", str(tmp_path / "other")], capsys)
    assert other["default_threshold"] == other["thresholds"][0]["threshold"]
    # That of a checkpoint, which was found for no share.
    card = load_card(router)
    (router / "router.json").write_text(json.dumps(card.as_json() | {"default_threshold": 0.5}))
    assert run([*args, "--share", "0.3"], capsys)["default_threshold"] == 0.5


def problems_asked(args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> dict[str, list[str]]:
    """Problems on which thresholds would be looked for, by task."""
    asked: dict[str, list[str]] = {}

    def looking(runs: RoutedRuns, *_: Any) -> list[StoredThreshold]:
        asked.update({task: [each.problem_id for each in own] for task, own in runs.prompts.items()})
        return []

    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "stored_thresholds", looking)
        run(args, capsys)
    return asked


def test_problems_are_those_that_the_weights_were_not_learnt_from(
    router: Path, pair: ModelPair, models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    args = [str(router), *models, *SMALL, "--num", "5"]
    asked = problems_asked(args, monkeypatch, capsys)
    assert list(asked) == list(TASKS)
    for task, own in asked.items():
        drawn = [each.problem_id for each in load_task(task).problems("train", 200, 0)]
        assert own == [each for each in drawn if part_of(each) == "validation"][:5]
    assert problems_asked([*args, "--seed", "1"], monkeypatch, capsys) != asked
    # Nothing of another split was learnt, unless the card says so.
    test = [each.problem_id for each in load_task("arithmetic").problems("test", 200, 0)]
    args += ["--split", "test"]
    assert problems_asked(args, monkeypatch, capsys)["arithmetic"] == test[:5]
    tiny_router(
        router, pair, thresholds=STORED, provenance={"sources": {"labels": {"splits": ["test", "train"]}}}
    )
    kept = [each for each in test if part_of(each) == "validation"][:5]
    assert problems_asked(args, monkeypatch, capsys)["arithmetic"] == kept


def test_interrupted_it_goes_on(
    router: Path, models: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [str(router), *models, *SMALL, "--share", "0.2", "--share", "0.3", "--out"]
    decoded: list[tuple[Any, ...]] = []
    decode = RoutedRuns._run

    def counting(runs: RoutedRuns, *what: Any) -> Any:
        if len(decoded) == limit:
            raise KeyboardInterrupt
        decoded.append(what)
        return decode(runs, *what)

    monkeypatch.setattr(RoutedRuns, "_run", counting)
    limit = 100
    whole = run([*args, str(tmp_path / "whole")], capsys)
    needed, decoded, limit = list(decoded), [], 3
    assert main(["calibrate", *args, str(tmp_path / "parts")]) == 130
    assert not (tmp_path / "parts" / "router.json").exists()
    capsys.readouterr()
    limit = 100
    parts = run([*args, str(tmp_path / "parts")], capsys)
    assert parts["thresholds"] == whole["thresholds"] and decoded == needed
    # Done once more, nothing is decoded.
    limit = len(decoded)
    assert run([*args, str(tmp_path / "parts")], capsys)["thresholds"] == whole["thresholds"]


def test_a_query_router(
    pair: ModelPair, models: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_router(tmp_path, pair, kind="query", thresholds=GREEDY, inputs=("hidden",))
    before, count = weights_of(tmp_path), thresholds.counted
    writers: set[frozenset[int]] = set()

    def watching(rows: Any) -> thresholds.Counted:
        writers.update(frozenset(row.record.writer) for row in rows)
        return count(rows)

    monkeypatch.setattr(thresholds, "counted", watching)
    result = run([str(tmp_path), *models, *SMALL, "--share", "0.5"], capsys)
    assert result["kind"] == "query" and weights_of(tmp_path) == before
    assert [each["task"] for each in result["thresholds"]] == ["all", *TASKS]
    # One model writes the whole response.
    assert writers == {frozenset({0}), frozenset({1})}
    assert load_card(tmp_path).thresholds[:6] == GREEDY


def test_a_router_without_thresholds_gets_some(
    pair: ModelPair, models: list[str], tmp_path: Path, capsys: Capture
) -> None:
    tiny_router(tmp_path, pair, default_threshold=None)
    args = [str(tmp_path), *models, *SMALL]
    assert "name no task; give --task" in refused(args, capsys)
    both = ["--task", "countdown", "--task", "arithmetic", "--share", "0.3", "--default-share", "0.3"]
    result = run([*args, *both], capsys)
    assert [each["task"] for each in result["thresholds"]] == ["all", "countdown", "arithmetic"]
    assert load_card(tmp_path).default_threshold == result["thresholds"][0]["threshold"]


def test_what_was_found_is_printed(router: Path, models: list[str], capsys: Capture) -> None:
    assert main(["calibrate", str(router), *models, *SMALL, "--share", "0.3", "--num", "1"]) == 0
    printed = capsys.readouterr()
    assert all(len(line) <= 80 for line in printed.out.splitlines() if not line.startswith("policy router:"))
    lines = [line.split() for line in printed.out.splitlines()]
    card = load_card(router)
    for each in (each for each in card.thresholds if each.max_tokens == 8):
        number = f"{each.realised_share:.3f}"
        assert [each.task, "0.0", "0.3", f"{each.threshold:.4g}", number, str(each.num_problems)] in lines
        said = f"share 0.3 of {each.task} at T=0 came out at {number}"
        assert (said in " ".join(printed.out.split())) == (not each.kept_share)
    assert any(not each.kept_share for each in card.thresholds)
    assert f"default threshold: {card.default_threshold:g}" in printed.out
    assert "routing arithmetic, countdown at T=0, threshold 1" in printed.err


def test_another_pair_is_refused(pair: ModelPair, router: Path, models: list[str], capsys: Capture) -> None:
    slm, llm = pair.slm.reference, pair.llm.reference
    before = (router / "router.json").read_bytes()
    assert "trained for SLM" in refused([str(router), "--slm", llm, "--llm", llm, *SMALL], capsys)
    assert "trained with LLM" in refused([str(router), "--slm", slm, "--llm", slm, *SMALL], capsys)
    assert (router / "router.json").read_bytes() == before


def test_the_packages_routers_are_not_overwritten(capsys: Capture) -> None:
    for folder in ([], [str(embedded_router())], [str(embedded_router("query"))]):
        assert "give --out FOLDER" in refused([*folder, *SMALL], capsys)


def test_another_routers_folder_is_not_overwritten(
    pair: ModelPair, router: Path, models: list[str], tmp_path: Path, capsys: Capture
) -> None:
    other = tiny_router(tmp_path / "other", pair, seed=5)
    said = refused([str(router), *models, *SMALL, "--out", str(tmp_path / "other")], capsys)
    assert "they are of two routers" in said
    assert load_router(tmp_path / "other").card == other
    (router / "router.safetensors").write_bytes(b"")
    assert "they are of two routers" in refused([str(router), *models, *SMALL], capsys)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--num", "0"], "num is 0; give at least 1"),
        (["--max-tokens", "0"], "max_tokens is 0; give at least 1"),
        (["--share", "1.5"], "share is 1.5"),
        (["--share", "0.2", "--share", "0.2"], "share 0.2 is given twice"),
        (["--temperature", "0"], "temperature 0 is given twice"),
        (["--task", "knights", "--task", "knights"], "task 'knights' is given twice"),
        (["--task", "nonsense"], "nonsense"),
        (["--default-share", "0.6"], "default_share is 0.6, which is no share asked for"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0; give a number above 0"),
        (["--when-unprofitable", "llm"], "when_unprofitable is llm"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(
    router: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, wrong: list[str], said: str
) -> None:
    monkeypatch.setattr("navtoken.generation.options.load_pair", None)
    assert said in refused([str(router), *SMALL, *wrong], capsys)


def test_a_folder_without_a_router(tmp_path: Path, capsys: Capture) -> None:
    assert "holds no router" in refused([str(tmp_path), *SMALL], capsys)


def test_a_task_without_such_problems(
    router: Path, models: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("navtoken.router_training.recalibration.kept_from_training", lambda *_: iter(()))
    said = refused([str(router), *models, *SMALL, "--task", "arithmetic"], capsys)
    assert "'arithmetic' has no problems in 'train'" in said
