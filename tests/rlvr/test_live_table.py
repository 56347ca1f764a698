"""The table shows what there is, fits, ends with the run, and is plain lines where there is no terminal."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from navtoken.rlvr.drift_watch import DriftWatch, DriftWatchOptions
from navtoken.rlvr.held_out import HeldOut, HeldOutCallback, HeldOutOptions
from navtoken.rlvr.journal import Journal, JournalCallback
from navtoken.rlvr.live_table import NUM_ROWS, LiveTable
from tiny_models import tiny_model
from watched_runs import ALONE, Training, few_problems, run_steps, state_at

LOGS = {
    "loss": -0.0123456,
    "grad_norm": 0.51234,
    "reward": 0.375,
    "entropy": 0.4444,
    "completions/mean_length": 123.4,
    "selection/threshold": 0.6725,
    "selection/fraction": 0.2,
    "step_time": 3.14,
    "held_out/accuracy": 0.3125,
    "held_out/accuracy_se": 0.0201,
}
CELLS = ["0.375", "31.2", "±2.0", "123", "0.444", "0.672", "20.0", "-0.0123", "0.512", "3.1"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40, color_system=None)


def text_of(live: LiveTable, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(live)
    return console.export_text()


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(live: LiveTable, step: int, width: int = 100) -> str:
    (row,) = [line for line in text_of(live, width).splitlines() if re.match(rf"\s*{step} ", line)]
    return row


# ---- what is shown --------------------------------------------------------------------------------------------


def test_a_row_has_every_figure() -> None:
    live = LiveTable(terminal())
    live.note(7, LOGS)
    assert row_of(live, 7).split() == ["7", *CELLS]


def test_it_fits_into_80_columns() -> None:
    live = LiveTable(terminal(80))
    live.note(12345, LOGS | {"loss": -1.234e-05, "grad_norm": 12345.6, "step_time": 1234.5})
    row = row_of(live, 12345, width=80)
    assert "…" not in text_of(live, 80)
    assert row.split()[-1] == "1234.5"


@pytest.mark.parametrize("missing", [*LOGS])
def test_a_figure_that_is_missing_is_a_dash(missing: str) -> None:
    for value in (None, float("nan"), "n/a"):
        live = LiveTable(terminal())
        live.note(7, LOGS | {missing: value})
        cells = row_of(live, 7).split()
        if missing == "held_out/accuracy_se":
            assert cells[2:4] == ["31.2", "123"]
        else:
            assert cells.count("–") == 1
            # An error of nothing is not shown either.
            assert ("±2.0" in cells) == (missing != "held_out/accuracy")
    live.note(8, {})
    assert row_of(live, 8).split() == ["8", *"–––––––––"]


def test_the_last_steps_are_in_sight() -> None:
    live = LiveTable(terminal())
    run_steps([live], 0, 15, max_steps=100, ends=False)
    steps = [int(line.split()[0]) for line in text_of(live).splitlines() if re.match(r"\s*\d+ ", line)]
    assert steps == list(range(15 - NUM_ROWS + 1, 16))
    live.close()


def test_figures_of_one_step_come_from_all_who_have_some() -> None:
    live = LiveTable(terminal())
    live.note(0, {"held_out/accuracy": 0.25})
    live.note(1, {"held_out/accuracy": 0.5})
    live.note(1, {"reward": 0.75})
    assert row_of(live, 0).split()[1:3] == ["–", "25.0"]
    assert row_of(live, 1).split()[1:3] == ["0.750", "50.0"]
    live.close()


def test_steps_are_timed_where_nobody_says() -> None:
    clock = Clock()
    live = LiveTable(terminal(), clock)
    state = state_at(0)
    live.on_step_begin(ALONE, state, None)
    clock.now, state.global_step = 2.5, 1
    live.on_log(ALONE, state, None, logs={"loss": 1.0})
    assert row_of(live, 1).split()[-1] == "2.5"
    live.close()


def test_how_long_the_rest_will_take() -> None:
    """Steps of minutes each, in a run that goes on at step 40 of 100."""
    clock = Clock()
    live = LiveTable(terminal(), clock)
    state = state_at(40, max_steps=100)
    live.on_train_begin(ALONE, state, None)
    assert "40/100" in text_of(live)
    for step in (41, 42, 43):
        clock.now += 120
        state.global_step = step
        live.on_step_end(ALONE, state, None)
    # 57 steps of 2 minutes.
    assert re.search(r"43/100 1:54:00", text_of(live))
    live.close()


def test_work_has_a_bar_while_it_lasts() -> None:
    live = LiveTable(terminal())
    with live.work("held-out problems", 20) as advance:
        advance(5)
        assert re.search(r"held-out problems .* 5/20", text_of(live))
    assert "held-out" not in text_of(live)
    with pytest.raises(KeyError), live.work("drift", 3):
        raise KeyError
    assert "drift" not in text_of(live)
    live.close()


# ---- the terminal ---------------------------------------------------------------------------------------------

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_a_terminal_is_given_back_at_the_end() -> None:
    console = terminal()
    live = LiveTable(console)
    run_steps([live], 0, 3, max_steps=3, logs=LOGS, ends=False)
    assert written(console).count(HIDE) == 1
    assert SHOW not in written(console)
    live.on_train_end(ALONE, state_at(3), None)
    assert written(console).count(SHOW) == 1
    # The last table stays.
    assert "31.2 ±2.0" in written(console).rsplit(HIDE, 1)[1]


def test_a_terminal_is_given_back_however_training_ends() -> None:
    console = terminal()
    with pytest.raises(KeyboardInterrupt), LiveTable(console) as live:
        run_steps([live], 0, 2, ends=False)
        raise KeyboardInterrupt
    assert written(console).count(SHOW) == written(console).count(HIDE) == 1


def test_work_before_and_after_training_is_shown_too() -> None:
    """A watcher's first look comes before, and its last after the table's own turn."""
    console = terminal()
    live = LiveTable(console)
    with live.work("held-out problems", 3):
        pass
    live.on_train_begin(ALONE, state_at(0), None)
    live.on_train_end(ALONE, state_at(3), None)
    with live.work("drift", 3):
        pass
    live.close()
    assert written(console).count(SHOW) == written(console).count(HIDE) == 2
    assert "drift" in written(console)


# ---- no terminal ----------------------------------------------------------------------------------------------


def plain(**kwargs: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=60, **kwargs)


def test_a_plain_line_a_step() -> None:
    console = plain()
    live = LiveTable(console)
    with live.work("held-out problems", 3) as advance:
        advance(3)
    live.note(0, {"held_out/accuracy": 0.25})
    run_steps(
        [live], 0, 2, max_steps=9, logs={"loss": 0.5, "reward": 0.25, "entropy": None, "step_time": 2.0}
    )
    assert written(console).splitlines() == [
        "step 0/9 · held out % 25.0",
        "step 1/9 · reward 0.250 · loss 0.5 · s 2.0",
        "step 2/9 · reward 0.250 · loss 0.5 · s 2.0",
    ]


def test_a_line_has_what_watchers_saw_at_its_step() -> None:
    console = plain()
    live = LiveTable(console)
    state = state_at(0)
    live.on_train_begin(ALONE, state, None)
    state.global_step = 1
    live.note(1, {"held_out/accuracy": 0.25})
    live.on_log(ALONE, state, None, logs={"loss": 0.5})
    live.note(2, {"held_out/accuracy": 0.5})
    live.close()
    assert written(console).splitlines() == [
        "step 1/10 · held out % 25.0 · loss 0.5",
        "step 2/10 · held out % 50.0",
    ]


def test_other_ranks_are_silent() -> None:
    for console in (plain(), terminal()):
        run_steps([LiveTable(console)], 0, 2, logs=LOGS, main=False)
        assert written(console) == ""


# ---- with a trainer -------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.arange(index + 2, index + 12)
        return {"input_ids": ids, "labels": ids}


def trained(folder: Path, console: Console, steps: int, resume: bool = False) -> list[dict[str, Any]]:
    """A real trainer with all watchers; returns its history."""
    training = Training(tiny_model("qwen3", seed=3, dtype=torch.float32))
    model = training.model.model.train().requires_grad_(True)
    journal, every = Journal(folder), 2
    live = LiveTable(console)
    problems = few_problems(2)
    callbacks = [
        JournalCallback(journal, {"seed": 0}),
        HeldOutCallback(
            HeldOut(problems, HeldOutOptions(samples=2, max_tokens=6)), training.trained, journal, every, live
        ),
        DriftWatch(
            problems,
            folder / "drift",
            training.trained,
            journal,
            every,
            DriftWatchOptions(max_tokens=16),
            display=live,
        ),
        live,
    ]
    args = TrainingArguments(
        str(folder / "checkpoints"), max_steps=steps, per_device_train_batch_size=2, logging_steps=1, save_steps=1,
        learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=Rows(), callbacks=callbacks)
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    with live:
        trainer.train(resume_from_checkpoint=resume)
    assert model.training
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def kinds(folder: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in Journal(folder).records()]


def test_all_together_under_a_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = plain()
    history = trained(tmp_path, console, 3)
    looks = [("held_out", 2), ("drift", 2)]
    assert kinds(tmp_path) == [
        ("phase", 0), ("held_out", 0), ("drift", 0), ("train", 1), *looks, ("train", 2),
        ("held_out", 3), ("drift", 3), ("train", 3), ("phase", 3),
    ]  # fmt: skip
    by_step = {entry["step"]: entry for entry in history if "loss" in entry}
    assert [("held_out/entropy" in by_step[step], "drift/overlap" in by_step[step]) for step in (1, 2, 3)] == [
        (False, False), (True, True), (True, True),
    ]  # fmt: skip
    records = Journal(tmp_path).records()
    overlaps = [record["overlap"]["value"] for record in records if record["kind"] == "drift"]
    assert overlaps[0] == 1.0 > overlaps[-1]
    entropies = [record["entropy"] for record in records if record["kind"] == "held_out"]
    assert entropies[0] != entropies[1]
    assert [line.split(" · ")[0] for line in written(console).splitlines()] == [
        f"step {step}/3" for step in range(4)
    ]
    assert capsys.readouterr().out == ""
    # A longer run goes on, and journals each step once.
    trained(tmp_path, terminal(), 5, resume=True)
    found = kinds(tmp_path)
    assert [step for kind, step in found if kind == "train"] == [1, 2, 3, 4, 5]
    for looked in ("held_out", "drift"):
        assert [step for kind, step in found if kind == looked] == [0, 2, 3, 4, 5]
