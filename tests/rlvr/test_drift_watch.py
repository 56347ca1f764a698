"""The base's responses stay as they are, every look is of the weights of its step, and what it tells is what drift tells."""

import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.utils
import numpy as np
import pytest
import torch

from navtoken.analysis.drift import drift
from navtoken.analysis.ranking import Resampling
from navtoken.engine.options import OptionError
from navtoken.rlvr import drift_watch as module
from navtoken.rlvr.drift_store import DriftStore
from navtoken.rlvr.drift_watch import DriftWatch, DriftWatchError, DriftWatchOptions, entropies_of
from navtoken.rlvr.journal import Journal, JournalCallback
from navtoken.trace import TraceError, read_traces
from tiny_models import VOCAB_SIZE, tiny_tokenizer
from watched_runs import Training, few_problems, run_steps

OPTIONS = DriftWatchOptions(samples=2, max_tokens=24, resamples=20, min_count=1, num_items=4)


def watch(folder: Path, training: Training, every: int = 2, **changes: Any) -> DriftWatch:
    problems = changes.pop("problems", None) or few_problems(3)
    options = changes.pop("options", OPTIONS)
    return DriftWatch(
        problems, folder / "drift", training.trained, Journal(folder), every, options, **changes
    )


def looks(folder: Path) -> list[dict[str, Any]]:
    return Journal(folder).records("drift")


def responses(folder: Path) -> list[list[int]]:
    return [trace.response_ids for trace in read_traces(folder / "drift" / "responses")]


# ---- what is kept ---------------------------------------------------------------------------------------------


def test_looks_are_kept_in_their_order(tmp_path: Path) -> None:
    store = DriftStore(tmp_path)
    assert store.steps() == []
    for step in (120, 0, 9):
        store.save(step, np.full(3, step, np.float32))
    store.save(9, np.array([1, 2, 3], np.float32))
    assert store.steps() == [0, 9, 120]
    assert store.entropies(9).tolist() == [1, 2, 3]
    store.rewind(9)
    assert store.steps() == [0, 9]
    assert len(list((tmp_path / "entropies").iterdir())) == 2


def test_entropies_are_those_of_plain_forwards(tmp_path: Path) -> None:
    training = Training()
    run_steps([watch(tmp_path, training)], 0, 0, ends=False)
    training.train()
    frozen, model = DriftStore(tmp_path / "drift").frozen(), training.model.model
    expected = []
    for trace in frozen.chosen.traces():
        ids = torch.tensor([[*trace.prompt_ids, *trace.response_ids]])
        logits = model(ids).logits[0, len(trace.prompt_ids) - 1 : -1, :VOCAB_SIZE]
        p = logits.softmax(-1)
        expected.append(-(p * p.log()).sum(-1))
    heard: list[int] = []
    found = entropies_of(training.model, frozen, heard.append)
    assert found.dtype == np.float32
    assert np.allclose(found, torch.cat(expected).numpy(), atol=1e-5)
    assert sum(heard) == frozen.num_responses == 6


# ---- a run ----------------------------------------------------------------------------------------------------


def test_a_run_is_followed(tmp_path: Path) -> None:
    training = Training()
    watcher = watch(tmp_path, training, every=2)
    logged = run_steps([watcher], 0, 5, max_steps=5, training=training)
    records, store = looks(tmp_path), DriftStore(tmp_path / "drift")
    assert [record["step"] for record in records] == store.steps() == [0, 2, 4, 5]
    assert training.syncs == 4
    traces = list(read_traces(tmp_path / "drift" / "responses"))
    assert len(traces) == 6
    assert {trace.sampling["temperature"] for trace in traces} == {1.0}
    assert records[0]["overlap"]["value"] == 1.0
    assert all(each["value"] == 0.0 for each in records[0]["change_by_bin"])
    assert records[0]["leaving"] == records[0]["entering"] == []
    # What is kept tells the same as the journal.
    frozen = store.frozen()
    whole = drift(
        [str(step) for step in store.steps()],
        [partial(store.entropies, step) for step in store.steps()],
        frozen.response_id_N,
        frozen.cluster_N,
        0.2,
        Resampling(20, 0),
    )
    for record, checkpoint in zip(records, whole.checkpoints, strict=True):
        assert record["overlap"] == vars(checkpoint.overlap_base)
        assert record["entropy"] == checkpoint.mean_entropy
        assert record["threshold"] == checkpoint.threshold
        assert record["change_by_bin"] == [vars(each) for each in checkpoint.change_by_bin]
        assert record["base_step"] == 0
    assert records[-1]["overlap"]["low"] <= records[-1]["overlap"]["value"] < 1.0
    assert records[-1]["entropy_base"] == records[0]["entropy"]
    assert [logs.get("drift/overlap") for logs in logged] == [
        None, records[1]["overlap"]["value"], None, records[2]["overlap"]["value"], records[3]["overlap"]["value"],
    ]  # fmt: skip
    assert logged[1]["drift/entropy"] == records[1]["entropy"]


def test_what_leaves_and_enters_is_spelled(tmp_path: Path) -> None:
    training = Training()
    run_steps([watch(tmp_path, training)], 0, 2, training=training)
    last, store = looks(tmp_path)[-1], DriftStore(tmp_path / "drift")
    frozen = store.frozen()
    count = math.ceil(0.2 * frozen.num_tokens)
    base, now = (set(np.argsort(-store.entropies(step), kind="stable")[:count].tolist()) for step in (0, 2))
    assert last["num_left"] == len(base - now) > 0
    for name, side in (("leaving", -1), ("entering", 1)):
        assert 0 < len(last[name]) <= 4
        for item in last[name]:
            of_item = set(np.flatnonzero(frozen.response_id_N == item["token_id"]).tolist())
            assert item["net"] == len(of_item & now) - len(of_item & base)
            assert item["net"] * side > 0
            assert (item["left"], item["entered"]) == (
                len(of_item & (base - now)),
                len(of_item & (now - base)),
            )
            assert item["token"] == tiny_tokenizer().decode([item["token_id"]])


def test_the_fraction_is_the_one_asked_for(tmp_path: Path) -> None:
    run_steps([watch(tmp_path, Training(), options=DriftWatchOptions(0.5, max_tokens=24))], 0, 0, ends=False)
    (record,) = looks(tmp_path)
    store = DriftStore(tmp_path / "drift")
    entropy = np.sort(store.entropies(0))[::-1]
    assert record["fraction"] == 0.5
    assert record["threshold"] == pytest.approx(float(entropy[math.ceil(len(entropy) / 2) - 1]))


def test_training_does_not_change_the_responses(tmp_path: Path) -> None:
    training = Training()
    run_steps([watch(tmp_path, training)], 0, 2, training=training)
    then = responses(tmp_path)
    assert then == responses_of_a_fresh_run(tmp_path)
    run_steps([watch(tmp_path, training)], 2, 4, training=training)
    assert responses(tmp_path) == then


def responses_of_a_fresh_run(folder: Path) -> list[list[int]]:
    run_steps([watch(folder / "fresh", Training())], 0, 0, ends=False)
    return responses(folder / "fresh")


# ---- interruptions --------------------------------------------------------------------------------------------


def resumed(folder: Path, training: Training, first: int, last: int) -> None:
    callbacks = [JournalCallback(Journal(folder)), watch(folder, training)]
    run_steps(callbacks, first, last, training=training, ends=False)


def test_a_resumed_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, cut = Training(), Training()
    resumed(tmp_path / "whole", whole, 0, 6)
    resumed(tmp_path / "cut", cut, 0, 3)
    saved = {name: weight.clone() for name, weight in cut.model.model.state_dict().items()}
    # It comes as far as step 6 on other weights, is killed, and goes on from its checkpoint at step 3.
    cut.train(0.5)
    resumed(tmp_path / "cut", cut, 3, 6)
    wrong = DriftStore(tmp_path / "cut" / "drift").entropies(6)
    cut.model.model.load_state_dict(saved)
    resumed(tmp_path / "cut", cut, 3, 4)
    assert DriftStore(tmp_path / "cut" / "drift").steps() == [0, 2, 4]
    resumed(tmp_path / "cut", cut, 4, 6)
    stores = [DriftStore(tmp_path / name / "drift") for name in ("whole", "cut")]
    assert stores[0].steps() == stores[1].steps() == [0, 2, 4, 6]
    for step in (0, 2, 4, 6):
        assert np.array_equal(stores[0].entropies(step), stores[1].entropies(step))
    assert not np.array_equal(wrong, stores[1].entropies(6))
    one, other = ([record | {"time": 0} for record in looks(tmp_path / name)] for name in ("whole", "cut"))
    assert one == other


def test_responses_that_were_cut_short_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, allowed = module.respond, 4

    def killed(*args: Any) -> Any:
        for number, trace in enumerate(real(*args)):
            if number == allowed:
                raise KeyboardInterrupt
            yield trace

    monkeypatch.setattr(module, "respond", killed)
    with pytest.raises(KeyboardInterrupt):
        run_steps([watch(tmp_path, Training())], 0, 0)
    assert len(responses(tmp_path)) == 4
    assert looks(tmp_path) == []
    monkeypatch.undo()
    run_steps([watch(tmp_path, Training())], 0, 0, ends=False)
    assert sorted(responses(tmp_path)) == sorted(responses_of_a_fresh_run(tmp_path))
    assert [record["step"] for record in looks(tmp_path)] == [0]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("drift", "there are no frozen responses in"),
        ("drift/responses", "there are no frozen responses in"),
        ("drift/entropies", "the base's entropies of the frozen responses are missing in"),
    ],
)
def test_what_only_the_base_could_make_is_not_made_by_another(
    tmp_path: Path, lost: str, message: str
) -> None:
    training = Training()
    run_steps([watch(tmp_path, training)], 0, 2, training=training, ends=False)
    shutil.rmtree(tmp_path / lost)
    with pytest.raises(DriftWatchError, match=f"{message} .*begin anew in another folder"):
        run_steps([watch(tmp_path, training)], 2, 4, training=training)


def test_other_responses_than_the_runs_are_refused(tmp_path: Path) -> None:
    training = Training()
    run_steps([watch(tmp_path, training)], 0, 2, training=training, ends=False)
    for num in (2, 4):
        with pytest.raises(
            DriftWatchError, match=f"the 6 frozen responses are not those to the {2 * num} asked for"
        ):
            run_steps([watch(tmp_path, training, problems=few_problems(num))], 2, 4)
    # Responses that a killed run left are of its options.
    Journal(tmp_path).path.unlink()
    with pytest.raises(TraceError, match="max_tokens"):
        run_steps([watch(tmp_path, Training(), options=DriftWatchOptions(samples=2, max_tokens=9))], 0, 2)
    with pytest.raises(TraceError, match="fingerprints"):
        training.model.__dict__.pop("fingerprint", None)
        run_steps([watch(tmp_path, training)], 0, 2)


def test_a_run_that_begins_at_anothers_checkpoint_has_a_base_of_its_own(tmp_path: Path) -> None:
    training = Training()
    run_steps([watch(tmp_path, training)], 7, 8, training=training, ends=False)
    run_steps([watch(tmp_path, training)], 8, 10, training=training)
    assert [(record["base_step"], record["step"]) for record in looks(tmp_path)] == [(7, 7), (7, 8), (7, 10)]
    assert looks(tmp_path)[0]["overlap"]["value"] == 1.0


# ---- ranks and options ----------------------------------------------------------------------------------------


def test_other_ranks_take_part_in_sync_and_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The main rank: it is the first look, then that each is still to be done.
    said = [True, False, False, False]
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", lambda _: [said.pop(0)])
    training, args = Training(), SimpleNamespace(world_size=2, process_index=1)
    run_steps([watch(tmp_path, training)], 0, 4, args=args, main=False, ends=False)
    assert training.syncs == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fraction": 1.0}, DriftWatchError, "fraction is 1.0; give a share between 0 and 1"),
        ({"samples": 0}, DriftWatchError, "samples is 0; give at least 1"),
        ({"resamples": -1}, DriftWatchError, "resamples is -1; give at least 0"),
        ({"max_tokens": 0}, OptionError, "max_tokens is 0"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    tmp_path: Path, changes: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        watch(tmp_path, Training(), options=DriftWatchOptions(**changes))
