"""The whole of `navtoken train-rl` on a random model: what it writes, that it resumes with the same losses, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from navtoken.rlvr.groups import DynamicSamplingOptions
from navtoken.rlvr.journal import Journal
from navtoken.rlvr.options import RolloutOptions, TrainRLError, TrainRLOptions, UpdateOptions, WatchOptions
from navtoken.rlvr.problems import ProblemSet
from navtoken.rlvr.selection import SelectionOptions
from navtoken.rlvr.train import train_rl
from navtoken.rlvr.trainer import STATE
from tiny_models import tiny_model

REWARD = "python:made_up_rewards.long_enough"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model in the standard layout, in float32."""
    folder = tmp_path_factory.mktemp("model")
    loaded = tiny_model("qwen3", 3, torch.float32, max_position_embeddings=512)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def options(model: str, out: Path, **changes: Any) -> TrainRLOptions:
    """Two prompts, four short responses each, two updates a step."""
    small = TrainRLOptions(
        model=model,
        task=("arithmetic",),
        # A pass over the problems is three steps long.
        num=6,
        steps=4,
        reward=(REWARD,),
        rollout=RolloutOptions(rollout_prompts=2, num_generations=4, max_tokens=8, rollout_rows=8),
        update=UpdateOptions(updates=2, forward_rows=2, learning_rate=1e-3),
        watch=WatchOptions(
            held_out_num=2, held_out_every=2, drift_num=2, drift_every=2, save_every=1, save_total=9
        ),
        device="cpu",
        out=out,
    )
    return replace(small, **changes)


def losses(out: Path) -> list[tuple[int, float, float]]:
    return [(each["step"], each["loss"], each["grad_norm"]) for each in Journal(out).records("train")]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_rl(options(model, out), QUIET)
    return out


def test_a_run_changes_the_model_and_writes_everything(model: str, whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert result["steps"] == 4
    assert result["before"]["num_problems"] == result["after"]["num_problems"] == 2
    journal = Journal(whole)
    assert [each["step"] for each in journal.records("train")] == [2, 4, 6, 8]
    assert [each["step"] for each in journal.records("held_out")] == [0, 4, 8]
    assert [each["step"] for each in journal.records("drift")] == [0, 4, 8]
    assert journal.records("drift")[0]["overlap"]["value"] == 1.0
    for each in journal.records("train"):
        # Of all tokens, rounded up to whole ones.
        assert 0.2 <= each["selection/fraction"] <= 0.2 + 1 / each["selection/pool_tokens"] + 0.005
        assert each["selection/entropy_kept"] > each["selection/entropy_dropped"]
    before = load_file(Path(model) / "model.safetensors")
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(whole).items())


@pytest.mark.parametrize(("select", "stopped"), [("top_entropy:0.2", 3), ("random:0.2", 4)])
def test_a_run_that_was_stopped_goes_on_with_the_losses_of_one_left_alone(
    model: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str, stopped: int
) -> None:
    """In its first pass over the problems, and at the beginning of its second."""
    wanted = options(model, tmp_path / "run", selection=SelectionOptions(select=select))
    if select == "top_entropy:0.2":
        alone = whole
    else:
        alone = tmp_path / "alone"
        train_rl(replace(wanted, out=alone), QUIET)
    _stop_in_step(stopped, wanted, monkeypatch)
    interrupted = losses(wanted.out)
    assert interrupted == losses(alone)[: len(interrupted)] and len(interrupted) == stopped - 1
    train_rl(wanted, QUIET)
    assert losses(wanted.out) == losses(alone)
    for name, tensor in weights(alone).items():
        assert torch.equal(tensor, weights(wanted.out)[name]), name


class Stop(Exception):
    """In the midst of a step."""


def _stop_in_step(step: int, wanted: TrainRLOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    import made_up_rewards

    judge, calls = made_up_rewards.long_enough, []

    def stopping(completions: list[str], trainer_state: Any = None, **columns: Any) -> list[float]:
        calls.append(trainer_state.global_step)
        if trainer_state.global_step >= (step - 1) * wanted.update.updates:
            raise Stop
        return judge(completions)

    with monkeypatch.context() as patch:
        patch.setattr(made_up_rewards, "long_enough", stopping)
        with pytest.raises(Stop):
            train_rl(wanted, QUIET)


def test_a_finished_run_goes_on_to_more_steps(model: str, whole: Path, tmp_path: Path) -> None:
    short = options(model, tmp_path / "run", steps=3)
    train_rl(short, QUIET)
    train_rl(replace(short, steps=4), QUIET)
    assert losses(tmp_path / "run") == losses(whole)


def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(
    model: str, whole: Path, tmp_path: Path
) -> None:
    short = options(model, tmp_path / "run", steps=2)
    train_rl(short, QUIET)
    (tmp_path / "run" / "checkpoints" / "checkpoint-4" / STATE).unlink()
    train_rl(replace(short, steps=4), QUIET)
    assert losses(tmp_path / "run") == losses(whole)


def test_a_run_continues_with_longer_responses_in_smaller_forwards(
    model: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import made_up_rewards

    judge, calls = made_up_rewards.long_enough, []
    monkeypatch.setattr(made_up_rewards, "long_enough", lambda **given: calls.append(1) or judge(**given))
    longer = options(model, tmp_path / "longer", steps=2, continue_from=whole)
    longer = replace(
        longer,
        rollout=replace(longer.rollout, max_tokens=16),
        update=replace(longer.update, forward_rows=1),
        dynamic=DynamicSamplingOptions(dynamic_sampling=False),
    )
    train_rl(longer, QUIET)
    records = Journal(longer.out).records("train")
    assert [each["step"] for each in records] == [10, 12]
    assert records[-1]["completions/max_length"] > 8
    assert len(calls) == 2, "each step draws once"
    # The source may go: where the run began is written down.
    train_rl(replace(longer, continue_from=whole), QUIET)
    assert len(Journal(longer.out).records("train")) == 2


def test_what_continues_a_run_keeps_its_optimiser(model: str, whole: Path, tmp_path: Path) -> None:
    other = options(model, tmp_path / "other", continue_from=whole)
    with pytest.raises(TrainRLError, match="had learning_rate 0.001, asked for is 0.01"):
        train_rl(replace(other, update=replace(other.update, learning_rate=0.01)), QUIET)


def test_a_finished_run_that_is_asked_for_again_makes_no_further_update(model: str, whole: Path) -> None:
    before, losses_before = weights(whole), losses(whole)
    result = train_rl(options(model, whole), QUIET)
    assert result["steps"] == 4
    assert losses(whole) == losses_before
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(whole).items())
    assert [each["step"] for each in Journal(whole).records("held_out")] == [0, 4, 8]


def test_another_run_s_folder_is_refused_by_the_option_that_differs(model: str, whole: Path) -> None:
    other = options(model, whole, selection=SelectionOptions(select="random:0.2"))
    with pytest.raises(TrainRLError, match="select 'top_entropy:0.2', asked for is 'random:0.2'"):
        train_rl(other, QUIET)


def test_every_step_has_each_pool(model: str, tmp_path: Path) -> None:
    for pool in ("mini", "micro"):
        out = tmp_path / pool
        train_rl(options(model, out, steps=1, selection=SelectionOptions(pool=pool)), QUIET)
        (record,) = Journal(out).records("train")
        rows = {"mini": 4, "micro": 2}[pool]
        assert record["selection/pool_tokens"] <= rows * 8


def test_loggers_get_the_run_and_what_watchers_see(model: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = WatchOptions(held_out_num=2, drift_num=2, report_to=("tensorboard",))
    train_rl(options(model, tmp_path / "run", steps=1, watch=watch), QUIET)
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    wanted = {"selection/threshold", "selection/fraction", "refill/prompts", "reward", "held_out/accuracy"}
    named = {name.removeprefix("train/"): name for name in found.Tags()["scalars"]}
    assert wanted | {"drift/overlap"} <= named.keys()
    # Before and after.
    assert [each.step for each in found.Scalars(named["held_out/accuracy"])] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"num": 1}, "there are 1 training problems"),
        ({"trl": ("num_iterations=2",)}, "is set by options of this command"),
        ({"rollout": RolloutOptions(max_tokens=0)}, "max_tokens is 0"),
        ({"reward": ()}, "no reward"),
        ({"task": ("arithmetic", "arithmetic")}, "given twice"),
        ({"rollout": RolloutOptions(temperature=0.0)}, "teach nothing"),
        ({"rollout": RolloutOptions(num_generations=1)}, "num_generations is 1"),
        ({"update": UpdateOptions(updates=3)}, "updates cannot share evenly"),
        ({"trl": ("no_such_option=1",)}, "no option 'no_such_option'"),
        ({"trl": ("learning_rate=1",)}, "is set by options of this command"),
        ({"rollout": RolloutOptions(rollout_prompts=2, max_tokens=100_000)}, "do not fit into the context"),
        ({"continue_from": Path("nowhere")}, "holds no checkpoint"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    model: str, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(TrainRLError, match=word):
        train_rl(options(model, tmp_path / "run", **changes), QUIET)


def test_training_and_held_out_problems_are_different() -> None:
    train, test = (ProblemSet.load(("arithmetic",), split, 200, 0) for split in ("train", "test"))
    assert not train.problems.keys() & test.problems.keys()
