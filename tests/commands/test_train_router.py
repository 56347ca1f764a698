"""`navtoken train-router` as a person runs it: a router that routes, a page, errors in one line, and going on where it stopped."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labelled_traces import labels
from navtoken.checkpoints import ModelPair, load_pair
from navtoken.cli import main
from navtoken.commands import train_router
from navtoken.commands.train_router_page import _shares_title
from navtoken.engine import Engine
from navtoken.generation import fingerprints
from navtoken.policies import make_policy
from navtoken.provenance import provenance
from navtoken.router import load_router
from navtoken.router.splits import part_of
from navtoken.router_training import training
from navtoken.router_training.build import LabelThreshold
from navtoken.trace import TraceWriter
from small_runs import saved_pair
from small_traces import small_trace
from tiny_models import prompts

Capture = pytest.CaptureFixture[str]
SMALL = [
    *("--epochs", "3", "--batch-size", "128", "--width", "16", "--depth", "1", "--resamples", "20"),
    *("--share", "0.3", "--default-share", "0.3", "--recall", "0.9", "--temperature", "0"),
    *("--max-tokens", "8", "--calibration-num", "4"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return load_pair(*saved_pair(tmp_path_factory.mktemp("pair")))


@pytest.fixture(scope="module")
def models(pair: ModelPair) -> list[str]:
    return ["--slm", pair.slm.reference, "--llm", pair.llm.reference]


@pytest.fixture(scope="module")
def folders(pair: ModelPair, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    top = tmp_path_factory.mktemp("labels")
    return [
        str(labels(top / draft, num=60, draft=draft, fingerprints=fingerprints(pair)))
        for draft in ("greedy", "sampled")
    ]


def run(args: list[str], capsys: Capture) -> dict[str, Any]:
    assert main(["train-router", *args, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def refused(args: list[str], capsys: Capture) -> str:
    assert main(["train-router", *args]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    return line


def test_labels_become_a_router_that_routes(
    pair: ModelPair, models: list[str], folders: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "router"
    result = run([*folders, *models, *SMALL, "--share", "0.1", "--out", str(out)], capsys)
    assert sorted(path.name for path in out.iterdir()) == [
        "index.html",
        "report.json",
        "router.json",
        "router.safetensors",
        "training",
    ]
    # The copies of the labels go once they are learnt.
    assert sorted(path.name for path in (out / "training").iterdir()) == ["routed.json", "state.safetensors"]
    assert result["modes"] == ["greedy", "sampled T=1"] and result["tasks"] == ["countdown", "knights"]
    names = [part["name"] for part in result["test"]]
    assert names == ["all", "countdown", "knights", "greedy", "sampled T=1"]
    assert sum(result["counts"][part]["problems"] for part in ("train", "validation", "test")) == 60
    asked = [(each["task"], each["share"], each["recall"]) for each in result["thresholds"]]
    assert ("all", 0.3, None) in asked and ("knights", 0.1, None) in asked and ("all", None, 0.9) in asked
    saved = json.loads((out / "report.json").read_text())
    assert saved == {name: value for name, value in result.items() if name != "page"}
    card = load_router(out).card
    assert card.pair.fingerprints == fingerprints(pair)
    assert card.report["test"]["all"]["pr"] == result["test"][0]["router"]["pr"]["value"]
    assert card.provenance["sources"][Path(folders[1]).name]["arguments"]["draft"] == "sampled"
    # The stored default threshold is what routes, and gives the share that the card says.
    (default,) = [each for each in card.thresholds if (each.task, each.share) == ("all", 0.3)]
    policy = make_policy(f"router:{out}")
    assert policy.threshold == card.default_threshold == default.threshold  # type: ignore[attr-defined]
    engine = Engine(pair, policy)
    for prompt in prompts(3):
        engine.add(prompt, max_tokens=10)
    for _ in engine.run():
        pass
    assert engine.costs.router_parameters == result["parameters"] > 0
    page = (out / "index.html").read_text()
    assert (
        "Thresholds stored with the router" in page and "http" not in page.split("<body>")[1].split("href")[0]
    )


def test_run_again_nothing_is_trained_nor_routed(
    models: list[str],
    folders: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = [*folders[:1], *models, *SMALL, "--out", str(tmp_path)]
    first = run(args, capsys)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(training._Loop, "run", never)
    monkeypatch.setattr(Engine, "add", never)
    again = run(args, capsys)
    for result in (first, again):
        del result["provenance"]
    assert again == first
    # Other shares need other runs, but no training.
    monkeypatch.undo()
    monkeypatch.setattr(training._Loop, "run", never)
    more = run([*args, "--share", "0.5"], capsys)
    assert more["weights"] == first["weights"]
    assert {each["share"] for each in more["thresholds"]} == {0.3, 0.5, None}


def test_interrupted_it_goes_on(
    models: list[str],
    folders: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = [*folders[:1], *models, *SMALL]
    whole = run([*args, "--out", str(tmp_path / "whole")], capsys)
    passed = []

    def until_second(loop: Any, progress: Any, stepped: Any) -> Any:
        if len(passed) == 1:
            raise KeyboardInterrupt
        passed.append(1)
        return run_epoch(loop, progress, stepped)

    run_epoch = training._Loop.run
    monkeypatch.setattr(training._Loop, "run", until_second)
    assert main(["train-router", *args, "--out", str(tmp_path / "parts")]) == 130
    assert not (tmp_path / "parts" / "router.json").exists()
    capsys.readouterr()
    monkeypatch.setattr(training._Loop, "run", run_epoch)
    parts = run([*args, "--out", str(tmp_path / "parts")], capsys)
    assert parts["weights"] == whole["weights"] and parts["thresholds"] == whole["thresholds"]


def test_inputs_and_target_are_chosen(
    models: list[str], folders: list[str], tmp_path: Path, capsys: Capture
) -> None:
    chosen = ["--inputs", "hidden, logits", "--num-logits", "5", "--target", "different"]
    result = run([*folders[:1], *models, *SMALL, *chosen, "--out", str(tmp_path)], capsys)
    assert result["shape"]["inputs"] == ["logits", "hidden"] and result["shape"]["top_k"] == 5
    assert result["target"] == "different"
    test = result["counts"]["test"]
    different = (test["neutral"] + test["divergent"]) / sum(
        test[name] for name in ("identical", "neutral", "divergent")
    )
    assert result["test"][0]["share"]["value"] == pytest.approx(different)


def test_a_query_router(pair: ModelPair, models: list[str], tmp_path: Path, capsys: Capture) -> None:
    with TraceWriter(tmp_path / "traces", provenance(fingerprints(pair), split="train")) as writer:
        for number, ids in enumerate(prompts(80, seed=4)):
            for policy in ("slm", "llm"):
                correct = policy == "llm" or number % 3 > 0
                trace = small_trace([5, 6], policy=policy, correct=correct, problem_id=f"p{number}")
                trace.prompt_ids = ids
                writer.write(trace)
    out = tmp_path / "query"
    args = ["--kind", "query", "--traces", str(tmp_path / "traces"), *models, *SMALL, "--out", str(out)]
    result = run(args, capsys)
    assert result["kind"] == "query" and result["shape"]["inputs"] == ["hidden"]
    assert (
        result["num_labels"] == 80 and result["test"][0]["num_tokens"] == result["counts"]["test"]["problems"]
    )
    # So few prompts leave few shares to be had: one that came out far off is stored, and not used.
    card = load_router(out).card
    (found,) = [each for each in card.thresholds if each.task == "all" and each.share == 0.3]
    policy = make_policy(f"query:{out},share=0.3")
    used = policy.stored("all", {"temperature": 0.0})  # type: ignore[attr-defined]
    assert (used is not None) == (abs(found.realised_share - 0.3) <= 0.02)
    page = (out / "index.html").read_text()
    assert "prompts that need the LLM" in page and "of the prompts the router finds" in page
    # Nothing is said of what only a router of tokens sees.
    words = " ".join(result["findings"])
    assert "greedy responses only" in words and "p(LLM needed)" in words
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    wrong = ("drafts", "p(divergent)", "own responses", "of the tokens the router")
    assert not [each for each in wrong if each in words + shown]


def test_what_cannot_work_is_said_in_one_line(
    models: list[str], folders: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = ["--out", str(tmp_path)]
    assert "give LABELS" in refused(out, capsys)
    assert "kind query needs --traces" in refused([*out, "--kind", "query"], capsys)
    assert "--traces is for kind query" in refused([*out, *folders, "--traces", folders[0]], capsys)
    assert "no traces at" in refused([*out, str(tmp_path / "nothing")], capsys)
    assert "default_share is 0.2, which is no share asked for" in refused(
        [*out, *folders, "--share", "0.1"], capsys
    )
    assert "the labels hold 12" in refused([*out, *folders, *models, "--num-logits", "50"], capsys)
    assert "no input 'nonsense'" in refused([*out, *folders, *models, "--inputs", "nonsense"], capsys)
    # The embedded pair is another than the labels are of.
    assert "the labels were made with another slm" in refused([*out, *folders], capsys)


def test_an_official_checkpoint_is_imported_and_tested(
    pair: ModelPair,
    models: list[str],
    folders: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from navtoken.router import RouterNetwork

    def imported(path: Path, slm: Any, names: Any, record: Any) -> Any:
        assert path == tmp_path / "default.pt" and slm.reference == pair.slm.reference
        shape = train_router.NetworkOptions(width=16, depth=1).shape(pair, "token", 12)
        record = record | {"imported_from": path.name}
        card = train_router.RouterCard("token", names, shape, default_threshold=0.7, provenance=record)
        return RouterNetwork(shape).eval(), card

    monkeypatch.setattr(train_router, "import_official", imported)
    official = ["--import-official", str(tmp_path / "default.pt"), *models]
    bare = run([*official, "--out", str(tmp_path / "bare")], capsys)
    assert bare["default_threshold"] == load_router(tmp_path / "bare").card.default_threshold == 0.7
    tested = run([*official, *folders[:1], *SMALL, "--out", str(tmp_path / "tested")], capsys)
    assert tested["history"] == [] and tested["best_epoch"] == 0
    assert len(tested["thresholds"]) == 4
    # It routes as its authors tested it; what was found here is asked for by share.
    assert tested["default_threshold"] == load_router(tmp_path / "tested").card.default_threshold == 0.7
    page = (tmp_path / "tested" / "index.html").read_text()
    assert "Its weights were imported from default.pt" in page and "as the checkpoint brought it" in page
    words = " ".join(tested["findings"])
    assert "given thresholds and tested on greedy drafts only" in words.lower()
    assert "never saw" not in words + page and "Its weights come from one part" not in page
    assert main(["train-router", *official, *folders[:1], *SMALL, "--out", str(tmp_path / "tested")]) == 0
    said = capsys.readouterr().out
    assert "default threshold 0.7 (which the checkpoint brought" in " ".join(said.split())


def test_problems_of_the_three_parts_do_not_meet(
    models: list[str], folders: list[str], tmp_path: Path, capsys: Capture
) -> None:
    result = run([*folders[:1], *models, *SMALL, "--out", str(tmp_path)], capsys)
    parts = [part_of(f"p{number}") for number in range(60)]
    for part in ("train", "validation", "test"):
        assert result["counts"][part]["problems"] == parts.count(part)
    # Thresholds come from at most 4 validation problems per task.
    (of_all, *_) = [each for each in result["thresholds"] if each["task"] == "all"]
    assert of_all["num_problems"] <= min(8, parts.count("validation"))


def test_test_problems_are_not_learnt_from(
    pair: ModelPair, models: list[str], tmp_path: Path, capsys: Capture
) -> None:
    prints = fingerprints(pair)
    both = tmp_path / "both"
    labels(both, num=60, fingerprints=prints)
    labels(both, num=2, fingerprints=prints, split="test", first=60)
    # Later problems of the right split do not hide those of the wrong one.
    labels(both, num=2, fingerprints=prints, first=62)
    args = [*models, *SMALL, "--out", str(tmp_path / "out")]
    assert "both are of split 'test'" in refused([str(both), *args], capsys)
    unknown = labels(tmp_path / "unknown", num=4, fingerprints=prints, split=None)
    assert "of split 'unknown'" in refused([str(unknown), *args], capsys)
    answered = tmp_path / "answered"
    with TraceWriter(answered, provenance(prints, split="test")) as writer:
        writer.write(small_trace([5, 6], policy="slm", correct=True))
    assert "--allow-test-problems" in refused(["--kind", "query", "--traces", str(answered), *args], capsys)
    result = run([str(both), *args, "--allow-test-problems"], capsys)
    assert result["splits"] == {"both": ["test", "train"]}
    card = load_router(tmp_path / "out").card
    assert card.provenance["sources"]["both"]["splits"] == ["test", "train"]
    # Where it was made is nobody's business, nor what the folders above are called.
    arguments = card.provenance["arguments"]
    assert (arguments["labels"], arguments["out"]) == (["both"], "out")
    assert any("has seen problems of split test" in line for line in result["findings"])


def test_a_router_is_tested_on_labels_that_it_did_not_learn_from(
    pair: ModelPair, models: list[str], folders: list[str], tmp_path: Path, capsys: Capture
) -> None:
    greedy, sampled = folders
    args = [*models, *SMALL]
    alone = run([greedy, *args, "--out", str(tmp_path / "alone")], capsys)
    # Tested on another split's problems is what that split is for.
    more = str(labels(tmp_path / "more", 60, "sampled", fingerprints(pair), split="test"))
    both = run([greedy, *args, "--test-labels", more, "--out", str(tmp_path / "both")], capsys)
    assert both["weights"] == alone["weights"] and both["thresholds"] == alone["thresholds"]
    for part in ("train", "validation"):
        assert both["counts"][part] == alone["counts"][part]
    by_name = {part["name"]: part for part in both["test"]}
    assert {"greedy", "sampled T=1"} <= by_name.keys()
    assert by_name["greedy"]["router"] == {part["name"]: part for part in alone["test"]}["all"]["router"]
    assert both["learnt_modes"] == ["greedy"]
    assert any(
        "trained on greedy drafts, and tested on greedy and sampled T=1" in x for x in both["findings"]
    )
    # What was trained before is tested anew without training.
    again = run([greedy, *args, "--test-labels", sampled, "--out", str(tmp_path / "alone")], capsys)
    assert again["weights"] == alone["weights"] and len(again["test"]) > len(alone["test"])
    assert "is among LABELS and --test-labels" in refused([greedy, *args, "--test-labels", greedy], capsys)
    assert "give LABELS, too" in refused(
        ["--import-official", "x.pt", "--test-labels", greedy, *models], capsys
    )


def test_labels_by_a_remote_llm_train_a_router(
    pair: ModelPair, models: list[str], tmp_path: Path, capsys: Capture
) -> None:
    prints = fingerprints(pair) | {"llm": "remote:big-model"}
    folder = labels(tmp_path / "labels", fingerprints=prints)
    result = run([str(folder), *models, *SMALL, "--out", str(tmp_path / "out")], capsys)
    assert result["num_labels"] > 0
    # Another SLM is refused all the same.
    other = labels(tmp_path / "other", fingerprints=prints | {"slm": "0123456789abcdef"})
    assert "made with another slm" in refused([str(other), *models, *SMALL], capsys)


def test_what_labels_alone_would_have_given_is_worded_from_the_numbers() -> None:
    found: Any = SimpleNamespace(
        from_labels=(LabelThreshold(0.1, 0.5, 0.104), LabelThreshold(0.2, 0.4, 0.195))
    )
    assert _shares_title(found) == "Shares of labels are within 0.5 points of those in generation"
    found.from_labels = (LabelThreshold(0.1, 0.5, 0.25), LabelThreshold(0.2, 0.4, 0.195))
    assert _shares_title(found) == "10 % of the labels become 25.0 % of the tokens in generation"
