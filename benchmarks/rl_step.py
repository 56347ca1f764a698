"""A step of `navtoken train-rl` against one of stock TRL on the same batch: drawing the responses, and the update from them.

    python benchmarks/rl_step.py --json

Both trainers read the same problems in the same order with the same settings (DAPO loss, top 20 % of tokens, no dynamic sampling). Stock TRL
draws with transformers' `generate`, which is timed, and then gets the engine's responses, so that both update from one batch. A round is
a short training of each; its first step warms up and does not count.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from measuring import (
    Bar,
    bars_table,
    console_for,
    finish,
    interleaved,
    paired_ratio,
    run_script,
    set_threads,
    spread,
    table,
)
from navtoken.checkpoints import load_model
from navtoken.engine import EngineOptions, SamplingParams
from navtoken.rlvr.groups import DynamicSamplingOptions
from navtoken.rlvr.problems import ProblemSet
from navtoken.rlvr.rewards import Outcome, reward_named
from navtoken.rlvr.rollouts import EngineRollouts, shadow_of
from navtoken.rlvr.selection import SelectionOptions
from navtoken.rlvr.trainer import NavigationTrainer

WAYS = ("navtoken", "trl")
FRACTION = 0.2


@dataclass(frozen=True)
class Options:
    """How long does a step take?"""

    model: str = "embedded:base"
    """The model that is trained."""
    prompts: int = 16
    """Problems of a rollout batch."""
    group: int = 8
    """Responses to each."""
    max_tokens: int = 256
    """Longest response."""
    forward_rows: int = 16
    """Responses per forward and backward."""
    steps: int = 3
    """Of a round, the first for warming up."""
    repeats: int = 3
    """Interleaved rounds."""
    threads: int = 1
    """Torch threads; 0 leaves torch's choice."""
    json: bool = False
    """Only the JSON line goes to standard output; tables go to standard error."""
    out: Path | None = None
    """Also write the result to this file."""


@dataclass
class Clock:
    """Seconds and tokens of every drawing, and seconds of every step."""

    draw: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    """Whole, with drawing."""

    @contextmanager
    def drawing(self) -> Iterator[list[list[int]]]:
        """Times what is within; whoever draws puts the responses into the list."""
        responses: list[list[int]] = []
        started = time.perf_counter()
        yield responses
        self.draw.append(time.perf_counter() - started)
        self.tokens.append(sum(map(len, responses)))


class StockTrainer(GRPOTrainer):
    """TRL as it is, but for what comes out of drawing."""

    def __init__(self, clock: Clock, responses: list[list[list[int]]], **kwargs: Any) -> None:
        self.clock, self.responses = clock, iter(responses)
        super().__init__(**kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.drawing() as drawn:
            token_ids, logprobs = super()._generate_single_turn(*args, **kwargs)
            drawn += token_ids
        return next(self.responses), logprobs


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print; returns what the JSON line says."""
    options = tyro.cli(Options, description=__doc__, args=args)
    set_threads(options.threads)
    console = console_for(options.json)
    # In a round the engine draws first: what it drew is what TRL updates from.
    responses: list[list[list[int]]] = []
    ways = {"navtoken": partial(_ours, options, responses), "trl": partial(_stock, options, responses)}
    runs = interleaved(ways, options.repeats)
    rows = [_row(way, runs[way]) for way in WAYS]
    ratios = {
        name: paired_ratio(
            [_mean(run, name) for run in runs["trl"]], [_mean(run, name) for run in runs["navtoken"]]
        )
        for name in ("draw_per_token", "update", "step")
    }
    cells = [
        (row["way"], *(row[name]["median"] for name in ("draw_per_token", "update", "step"))) for row in rows
    ]
    cells.append(("trl / navtoken", *(ratio.median for ratio in ratios.values())))
    console.print(table("A step", ("", "drawing, ms a token", "update, s", "step, s"), cells))
    bars = [Bar("stock TRL's step / ours", 1.0, ratios["step"].median)]
    console.print(bars_table(bars))
    result = {
        "rows": rows,
        "ratios": {name: ratio._asdict() for name, ratio in ratios.items()},
        "bars": [bar.as_json() for bar in bars],
    }
    return finish("rl_step", options, result, options.out)


def _ours(options: Options, responses: list[list[list[int]]], _: int) -> Clock:
    clock = Clock()
    loaded, problems, rows = _parts(options)
    shadow = shadow_of(loaded.model, loaded.tokenizer, options.model)
    rollouts = EngineRollouts(
        shadow,
        SamplingParams(temperature=1.0),
        options.max_tokens,
        EngineOptions(max_rows=options.prompts * options.group),
    )
    draw = rollouts.draw

    def timed(*args: Any) -> Any:
        with clock.drawing() as drawn:
            groups = draw(*args)
            drawn += [rollout.token_ids for group in groups for rollout in group]
        responses.append(drawn)
        return groups

    responses.clear()
    rollouts.draw = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = NavigationTrainer(
            model=loaded.model.requires_grad_(True).train(),
            args=_arguments(options, folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            outcome=Outcome(reward_named("verifier", problems)),
            selection=SelectionOptions(f"top_entropy:{FRACTION}"),
            dynamic=DynamicSamplingOptions(dynamic_sampling=False, count_uninformative=True),
            rollouts=rollouts,
        )
        return _trained(trainer, clock)


def _stock(options: Options, responses: list[list[list[int]]], _: int) -> Clock:
    clock = Clock()
    loaded, problems, rows = _parts(options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = StockTrainer(
            clock,
            list(responses),
            model=loaded.model.requires_grad_(True).train(),
            args=_arguments(options, folder, top_entropy_quantile=FRACTION),
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            reward_funcs=[reward_named("verifier", problems)],
        )
        return _trained(trainer, clock)


def _parts(options: Options) -> tuple[Any, ProblemSet, list[dict[str, Any]]]:
    loaded = load_model(options.model)
    problems = ProblemSet.load(("countdown",), "train", options.prompts * (options.steps + 1), 0)
    return loaded, problems, list(problems.rows(loaded.tokenizer))


def _arguments(options: Options, folder: str, **further: Any) -> GRPOConfig:
    accumulated = options.prompts * options.group // options.forward_rows
    return GRPOConfig(
        folder,
        seed=0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        loss_type="dapo",
        epsilon_high=0.28,
        num_generations=options.group,
        per_device_train_batch_size=options.forward_rows,
        gradient_accumulation_steps=accumulated,
        max_completion_length=options.max_tokens,
        max_steps=options.steps,
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **further,
    )


def _trained(trainer: Any, clock: Clock) -> Clock:
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()
    clock.step = [each["step_time"] for each in trainer.state.log_history if "step_time" in each]
    return clock


def _mean(run: Clock, name: str) -> float:
    """Of the steps that count."""
    draw, tokens, step = (values[1:] for values in (run.draw, run.tokens, run.step))
    if name == "draw_per_token":
        return 1e3 * sum(draw) / sum(tokens)
    whole = sum(step) / len(step)
    return whole if name == "step" else whole - sum(draw) / len(draw)


def _row(way: str, runs: list[Clock]) -> dict[str, Any]:
    names = ("draw_per_token", "update", "step")
    return {"way": way} | {name: spread([_mean(run, name) for run in runs])._asdict() for name in names}


if __name__ == "__main__":
    run_script(main)
