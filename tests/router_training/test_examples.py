"""Labelled traces as examples: what is taken, what is left out, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelled_traces import FINGERPRINTS, HIDDEN, NUM_LOGITS, VOCAB_SIZE, labelled_trace, labels
from navtoken.labeling.left_out import LeftOut, keep_left_out, read_left_out
from navtoken.provenance import provenance
from navtoken.router.splits import PARTS, part_of
from navtoken.router_training.examples import (
    ExamplesError,
    check_splits,
    draft_mode,
    gather,
    identity_of,
    label_fingerprints,
    splits_of,
)
from navtoken.trace import TraceError, TraceWriter, read_traces


def test_valid_labels_and_their_features_are_taken(tmp_path: Path) -> None:
    folder = labels(tmp_path / "labels", num=9)
    examples = gather([folder], VOCAB_SIZE, tmp_path / "work")
    traces = list(read_traces(folder))
    wanted = [
        (trace, place)
        for trace in traces
        for place in range(len(trace.response_ids))
        if trace.columns["label"][place] in (0, 1, 2)
    ]
    assert len(examples) == len(wanted) < sum(len(trace.response_ids) for trace in traces)
    assert examples.num_left_out == sum(len(trace.response_ids) for trace in traces) - len(wanted)
    features = examples.features(np.arange(len(examples)))
    for row, (trace, place) in enumerate(wanted):
        columns = trace.columns
        assert examples.label_N[row] == columns["label"][place]
        assert examples.entropy_N[row] == columns["entropy_slm"][place]
        assert features.token_ids_B[row] == columns["draft_ids"][place]
        assert features.top_ids_BK[row].tolist() == columns["slm_top_ids"][place].tolist()
        assert features.top_logits_BK[row].tolist() == columns["slm_top_logits"][place].tolist()
        assert features.hidden_BD[row].tolist() == columns["slm_hidden"][place].tolist()
        problem = examples.problems[examples.problem_N[row]]
        assert (problem.task, problem.problem_id) == (trace.task, trace.problem_id)
        assert list(problem.prompt_ids) == trace.prompt_ids
        assert PARTS[examples.part_N[row]] == part_of(trace.problem_id) == problem.part
        assert examples.tasks[examples.task_N[row]] == trace.task
    assert features.top_logits_BK.shape == (len(wanted), NUM_LOGITS) and features.hidden_BD.shape[1] == HIDDEN
    assert not features.in_id_order


def test_the_whole_vocabulary_is_kept_in_order_of_ids(tmp_path: Path) -> None:
    folder = labels(tmp_path / "labels", num=3, num_logits=VOCAB_SIZE)
    examples = gather([folder], VOCAB_SIZE, tmp_path / "work")
    features = examples.features(np.array([4]))
    assert features.in_id_order and features.top_ids_BK[0].tolist() == list(range(VOCAB_SIZE))
    (first, *_) = [trace for trace in read_traces(folder)]
    place = np.flatnonzero(np.isin(first.columns["label"], (0, 1, 2)))[4]
    by_id = np.empty(VOCAB_SIZE, np.float16)
    by_id[first.columns["slm_top_ids"][place]] = first.columns["slm_top_logits"][place]
    assert features.top_logits_BK[0].tolist() == by_id.tolist()


def test_drafts_of_both_kinds_of_one_problem_are_in_one_part(tmp_path: Path) -> None:
    folders = [labels(tmp_path / draft, num=20, draft=draft) for draft in ("greedy", "sampled")]
    examples = gather(folders, VOCAB_SIZE, tmp_path / "work")
    assert examples.modes == ("greedy", "sampled T=1")
    assert len(examples.problems) == 20
    for number in range(20):
        own = examples.problem_N == number
        assert len(set(examples.part_N[own])) == 1
        assert set(examples.mode_N[own]) == {0, 1}
    together = sum(len(examples.of(part)) for part in PARTS)
    assert together == len(examples)
    prompts = [problem.problem_id for part in PARTS for problem in examples.prompts(part)]
    assert sorted(prompts) == sorted(f"p{number}" for number in range(20))


def test_targets(tmp_path: Path) -> None:
    examples = gather([labels(tmp_path / "labels")], VOCAB_SIZE, tmp_path / "work")
    assert (examples.wanted("divergent") == (examples.label_N == 2)).all()
    assert (examples.wanted("different") == np.isin(examples.label_N, (1, 2))).all()
    examples.check("divergent")
    with pytest.raises(ExamplesError, match="labels in the train part 0 are divergent.*label more problems"):
        replace(examples, label_N=np.zeros_like(examples.label_N)).check("divergent")


def test_how_drafts_were_drawn() -> None:
    assert draft_mode({"arguments": {}}) == draft_mode({"arguments": {"draft": "greedy"}}) == "greedy"
    sampled = {"draft": "sampled", "temperature": 0.6, "top_p": 0.95, "top_k": 0}
    assert draft_mode({"arguments": sampled}) == "sampled T=0.6 top_p=0.95"


def test_labels_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    ours = labels(tmp_path / "ours", num=2)
    theirs = labels(tmp_path / "theirs", num=2, fingerprints=FINGERPRINTS | {"slm": "other"})
    assert label_fingerprints([ours]) == FINGERPRINTS
    with pytest.raises(ExamplesError, match=r"theirs are of another slm \(other\) than those in"):
        label_fingerprints([ours, theirs])
    wider = labels(tmp_path / "wider", num=2, num_logits=20)
    with pytest.raises(ExamplesError, match=r"\(12, 32\), \(20, 32\)"):
        gather([ours, wider], VOCAB_SIZE, tmp_path / "work")
    assert identity_of([ours]) != identity_of([wider])


def test_traces_without_labels_or_features_are_refused(tmp_path: Path) -> None:
    def written(name: str, keep: tuple[str, ...]) -> Path:
        trace = labelled_trace(1)
        with TraceWriter(tmp_path / name, provenance(FINGERPRINTS)) as writer:
            writer.write(replace(trace, columns={key: trace.columns[key] for key in keep}))
        return tmp_path / name

    with pytest.raises(TraceError, match="has no labels; write some with `navtoken label`"):
        gather([written("bare", ("entropy_slm",))], VOCAB_SIZE, tmp_path / "work")
    with pytest.raises(ExamplesError, match="no column 'draft_ids', which a router reads"):
        gather([written("thin", ("label", "entropy_slm"))], VOCAB_SIZE, tmp_path / "work")


def test_a_response_whose_stage_failed_counts_for_nothing(tmp_path: Path) -> None:
    folder = labels(tmp_path / "labels", num=4)
    failed = labelled_trace(50)
    failed = replace(failed, columns={"label": np.full(12, 3, np.int8)})
    with TraceWriter(folder, provenance(FINGERPRINTS, draft="greedy")) as writer:
        writer.write(failed)
    examples = gather([folder], VOCAB_SIZE, tmp_path / "work")
    assert set(examples.problem_N) == {0, 1, 2, 3}
    with TraceWriter(tmp_path / "none", provenance(FINGERPRINTS)) as writer:
        writer.write(failed)
    with pytest.raises(ExamplesError, match="no valid label"):
        gather([tmp_path / "none"], VOCAB_SIZE, tmp_path / "work2")


def test_responses_that_were_cut_off_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    folder = labels(tmp_path / "labels", num=4)
    long = replace(labelled_trace(50, length=40), finish_reason="length")
    with TraceWriter(folder, provenance(FINGERPRINTS, draft="greedy")) as writer:
        writer.write(long)
    without = gather([folder], VOCAB_SIZE, tmp_path / "without")
    # No label of it, but thresholds must hold for such a problem too.
    assert without.problems[-1].problem_id == "p50" and 4 not in without.problem_N
    whole = gather([folder], VOCAB_SIZE, tmp_path / "whole", cut_off=True)
    valid = int(np.isin(long.columns["label"], (0, 1, 2)).sum())
    assert len(whole) - len(without) == valid
    assert without.num_left_out - whole.num_left_out == valid


def test_problems_without_labels_are_among_the_problems(tmp_path: Path) -> None:
    folder = labels(tmp_path / "labels", num=9)
    cut = replace(labelled_trace(40), finish_reason="length")
    known = labelled_trace(3, task="knights")
    keep_left_out(folder, [cut, known])
    keep_left_out(folder, [cut])
    assert read_left_out(folder)[0] == LeftOut("countdown", "p40", tuple(cut.prompt_ids))
    assert len(read_left_out(folder)) == 2
    before = gather([labels(tmp_path / "others", num=9)], VOCAB_SIZE, tmp_path / "work")
    examples = gather([folder], VOCAB_SIZE, tmp_path / "work")
    assert len(examples) == len(before)
    assert [each.problem_id for each in examples.problems] == [*(f"p{number}" for number in range(9)), "p40"]
    assert examples.problems[-1].prompt_ids == tuple(cut.prompt_ids)


def test_folders_that_are_only_tested_on(tmp_path: Path) -> None:
    folder = labels(tmp_path / "labels", num=30)
    other = labels(tmp_path / "other", num=40, draft="sampled")
    alone = gather([folder], VOCAB_SIZE, tmp_path / "alone")
    examples = gather([folder], VOCAB_SIZE, tmp_path / "both", tested=[other])
    assert (examples.part_N[len(alone) :] == PARTS.index("test")).all() and len(examples) > len(alone)
    assert (examples.label_N[: len(alone)] == alone.label_N).all()
    assert examples.prompts("validation") == alone.prompts("validation")
    assert examples.modes == ("greedy", "sampled T=1")


def test_splits(tmp_path: Path) -> None:
    train, test = labels(tmp_path / "train", num=2), labels(tmp_path / "test", num=2, split="test")
    # Labels made of given responses may say of the split in those responses' provenance only.
    given = tmp_path / "given"
    record = provenance(FINGERPRINTS, draft="greedy") | {"source": {"arguments": {"split": "validation"}}}
    with TraceWriter(given, record) as writer:
        writer.write(labelled_trace(0))
    assert splits_of([train, test, given]) == {
        str(train): ["train"],
        str(test): ["test"],
        str(given): ["validation"],
    }
    check_splits(splits_of([train]))
    for folder in (test, given):
        with pytest.raises(ExamplesError, match="can no longer be tested"):
            check_splits(splits_of([train, folder]))
